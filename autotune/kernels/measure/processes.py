"""Measuring processes: one per GPU, replaced when one dies, closed where memory runs short.

A request goes to a process and its answer comes back, or what became of it as an outcome. What is
timed, compiled and compared is the measurer's business (``kernels/measure/measurer.py``).
"""

from __future__ import annotations

import importlib
import itertools
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from autotune.core import Basis, Measurement, MissingEnvironmentError, Outcome
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
from autotune.kernels.moe.shape import MoeShape
from autotune.machine.gpu_lock import hold_gpus, lock_folders
from autotune.machine.guard import MemoryGuard, Watched
from autotune.machine.resident import wait_for_room
from autotune.measure.pool import TaskResult, TaskStatus, WorkerPool

KERNEL = "autotune.kernels.measure.process"
"""The module that measuring processes run; tests put a fake one in its place."""
SET_UP_LIMIT_S = 300.0
"""For importing vLLM and drawing the weights, on top of a request's own limit."""
LAST_RESORT_S = 1200.0
"""For a request on top of that. A measuring process ends itself when a step of one hangs; this is
for one that cannot."""
Request = TypeVar("Request", Timing, Comparison)


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


class MeasuringProcesses:
    """The measuring processes of this machine's GPUs, opened by purpose when first needed."""

    folder: str
    """Of this command: the Triton cache, and what processes leave behind."""
    _triton_cache: str
    _guard: MemoryGuard

    def __init__(self, shape: MoeShape, options: GpuOptions) -> None:
        """Take what the processes need; none starts before its purpose is asked for.

        Args:
            shape: of every workload.
            options: how to measure.
        """
        self._shape, self._options = shape, options
        self._worker = partial(partial, _call, options.kernel)
        self._stack = ExitStack()
        self._spent = Spent()
        self._pools: dict[str, tuple[WorkerPool, Watched]] = {}
        self._closing: dict[str, ExitStack] = {}
        self._spared: int | None = None
        self._fell = False

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
        wait_for_room(self._guard, "measuring", self._options.need)

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

    @property
    def spent(self) -> Mapping[str, float]:
        """Where the time went, in seconds; memory in MiB; see :class:`Spent`."""
        return asdict(self._spent)

    def spare(self, m: int) -> None:
        """Measure nothing of ``m`` tokens or more: it ran the host short of memory."""
        self._spared = m if self._spared is None else min(m, self._spared)

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

    def _one(self, request: Comparison) -> dict[str, Any] | Measurement:
        (result,) = self._sent("compare", "compare", [request])
        return self._value(self._again("compare", "compare", request, result), request)


def _call(module: str, function: str, request: Any) -> Any:
    """In a measuring process. By name, so that the parent never imports torch."""
    return getattr(importlib.import_module(module), function)(request)
