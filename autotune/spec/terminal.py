"""What ``autotune spec`` shows on a terminal: findings, the plan, progress, the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from autotune.consoles import err, out
from autotune.core import Outcome
from autotune.spec.finding import Finding, Severity
from autotune.spec.forecast import level_rates
from autotune.spec.job import Result
from autotune.spec.plan import FINALISTS, Plan
from autotune.spec.tables import (
    moe_line,
    number,
    setting,
    trial_rows,
    verdict,
    warnings,
)
from autotune.tune import Progress as Step

_STYLES = {Severity.REFUSE: "red", Severity.WARN: "yellow", Severity.NOTE: "dim"}


def show_findings(findings: Sequence[Finding]) -> None:
    """What the checks before the start found, on stderr."""
    for finding in findings:
        style = _STYLES[finding.severity]
        text = escape(f"{finding.severity.value}: {finding.message} [{finding.code}]")
        err.print(f"[{style}]{text}[/{style}]", soft_wrap=True)


def show_plan(plan: Plan) -> None:
    """What will be done and about how long it takes, on stderr."""
    scenario = plan.scenario
    minutes = max(1, round(plan.estimated_seconds / 60))
    requests = scenario.repeats * scenario.waves * sum(scenario.concurrency)
    parameters = ", ".join(
        f"{name} {'/'.join(map(str, values))}" for name, values in plan.space.parameters
    )
    load = f"concurrency {', '.join(map(str, scenario.concurrency))}; {scenario.prompts} prompts"
    err.print(
        escape(
            f"Plan   {scenario.target} with {scenario.drafter} (method {plan.recipe.method})\n"
            f"       {parameters}: {len(plan.grid)} settings, and no speculation as the baseline\n"
            f"       {load}; {requests} timed requests a boot in {scenario.repeats} repeats, up to "
            f"{scenario.max_tokens} tokens each\n"
            f"       at most {plan.boots} boots: {len({plan.baseline, *plan.grid})} searched, "
            f"{plan.confirm_rounds} × {FINALISTS + 1} to confirm; about {minutes} min of "
            f"starting at most, the loads on top\n"
            f"       study {plan.study}; Ctrl-C keeps what is done"
        ),
        soft_wrap=True,
    )


@contextmanager
def progress(plan: Plan, quiet: bool) -> Iterator[Callable[[Step], None]]:
    """A line on stderr after every boot; with ``quiet``, nothing."""
    done = 0

    def update(step: Step) -> None:
        nonlocal done
        done += 1
        if quiet:
            return
        trial, measurement = step.trial, step.trial.measurement
        if measurement.outcome is Outcome.OK:
            rates = ", ".join(f"{rate:.1f} at {c}" for c, rate in level_rates(trial).items())
            said = f"{rates} tok/s"
        else:
            said = f"{measurement.outcome.value}: {measurement.message}"
        when = "known already" if step.reused else f"{measurement.seconds:.0f} s"
        where = f"boot {done} of at most {plan.boots}"
        what = f"{trial.phase.value} {step.workload.label} {setting(trial.candidate)}"
        err.print(escape(f"{where}: {what}: {said} ({when})"), soft_wrap=True)

    yield update


def show_result(result: Result, files: Sequence[Path]) -> None:
    """The table, the verdict and where the files are."""
    levels = [str(c) for c in result.plan.scenario.concurrency]
    shown = Table(title=f"{result.plan.study}: {result.plan.basis.value}", title_justify="left")
    shown.box, shown.pad_edge, shown.show_edge = box.SIMPLE_HEAD, False, False
    shown.add_column("setting", overflow="fold")
    for name in (*(f"tok/s at {c}" for c in levels), "× baseline", "tokens/draft", "identical"):
        shown.add_column(name, justify="right")
    for row in trial_rows(result):
        share, first = row["identical_share"], row["levels"].get(levels[0], {})
        cells = [number(row["tok_s"].get(c)) for c in levels]
        if row["outcome"] != Outcome.OK.value:
            cells[0] = row["outcome"]
        shown.add_row(
            escape(row["setting"]),
            *cells,
            number(row["times_baseline"], 3),
            number(first.get("acceptance_length"), 2),
            number(None if share is None else 100 * share, 0, " %"),
        )
    out.print(shown)
    for trial in result.failures:
        said = f"{setting(trial.candidate)} failed: {trial.measurement.message}"
        out.print(escape(said), soft_wrap=True)
    for candidate, why in result.left_out.items():
        said = f"{setting(candidate)} not tried: {why}"
        out.print(escape(said), soft_wrap=True)
    for text in warnings(result):
        err.print(f"[yellow]Warning: {escape(text)}[/yellow]", soft_wrap=True)
    typer.echo(verdict(result))
    moe = moe_line(result)
    if moe is not None:
        typer.echo(f"Then:  {moe}")
    typer.echo(f"{result.boots} boots, {result.fresh_boots} of them new; {result.seconds:.0f} s")
    for path in files:
        typer.echo(path)
