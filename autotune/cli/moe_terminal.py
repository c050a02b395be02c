"""What ``autotune moe`` shows on a terminal: the plan, a progress bar, the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich import box
from rich.console import JustifyMethod
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from autotune.cli.consoles import err, out
from autotune.cli.try_it import try_it
from autotune.kernels import estimate
from autotune.kernels.export.write import cells, summary, table, warnings
from autotune.kernels.job import Result
from autotune.kernels.moe.shape import Scheme
from autotune.kernels.plan import Plan
from autotune.machine.environment import others_on
from autotune.tune import Progress as Step
from autotune.util.words import counted

COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    ("M", "right"),
    ("BM/BN/BK/G/warps/stages", "left"),
    ("pred. µs", "right"),
    ("def. µs", "right"),
    ("speed-up", "right"),
    ("limit", "left"),
    ("registers", "right"),
    ("spill B", "right"),
    ("shared B", "right"),
    ("tensor", "left"),
)
MEASURED_COLUMNS: tuple[tuple[str, JustifyMethod], ...] = (
    ("M", "right"),
    ("BM/BN/BK/G/warps/stages", "left"),
    ("µs", "right"),
    ("def. µs", "right"),
    ("speed-up", "right"),
    ("95 % interval", "left"),
    ("bandwidth", "right"),
    ("tensor", "right"),
    ("rel. error", "right"),
)
NARROW_COLUMNS = 6
"""What fits 80 columns; the rest is shown from FULL_WIDTH on."""
FULL_WIDTH = 120


@contextmanager
def progress(total: int) -> Iterator[Callable[[Step], None]]:
    """A bar on stderr; without a terminal, nothing."""
    if not err.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("starting", total=total)

        def update(step: Step) -> None:
            bar.update(task, advance=1, description=step.workload.label)

        yield update


def show_plan(plan: Plan) -> None:
    """What will be done and about how long it takes, on stderr."""
    shape = plan.shape
    for note in plan.notes:
        err.print(f"[yellow]Note: {escape(note)}[/yellow]", soft_wrap=True)
    scales = "" if shape.scheme is Scheme.NONE else f" per {shape.scheme.value}"
    if plan.measured:
        names = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in plan.gpus)
        err.print(
            f"[bold]Measured mode[/bold]: the real kernel is timed on {names}.", soft_wrap=True
        )
        for said in others_on(plan.gpus):
            err.print(f"[yellow]Warning: {escape(said)}: times will suffer[/yellow]")
    else:
        why = f"No {plan.device.title} in use here"
        if plan.unmeasured:
            why = f"{plan.device.title} is here, but {plan.unmeasured}. Until then"
        err.print(
            f"{escape(why)}: [bold]predicted mode[/bold]. The real kernel is compiled for it, its "
            "time comes from a cost model. Nothing is measured.",
            soft_wrap=True,
        )
    err.print(
        f"Plan   {escape(plan.model)}: E={shape.experts} N={shape.intermediate} K={shape.hidden} "
        f"topk={shape.topk} {shape.weight_dtype}{scales}\n"
        f"       vLLM {plan.kernel.vllm_version}, Triton {plan.kernel.triton_version}, "
        f"sm_{plan.device.arch}, {plan.workers} compile processes\n"
        f"       {counted(len(plan.ms), 'batch size')} × ({plan.trials_per_m} of "
        f"{len(plan.feasible)} feasible candidates + the default), space {plan.space.name}, "
        f"study {plan.study}\n"
        f"       about {estimate.compilations(plan)} compilations, "
        f"{max(1, round(estimate.seconds(plan) / 60))} min on an empty cache; "
        "Ctrl-C keeps what is done",
        soft_wrap=True,
    )


def show_result(result: Result, files: list[Path]) -> None:
    """The table, the warnings and where the files are."""
    kind = "measured" if result.measured is not None else "PREDICTED, not measured"
    columns = MEASURED_COLUMNS if result.measured is not None else COLUMNS
    shown = Table(title=f"{result.plan.study}: {kind}", title_justify="left")
    shown.box, shown.pad_edge, shown.show_edge = box.SIMPLE_HEAD, False, False
    wanted = columns if out.width >= FULL_WIDTH else columns[:NARROW_COLUMNS]
    for name, justify in wanted:
        shown.add_column(name, justify=justify, no_wrap=True)
    for row in table(result):
        shown.add_row(*cells(row)[: len(wanted)])
    out.print(shown)
    if wanted != columns:
        hidden = ", ".join(name for name, _ in columns[NARROW_COLUMNS:])
        out.print(f"not shown for want of width, but in report.md: {hidden}")
    out.print(f"{summary(result)}; a row has to gain more than {result.plan.min_gain:.1%}")
    for text in warnings(result):
        err.print(f"[yellow]Warning: {escape(text)}[/yellow]")
    compiled = f"{result.compiled} kernels compiled, {result.cached} taken from the database; "
    out.print(
        f"{counted(result.trials, 'trial')}, {result.fresh} of them new; "
        f"{'' if result.measured is not None else compiled}{result.seconds:.0f} s"
    )
    for path in files:
        typer.echo(path)
    typer.echo(try_it(files[-1].parent))
