"""The measurer of the measured mode: compile processes feed one measuring process per GPU.

Compile processes fill a Triton cache from which the measuring processes load, so that a GPU does
not wait for a compiler once started. The parent holds no CUDA context: whatever a candidate does
to the device dies with the process that ran it.
"""

from __future__ import annotations

import importlib
import itertools
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median, median_low
from typing import Any, Self, TypeVar, cast

from autotune.core import (
    Basis,
    Cache,
    Candidate,
    Group,
    Job,
    Measurement,
    MissingEnvironmentError,
    Outcome,
    digest,
)
from autotune.kernels.compile.job import Compiled, CompileJob
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.measure.control import Pace
from autotune.kernels.measure.requests import (
    EXIT_DEVICE_ERROR,
    EXIT_HUNG,
    EXIT_RECYCLE,
    Comparison,
    GpuSetup,
    Timing,
    last_words,
)
from autotune.kernels.moe.routing import Routing
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.predict.measurer import compile_jobs
from autotune.machine.gpu_lock import hold_gpus, lock_folders
from autotune.machine.guard import Watched, guarded
from autotune.machine.resident import shortage
from autotune.measure.pool import TaskResult, TaskStatus, WorkerPool

KERNEL = "autotune.kernels.measure.process"
"""The module that measuring processes run; tests put a fake one in its place."""
SET_UP_LIMIT_S = 300.0
"""For importing vLLM and drawing the weights, on top of a request's own limit."""
LAST_RESORT_S = 1200.0
"""For a request on top of that. A measuring process ends itself when a step of one hangs; this is
for one that cannot."""
ROUNDS = 9
"""Of a comparison: the second smallest and second largest ratio then enclose 95 %."""

Request = TypeVar("Request", Timing, Comparison)


class _Memory(dict[str, dict[str, Any]]):
    """A compile cache for the life of a command: what it names lies in the Triton cache."""

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        self[key] = dict(value)


@dataclass(frozen=True)
class GpuOptions:
    """How to measure.

    Attributes:
        gpus: indices of the GPUs to use, one process each.
        arch: their compute capability, such as 90.
        l2_bytes: of one.
        routing: of the tokens.
        seed: of weights, inputs and routings.
        memory_limit_mib: a measuring process above it is replaced; None is no limit.
        kernel: module with ``set_up``, ``time_candidate``, ``compare``, ``device_facts``.
        uuids: of the GPUs, by index, as far as they are known.
        locks: the folders of what keeps two commands off one GPU.
        shared_locks: a further one that other machines or containers may see, if any.
        unified: whether the GPUs allocate from the host's memory, which is then guarded.
        need: bytes that measuring takes, where memory is unified.
    """

    gpus: tuple[int, ...]
    arch: int
    l2_bytes: int
    routing: Routing = field(default_factory=Routing)
    seed: int = 0
    memory_limit_mib: int | None = None
    kernel: str = KERNEL
    uuids: Mapping[int, str] = field(default_factory=dict)
    locks: tuple[Path, ...] = field(default_factory=lock_folders)
    shared_locks: Path | None = None
    unified: bool = False
    need: int = 0


@dataclass
class Spent:
    """Where the time went, in seconds, and how often workers had to be replaced."""

    compile_cpu: float = 0.0
    """Wall time of the compile processes together, each kernel once."""
    measuring: float = 0.0
    """Of the search's measuring processes at candidates: loading, capturing, replaying."""
    replaced: int = 0
    compiled_late: int = 0
    """Kernels that the measuring process compiled itself: the shared cache had missed them."""
    peak_rss_mib: int = 0
    peak_device_mib: int = 0
    first_rss_mib: int = 0
    first_device_mib: int = 0

    def memory(self, seen: Mapping[str, int]) -> None:
        """Take in what a measuring process says of its memory."""
        self.first_rss_mib = self.first_rss_mib or seen["rss_mib"]
        self.first_device_mib = self.first_device_mib or seen["device_mib"]
        self.peak_rss_mib = max(self.peak_rss_mib, seen["rss_mib"])
        self.peak_device_mib = max(self.peak_device_mib, seen["device_mib"])


