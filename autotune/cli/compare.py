"""``autotune compare``: two configuration files, key by key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from autotune.cli.common import DEFAULT_DB, Db, Json, print_json
from autotune.cli.consoles import err, out
from autotune.core import BadInputError, MissingEnvironmentError
from autotune.machine.devices import no_gpu, present_gpus, resolve_device
from autotune.machine.environment import usable_cpus, visible_gpus
from autotune.util import flags
from autotune.util.words import counted

if TYPE_CHECKING:
    from autotune.kernels.decide.compare import File, Row, Source


def compare(
    first: Annotated[Path, typer.Argument(help="A configuration file, such as the one there.")],
    second: Annotated[Path, typer.Argument(help="Another one, such as the one to replace it.")],
    landscape: Annotated[
        Path | None, typer.Option(help="Look times up in a recorded landscape.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Look times up in this study's trials.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Measured: gives hidden size, top-k and scaling.")
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Values of M; default: the keys of both files.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Measured: of weights and routings.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Compile processes; default: CPUs.")] = None,
    db: Db = DEFAULT_DB,
    json_: Json = False,
) -> None:
    """Compare two configuration files, measured side by side on this GPU or looked up."""
    flags.within(workers, "--workers", 1, 1024)
    flags.within(seed, "--seed", 0, 2**32 - 1)
    if landscape is not None and study is not None:
        raise BadInputError("--landscape and --study exclude each other")
    from autotune.kernels.decide.compare import (  # noqa: PLC0415 - slow imports
        File,
        Recorded,
        compared,
        document,
        keys_of,
        of_study,
    )
    from autotune.measure.replay import Landscape  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    files = File.read(first), File.read(second)
    ms = flags.batch_sizes(batch_sizes, tuple(keys_of(*files)))
    source: Source
    if landscape is not None:
        if not landscape.is_file():
            raise BadInputError(f"--landscape {landscape}: no such file")
        source = Recorded(Landscape.read(landscape), files)
    elif study is not None:
        with Store.open(db, create=False) as store:
            source = of_study(store, study, files)
    else:
        source = _measuring(*files, model, workers, seed)
    quiet = json_ or not err.is_terminal
    with Progress(console=err, transient=True, disable=quiet) as bar:
        rows = list(bar.track(compared(*files, ms, source), len(ms), description="comparing"))
    found = document(*files, rows, source)
    if json_:
        print_json(found)
        return
    for text in found["warnings"]:
        err.print(f"[yellow]Warning: {escape(text)}[/yellow]", soft_wrap=True)
    _show(rows, found["basis"])
    mean = found["geometric_mean"]
    if mean is None:
        out.print("nothing could be compared")
        return
    out.print(
        f"{found['basis']}: {mean:.3f}× in the geometric mean over {found['compared']} of "
        f"{counted(len(rows), 'batch size')}; above 1 the second file is faster"
    )


def _measuring(
    first: File, second: File, model: str | None, workers: int | None, seed: int
) -> Source:
    from autotune.kernels.decide.compare import Measured, shape_of  # noqa: PLC0415
    from autotune.kernels.measure.available import cannot_measure  # noqa: PLC0415
    from autotune.kernels.moe.from_model import load_config, shape_from_config  # noqa: PLC0415

    visible = visible_gpus()
    if why := no_gpu(visible) or cannot_measure():
        raise MissingEnvironmentError(
            f"{why}; give --landscape FILE or --study NAME to look times up"
        )
    device = resolve_device("auto", visible)
    shape = shape_of(
        first, second, None if model is None else shape_from_config(load_config(model))
    )
    gpus = present_gpus(device, visible)
    err.print(
        f"measuring on {device.title}: hidden size {shape.hidden}, top-{shape.topk}, "
        f"{shape.weight_dtype} per {shape.scheme.value}"
        + ("" if model else "; the names do not say these, --model does")
    )
    return Measured(shape, device, gpus, workers or max(1, usable_cpus() - 1 - len(gpus)), seed)


def _show(rows: list[Row], basis: str) -> None:
    shown = Table(title=f"{basis}, µs", title_justify="left", box=None)
    for name in ("M", "first", "second", "first µs", "second µs", "ratio", "95 % interval", ""):
        shown.add_column(name, justify="right" if "µs" in name or name == "M" else "left")
    for row in rows:
        shown.add_row(
            str(row.m),
            _config(row.first),
            _config(row.second),
            _number(row.first_us, 1),
            _number(row.second_us, 1),
            _number(row.ratio, 3),
            "" if row.low is None else f"{row.low:.3f} to {row.high:.3f}",
            escape(row.note),
        )
    out.print(shown)


def _config(row: dict[str, object]) -> str:
    from autotune.kernels.config_file import FIELDS  # noqa: PLC0415

    return "/".join(str(row[name]) for name in FIELDS)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
