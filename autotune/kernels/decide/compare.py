"""Two configuration files, key by key: looked up in what was recorded, or measured side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from autotune.core import (
    BadInputError,
    Basis,
    Candidate,
    Group,
    Measurement,
    Outcome,
    Phase,
    Trial,
)
from autotune.decide.stats import Ratio, geometric_mean, paired_ratio
from autotune.kernels.compile.job import kernel_info
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.config_file import FIELDS, LIMIT, look_up, parse
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.processes import GpuOptions
from autotune.kernels.moe.file_name import assumed_sizes, parse_name
from autotune.kernels.moe.routing import Routing
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kind import MOE
from autotune.machine.devices import Device, GpuInfo, get_device
from autotune.measure.replay import Landscape
from autotune.store.store import Store
from autotune.util import edge
from autotune.util.flags import MOST_TOKENS


@dataclass(frozen=True)
class File:
    """A configuration file: where it is, its digest, its rows in file order."""

    path: Path
    sha256: str
    rows: dict[int, Candidate]

    @classmethod
    def read(cls, path: Path) -> File:
        """Read it.

        Raises:
            BadInputError: it cannot be read, has no rows, or rows that this kernel does not take.
        """
        try:
            data = edge.read_bytes(path, LIMIT)
        except IsADirectoryError as error:
            raise BadInputError(f"{edge.bad_input(path, error)}; name a file in it") from None
        except (OSError, edge.EdgeError) as error:
            raise edge.bad_input(path, error) from None
        rows = parse(data, str(path))
        if not rows:
            raise BadInputError(f"{path}: has no rows")
        for m, row in rows.items():
            if not 1 <= m <= MOST_TOKENS:
                raise BadInputError(f"{path}: key {m}: expected 1 to {MOST_TOKENS} tokens")
            if set(row.params) != set(FIELDS):
                raise BadInputError(
                    f"{path}: key {m}: expected the fields {', '.join(FIELDS)}, found "
                    f"{', '.join(row.params) or 'none'}"
                )
        return cls(path, hashlib.sha256(data).hexdigest(), rows)


@dataclass(frozen=True)
class Row:
    """What both files use at ``m``; ``ratio`` is first over second, above 1 the second is faster.

    Times in µs; None where they are not known, and ``note`` says why. ``low`` and ``high`` are the
    95 % ends where both were measured side by side.
    """

    m: int
    first: dict[str, Any]
    second: dict[str, Any]
    first_us: float | None
    second_us: float | None
    ratio: float | None
    low: float | None
    high: float | None
    note: str


@dataclass(frozen=True)
class Pair:
    """Two measurements at one M; a ratio where they were made side by side."""

    first: Measurement | None
    second: Measurement | None
    ratio: Ratio | None = None


@dataclass(frozen=True)
class Origin:
    """What times are of; None where that is not recorded, as with a landscape alone.

    Attributes:
        device: its name.
        layer: with hidden size, top-k and scaling, which no file name holds.
        vllm: version.
        triton: version.
        kernel_sha256: of vLLM's ``fused_moe.py``.
    """

    device: str | None = None
    layer: MoeShape | None = None
    vllm: str | None = None
    triton: str | None = None
    kernel_sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return vars(self) | {"layer": self.layer.as_json() if self.layer else None}


def origin_of(landscape: Landscape) -> Origin:
    """What the times of a landscape are of, as far as the note beside it says."""
    facts, shape = landscape.about.get("facts", {}), landscape.about.get("shape")
    gpu = None if facts.get("gpu") is None else str(facts["gpu"])
    try:
        device = None if gpu is None else get_device(gpu).name
    except BadInputError:  # a GPU that no file describes
        device = gpu
    try:
        layer = None if shape is None else MoeShape.from_json(shape)
    except (KeyError, TypeError, ValueError):
        layer = None
    versions = (facts.get("vllm"), facts.get("triton"), landscape.about.get("kernel_sha256"))
    return Origin(device, layer, *versions)


class Source(Protocol):
    """Knows times.

    Attributes:
        basis: what they are.
        origin: what they are of.
    """

    basis: Basis
    origin: Origin

    def pairs(
        self, wanted: Sequence[tuple[int, Candidate, Candidate]]
    ) -> Iterator[tuple[int, Pair]]:
        """The measurements of two different rows at each M, in order."""


def keys_of(first: File, second: File) -> list[int]:
    """The keys of both files."""
    return sorted({*first.rows, *second.rows})


def device_warnings(first: File, second: File, device: str | None) -> list[str]:
    """What the devices in the names speak against; files of another device may be compared.

    Args:
        first: a file.
        second: another.
        device: the name of the device that the times are of; None if not known.
    """
    named = [(file.path.name, parse_name(file.path.name)) for file in (first, second)]
    found = {
        name: known.name if (known := one.known_device()) else one.device
        for name, one in named
        if one is not None
    }
    said = []
    if len(set(found.values())) > 1:
        said.append(f"the files are for different devices: {' and '.join(found.values())}")
    others = sorted({name for name in found.values() if device is not None and name != device})
    if others:
        said.append(f"the times are of {device}, not of {' or '.join(others)}")
    return said


def compared(
    first: File, second: File, batch_sizes: Sequence[int], source: Source
) -> Iterator[Row]:
    """What both files come to at each M.

    Args:
        first: the one that is there.
        second: the one that might replace it.
        batch_sizes: batch sizes.
        source: of the times.
    """
    chosen = {m: (look_up(first.rows, m), look_up(second.rows, m)) for m in batch_sizes}
    differing = [(m, a, b) for m, (a, b) in chosen.items() if a != b]
    found = source.pairs(differing)
    for m, (a, b) in chosen.items():
        if a == b:
            yield Row(m, a.params, b.params, None, None, 1.0, None, None, "the same row")
            continue
        at, pair = next(found)
        assert at == m  # noqa: S101 - a source keeps the order
        yield _row(m, a, b, pair)


def _row(m: int, a: Candidate, b: Candidate, pair: Pair) -> Row:
    first = pair.first.value if pair.first else None
    second = pair.second.value if pair.second else None
    ratio = low = high = None
    if pair.ratio is not None:
        ratio, low, high = pair.ratio.value, pair.ratio.low, pair.ratio.high
    elif first is not None and second is not None:
        ratio = first / second
    note = "; ".join(
        f"the {which} {_why(one)}"
        for which, one in (("first", pair.first), ("second", pair.second))
        if one is None or one.value is None
    )
    return Row(m, a.params, b.params, first, second, ratio, low, high, note)


def _why(measurement: Measurement | None) -> str:
    if measurement is None:
        return "was not recorded"
    return f"fails ({measurement.outcome.value}) {measurement.message}".rstrip()


def document(
    first: File,
    second: File,
    rows: Sequence[Row],
    source: Source,
) -> dict[str, Any]:
    """Everything as JSON values; the geometric mean is over the rows with a ratio."""
    known = [row.ratio for row in rows if row.ratio is not None]
    return {
        "basis": source.basis.value,
        **source.origin.as_json(),
        "first": {"file": str(first.path), "sha256": first.sha256},
        "second": {"file": str(second.path), "sha256": second.sha256},
        "geometric_mean": geometric_mean(known) if known else None,
        "compared": len(known),
        "warnings": device_warnings(first, second, source.origin.device),
        "rows": [asdict(row) for row in rows],
    }


class Recorded:
    """Times of a landscape."""

    def __init__(self, landscape: Landscape, files: Sequence[File] = ()) -> None:
        """Take a landscape.

        Args:
            landscape: of one layer and device.
            files: to be looked up in it.

        Raises:
            BadInputError: a file is for another layer, by its name.
        """
        self._table, self.basis = landscape.table, landscape.basis
        self.origin = origin_of(landscape)
        if self.origin.layer is not None:
            _check_layer(files, self.origin.layer, "the landscape")

    def pairs(
        self, wanted: Sequence[tuple[int, Candidate, Candidate]]
    ) -> Iterator[tuple[int, Pair]]:
        """See :class:`Source`."""
        for m, a, b in wanted:
            yield m, Pair(self._table.get((f"M={m}", a)), self._table.get((f"M={m}", b)))


class Stored:
    """Times of a study: of one comparison where both rows met there, else each one's own median."""

    def __init__(self, trials: Mapping[int, Sequence[Trial]], basis: Basis, origin: Origin) -> None:
        self._trials, self.basis, self.origin = trials, basis, origin

    def pairs(
        self, wanted: Sequence[tuple[int, Candidate, Candidate]]
    ) -> Iterator[tuple[int, Pair]]:
        """See :class:`Source`."""
        for m, a, b in wanted:
            yield m, self._pair(self._trials.get(m, ()), a, b)

    def _pair(self, trials: Sequence[Trial], a: Candidate, b: Candidate) -> Pair:
        groups: dict[str, dict[Candidate, Measurement]] = {}
        alone: dict[Candidate, Measurement] = {}
        for trial in trials:
            if trial.phase is Phase.CONFIRM and "compared" in trial.measurement.details:
                group = groups.setdefault(trial.measurement.details["compared"], {})
                group[trial.candidate] = trial.measurement
            else:
                alone[trial.candidate] = trial.measurement
        for group in reversed(groups.values()):
            if a in group and b in group:
                return together(group[a], group[b])
        return Pair(alone.get(a), alone.get(b))


