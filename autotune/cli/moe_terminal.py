"""What ``autotune moe`` shows on a terminal: the plan, a progress bar, the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from autotune.cli.consoles import err, out
from autotune.cli.result import show_files, show_page
from autotune.cli.try_it import serve_line
from autotune.kernels import estimate
from autotune.kernels.job import Result
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.plan import Plan
from autotune.machine.environment import container, others_on, outside
from autotune.report.page import Page
from autotune.tune import Progress as Step
from autotune.util.words import counted

SAID_EVERY_S = 60.0
"""Between two lines of progress where there is no terminal."""


@contextmanager
def progress(total: int) -> Iterator[Callable[[Step], None]]:
    """A bar on stderr; without a terminal, a line now and then."""
    if not err.is_terminal:
        yield _lines(total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Candidates are timed in bursts, between which compilers work: the pace of minutes counts.
    with Progress(*columns, console=err, transient=True, speed_estimate_period=900) as bar:
        task = bar.add_task("starting", total=total)

        def update(step: Step) -> None:
            bar.update(task, advance=1, description=step.workload.label)

        yield update


def _lines(total: int) -> Callable[[Step], None]:
    """For a log: once in :data:`SAID_EVERY_S` how far it is."""
    begin = said = time.monotonic()
    done = 0

    def update(step: Step) -> None:
        nonlocal said, done
        done, now = done + 1, time.monotonic()
        if now - said >= SAID_EVERY_S:
            said = now
            err.say(
                f"{done} of {total} trials, {step.workload.label}, {(now - begin) / 60:.0f} min"
            )

    return update


def show_plan(plan: Plan) -> None:
    """What will be done and about how long it takes, on stderr."""
    shape = plan.shape
    for note in plan.notes:
        err.say(f"[yellow]Note: {escape(note)}[/yellow]")
    scales = "" if shape.scheme is Scheme.NONE else f" per {shape.scheme.value}"
    if plan.measured:
        names = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in plan.gpus)
        err.say(f"[bold]Measured mode[/bold]: the real kernel is timed on {escape(names)}.")
        for said in others_on(plan.gpus):
            err.say(f"[yellow]Warning: {escape(said)}: times will suffer[/yellow]")
    else:
        why = f"No {plan.device.title} in use here"
        if plan.unmeasured:
            why = f"{plan.device.title} is here, but {plan.unmeasured}. Until then"
        err.say(
            f"{escape(why)}: [bold]predicted mode[/bold]. The real kernel is compiled for it, its "
            "time comes from a cost model. Nothing is measured."
        )
    err.say(
        f"Plan   {escape(plan.model)}: E={shape.experts} N={shape.intermediate} K={shape.hidden} "
        f"topk={shape.topk} {shape.weight_dtype}{scales}\n"
        f"       vLLM {plan.kernel.vllm_version}, Triton {plan.kernel.triton_version}, "
        f"sm_{plan.device.arch}, "
        f"{plan.workers} compile process{'' if plan.workers == 1 else 'es'}\n"
        f"       {counted(len(plan.batch_sizes), 'batch size')} × ({plan.trials_per_m} of "
        f"{len(plan.feasible)} feasible candidates + the default), space {plan.space.name}, "
        f"study {plan.study}\n"
        f"       about {estimate.compilations(plan)} compilations, "
        f"{max(1, round(estimate.seconds(plan) / 60))} min on an empty cache; "
        "Ctrl-C keeps what is done",
        hang=7,
    )


def show_result(result: Result, page: Page, files: list[Path]) -> None:
    """The page in brief, what this command did, and where the files are."""
    show_page(page)
    compiled = f"{result.compiled} kernels compiled, {result.cached} taken from the database; "
    out.print(
        f"{counted(result.trials, 'trial')}, {result.fresh} of them new; "
        f"{'' if result.measured is not None else compiled}{result.seconds:.0f} s"
    )
    show_files(files)
    flags = result.plan.serve_flags  # what the file needs to be read
    line = serve_line(files[-1].parent, outside(), container(), flags)
    typer.echo(f"Try it:  {line}")
