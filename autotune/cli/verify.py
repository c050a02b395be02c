"""``autotune verify`` checks configuration files without running them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.progress import Progress

from autotune.cli.common import print_json
from autotune.cli.consoles import err, out
from autotune.cli.requests import Verify
from autotune.core import BadInputError, ExitCode
from autotune.machine.devices import get_device
from autotune.machine.environment import usable_cpus
from autotune.machine.memory import read_memory

if TYPE_CHECKING:
    from autotune.kernels.check.verify import Verified

_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


def verify(request: Verify) -> None:
    """Check the files and print what is wrong with them.

    Raises:
        typer.Exit: something is, with the code of a flagged file.
    """
    judged_by = None if request.device is None else get_device(request.device)
    from autotune.kernels.check.verify import Judge  # noqa: PLC0415
    from autotune.kernels.check.verify_all import Options, files_in, verify_all  # noqa: PLC0415
    from autotune.kernels.moe.from_model import load_config, shape_from_config  # noqa: PLC0415 - slow imports
    from autotune.measure.replay import Landscape  # noqa: PLC0415

    landscape = request.landscape
    if landscape is not None and not landscape.is_file():
        raise BadInputError(f"--landscape {landscape}: no such file")
    shape = None if request.model is None else shape_from_config(load_config(request.model))
    options = Options(
        judge=Judge(judged_by, (shape.hidden, shape.topk) if shape else None),
        landscape=None if landscape is None else Landscape.read(landscape),
        compile=request.compile_,
        workers=_workers(request) if request.compile_ else request.workers or 1,
    )
    paths = files_in(request.files)
    quiet = request.as_json or not err.is_terminal
    with Progress(console=err, transient=True, disable=quiet) as bar:
        task = bar.add_task("verifying", total=len(paths))
        done = verify_all(paths, options, lambda _: bar.advance(task))
    if request.as_json:
        print_json([verified.as_json() for verified in done])
    else:
        _show(done, request.notes or len(done) == 1)
    levels = {verified.worst() for verified in done}
    if "error" in levels or (request.strict and "warning" in levels):
        raise typer.Exit(ExitCode.FLAGGED)


def _workers(request: Verify) -> int:
    """How many compile processes to use: no more than unified memory has room for."""
    from autotune.kernels.memory import fitting_workers  # noqa: PLC0415 - slow imports

    return fitting_workers(request.workers or usable_cpus(), 0, read_memory(), "compiling")


def _show(done: list[Verified], notes: bool) -> None:
    from autotune.kernels.check.verify_all import grouped  # noqa: PLC0415

    for verified in done:
        findings = [f for f in grouped(verified.findings) if notes or f.level != "note"]
        if findings or len(done) == 1:
            out.print(f"[bold]{escape(str(verified.path))}[/bold]", soft_wrap=True)
        for finding in findings:
            where = f" M={','.join(map(str, finding.keys))}:" if finding.keys else ""
            text = escape(f"{where} {finding.text} ({finding.code})")
            colour = _COLOURS[finding.level]
            out.say(f"  [{colour}]{finding.level}[/{colour}]{text}", hang=10)
    worst = Counter(verified.worst() or "nothing" for verified in done)
    counts = ", ".join(
        f"{n} with {level}s at worst" for level, n in worst.items() if level != "nothing"
    )
    out.print(
        f"{len(done)} {'file' if len(done) == 1 else 'files'}: {worst['nothing']} without a word"
        f"{', ' if counts else ''}{counts}"
    )