def together(first: Measurement, second: Measurement) -> Pair:
    """Two measurements whose samples were taken in turn."""
    if first.outcome is Outcome.OK and second.outcome is Outcome.OK:
        return Pair(first, second, paired_ratio(first.samples, second.samples))
    return Pair(first, second)


def of_study(store: Store, study: str, files: Sequence[File] = ()) -> Stored:
    """The trials of a study's last search.

    Raises:
        BadInputError: no such study, of another kind, empty, or of another layer than a file's
            name says.
    """
    detail = store.get_study(study, MOE)
    for run in reversed(detail.all_runs):
        record = next(r for r in detail.searches if r.id == run.search_id)
        trials = store.trials(record)
        if trials:
            keys = {w.key: w.spec["m"] for w in store.workloads(record)}
            by_m: dict[int, list[Trial]] = {}
            for trial in trials:
                by_m.setdefault(keys[trial.workload_key], []).append(trial)
            identity, setup = detail.study.identity, record.setup
            shape = MoeShape.from_json(identity["shape"])
            _check_layer(files, shape, f"study {study!r}")
            versions = (setup.get(name) for name in ("vllm", "triton", "kernel_sha256"))
            origin = Origin(identity["device"], shape, *versions)
            return Stored(by_m, Basis(setup["basis"]), origin)
    raise BadInputError(f"study {study!r} has no trials yet")


