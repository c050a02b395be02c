"""Kernels on the nodes of a Ray cluster: who may take part, and the measurers that they make up."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from autotune import __version__
from autotune.cluster.crew import ClusterPool, Queue, Seat, Setting
from autotune.core import AutotuneError, Cache, Candidate, MissingEnvironmentError
from autotune.kernels.compile.job import Compiled, CompileJob
from autotune.kernels.compile.kernel_source import KernelInfo, kernel_info
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.compile.worker import set_up_worker
from autotune.kernels.measure.available import cannot_measure
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.processes import SET_UP_LIMIT_S
from autotune.kernels.measure.requests import GpuSetup, Timing, last_words
from autotune.kernels.moe.shape import MoeWorkload
from autotune.machine.devices import Device, GpuInfo, detect_gpus
from autotune.measure.pool import WorkerPool

_TASKS_PER_WORKER = 400


@dataclass(frozen=True)
class NodeFacts:
    """What a node says of itself.

    Attributes:
        host: the name of the machine.
        machine: its architecture; what is compiled on another one is another file.
        autotune: our version there.
        kernel: vLLM's there; None where there is none.
        missing: why it can compile nothing; None where it can.
        unmeasured: why it can measure nothing, whatever GPUs it has.
        gpus: that it has.
    """

    host: str
    machine: str
    autotune: str
    kernel: KernelInfo | None
    missing: str | None
    unmeasured: str | None
    gpus: tuple[GpuInfo, ...]


def look_here() -> NodeFacts:
    """Tell what this node has."""
    kernel, missing = None, None
    try:
        kernel = kernel_info()
    except AutotuneError as error:
        missing = str(error)
    here = platform.node(), platform.machine(), __version__
    return NodeFacts(*here, kernel, missing, cannot_measure(), tuple(detect_gpus()))


@dataclass(frozen=True)
class Team:
    """The nodes that take part.

    Attributes:
        seats: ids of nodes, and how many GPUs or CPUs each lends.
        gpus: to measure on; none is a prediction.
        left_out: nodes that do not take part, and why, a line each.
        compilers: as ``seats``, of CPUs, where GPUs measure; none is this machine's alone.
    """

    seats: tuple[tuple[str, int], ...]
    gpus: tuple[GpuInfo, ...] = ()
    left_out: tuple[str, ...] = ()
    compilers: tuple[tuple[str, int], ...] = ()


def compilers(found: dict[str, NodeFacts | str], free: dict[str, int], here: NodeFacts) -> Team:
    """Choose the nodes that compile as this one does.

    Args:
        found: by Ray's id of a node its facts, or why there are none.
        free: CPUs of each that nobody has.
        here: facts of this machine.

    Raises:
        MissingEnvironmentError: there is none; with what each lacks.
    """
    said, seats = list[tuple[str, str]](), []
    for node, facts in found.items():
        why = facts if isinstance(facts, str) else _differs(facts, here)
        if why is None and free.get(node, 0) < 1:
            why = "none of its CPUs is free; see `ray status`"
        if why is None:
            seats.append((node, free[node]))
        else:
            said.append((_named(node, facts), why))
    if not seats:
        raise MissingEnvironmentError(f"--ray: no node can compile: {_together(said)}")
    return Team(tuple(seats), (), tuple(f"--ray: node {who}: {why}" for who, why in said))


def timers(
    found: dict[str, NodeFacts | str],
    free: dict[str, int],
    here: NodeFacts,
    names: Sequence[str],
) -> Team:
    """Choose the GPUs that measure: of one name and one driver, with this machine's kernel.

    Args:
        found: by Ray's id of a node its facts, or why there are none.
        free: GPUs of each that nobody has.
        here: facts of this machine.
        names: of the device that is tuned for; empty is what most of them are.

    Raises:
        MissingEnvironmentError: there is none; with what each lacks.
    """
    kinds = Counter[tuple[str, str]]()
    for facts in found.values():
        if not isinstance(facts, str):
            kinds.update((gpu.name, gpu.driver) for gpu in facts.gpus if _is_of(gpu, names))
    kind = max(kinds, key=lambda one: kinds[one], default=None)
    said, seats, gpus = list[tuple[str, str]](), [], list[GpuInfo]()
    for node, facts in found.items():
        mine: tuple[GpuInfo, ...] = ()
        why = facts if isinstance(facts, str) else _differs(facts, here)
        if why is None and isinstance(facts, NodeFacts):
            mine = tuple(gpu for gpu in facts.gpus if (gpu.name, gpu.driver) == kind)
            why = facts.unmeasured if facts.gpus else "has no GPU"
            if why is None and len(mine) < len(facts.gpus):
                others = sorted({f"{g.name} (driver {g.driver})" for g in facts.gpus})
                why = f"has {', '.join(others)}" + (f", and others {kind[0]}" if kind else "")
            if why is None and free.get(node, 0) < 1:
                why = "none of its GPUs is free; see `ray status`"
        if why is None:
            seats.append((node, min(len(mine), free[node])))
            gpus += mine[: seats[-1][1]]
        else:
            said.append((_named(node, facts), why))
    if not seats:
        raise MissingEnvironmentError(
            f"--ray: no GPU of the cluster can measure, --predict needs none: {_together(said)}"
        )
    left_out = tuple(f"--ray: node {who}: {why}" for who, why in said)
    return Team(tuple(seats), tuple(gpus), left_out)


def _is_of(gpu: GpuInfo, names: Sequence[str]) -> bool:
    wanted = {name.casefold().replace("_", " ") for name in names}
    return not names or gpu.name.casefold().replace("_", " ") in wanted


def _named(node: str, facts: NodeFacts | str) -> str:
    return f"({node[:8]})" if isinstance(facts, str) else f"{facts.host} ({node[:8]})"


def _together(said: Sequence[tuple[str, str]]) -> str:
    """What nodes lack, in one line, however many there are."""
    nodes: dict[str, list[str]] = {}
    for who, why in said:
        nodes.setdefault(why, []).append(who)
    more = {why: f" and {len(names) - 1} more" if names[1:] else "" for why, names in nodes.items()}
    lines = [f"node {names[0]}{more[why]}: {why}" for why, names in nodes.items()]
    return "; ".join(lines) or "it has no node"


def _differs(facts: NodeFacts, here: NodeFacts) -> str | None:
    """Why a node would compile other code than this machine; None if it would not."""
    theirs, mine = facts.kernel, here.kernel
    if facts.autotune != here.autotune:
        return f"has autotune {facts.autotune}, and this is {here.autotune}"
    if theirs is None or mine is None:
        return facts.missing or here.missing
    pairs = {
        "is": (facts.machine, here.machine),
        "has Triton": (theirs.triton_version, mine.triton_version),
        "has the kernel of vLLM": (
            f"{theirs.vllm_version} ({theirs.sha256[:8]})",
            f"{mine.vllm_version} ({mine.sha256[:8]})",
        ),
    }
    for what, (there, ours) in pairs.items():
        if there != ours:
            return f"{what} {there}, and this machine {ours}"
    return None


def team_of(device: Device | None, *, measured: bool) -> Team:
    """Look at the nodes of the cluster that we are connected to, and choose who takes part.

    Args:
        device: to tune for; None is what most GPUs are.
        measured: whether on GPUs.

    Raises:
        MissingEnvironmentError: nobody can.
    """
    from autotune.cluster.actors import ask_nodes, free_of  # noqa: PLC0415 - Ray is an extra

    found, here = ask_nodes(look_here), look_here()
    names = [] if device is None else [device.vllm_name, device.title, *device.gpu_names]
    if measured:
        team = timers(found, free_of("GPU"), here, names)
        return replace(team, compilers=_helpers(team, found, free_of("CPU"), here))
    return compilers(found, free_of("CPU"), here)


def _helpers(
    team: Team, found: dict[str, NodeFacts | str], free: dict[str, int], here: NodeFacts
) -> tuple[tuple[str, int], ...]:
    """CPUs of the cluster that compile what is measured; none where this machine is all of it.

    The processes that measure, and the one that searches, must not wait for a compiler's CPU.
    """
    hosts = {facts.host for facts in found.values() if not isinstance(facts, str)}
    if hosts <= {here.host}:
        return ()
    busy = dict(team.seats)
    spared = {node: count - 1 - busy.get(node, 0) for node, count in free.items()}
    try:
        return compilers(found, spared, here).seats
    except MissingEnvironmentError:
        return ()


# ------------------------------------------------------------------------------------------
# The measurers.


class ClusterCompilers(CompileProcesses):
    """Compile processes on the nodes of a cluster; where none is ours, the results say alone."""

    def __init__(self, kernel: KernelInfo, team: Team, on_lost: Callable[[str], None]) -> None:
        """Take what the processes need.

        Args:
            kernel: the one that they load.
            team: where they are.
            on_lost: told of every one that is lost.
        """
        super().__init__(kernel, 1)
        self._team, self._on_lost = team, on_lost

    def __enter__(self) -> Self:
        from autotune.cluster.actors import RayCrew  # noqa: PLC0415 - Ray is an extra

        crew = RayCrew(self._team.compilers or self._team.seats, gpu=False)
        self._stack.callback(crew.close)
        self._queue = Queue(crew, self._on_lost)
        self._setting = Setting("compile", set_up_here, tasks_per_worker=_TASKS_PER_WORKER)
        self._pool: WorkerPool = ClusterPool(self._queue, self._setting)
        return self

    def compile(
        self,
        jobs: Iterable[CompileJob],
        cache: Cache | None,
        *,
        disassemble: bool = True,
        keep: str | None = None,
    ) -> Iterator[Compiled]:
        """Compile ``jobs`` in order; kernels to ``keep`` come here from whichever node."""
        if keep is not None:
            collect = partial(_new_files, Path(keep))
            self._pool = ClusterPool(self._queue, replace(self._setting, collect=collect))
        return super().compile(jobs, cache, disassemble=disassemble, keep=keep)


def set_up_here() -> None:
    """In a compile process of a node: load its own kernel, which is the driver's by its hash."""
    set_up_worker(kernel_info().path)


