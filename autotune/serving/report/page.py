"""What the page of a ``spec`` study shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.core import Basis, Outcome, Phase, Trial
from autotune.report import parts
from autotune.report.files import write_html
from autotune.report.page import Block, Page, Section, Table, Text
from autotune.serving.decide.stopped import is_stopped
from autotune.serving.export.write import folder_of
from autotune.serving.plan import Plan
from autotune.serving.report import job_words as said
from autotune.serving.report import plots
from autotune.serving.report.markdown import described, number, rate
from autotune.serving.report.tables import setting
from autotune.serving.retry import OF_THE_MOMENT
from autotune.serving.running.job import ExistingPlan
from autotune.serving.stored import Served, load_served
from autotune.store.records import RunStatus, StudyDetail
from autotune.store.store import Store
from autotune.util import edge
from autotune.util.words import counted

BANNER = "SYNTHETIC acceptance: the speed is real, the text is not; outputs were not compared"
LEFT = ("best.json", "served.json")
"""What a finished job leaves in its folder, by launcher."""


def spec_page(store: Store, served: Served, left: Mapping[str, Any]) -> Page:
    """The page of a study as of now.

    Args:
        store: with the study.
        served: the study read back.
        left: what the finished job concluded (its stored verdict), empty where there was none: the
            verdict, the forecast and how to serve are its words, all else is read from the trials.
    """
    return _Sheet(served, store.get_study(served.study), left).page()


def left_by_job(store: Store, served: Served, folder: Path) -> dict[str, Any]:
    """Return the words of the job that measured this load: of the database, or else of ``folder``.

    A run made before verdicts were stored left them in its result file alone. What is about another
    search or load, and a damaged file, counts as absent.
    """
    kept = (found for found in store.verdicts(served.search) if is_about(found, served))
    return next(kept, None) or left_in_folder(served, folder)


def left_in_folder(served: Served, folder: Path) -> dict[str, Any]:
    """Return the words of the job in ``folder``, if they are about this search and this load."""
    for name in LEFT:
        try:
            found = edge.read_json(folder / name, edge.LARGE)
        except (OSError, edge.EdgeError):
            continue
        if is_about(found, served):
            return dict(found)
    return {}


def is_about(found: Any, served: Served) -> bool:
    """Tell whether ``found`` is an undamaged verdict about this search and this load."""
    if not isinstance(found, dict) or found.get("study") != served.study:
        return False
    about = found.get("scenario"), found.get("setup", served.search.setup)
    if about != (served.scenario.as_json(), served.search.setup):
        return False
    try:
        for words in (said.serve, said.objectives, said.schedule, said.memory, said.scores,
                      said.not_tried, said.published):  # fmt: skip
            words(found)
        said.forecast(found, "")
        list(found.get("warnings", ()))
        boots = known_boots(found, 0)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return False
    return isinstance(boots, int)


def known_boots(left: Mapping[str, Any], default: int | None = None) -> int | None:
    """How many servers of this load the finished job knew of; an older one counted all loads."""
    found: int | None = left.get("boots_of_load", left.get("boots", default))
    return found


def write_page(store: Store, plan: Plan | ExistingPlan, out: Path) -> Path:
    """Write the page of a finished job beside its other files; its verdict must be stored.

    Raises:
        BadInputError: the folder cannot be written.
        MissingEnvironmentError: no space is left.
    """
    folder = folder_of(out, plan.study)
    served = load_served(store, plan.study, (plan.setup(), plan.scenario))
    return write_html(spec_page(store, served, left_by_job(store, served, folder)), folder)


def keep_verdict(store: Store, plan: Plan | ExistingPlan, verdict: Mapping[str, Any]) -> None:
    """Store what the job that this process just finished concluded, for pages made later.

    Args:
        store: with the run.
        plan: of the job.
        verdict: the document of its result.
    """
    study = store.study(plan.study, "spec", plan.identity())
    store.set_verdict(store.search(study, plan.setup()), verdict)


class _Sheet:
    """One load of one study, on its way to a page."""

    def __init__(self, served: Served, detail: StudyDetail, left: Mapping[str, Any]) -> None:
        self.served, self.detail, self.left = served, detail, left
        self.runs = [run for run in detail.all_runs if run.search_id == served.search.id]
        self.basis = str(served.search.setup.get("basis", Basis.MEASURED.value))

    def page(self) -> Page:
        """All of it."""
        served = self.served
        sections = [
            said.serve(self.left),
            Section("Speed", [*plots.rates(served, self.basis), *self.tables()]),
            Section("Against the baseline", plots.speedups(served, self.basis)),
            said.objectives(self.left),
            self.confirmed(),
            self.pareto(),
            self.acceptance(),
            said.schedule(self.left),
            said.forecast(self.left, self.basis),
            said.memory(self.left),
            said.scores(self.left),
            said.not_tried(self.left),
            *self.failures(),
            said.published(self.left),
            parts.environment(parts.used(self.runs, self.detail.environments), served.search.setup),
            parts.commands(self.runs),
        ]
        return Page(
            title=served.study,
            banner=BANNER if self.basis == Basis.SYNTHETIC.value else None,
            result=self.result(),
            facts=self.facts(),
            warnings=self.warnings(),
            sections=[section for section in sections if section.blocks],
        )

    def result(self) -> str:
        """The verdict of the job, or that there is none."""
        words = str(self.left.get("verdict") or self.left.get("note") or "")
        if words:
            return f"{words[0].upper()}{words[1:]}"
        first = next((t for t in self.served.searched if t.phase is Phase.BASELINE), None)
        if first is not None and first.measurement.outcome is not Outcome.OK:
            outcome = first.measurement.outcome
            again = "; --retry-failed tries it again" if outcome in OF_THE_MOMENT else ""
            return (
                f"The server without speculation does not work ({outcome.value}), so nothing was "
                f"compared{again}"
            )
        known = counted(len(self.served.searched), "setting")
        if self.runs and max(self.runs, key=lambda run: run.id).status is RunStatus.DONE:
            return (
                f"No verdict here: the job that measured {known} ended, but neither the database "
                "nor this folder holds its verdict; the same command writes it again"
            )
        return f"No verdict yet: {known} measured; the same command goes on"

    def facts(self) -> list[tuple[str, str]]:
        """The shortest description."""
        scenario = self.served.scenario
        return [
            ("Rates", f"{self.basis}: real vLLM servers under load, greedy"),
            ("Target", scenario.target),
            ("Drafter", scenario.drafter),
            ("Load", described(scenario)),
            ("Concurrency", ", ".join(map(str, scenario.concurrency))),
            ("Objective", scenario.objective),
            ("Servers started", str(self.served.boots)),
        ]

    def warnings(self) -> list[str]:
        """What must be known beside the numbers."""
        found = [str(text) for text in self.left.get("warnings", ())]
        boots = known_boots(self.left, self.served.boots)
        if boots != self.served.boots:
            found.append(
                f"the verdict is of a job that knew {boots} boots; by now there are "
                f"{self.served.boots}: the same command goes on from there"
            )
        if self.served.others:
            found.append(
                f"the study has {self.served.others} more loads or set-ups, whose numbers cannot "
                "be compared with these; this page shows one of them alone"
            )
        return found

    def failures(self) -> list[Section]:
        """What did not work; what was stopped because it could not win is no failure."""
        trials = [d.trial for d in self.served.dated]
        stopped = [t for t in trials if is_stopped(t)]
        failed = [t for t in trials if not is_stopped(t)]
        found = [Section("Failures", parts.failures(failed, _where))]
        if stopped:
            found.insert(0, Section("Stopped half-way", parts.failures(stopped, _where)))
        return found

    def settings(self) -> Table:
        """One line per setting."""
        levels = [str(c) for c in self.served.scenario.concurrency]
        heads = ("setting", *(f"tok/s at {c}" for c in levels), "× baseline", "identical outputs",
                 "KV tokens", "host memory GiB", "start s")  # fmt: skip
        return Table(heads, [self.setting_row(t, levels) for t in self.served.searched])

    def setting_row(self, trial: Trial, levels: Sequence[str]) -> list[str]:
        """As text."""
        details, value = trial.measurement.details, trial.measurement.value
        baseline = self.served.baseline
        before = None if baseline is None else baseline.measurement.value
        share, memory = self.served.identical(trial), details.get("memory_bytes")
        return [
            setting(trial.candidate),
            *(rate(details.get("levels", {}).get(c)) for c in levels),
            number(before / value if before and value else None, 3),
            number(None if share is None else 100 * share, 0, " %"),
            number(details.get("kv_cache_tokens"), 0),
            number(memory / 2**30 if memory else None, 2),
            number(details.get("start_s")),
        ]

    def tables(self) -> list[Block]:
        """Rates and latency."""
        return [
            Text(
                "One boot each; median ± standard deviation over the repeats, the baseline first."
            ),
            self.settings(),
            Text("Latency of the same boots: median, 99th percentile."),
            self.latency(),
        ]

    def latency(self) -> Table:
        """Median and 99th percentile, in ms."""
        heads = ("setting", "concurrency", "TTFT ms", "TPOT ms", "ITL ms", "preemptions")
        rows = []
        for trial in self.served.ok:
            for concurrency, level in trial.measurement.details.get("levels", {}).items():
                spreads = [level.get(name) for name in ("ttft_ms", "tpot_ms", "itl_ms")]
                rows.append(
                    [
                        setting(trial.candidate),
                        concurrency,
                        *(f"{s['p50']:.1f}, {s['p99']:.1f}" if s else "–" for s in spreads),
                        number(level.get("preemptions"), 0),
                    ]
                )
        return Table(heads, rows)

    def confirmed(self) -> Section:
        """Fresh boots that took turns."""
        rows = []
        for candidate, rounds in self.served.confirmed.items():
            ratio = self.served.confirmed_ratio(candidate)
            values = [rounds[n].measurement.value for n in sorted(rounds)]
            bounded = ratio is not None and ratio.low > 0
            rows.append(
                [
                    setting(candidate),
                    ", ".join(number(value) for value in values),
                    number(ratio.value if ratio else None, 3),
                    f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio and bounded else "–",
                ]
            )
        if not rows:
            return Section("Confirmed", [])
        text = (
            f"Fresh boots that took turns; µs per output token by the objective "
            f"({self.served.scenario.measure}). Pairs of repeats have the same prompts."
        )
        heads = ("setting", "µs per token, each boot", "× baseline", "95 % interval")
        return Section("Confirmed", [Text(text), Table(heads, rows)])

    def pareto(self) -> Section:
        """A single stream against all together."""
        points, levels = plots.placed(self.served), self.served.scenario.concurrency
        if len(points) < 2:
            return Section("Pareto front", [])
        rows = [
            [
                str(one.number),
                setting(one.point.candidate),
                one.place,
                number(one.point.single),
                number(one.point.aggregate),
            ]
            for one in points
        ]
        heads = ("", "setting", "", f"tok/s of one stream at {levels[0]}",
                 f"tok/s together at {levels[-1]}")  # fmt: skip
        drawn = plots.pareto(points, self.served, self.basis)
        return Section("Pareto front", [*drawn, Table(heads, rows, words=3)])

    def acceptance(self) -> Section:
        """By position."""
        rows = [
            [
                setting(trial.candidate),
                concurrency,
                number(level.get("acceptance_length"), 2),
                " / ".join(f"{share:.3f}" for share in level["reached"]),
            ]
            for trial in self.served.ok
            for concurrency, level in trial.measurement.details.get("levels", {}).items()
            if level.get("reached")
        ]
        if not rows:
            return Section("Acceptance", [])
        heads = ("setting", "concurrency", "tokens per draft", "by position")
        return Section("Acceptance", [*plots.acceptance(self.served), Table(heads, rows)])


def _where(trial: Trial) -> str:
    return setting(trial.candidate)
