"""What the page of a ``moe`` study shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.core import Basis, Phase, Trial
from autotune.kernels.config_file import FIELDS
from autotune.kernels.moe.routing import Routing
from autotune.kernels.predict.choose import least_gain
from autotune.kernels.predict.roofline import Ceilings, Share, share
from autotune.kernels.propose import grouped
from autotune.kernels.report import plots
from autotune.kernels.report.clocks import clocks
from autotune.kernels.report.notes import few_keys, note
from autotune.kernels.report.verdict import Verdict, last_verdict
from autotune.kernels.stored import Row, Tuned, folder_of, load
from autotune.machine.devices import Device
from autotune.report import parts
from autotune.report.history import best_so_far
from autotune.report.page import Block, Code, Grid, Page, Section, Table, Text
from autotune.store.records import DatedTrial, RunStatus, SearchRecord, StudyDetail
from autotune.store.store import Store

CONFIG = "BM/BN/BK/G/warps/stages"
BANNER = "PREDICTED, not measured: every time on this page comes from a cost model"


NARROW = 6
"""Columns of the table that 80 characters hold."""
MIN_GAIN = 0.01
"""Where neither the caller nor a job says how much a row must gain."""
LOGS = (
    "vLLM then logs «Using configuration from …»; where it does not, another backend runs these "
    "layers: add --moe-backend triton."
)
SERVE = "VLLM_TUNED_CONFIG_FOLDER=<this folder> vllm serve …"
EXPLAINED = (
    "Medians over rounds, each with fresh routings; the default and the finalists take turns. Of "
    "bandwidth counts the least bytes the call must move (each expert in use once), of tensor rate "
    "its operations."
)
PREDICTED_EXPLAINED = (
    "Two figures in a cell are GEMM 1 (gate and up) and GEMM 2 (down). Limited by names what takes "
    "longest in the longer GEMM: bytes from memory, l2, tensor cores, shared memory, latency, or "
    "the last partial waves. The model hardly tells candidates apart where the memory limits, and "
    "is not good enough to pick winners at large M."
)


def page_of(
    store: Store,
    study: str,
    *,
    min_gain: float | None = None,
    setup: Mapping[str, Any] | None = None,
    device: Device | None = None,
    out: Path | None = None,
) -> Page:
    """Make the page of a study as of now.

    Args:
        store: with the study.
        study: its name.
        min_gain: a row that gains less is vLLM's default; as the finished job had it if None.
        setup: of the search to show; the last one, measured before predicted, if None.
        device: tuned for, where it is none of those that come with the project.
        out: where commands write their files, for the words of a job that left them there alone.

    Raises:
        BadInputError: no such study, of another kind, or nothing tuned in it yet.
    """
    tuned = load(
        store, study, MIN_GAIN if min_gain is None else min_gain, setup=setup, device=device
    )
    detail = store.get_study(study)
    (search,) = (record for record in detail.searches if record.setup == tuned.setup)
    folder = None if out is None else folder_of(out, study, tuned.basis)
    verdict = last_verdict(store, search, folder)
    if min_gain is None:
        min_gain = MIN_GAIN if verdict.min_gain is None else verdict.min_gain
        tuned = load(store, study, min_gain, setup=tuned.setup, device=device)
    return _Sheet(tuned, detail, search, store.dated_trials(search), verdict, min_gain).page()


class _Sheet:
    """One search of one study, on its way to a page."""

    def __init__(
        self,
        tuned: Tuned,
        detail: StudyDetail,
        search: SearchRecord,
        dated: Sequence[DatedTrial],
        verdict: Verdict,
        min_gain: float,
    ) -> None:
        self.tuned, self.detail, self.dated = tuned, detail, dated
        self.search, self.verdict, self.min_gain = search, verdict, min_gain
        seen = verdict.measured_on
        self.ceilings = (
            Ceilings.measured(seen.model_dump(), tuned.shape)
            if seen
            else Ceilings.published(tuned.device, tuned.shape)
        )
        self.runs = [run for run in detail.all_runs if run.search_id == search.id]
        self.batch_sizes = {
            w.key: int(w.spec["m"]) for w in detail.workloads if w.search_id == search.id
        }
        self.predicted = tuned.basis is not Basis.MEASURED
        self.routing = Routing.from_setup(tuned.setup)
        self.shares: dict[int, Share] = {
            m: share(tuned.shape, m, row.us, self.ceilings, self.routing)
            for m, row in tuned.rows.items()
        }

    def page(self) -> Page:
        """All of it."""
        sections = [
            self.rows(),
            self.columns(),
            *self.between(),
            clocks(self.verdict.measured_on, (dated.trial for dated in self.dated)),
            self.use(),
            self.roofline(),
            self.landscape(),
            self.history(),
            Section("Failures", parts.failures((d.trial for d in self.dated), self.where)),
            parts.environment(self.tuned.environments, self.tuned.setup),
            parts.commands(self.runs),
        ]
        return Page(
            title=self.tuned.study,
            basis=self.tuned.basis.value,
            banner=BANNER if self.predicted else None,
            result=self.result(),
            facts=self.facts(),
            warnings=self.warnings(),
            sections=[section for section in sections if section.blocks],
        )

    def where(self, trial: Trial) -> str:
        """Such as ``M=64``."""
        return f"M={self.batch_sizes[trial.workload_key]}"

    def result(self) -> str:
        """How many rows differ from vLLM's default, and what they gain."""
        rows = self.tuned.rows
        if not rows:
            return "No row has met vLLM's default side by side yet; the same command goes on"
        changed = sum(not row.pinned for row in rows.values())
        said = f"{changed} of {len(rows)} rows differ from vLLM's default; "
        said += f"{self.tuned.overall:.3f}× in the geometric mean over all keys"
        alone = [str(m) for m, row in rows.items() if row.default_us is None]
        if alone:
            said += f", where M={', '.join(alone)} count as 1 because the default has no time there"
        if self.predicted and not changed:
            said += (
                "; by the prediction there is nothing to gain, the file only ends vLLM's warning"
            )
        return f"Predicted: {said}" if self.predicted else said

    def facts(self) -> list[tuple[str, str]]:
        """The shortest description."""
        tuned, shape, setup = self.tuned, self.tuned.shape, self.tuned.setup
        routed = [] if self.routing.uniform else [("Routing", self.routing.label)]
        model = self.verdict.model
        return [
            ("Times", note(tuned.basis)),
            *([("Model", model)] if model else []),
            ("Device", f"{tuned.device.title} (sm_{tuned.device.arch})"),
            (
                "Layer",
                f"E={shape.experts}, N={shape.intermediate}, K={shape.hidden}, "
                f"topk={shape.topk}, {shape.weight_dtype} ({shape.scheme.value})",
            ),
            ("File", tuned.file_name),
            (
                "Kernel",
                f"vLLM {setup['vllm']}, fused_moe.py sha256 {setup['kernel_sha256'][:16]}, "
                f"Triton {setup['triton']}",
            ),
            (
                "Search",
                f"space {setup['space']['name']}{self.searched()}, sampler {setup['sampler']}, "
                f"seed {setup['seed']}",
            ),
            ("Trials", self.outcomes()),
            *routed,
            *self.measured_facts(),
        ]

    def searched(self) -> str:
        """How much of the space, as the job said it."""
        words = self.verdict
        if words.feasible is None or words.space_size is None:
            return ""
        effort = f", effort {words.effort}" if words.effort else ""
        return f", {words.feasible} of {words.space_size} feasible{effort}"

    def outcomes(self) -> str:
        """Such as ``39 ok, 2 compile_error``."""
        counts: dict[str, int] = {}
        for dated in self.dated:
            name = dated.trial.measurement.outcome.value
            counts[name] = counts.get(name, 0) + 1
        said = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        last = max(run.id for run in self.runs)
        kept = sum(dated.run_id != last for dated in self.dated)
        return f"{said}; {kept} of them by earlier commands" if kept else said

    def measured_facts(self) -> list[tuple[str, str]]:
        """What the measuring process said of itself; nothing of a prediction."""
        seen = self.verdict.measured_on
        spent = {name: s for name, s in self.verdict.spent.items() if s is not None}
        if seen is None:
            return []
        versions = {"driver": self.tuned.setup.get("driver"), "torch": seen.torch,
                    "Triton": seen.triton, "vLLM": seen.vllm, "CUDA": seen.cuda}  # fmt: skip
        known = [f"{name} {version}" for name, version in versions.items() if version]
        took = [
            f"{name.removesuffix('_s')} {s:.1f} s"
            for name, s in spent.items()
            if name.endswith("_s")
        ]
        for name, words in (("measuring", "loading, capturing and replaying candidates"),
                            ("compile_cpu", "compilers")):  # fmt: skip
            if name in spent:
                took.append(f"{words} {spent[name]:.0f} s")
        return [
            ("Measured on", ", ".join([seen.gpu, *known])),
            (
                "Ceilings measured there",
                f"copy {seen.copy_gbs:.0f} GB/s (read plus write{self.known(seen.copy_gbs)}), bf16 "
                f"product {seen.bf16_tflops:.0f} TFLOP/s",
            ),
            *([("Time", ", ".join(took))] if took else []),
        ]

    def known(self, copy_gbs: float) -> str:
        """The share of what a copy is known to reach on such a device, where a file tells it."""
        device = self.tuned.device
        share = copy_gbs / device.memory_bandwidth_gbs
        return "" if device.from_driver else f", {share:.0%} of what {device.title} is known for"

    def warnings(self) -> list[str]:
        """What must be known beside the numbers."""
        said = []
        if self.tuned.unconfirmed:
            late = ", ".join(f"M={m}" for m in self.tuned.unconfirmed)
            said.append(
                f"{late}: searched, but not compared side by side with the default yet, so not in "
                "the table; the same command goes on"
            )
        said += self.verdict.warnings
        few = few_keys(len(self.tuned.rows))
        if self.tuned.rows and few and not any(one.startswith(few) for one in said):
            said.append(few)
        last = max(self.runs, key=lambda run: run.id, default=None)
        if last is not None and last.status not in {RunStatus.DONE, RunStatus.RUNNING}:
            said.append(
                f"the last command did not reach its end ({last.status.value}), so batch sizes may "
                "be missing; the same command goes on"
            )
        others = [s for s in self.detail.searches if s.id != self.search.id]
        if others:
            kinds = ", ".join(sorted({str(s.setup.get("basis")) for s in others}))
            said.append(
                f"the study has {len(others)} more searches ({kinds}), under other versions, seeds "
                "or spaces; this page shows the latest one, measured before predicted"
            )
        return said

    def rows(self) -> Section:
        """The table, and its plot."""
        if not self.tuned.rows:
            return Section("Speed-up", [])
        table = self.predicted_table() if self.predicted else self.measured_table()
        rule = (
            "A row stays vLLM's own default unless the prediction gains more than "
            f"{least_gain(self.min_gain):.1%}; the model cannot tell less."
            if self.predicted
            else "A row replaces the default where the whole 95 % interval of its speed-up is "
            f"above 1 and the median gains {self.min_gain:.1%}."
        )
        came = grouped({m: row.origin for m, row in self.tuned.rows.items() if row.origin})
        said = [Text(f"Where rows came from: {'; '.join(came)}.")] if came else []
        blocks: list[Block] = [Text(rule), plots.speedups(self.tuned), table, *said]
        return Section("Speed-up", blocks, brief=True)

    def columns(self) -> Section:
        """What the table's figures count."""
        words = PREDICTED_EXPLAINED if self.predicted else EXPLAINED
        return Section("Columns of the table", [Text(words)] if self.tuned.rows else [])

    def measured_table(self) -> Table:
        """One line per key."""
        heads = ("M", CONFIG, "µs", "default µs", "speed-up", "95 % interval", "of bandwidth",
                 "of tensor rate", "relative error")  # fmt: skip
        rows = [self.measured_row(row) for row in self.tuned.rows.values()]
        return Table(heads, rows, words=2, narrow=NARROW)

    def measured_row(self, row: Row) -> list[str]:
        """As text."""
        ratio, reached = row.ratio, self.shares[row.m]
        bounded = ratio is not None and ratio.low > 0
        return [
            *_shared(row),
            _speedup(row),
            f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio is not None and bounded else "",
            f"{reached.bandwidth:.0%}",
            f"{reached.tensor:.0%}",
            "" if row.error is None else f"{row.error:.4f}",
        ]

    def predicted_table(self) -> Table:
        """One line per key."""
        heads = ("M", CONFIG, "predicted µs", "default µs (predicted)", "predicted speed-up",
                 "limited by", "registers", "spilled B", "shared B", "tensor cores")  # fmt: skip
        rows = [self.predicted_row(row) for row in self.tuned.rows.values()]
        return Table(heads, rows, words=2, narrow=NARROW)

    def predicted_row(self, row: Row) -> list[str]:
        """As text; two figures are those of the two GEMMs."""
        found = next(
            d.trial.measurement.details
            for d in self.dated
            if self.batch_sizes[d.trial.workload_key] == row.m
            and d.trial.candidate == row.config
            and d.trial.measurement.value == row.us
        )
        gemms = found["compiled"]
        pairs = (
            ", ".join(dict.fromkeys(str(gemm[name]) for gemm in gemms))
            for name in ("registers", "spill_bytes", "shared_bytes", "mma")
        )
        return [*_shared(row), _speedup(row), found["limit"], *pairs]

    def between(self) -> list[Section]:
        """The file between its keys."""
        if not self.tuned.gaps:
            return []
        rows = [
            [
                str(gap.m),
                str(gap.key),
                f"{gap.ratio.value:.3f}",
                f"{gap.ratio.low:.3f} to {gap.ratio.high:.3f}",
                "lost: pinned to the default" if gap.m in self.tuned.rows else "",
            ]
            for gap in self.tuned.gaps
        ]
        said = (
            "vLLM takes the nearest key. The file's row against vLLM's default at batch sizes "
            "between, where the two differ; above 1 the file is faster."
        )
        heads = ("M", "uses key", "ratio", "95 % interval", "")
        return [Section("Between the keys", [Text(said), Table(heads, rows)])]

    def use(self) -> Section:
        """How to serve with the file."""
        if not self.tuned.rows:
            return Section("Use it", [])
        return Section("Use it", [Code(SERVE), Text(LOGS)])

    def roofline(self) -> Section:
        """Times and shares against the ceilings."""
        if not self.shares:
            return Section("Roofline", [])
        return Section(
            "Roofline",
            [
                plots.utilisation(self.tuned, self.shares),
                plots.roofline(self.tuned, self.shares, self.ceilings),
                plots.times(self.tuned, self.shares),
            ],
        )

    def landscape(self) -> Section:
        """Heat maps of what was tried."""
        trials: dict[int, list[Trial]] = {}
        for dated in self.dated:
            trial = dated.trial
            whole = set(FIELDS) <= trial.candidate.params.keys()
            if trial.phase is Phase.SEARCH and whole and trial.measurement.value is not None:
                trials.setdefault(self.batch_sizes[trial.workload_key], []).append(trial)
        if not trials:
            return Section("Landscape", [])
        blocks: list[Block] = [
            Grid(
                plots.landscapes(trials, self.tuned.basis),
                "Each cell is the best time found with these two values, whatever the others, as a "
                "factor on the best of that M: 1.00 and dark is the best, empty was not tried or "
                "did not work.",
            ),
            Grid(
                plots.effects(trials),
                "What one value costs: the best time found with it, whatever the others, as a "
                "factor on the best of that M. A column near 1 can be kept for every M.",
            ),
        ]
        return Section("Landscape", blocks)

    def history(self) -> Section:
        """Against trials and against seconds."""
        found = best_so_far(self.dated, self.runs)
        searched = {d.trial.workload_key for d in self.dated if d.trial.phase is Phase.SEARCH}
        steps = {self.batch_sizes[key]: found[key] for key in found if key in searched}
        if not steps:
            return Section("Search history", [])
        return Section(
            "Search history",
            [
                plots.history(steps, "trials", "trials of each M"),
                plots.history(steps, "seconds", "seconds at work"),
            ],
        )


def _shared(row: Row) -> list[str]:
    config = "/".join(str(row.config[name]) for name in FIELDS)
    default = "not feasible" if row.default_us is None else f"{row.default_us:.1f}"
    return [str(row.m), config, f"{row.us:.1f}", default]


def _speedup(row: Row) -> str:
    if row.pinned or row.ratio is None:
        return "default" if row.pinned else ""
    return f"{row.ratio.value:.3f}×"
