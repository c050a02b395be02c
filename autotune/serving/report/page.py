"""What the page of a ``spec`` study shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.core import Basis, Candidate, Outcome, Phase, Trial
from autotune.report import parts
from autotune.report.page import Block, Page, Section, Table, Text
from autotune.serving.decide.stopped import is_stopped, stopped_rows
from autotune.serving.report import job_words as said
from autotune.serving.report import plots
from autotune.serving.report.clocks import clocks
from autotune.serving.report.figures import described, interval, number, percent, rate
from autotune.serving.report.outputs import outputs
from autotune.serving.report.places import places
from autotune.serving.report.tables import setting
from autotune.serving.report.verdict import Verdict, last_verdict
from autotune.serving.scenario import SpecScenario
from autotune.serving.stored import Served, folder_of, level_repeats, load_served
from autotune.space.published import cell
from autotune.store.records import RunStatus, StudyDetail
from autotune.store.retry import TRANSIENT
from autotune.store.store import Store
from autotune.util.words import counted

BANNER = "SYNTHETIC acceptance: the speed is real, the text is not; outputs were not compared"


def page_of(
    store: Store,
    study: str,
    *,
    about: tuple[Mapping[str, Any], SpecScenario] | None = None,
    out: Path | None = None,
) -> Page:
    """Make the page of a study as of now.

    Args:
        store: with the study.
        study: its name.
        about: the set-up of the search and the load to show; those of the last trial if None.
        out: where commands write their files, for the words of a job that left them there alone.

    Raises:
        BadInputError: no such study, of another kind, or nothing measured in it yet.
    """
    served = load_served(store, study, about)
    verdict = last_verdict(store, served, None if out is None else folder_of(out, study))
    if (shown := verdict.confirmation) is not None:  # not always the one measured last
        about = (served.search.setup, served.scenario)
        served = load_served(store, study, about, shown.is_of)
    return _Sheet(served, store.get_study(study), verdict).page()


class _Sheet:
    """One load of one study, on its way to a page."""

    def __init__(self, served: Served, detail: StudyDetail, verdict: Verdict) -> None:
        self.served, self.detail, self.verdict = served, detail, verdict
        self.runs = [run for run in detail.all_runs if run.search_id == served.search.id]
        self.basis = str(served.search.setup.get("basis", Basis.MEASURED.value))

    def page(self) -> Page:
        """All of it."""
        served = self.served
        sections = [
            said.serve(self.verdict),
            said.slices(self.verdict, self.served.ok),
            self.speed(),
            Section("Against the baseline", plots.speedups(served, self.basis)),
            self.latency(),
            said.objectives(self.verdict),
            self.confirmed(),
            said.soak(self.verdict.soak),
            self.pareto(),
            self.acceptance(),
            outputs(self.served),
            said.schedule(self.verdict),
            said.forecast(self.verdict, self.basis),
            said.memory(self.verdict),
            said.scores(self.verdict),
            said.not_tried(self.verdict),
            *self.failures(),
            places(self.served),
            clocks(dated.trial for dated in self.served.dated),
            said.published(self.verdict.published),
            parts.environment(parts.used(self.runs, self.detail.environments), served.search.setup),
            parts.commands(self.runs),
        ]
        return Page(
            title=served.study,
            basis=self.basis,
            banner=BANNER if self.basis == Basis.SYNTHETIC.value else None,
            result=self.result(),
            facts=self.facts(),
            warnings=self.warnings(),
            sections=[section for section in sections if section.blocks],
        )

    def result(self) -> str:
        """The verdict of the job, or that there is none."""
        words = self.verdict.verdict or self.verdict.note
        if words:
            return f"{words[0].upper()}{words[1:]}"
        first = next((t for t in self.served.searched if t.phase is Phase.BASELINE), None)
        if first is not None and first.measurement.outcome is not Outcome.OK:
            outcome = first.measurement.outcome
            again = "; --retry-failed tries it again" if outcome in TRANSIENT else ""
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
            *self.running_server(),
            ("Target", scenario.target),
            ("Drafter", self.drafting()),
            ("Load", described(scenario)),
            ("Concurrency", ", ".join(map(str, scenario.concurrency))),
            ("Objective", scenario.objective),
            ("Servers started", str(self.served.boots)),
        ]

    def drafting(self) -> str:
        """The drafter and its method."""
        scenario, recipe = self.served.scenario, self.served.search.setup.get("recipe", {})
        method = recipe.get("method") if isinstance(recipe, Mapping) else None
        named = scenario.drafting
        return f"{named} (method {method})" if method and named == scenario.drafter else named

    def running_server(self) -> list[tuple[str, str]]:
        """A server that autotune did not start, as it described itself."""
        setup = self.served.search.setup
        server = setup.get("server")
        if not isinstance(server, Mapping):
            return []
        gamma = server.get("gamma")
        speculation = "speculation unknown" if gamma is None else f"gamma {gamma}"
        context = number(server.get("context"), 0)
        about = f"{server.get('name')}, {speculation}, context {context} tokens"
        return [("Server", f"{setup.get('url')}, which was running: {about}")]

    def warnings(self) -> list[str]:
        """What must be known beside the numbers."""
        found, boots = list(self.verdict.warnings), self.verdict.known_boots
        if boots not in {None, self.served.boots}:
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
        failed = [d.trial for d in self.served.dated if not is_stopped(d.trial)]
        some = any(t.measurement.outcome is not Outcome.OK for t in failed)
        found = [
            Section("Failures", parts.failures(failed, lambda t: setting(t.candidate)), brief=some)
        ]
        rows = [
            [
                row["setting"],
                row["why"],
                row["message"],
                ", ".join(f"{r:.1f} at {c} ({row['repeats'][c]})" for c, r in row["tok_s"].items())
                or "–",
            ]
            for row in stopped_rows(self.served.searched)
        ]
        if rows:
            text = Text(
                "Not measured to the end, and never recommended; the repeats until then are "
                f"{self.basis}."
            )
            heads = ("setting", "why", "telling line", "tok/s at concurrency (repeats)")
            table = Table(heads, rows, words=4, narrow=3)
            found.insert(0, Section("Stopped half-way", [text, table], brief=True))
        return found

    def speed(self) -> Section:
        """Rates of every setting."""
        text = "One boot each; median ± standard deviation over the repeats, the baseline first."
        blocks: list[Block] = [*plots.rates(self.served, self.basis), Text(text), self.settings()]
        return Section("Speed", blocks, brief=True)

    def settings(self) -> Table:
        """One line per setting."""
        levels = [str(c) for c in self.served.scenario.concurrency]
        published = self.verdict.published
        heads = ("setting", *(f"tok/s at {c}" for c in levels), "× baseline", "identical outputs",
                 f"tokens per draft at {levels[0]}",
                 "KV tokens", "host memory GiB", "start s")  # fmt: skip
        rows = [self.setting_row(t, levels) for t in self.served.searched]
        if published is not None:
            heads = (*heads, f"published tok/s, not ours: {published.hardware}")
            figures = [cell(published.of(t.candidate.params)) for t in self.served.searched]
            rows = [[*row, figure] for row, figure in zip(rows, figures, strict=True)]
        return Table(heads, rows, narrow=4 + len(levels))

    def setting_row(self, trial: Trial, levels: Sequence[str]) -> list[str]:
        """As text; of a failure its outcome stands in place of the first rate."""
        details, value = trial.measurement.details, trial.measurement.value
        baseline = self.served.baseline
        before = None if baseline is None else baseline.measurement.value
        loads, memory = details.get("levels", {}), details.get("memory_bytes")
        rates = [rate(loads.get(c)) for c in levels]
        if trial.measurement.outcome is not Outcome.OK:
            rates[0] = trial.measurement.outcome.value
        return [
            setting(trial.candidate),
            *rates,
            number(before / value if before and value else None, 3),
            percent(self.served.identical(trial)),
            number(loads.get(levels[0], {}).get("acceptance_length"), 2),
            number(details.get("kv_cache_tokens"), 0),
            number(memory / 2**30 if memory else None, 2),
            number(details.get("start_s")),
        ]

    def latency(self) -> Section:
        """Median and 99th percentile, in ms."""
        heads = ("setting", "concurrency", "tok/s per request", "TTFT ms", "TPOT ms", "ITL ms",
                 "preemptions")  # fmt: skip
        rows = []
        for trial in self.served.ok:
            for concurrency, level in trial.measurement.details.get("levels", {}).items():
                spreads = [level.get(name) for name in ("ttft_ms", "tpot_ms", "itl_ms")]
                request = level.get("request_tok_s")
                rows.append(
                    [
                        setting(trial.candidate),
                        concurrency,
                        number(request and request["mean"]),
                        *(f"{s['p50']:.1f}, {s['p99']:.1f}" if s else "–" for s in spreads),
                        number(level.get("preemptions"), 0),
                    ]
                )
        text = Text("Of the same boots: median, 99th percentile.")
        return Section("Latency", [text, Table(heads, rows)] if rows else [])

    def confirmed(self) -> Section:
        """Fresh boots, side by side or in turns."""
        if not self.served.confirmed:
            return Section("Confirmed", [])
        scenario = self.served.scenario
        how = said.confirmation(self.verdict.confirmation, self.served.beside)
        text = (
            f"{how} µs per output token by the objective ({scenario.measure}). Pairs of repeats "
            "have the same prompts."
        )
        heads = ("setting", "µs per token, each boot", "× baseline", "95 % interval",
                 "between boots", *(f"× at {c}" for c in scenario.concurrency))  # fmt: skip
        rows = [
            self.confirmed_row(candidate, rounds)
            for candidate, rounds in self.served.confirmed.items()
        ]
        against = [
            Text(f"{row.setting}: {row.message}") for row in self.verdict.confirmed if row.message
        ]
        blocks: list[Block] = [Text(text), Table(heads, rows, narrow=4), *against]
        return Section("Confirmed", blocks, brief=True)

    def confirmed_row(self, candidate: Candidate, rounds: Mapping[int, Trial]) -> list[str]:
        """As text."""
        ratio = self.served.confirmed_ratio(candidate)
        values = [rounds[n].measurement.value for n in sorted(rounds)]
        known = [value for value in values if value is not None]

        def at(concurrency: int) -> str:
            alone = self.served.confirmed_ratio(
                candidate, lambda trial: [1 / rate for rate in level_repeats(trial, concurrency)]
            )
            return number(alone.value if alone else None, 3)

        return [
            setting(candidate),
            ", ".join(number(value) for value in values),
            number(ratio.value if ratio else None, 3),
            interval((ratio.low, ratio.high) if ratio and ratio.low > 0 else None),
            percent(max(known) / min(known) - 1 if len(known) > 1 else None, 1),
            *map(at, self.served.scenario.concurrency),
        ]

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
                "yes" if one.point.candidate in self.served.confirmed else "no",
            ]
            for one in points
        ]
        heads = ("", "setting", "", f"tok/s of one stream at {levels[0]}",
                 f"tok/s together at {levels[-1]}", "booted again")  # fmt: skip
        drawn = plots.pareto(points, self.served, self.basis)
        return Section("Pareto front", [*drawn, Table(heads, rows, words=3)], brief=True)

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
        text = "Share of drafts of which all tokens up to the position were accepted."
        blocks: list[Block] = [*plots.acceptance(self.served), Text(text), Table(heads, rows)]
        return Section("Acceptance", blocks)
