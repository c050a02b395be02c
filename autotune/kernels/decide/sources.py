"""What knows the times of two files' rows: a landscape, a study, or the GPU that is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
from autotune.decide.stats import paired_ratio
from autotune.kernels.compile.job import kernel_info
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.decide.compare import File, Origin, Pair, origin_of
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.processes import GpuOptions
from autotune.kernels.moe.file_name import assumed_sizes, parse_name
from autotune.kernels.moe.routing import Routing
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kind import MOE
from autotune.machine.devices import Device, GpuInfo
from autotune.measure.replay import Landscape
from autotune.store.store import Store


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
    weights = {"scheme": model.scheme.value, "weight_dtype": model.weight_dtype}
    return MoeShape.from_json(shape.as_json() | weights)  # bf16 and int8 have the same name