def _check_layer(files: Sequence[File], shape: MoeShape, source: str) -> None:
    expected = shape.config_file_name("")
    for file in files:
        named = parse_name(file.path.name)
        layer = None if named is None else named.shape(shape.hidden, shape.topk)
        if layer is not None and layer.config_file_name("") != expected:
            raise BadInputError(
                f"{file.path}: is for another layer than {source}, which is of "
                f"E={shape.experts},N={shape.intermediate} ({shape.dtype or shape.weight_dtype})"
            )


class Measured:
    """Measures both rows side by side on the GPUs of this machine, outputs checked."""

    basis = Basis.MEASURED

    def __init__(
        self,
        shape: MoeShape,
        device: Device,
        gpus: Sequence[GpuInfo],
        workers: int,
        seed: int,
        need: int = 0,
    ) -> None:
        """Take what measuring needs.

        Args:
            shape: of the layer.
            device: what the GPUs are.
            gpus: to measure on.
            workers: compile processes.
            seed: of weights, inputs and routings.
            need: bytes that measuring takes where memory is unified, and guarded; else 0.
        """
        self._shape, self._workers, self._seed = shape, workers, seed
        self._kernel = kernel = kernel_info()
        self.origin = Origin(
            device.name, shape, kernel.vllm_version, kernel.triton_version, kernel.sha256
        )
        self._options = GpuOptions(
            gpus=tuple(gpu.index for gpu in gpus),
            uuids={gpu.index: gpu.uuid for gpu in gpus},
            arch=device.arch,
            l2_bytes=device.l2_bytes,
            routing=Routing(),
            seed=seed,
            unified=bool(need),
            need=need,
        )

    def pairs(
        self, wanted: Sequence[tuple[int, Candidate, Candidate]]
    ) -> Iterator[tuple[int, Pair]]:
        """See :class:`Source`.

        Raises:
            MissingEnvironmentError: nothing can be measured here.
        """
        if not wanted:
            return
        groups = [Group(MoeWorkload(self._shape, m), (a, b), self._seed) for m, a, b in wanted]
        processes = CompileProcesses(self._kernel, self._workers)
        with GpuMeasurer(self._shape, self._options, processes) as measurer:
            results = measurer.compare(groups, check=True)
            for (m, a, b), found in zip(wanted, results, strict=True):
                yield m, together(found[a], found[b])


def shape_of(first: File, second: File, model: MoeShape | None) -> MoeShape:
    """The layer that both files are for, by their names.

    Args:
        first: a file.
        second: another.
        model: gives hidden size, top-k and scaling; None to assume them (see
            :func:`autotune.kernels.moe.file_name.assumed_sizes`).

    Raises:
        BadInputError: a name says no layer, or each another one.
    """
    shapes = []
    for file in (first, second):
        named = parse_name(file.path.name)
        if named is None:
            raise BadInputError(f"{file.path}: the name says no layer (E=…,N=…,device_name=…)")
        hidden, topk = (model.hidden, model.topk) if model else assumed_sizes(named)
        shape = named.shape(hidden, topk)
        if shape is None:
            raise BadInputError(f"{file.path}: is of another kernel, which is not measured here")
        shapes.append(shape)
    if shapes[0] != shapes[1]:
        raise BadInputError(f"{first.path.name} and {second.path.name} are for different layers")
    shape = shapes[0]
    if model is None or model.scheme is shape.scheme:
        return shape
    if model.dtype != shape.dtype or model.block_shape != shape.block_shape:
        raise BadInputError("--model: is quantised in another way than the files' names say")
    return MoeShape.from_json({**shape.as_json(), "scheme": model.scheme.value})
