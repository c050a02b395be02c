"""What ``autotune spec`` shows on a terminal: findings, the plan, progress, the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from autotune.cli.consoles import err
from autotune.cli.result import show_files, show_page
from autotune.core import Outcome, Scalar
from autotune.report.page import Page
from autotune.serving.decide.side_by_side import room_beside_the_dial
from autotune.serving.forecast.forecast import level_rates
from autotune.serving.job import Result
from autotune.serving.matrix.matrix import Entry
from autotune.serving.plan import Plan
from autotune.serving.report.tables import setting
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
        err.say(f"[{style}]{text}[/{style}]")


def _listed(values: Sequence[Scalar]) -> str:
    """``0/1/2``; folders have slashes of their own."""
    texts = [str(value) for value in values]
    return (" or " if any("/" in text for text in texts) else "/").join(texts)


def show_plan(plan: Plan) -> None:
    """What will be done and about how long it takes, on stderr."""
    scenario = plan.scenario
    minutes = max(1, round(plan.estimated_seconds / 60))
    parameters = ", ".join(f"{name} {_listed(values)}" for name, values in plan.space.parameters)
    load = f"concurrency {', '.join(map(str, scenario.concurrency))}; {scenario.prompts} prompts"
    err.say(
        escape(
            f"Plan   {scenario.target} with {plan.drafting}\n"
            f"       {parameters}: {counted(len(plan.rivals), 'setting')}, and the baseline\n"
            f"       {load}; {scenario.requests} timed requests a boot in {scenario.repeats} "
            f"repeats, up to {scenario.max_tokens} tokens each\n"
            f"       at most {counted(plan.boots, 'boot')}: {_boots(plan)}; about {minutes} min of "
            f"starting at most, the loads on top\n{_ahead(plan)}"
            f"       study {plan.study}; Ctrl-C keeps what is done"
        ),
        hang=7,
    )


def _ahead(plan: Plan) -> str:
    """A line on the server that starts beside the dialled one, where it does."""
    if room_beside_the_dial(plan) is None:
        return ""
    return (
        "       beside the first the baseline's server starts too, to have it compiled; nothing "
        "of it is measured\n"
    )


def _boots(plan: Plan) -> str:
    """What the boots are for; they add up to ``plan.boots``."""
    parts = [f"{plan.searched} searched", f"{plan.confirm_rounds} × {plan.confirmed} to confirm"]
    further = {
        "for the range of memory": plan.bisected,
        "for outputs to compare": plan.compared,
        "in place of what fails": plan.replacing,
        "to soak": int(plan.soak_s > 0),
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
        trial, measurement = step.trial, step.trial.measurement
        done += int(measurement.details.get("boots", 1))  # a dialled server has several trials
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


def show_result(result: Result, page: Page, files: Sequence[Path]) -> None:
    """The page in brief, what this command did, and where the files are."""
    show_page(page)
    typer.echo(
        f"{counted(result.boots, 'boot')}, {result.fresh_boots} of them new; {result.seconds:.0f} s"
    )
    show_files(files)


def show_entry(entry: Entry, *, force: bool) -> None:
    """What the checks say of one of several targets, on stderr."""
    err.print(escape(f"{entry.target} (study {entry.study})"), soft_wrap=True)
    show_findings([finding for finding in entry.findings if force or not finding.refuses])
    if entry.reason:
        err.print(f"[red]{escape(f'{entry.status.value}: {entry.reason}')}[/red]", soft_wrap=True)


def show_existing_plan(plan: ExistingPlan) -> None:
    """What will be measured, on stderr."""
    scenario, server = plan.scenario, plan.server
    levels = ", ".join(map(str, scenario.concurrency))
    err.print(
        escape(
            f"Plan   {plan.launcher.root} serves {server.model}: {server.as_json()['name']}, "
            f"{server.speculation}\n"
            f"       concurrency {levels}; {scenario.requests} timed requests; nothing is started "
            "or changed"
        ),
        soft_wrap=True,
    )
    for text in existing_warnings(plan):
        err.warn(f"Warning: {text}")


def show_existing(result: ExistingResult, page: Page, files: Sequence[Path]) -> None:
    """The page in brief, what the server does, and where the files are."""
    show_page(page)
    known = " (known already; --study NAME measures again)" if result.reused else ""
    typer.echo(f"{result.plan.server.speculation}; one setting, as it runs{known}")
    show_files(files)