class GpuMeasurer:
    """Times candidates on this machine's GPUs.

    A :class:`autotune.kernels.measure.protocol.KernelTimer`.
    """

    def __init__(self, shape: MoeShape, options: GpuOptions, processes: CompileProcesses) -> None:
        """Take what measuring needs; processes start on entering the context.

        Args:
            shape: of every workload that will be given.
            options: how to measure.
            processes: compile.
        """
        self._shape, self._options, self._processes = shape, options, processes
        self._known = _Memory()
        self._cache: Cache | None = None
        self._worker = partial(partial, _call, options.kernel)
        self._stack = ExitStack()
        self._best: dict[str, float] = {}
        self._requests = 0
        self._spent = Spent()
        self._compiled: set[CompileJob] = set()
        self._pools: dict[str, tuple[WorkerPool, Watched]] = {}
        self._closing: dict[str, ExitStack] = {}
        self._spared: int | None = None
        self._fell = False

    @property
    def basis(self) -> Basis:
        """Always measured."""
        return Basis.MEASURED

    def __enter__(self) -> Self:
        options = self._options
        self._guard = self._stack.enter_context(guarded(options.unified))
        self._hold(self._stack)
        self._stack.enter_context(self._processes)
        self.folder = tempfile.mkdtemp(prefix="autotune-gpu-")
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._triton_cache = str(Path(self.folder) / "triton")
        Path(self._triton_cache).mkdir()
        self._stack.callback(self._close_pools)
        # Importing vLLM takes half a minute: compilation goes on meanwhile.
        started = self._pool("search").start(self._worker("device_facts"), 0, SET_UP_LIMIT_S)
        self._facts = started
        return self

    def __exit__(self, *ended: Any) -> None:
        self._stack.__exit__(*ended)

    def _hold(self, stack: ExitStack) -> None:
        """Keep other commands off the GPUs."""
        options = self._options
        locks = hold_gpus(options.gpus, options.locks, options.uuids, options.shared_locks)
        stack.enter_context(locks)

    def _pool(self, purpose: str) -> WorkerPool:
        """Measuring processes of a purpose, one per GPU, opened when they are first needed.

        On unified memory those of the other purpose are closed: both would hold the weights.

        Raises:
            MissingEnvironmentError: there is no room for them.
        """
        if purpose not in self._pools:
            if self._options.unified:
                self._close_pools()
                self._wait_for_room()
            stack = self._closing[purpose] = ExitStack()
            pool = stack.enter_context(self._measuring(purpose))
            watched = self._guard.watch("a measuring process", pool.kill_workers)
            self._pools[purpose] = (pool, stack.enter_context(watched))
        return self._pools[purpose][0]

    def _close_pools(self) -> None:
        self._pools.clear()
        while self._closing:
            self._closing.popitem()[1].close()

    def _wait_for_room(self) -> None:
        """Wait until there is room for measuring processes.

        Raises:
            MissingEnvironmentError: there is none, or the guard has ended everything.
        """
        self._guard.raise_if_ended()
        if not self._guard.has_room(self._options.need):
            said = shortage("measuring", self._options.need, self._guard.available())
            raise MissingEnvironmentError(
                f"{said}; what was measured is kept, and the same command goes on"
            )

    def _measuring(self, purpose: str) -> WorkerPool:
        """Measuring processes of their own, one per GPU."""
        folder = Path(self.folder) / purpose
        folder.mkdir(exist_ok=True)
        options = self._options
        setup = GpuSetup(
            shape=self._shape,
            routing=options.routing,
            seed=options.seed,
            l2_bytes=options.l2_bytes,
            gpus=options.gpus,
            triton_cache=self._triton_cache,
            folder=str(folder),
            memory_limit_mib=options.memory_limit_mib,
        )
        return self._pool_of(purpose, setup)

    def _pool_of(self, purpose: str, setup: GpuSetup) -> WorkerPool:
        """The processes themselves, which are told of their ``purpose``."""
        del purpose
        return WorkerPool(len(setup.gpus), self._worker("set_up"), (setup,))

    def places(self, default: Candidate, workload: MoeWorkload) -> dict[str, float]:
        """Time the default on every GPU of a cluster; of one machine nothing is asked."""
        del default, workload
        return {}

    def use(self, cache: Cache) -> None:
        """Take a cache of compile results, for the probe of fp8."""
        self._cache = cache

    def defaults(self, batch_sizes: Sequence[int]) -> dict[int, Candidate]:
        """Return what vLLM would run at each M without a file."""
        return self._processes.defaults(self._shape, batch_sizes)

    @property
    def spent(self) -> Mapping[str, float]:
        """Where the time went, in seconds; memory in MiB; see :class:`Spent`."""
        return asdict(self._spent)

    def facts(self) -> dict[str, Any]:
        """Versions, GPU and measured ceilings, as the measuring process saw them at its start.

        Raises:
            MissingEnvironmentError: if nothing can be measured here.
        """
        widened = self._processes.widens_fp8(self._shape, self._options.arch, self._cache)
        result = self._facts()
        if result.value is None:
            raise MissingEnvironmentError(f"nothing can be measured here: {_said(result)}")
        return {**result.value, "fp16_fallback": widened}

    def prepare_comparisons(self) -> None:
        """Start the processes of :meth:`compare` in the background; importing vLLM takes long."""
        if self._options.unified:
            return  # only once those of the search are closed
        for _ in self._options.gpus:
            self._pool("compare").start(self._worker("ready"), None, SET_UP_LIMIT_S)

    def spare(self, m: int) -> None:
        """Measure nothing of ``m`` tokens or more: it ran the host short of memory."""
        self._spared = m if self._spared is None else min(m, self._spared)

    def know_best(self, workload: MoeWorkload, us: float) -> None:
        """Tell a time that the candidates of ``workload`` race against."""
        self._best[workload.key] = min(us, self._best.get(workload.key, us))

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        """Yield a measurement per job, in order; compilation runs ahead."""
        order: deque[tuple[MoeWorkload, Pace, Measurement | None]] = deque()
        paces: deque[Pace] = deque()

        def noted() -> Iterator[Job]:
            for job in jobs:
                paces.append(job.rules if isinstance(job.rules, Pace) else Pace())
                yield job

        def launches() -> Iterator[Timing]:
            compiled = self._compile_ahead(noted())
            # Compilers draw on the memory that a kernel on unified memory is timed with.
            for candidate, workload, gemms in list(compiled) if self._options.unified else compiled:
                pace, failed = paces.popleft(), _failure(gemms)
                order.append((workload, pace, failed))
                if failed is None:
                    yield self._timing(candidate, workload, pace)

        with closing(self._answered("search", "time_candidate", launches())) as answers:
            for _, answer in answers:
                yield from self._failed_before(order)
                workload, pace, _ = order.popleft()
                measurement = self._measurement(answer)
                if measurement.value is not None:
                    self.know_best(workload, measurement.value / pace.slow)
                yield measurement
                yield from self._failed_before(order)
        yield from self._failed_before(order)

    @staticmethod
    def _failed_before(
        order: deque[tuple[MoeWorkload, Pace, Measurement | None]],
    ) -> Iterator[Measurement]:
        while order and (failed := order[0][2]) is not None:
            order.popleft()
            yield failed

    def _compile_ahead(
        self, jobs: Iterable[Job]
    ) -> Iterator[tuple[Candidate, MoeWorkload, tuple[Compiled, Compiled]]]:
        given: deque[tuple[Candidate, MoeWorkload, tuple[CompileJob, CompileJob]]] = deque()

        def gemms() -> Iterator[CompileJob]:
            for job in jobs:
                candidate, workload = job.candidate, job.workload
                if not isinstance(workload, MoeWorkload) or workload.shape != self._shape:
                    raise TypeError(f"not a workload of this measurer: {workload!r}")
                group = candidate.int("GROUP_SIZE_M")
                both = compile_jobs(candidate, workload, self._options.arch, group)
                given.append((candidate, workload, both))
                yield from both

        results = self._processes.compile(
            gemms(), self._known, disassemble=False, keep=self._triton_cache
        )
        for first in results:
            second = next(results)
            self._guard.raise_if_ended()  # then no compile failed of itself
            candidate, workload, both = given.popleft()
            for job, compiled in zip(both, (first, second), strict=True):
                if job not in self._compiled:  # batch sizes share kernels
                    self._compiled.add(job)
                    self._spent.compile_cpu += compiled.seconds
            yield candidate, workload, (first, second)

    def _timing(self, candidate: Candidate, workload: MoeWorkload, pace: Pace) -> Timing:
        self._requests += 1
        return Timing(
            key=f"{self._requests}-{candidate.key}",
            m=workload.m,
            params=candidate.ints,
            best_us=self._best.get(workload.key),
            slow=pace.slow,
            clocks=pace.control,
        )

    def _answered(
        self, purpose: str, function: str, requests: Iterable[Request]
    ) -> Generator[tuple[Request, dict[str, Any] | Measurement], None, None]:
        """Requests with their answers, in order.

        Where one ran the host short of memory, those that wait are sent again once there is room,
        without what is as large.

        Raises:
            MissingEnvironmentError: there is no room any more, or nothing can be measured here.
        """
        waiting: deque[tuple[Request, bool]] = deque()

        def allowed(wanted: Iterable[Request]) -> Iterator[Request]:
            for request in wanted:
                spared = self._spared is not None and request.m >= self._spared
                waiting.append((request, spared))
                if not spared:
                    yield request

        fresh, self._fell = iter(requests), True
        while self._fell:
            self._fell = False
            again = [request for request, _ in waiting]
            waiting.clear()
            # Not one generator: closing it would close what it reads from.
            sent = itertools.chain(allowed(again), allowed(fresh))
            with closing(self._sent(purpose, function, sent)) as results:
                for result in results:
                    while waiting[0][1]:
                        yield waiting.popleft()[0], self._not_tried()
                    request = waiting.popleft()[0]
                    answer = self._value(self._again(purpose, function, request, result), request)
                    yield request, answer
                    if self._fell:  # by now: who was told may have sent more
                        break
            if self._fell:
                self._close_pools()
                self._wait_for_room()
        for request, _ in waiting:
            yield request, self._not_tried()

    def _not_tried(self) -> Measurement:
        message = f"not tried: M={self._spared} ran the host short of memory"
        return Measurement(Outcome.HOST_MEMORY, Basis.MEASURED, message=message)

    def _sent(
        self, purpose: str, function: str, requests: Iterable[Any]
    ) -> Generator[TaskResult[dict[str, Any]], None, None]:
        """The answers of measuring processes, in order."""
        limit_s = SET_UP_LIMIT_S + LAST_RESORT_S
        return self._pool(purpose).map_ordered(self._worker(function), requests, limit_s)

    def _again(
        self, purpose: str, function: str, request: Any, result: TaskResult[dict[str, Any]]
    ) -> TaskResult[dict[str, Any]]:
        """The result, or that of another try where the process had only made room."""
        while result.exit_code == EXIT_RECYCLE:
            self._spent.replaced += 1
            # Requests that were queued before may fill the new process first.
            (result,) = self._sent(purpose, function, [request])
        return result

    def _measurement(self, value: dict[str, Any] | Measurement) -> Measurement:
        if isinstance(value, Measurement):
            return value
        samples = tuple(value["samples"])
        self._spent.measuring += value["gpu_seconds"]
        self._spent.compiled_late += value["compiled_here"]
        return Measurement(
            Outcome.OK,
            Basis.MEASURED,
            # Of five the median; of the two of a slow candidate the one that was disturbed less.
            value=median_low(samples),
            samples=samples,
            details={"raced": value["raced"], **self._where(value)}
            | ({"clocks": value["clocks"]} if "clocks" in value else {}),
            seconds=value["gpu_seconds"],
        )

    def _where(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """The GPU that a result comes from: its UUID, or its index; and of a cluster its place."""
        if "place" in value:
            return {"gpu": value["place"]["gpu"], "place": value["place"]}
        return {"gpu": self._options.uuids.get(value["gpu"], str(value["gpu"]))}

    def _value(
        self, result: TaskResult[dict[str, Any]], request: Timing | Comparison
    ) -> dict[str, Any] | Measurement:
        """What a measuring process returned, or the failed measurement that it means."""
        if (short := self._fall_of(result)) is not None:
            self._fell = True
            self.spare(request.m)
            self._spent.replaced += 1
            return Measurement(Outcome.HOST_MEMORY, Basis.MEASURED, message=short)
        if result.value is None:
            outcome, message = self._fate(result, request.key)
            return Measurement(outcome, Basis.MEASURED, message=message, seconds=result.seconds)
        self._spent.memory(result.value["memory"])
        outcome = Outcome(result.value["outcome"])
        if outcome is not Outcome.OK:
            message = result.value["message"]
            return Measurement(outcome, Basis.MEASURED, message=message, seconds=result.seconds)
        return result.value

    def _fall_of(self, result: TaskResult[Any]) -> str | None:
        """How the memory fell for which a guard ended the process; None where none did."""
        if result.status is TaskStatus.HOST_MEMORY:  # that of another machine
            return result.message
        if result.exit_code != -signal.SIGKILL:  # another one's, whose answer is yet to come
            return None
        falls = [fall for _, watched in self._pools.values() if (fall := watched.take())]
        return str(falls[0]) if falls else None

    def _fate(self, result: TaskResult[Any], key: str) -> tuple[Outcome, str]:
        """What became of a request whose process gave no answer."""
        if result.message.startswith(MissingEnvironmentError.__name__):
            raise MissingEnvironmentError(result.message.partition(": ")[2])
        if result.status is TaskStatus.ERROR:
            raise MissingEnvironmentError(f"the measuring process failed: {result.message}")
        self._spent.replaced += 1
        if result.exit_code == EXIT_DEVICE_ERROR:
            for folder in Path(self.folder).iterdir():
                words = last_words(str(folder), key)
                if words.is_file():
                    return Outcome.RUNTIME_ERROR, words.read_text()
            told = not result.message.startswith("worker exited")  # of another machine
            return Outcome.RUNTIME_ERROR, result.message if told else "the device was lost"
        if result.exit_code == EXIT_HUNG or result.status is TaskStatus.TIMEOUT:
            return Outcome.TIMEOUT, "the kernel did not end in time"
        return Outcome.CRASH, result.message

    def compare(
        self, groups: Iterable[Group], *, check: bool
    ) -> Iterator[dict[Candidate, Measurement]]:
        """Measure groups side by side, in processes that no search has run in.

        See :class:`autotune.core.SideBySide`. A group that fails as a whole is measured again
        candidate by candidate, so that the one at fault can be told.
        """
        given: deque[tuple[Comparison, list[Candidate], dict[Candidate, Measurement]]] = deque()

        def comparisons() -> Iterator[Comparison]:
            for group in groups:
                jobs = [Job(candidate, group.workload) for candidate in group.candidates]
                compiled = self._compile_ahead(dict.fromkeys(jobs))
                built = {c: _failure(gemms) for c, _, gemms in compiled}
                fine = [c for c, failed in built.items() if failed is None]
                seed, workload = group.seed, cast("MoeWorkload", group.workload)
                key = digest([workload.key, seed, [c.key for c in fine], check])
                request = Comparison(
                    key, workload.m, tuple(c.ints for c in fine), ROUNDS, seed, check
                )
                given.append((request, fine, {c: f for c, f in built.items() if f}))
                yield request

        with closing(self._answered("compare", "compare", comparisons())) as answers:
            for request, answer in answers:
                _, candidates, failed = given.popleft()
                found = failed | self._compared(request, candidates, answer)
                named = {"compared": request.key, "seed": request.seed}
                yield {c: replace(m, details={**m.details, **named}) for c, m in found.items()}

    def _compared(
        self,
        request: Comparison,
        candidates: Sequence[Candidate],
        value: dict[str, Any] | Measurement,
    ) -> dict[Candidate, Measurement]:
        if isinstance(value, Measurement):
            if len(candidates) == 1 or value.outcome is Outcome.HOST_MEMORY:
                return dict.fromkeys(candidates, value)
            return self._one_by_one(request, candidates)
        measurements = {}
        details = {"clocks": value["clocks"], **self._where(value)}
        for candidate, samples, error in zip(
            candidates, value["samples"], value["errors"], strict=True
        ):
            own = details | {"error": error}
            if error is not None and not error <= value["tolerance"]:
                measurements[candidate] = Measurement(
                    Outcome.WRONG_RESULT,
                    Basis.MEASURED,
                    samples=tuple(samples),
                    message=f"relative error {error:.3g} is over {value['tolerance']:g}",
                    details={**own, "error": str(error)},
                )
                continue
            measurements[candidate] = Measurement(
                Outcome.OK, Basis.MEASURED, median(samples), tuple(samples), details=own
            )
        return measurements

    def _one_by_one(
        self, request: Comparison, candidates: Sequence[Candidate]
    ) -> dict[Candidate, Measurement]:
        """Find the candidate at fault, then compare the rest."""
        found: dict[Candidate, Measurement] = {}
        for candidate in candidates:
            key = f"{request.key}-{candidate.key}"
            alone = replace(request, key=key, params=(candidate.ints,), rounds=1)
            found |= self._compared(alone, [candidate], self._one(alone))
            if found[candidate].outcome is Outcome.HOST_MEMORY:
                return dict.fromkeys(candidates, found[candidate])
        fine = [c for c in candidates if found[c].outcome is Outcome.OK]
        if len(fine) == len(candidates):  # none alone: what they did together is all that is known
            return {
                c: Measurement(Outcome.RUNTIME_ERROR, Basis.MEASURED, message="failed together")
                for c in candidates
            }
        if not fine:
            return found
        rest = replace(request, key=f"{request.key}-rest", params=tuple(c.ints for c in fine))
        return found | self._compared(rest, fine, self._one(rest))

    def _one(self, request: Comparison) -> dict[str, Any] | Measurement:
        (result,) = self._sent("compare", "compare", [request])
        return self._value(self._again("compare", "compare", request, result), request)


def _call(module: str, function: str, request: Any) -> Any:
    """In a measuring process. By name, so that the parent never imports torch."""
    return getattr(importlib.import_module(module), function)(request)


def _failure(gemms: Sequence[Compiled]) -> Measurement | None:
    """The measurement of a candidate that did not compile."""
    for number, gemm in enumerate(gemms, start=1):
        if gemm.outcome is not Outcome.OK:
            return Measurement(
                gemm.outcome,
                Basis.MEASURED,
                message=f"GEMM {number}: {gemm.message}",
                seconds=sum(g.seconds for g in gemms),
            )
    return None


def _said(result: TaskResult[Any]) -> str:
    return result.message.partition(": ")[2] or result.message
