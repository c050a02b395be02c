"""What ``autotune spec`` shows on a terminal: findings, the plan, progress, the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich import box
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from autotune.cli.consoles import err, out
from autotune.core import Outcome, Scalar
from autotune.serving.decide.conclusion import verdict, warnings
from autotune.serving.decide.objectives import front_table, objective_table
from autotune.serving.decide.stopped import is_stopped
from autotune.serving.forecast.forecast import level_rates
from autotune.serving.job import Result
from autotune.serving.matrix.matrix import Entry, matrix_rows
from autotune.serving.matrix.report import HEADS, reasons, row_cells
from autotune.serving.memory.search import memory_said
from autotune.serving.plan import Plan
from autotune.serving.recipe import SCHEDULE
from autotune.serving.report.markdown import number, rate
from autotune.serving.report.tables import (
    moe_line,
    setting,
    trial_rows,
)
from autotune.serving.running.job import ExistingPlan, ExistingResult, existing_warnings
from autotune.tune import Progress as Step
from autotune.util.finding import Finding, Severity
from autotune.util.words import counted

_STYLES = {Severity.REFUSE: "red", Severity.WARN: "yellow", Severity.NOTE: "dim"}


def show_findings(findings: Sequence[Finding]) -> None:
    """What the checks before the start found, on stderr."""
    for finding in findings:
        style = _STYLES[finding.severity]
        text = escape(f"{finding.severity.value}: {finding.message} [{finding.code}]")
        err.print(f"[{style}]{text}[/{style}]", soft_wrap=True)


def _listed(values: Sequence[Scalar]) -> str:
    """``0/1/2``; folders have slashes of their own."""
    texts = [str(value) for value in values]
    return (" or " if any("/" in text for text in texts) else "/").join(texts)


def show_plan(plan: Plan) -> None:
    """What will be done and about how long it takes, on stderr."""
    scenario = plan.scenario
    minutes = max(1, round(plan.estimated_seconds / 60))
    requests = scenario.repeats * scenario.waves * sum(scenario.concurrency)
    parameters = ", ".join(f"{name} {_listed(values)}" for name, values in plan.space.parameters)
    load = f"concurrency {', '.join(map(str, scenario.concurrency))}; {scenario.prompts} prompts"
    err.print(
        escape(
            f"Plan   {scenario.target} with {plan.drafting}\n"
            f"       {parameters}: {counted(len(plan.rivals), 'setting')}, and the baseline\n"
            f"       {load}; {requests} timed requests a boot in {scenario.repeats} repeats, up to "
            f"{scenario.max_tokens} tokens each\n"
            f"       at most {counted(plan.boots, 'boot')}: {_boots(plan)}; about {minutes} min of "
            f"starting at most, the loads on top\n"
            f"       study {plan.study}; Ctrl-C keeps what is done"
        ),
        soft_wrap=True,
    )


def _boots(plan: Plan) -> str:
    """What the boots are for; they add up to ``plan.boots``."""
    parts = [f"{plan.searched} searched", f"{plan.confirm_rounds} × {plan.confirmed} to confirm"]
    further = {
        "for the range of memory": plan.bisected,
        "for outputs to compare": plan.compared,
        "in place of what fails": plan.replacing,
    }
    return ", ".join(parts + [f"{number} {why}" for why, number in further.items() if number])


@contextmanager
def progress(plan: Plan) -> Iterator[Callable[[Step], None]]:
    """A line on stderr after every boot, on a terminal also a sign of life."""
    done = 0
    alive = Progress(
        SpinnerColumn(),
        TextColumn("a server starts, is loaded and stops; Ctrl-C takes up to half a minute"),
        TimeElapsedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )

    def update(step: Step) -> None:
        nonlocal done
        done += 1
        trial, measurement = step.trial, step.trial.measurement
        if measurement.outcome is Outcome.OK:
            rates = ", ".join(f"{rate:.1f} at {c}" for c, rate in level_rates(trial).items())
            held = f"{measurement.details.get('kv_cache_tokens')} tokens of KV cache"
            said = f"{rates} tok/s" if rates else held
        else:
            said = f"{measurement.outcome.value}: {measurement.message}"
        when = "known already" if step.reused else f"{measurement.seconds:.0f} s"
        where = f"boot {done} of at most {plan.boots}"
        what = f"{trial.phase.value} {step.workload.label} {setting(trial.candidate)}"
        err.print(escape(f"{where}: {what}: {said} ({when})"), soft_wrap=True)
        alive.reset(task)

    with alive:
        task = alive.add_task("")
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
    for heads, rows in (objective_table(result), front_table(result)):
        out.print(_table(heads, rows))
    for trial in result.failures:
        how = "stopped half-way" if is_stopped(trial) else "failed"
        said = f"{setting(trial.candidate)} {how}: {trial.measurement.message}"
        out.print(escape(said), soft_wrap=True)
    for candidate, why in result.left_out.items():
        said = f"{setting(candidate)} not tried: {why}"
        out.print(escape(said), soft_wrap=True)
    for text in warnings(result):
        err.print(f"[yellow]Warning: {escape(text)}[/yellow]", soft_wrap=True)
    _show_verdict(result, files)


def _show_verdict(result: Result, files: Sequence[Path]) -> None:
    typer.echo(verdict(result))
    if result.borders is not None:
        typer.echo(f"Memory utilization: {memory_said(result.borders)}")
    if result.schedule.candidate is not None:
        wins = "recommended" if result.schedule.recommended else "not recommended"
        ranges = result.schedule.candidate[SCHEDULE]
        typer.echo(f"Schedule {ranges}, {wins}: {result.schedule.said}")
    moe = moe_line(result)
    if moe is not None:
        typer.echo(f"Then:  {moe}")
    typer.echo(
        f"{counted(result.boots, 'boot')}, {result.fresh_boots} of them new; {result.seconds:.0f} s"
    )
    for path in files:
        typer.echo(path)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number_of, head in enumerate(heads):
        table.add_column(head, overflow="fold", justify="right" if number_of > 1 else "left")
    for cells in rows:
        table.add_row(*map(escape, cells))
    return table


def show_entry(entry: Entry, *, force: bool) -> None:
    """What the checks say of one of several targets, on stderr."""
    err.print(escape(f"{entry.target} (study {entry.study})"), soft_wrap=True)
    show_findings([finding for finding in entry.findings if force or not finding.refuses])
    if entry.reason:
        err.print(f"[red]{escape(f'{entry.status.value}: {entry.reason}')}[/red]", soft_wrap=True)


def show_matrix(entries: Sequence[Entry], files: Sequence[Path]) -> None:
    """The comparison of several targets and where the files are."""
    rows = matrix_rows(entries)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in HEADS:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row_cells(row)))
    out.print(shown)
    for text in reasons(rows):
        out.print(escape(text), soft_wrap=True)
    for path in files:
        typer.echo(path)


def show_existing_plan(plan: ExistingPlan) -> None:
    """What will be measured, on stderr."""
    scenario, server = plan.scenario, plan.server
    requests = scenario.repeats * scenario.waves * sum(scenario.concurrency)
    levels = ", ".join(map(str, scenario.concurrency))
    err.print(
        escape(
            f"Plan   {plan.launcher.root} serves {server.model}: {server.as_json()['name']}, "
            f"{server.speculation}\n"
            f"       concurrency {levels}; {requests} timed requests; nothing is started or changed"
        ),
        soft_wrap=True,
    )
    for text in existing_warnings(plan):
        err.print(f"[yellow]Warning: {escape(text)}[/yellow]", soft_wrap=True)


def show_existing(result: ExistingResult, files: Sequence[Path]) -> None:
    """Rates and latencies, and where the files are."""
    shown = Table(title=f"{result.plan.study}: measured", title_justify="left")
    shown.box, shown.pad_edge, shown.show_edge = box.SIMPLE_HEAD, False, False
    for name in ("concurrency", "tok/s", "TTFT ms", "TPOT ms", "tokens/draft"):
        shown.add_column(name, justify="right")
    for concurrency, level in result.row["levels"].items():
        times = [level[name] and level[name]["p50"] for name in ("ttft_ms", "tpot_ms")]
        length = number(level.get("acceptance_length"), 2)
        shown.add_row(concurrency, rate(level), *(number(t) for t in times), length)
    out.print(shown)
    known = " (known already; --study NAME measures again)" if result.reused else ""
    typer.echo(f"{result.plan.server.speculation}; one setting, as it runs{known}")
    for path in files:
        typer.echo(path)