def _on_seat(initargs: tuple[Any, ...], seat: Seat) -> tuple[Any, ...]:
    """On a node: the set-up of its own GPU, with folders that are there."""
    (setup,) = initargs
    folder = Path(setup.folder) / seat.name.replace("/", "-")
    for path in (folder, Path(setup.triton_cache)):
        path.mkdir(parents=True, exist_ok=True)
    return (replace(setup, gpus=(seat.gpu,), folder=str(folder)),)


def _words(initargs: tuple[Any, ...], item: Any) -> str | None:
    """On a node: what a process that died over a request said."""
    path = last_words(initargs[0].folder, getattr(item, "key", ""))
    return path.read_text() if path.is_file() else None


def _new_files(folder: Path, known: frozenset[str], since: float = 0.0) -> dict[str, bytes]:
    """Files of a Triton cache, whole ones, that somebody does not have yet, by their path."""
    found = {}
    for path in folder.glob("*/*"):
        if str(path) not in known and path.is_file() and path.stat().st_mtime >= since:
            found[str(path)] = path.read_bytes()
    return found


class ClusterTimer(GpuMeasurer):
    """Times candidates on the GPUs of a cluster, fed by compile processes here or on its nodes.

    Kernels go to other machines with the first task that needs them.
    """

    def on(self, team: Team, on_lost: Callable[[str], None]) -> Self:
        """Take where to measure.

        Args:
            team: its GPUs are one kind.
            on_lost: told of every actor that is lost.
        """
        self._team, self._on_lost = team, on_lost
        return self

    def _hold(self, stack: ExitStack) -> None:
        """Have the actors started, which hold their own GPUs."""
        from autotune.cluster.actors import RayCrew  # noqa: PLC0415 - Ray is an extra

        crew = RayCrew(self._team.seats, gpu=True)
        stack.callback(lambda: crew.close(self.folder))
        self._crew, self._queue = crew, Queue(crew, self._on_lost)
        for said in crew.left_out:
            self._on_lost(f"--ray: left out: {said}")

    def _pool_of(self, purpose: str, setup: GpuSetup) -> WorkerPool:
        setting = Setting(
            purpose,
            self._worker("set_up"),
            (setup,),
            fit=_on_seat,
            parcel=partial(_new_files, Path(setup.triton_cache)),
            last_words=_words,
            need=self._options.need if self._options.unified else None,
        )
        return ClusterPool(self._queue, setting)

    def _wait_for_room(self) -> None:
        """See that the guard of this machine has ended nothing; a seat waits for room itself."""
        self._guard.raise_if_ended()

    def places(self, default: Candidate, workload: MoeWorkload) -> dict[str, float]:
        """Time one candidate on every GPU: by its place its speed over that of the slowest.

        Args:
            default: known to work.
            workload: on which.
        """
        pool = self._pool("search")
        if not isinstance(pool, ClusterPool) or len(self._crew.places) < 2:
            return {}
        request = Timing("control", workload.m, default.ints)
        results = pool.each(self._worker("time_candidate"), request, SET_UP_LIMIT_S)
        us = {
            place: sorted(result.value["samples"])[len(result.value["samples"]) // 2]
            for place, result in results.items()
            if result.value is not None and result.value.get("samples")
        }
        slowest = max(us.values(), default=1.0)
        return {place: slowest / value for place, value in us.items()}
