"""``autotune compare`` compares two configuration files, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from autotune.cli.common import print_json
from autotune.cli.consoles import err, out
from autotune.cli.requests import Compare
from autotune.core import BadInputError, MissingEnvironmentError
from autotune.machine.devices import no_gpu, present_gpus, refuse_slices, resolve_device
from autotune.machine.environment import usable_cpus, visible_gpus
from autotune.machine.memory import MemoryKind
from autotune.util import flags
from autotune.util.words import counted

if TYPE_CHECKING:
    from autotune.kernels.decide.compare import File, Row, Source


def compare(request: Compare) -> None:
    """Compare the files and print what is faster."""
    from autotune.kernels.decide.compare import (  # noqa: PLC0415 - slow imports
        File,
        compared,
        document,
        keys_of,
    )
    from autotune.kernels.decide.sources import Recorded, of_study  # noqa: PLC0415
    from autotune.measure.replay import Landscape  # noqa: PLC0415
    from autotune.store.foreign import reading_back  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    files = File.read(request.first), File.read(request.second)
    batch_sizes = flags.batch_sizes(request.batch_sizes, tuple(keys_of(*files)))
    source: Source
    if request.landscape is not None:
        if not request.landscape.is_file():
            raise BadInputError(f"--landscape {request.landscape}: no such file")
        source = Recorded(Landscape.read(request.landscape), files)
    elif request.study is not None:
        with (
            reading_back(request.db, request.study),
            Store.open(request.db, create=False) as store,
        ):
            source = of_study(store, request.study, files)
    else:
        source = _measuring(*files, request)
    quiet = request.as_json or not err.is_terminal
    with Progress(console=err, transient=True, disable=quiet) as bar:
        rows = list(
            bar.track(
                compared(*files, batch_sizes, source), len(batch_sizes), description="comparing"
            )
        )
    comparison = document(*files, rows, source)
    if request.as_json:
        print_json(comparison)
        return
    _show_all(comparison, rows)


def _show_all(comparison: Mapping[str, Any], rows: list[Row]) -> None:
    for text in comparison["warnings"]:
        err.warn(f"Warning: {text}")
    _show(rows, comparison["basis"])
    mean, basis, compared = (comparison[k] for k in ("geometric_mean", "basis", "compared"))
    if mean is None:
        out.print("nothing could be compared")
        return
    out.print(
        f"{basis}: {mean:.3f}× in the geometric mean over {compared} of "
        f"{counted(len(rows), 'batch size')}; above 1 the second file is faster"
    )


def _measuring(first: File, second: File, request: Compare) -> Source:
    from autotune.kernels.decide.sources import Measured, shape_of  # noqa: PLC0415
    from autotune.kernels.measure.available import cannot_measure  # noqa: PLC0415
    from autotune.kernels.memory import (  # noqa: PLC0415
        fitting_workers,
        memory_of,
        process_bytes,
    )
    from autotune.kernels.moe.from_model import load_config, shape_from_config  # noqa: PLC0415

    visible, model = visible_gpus(), request.model
    if why := no_gpu(visible) or cannot_measure():
        raise MissingEnvironmentError(
            f"{why}; give --landscape FILE or --study NAME to look times up"
        )
    device = resolve_device("auto", visible)
    shape = shape_of(
        first, second, None if model is None else shape_from_config(load_config(model))
    )
    gpus = present_gpus(device, visible)
    refuse_slices(gpus)
    err.print(
        f"measuring on {device.title}: hidden size {shape.hidden}, top-{shape.topk}, "
        f"{shape.weight_dtype} per {shape.scheme.value}"
        + ("" if model else "; the names do not say these, --model does")
    )
    workers = request.workers or max(1, usable_cpus() - 1 - len(gpus))
    memory = memory_of(device, gpus)
    need = len(gpus) * process_bytes(shape, device, (*first.rows, *second.rows))
    workers = fitting_workers(workers, need, memory, "comparing two files")
    unified = memory.kind is MemoryKind.UNIFIED
    return Measured(shape, device, gpus, workers, request.seed, need if unified else 0)


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
