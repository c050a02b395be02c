"""Worker processes that may hang or crash: each task has a time limit, each worker can be killed.

The standard pools cannot kill one task; ``pebble`` can. What is added here: input order with a
bounded number of tasks in flight, failures as values, and a worker that never outlives its parent.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Generic, Self, TypeVar

from pebble import ProcessExpired, ProcessPool

from autotune.core import MissingEnvironmentError
from autotune.machine.guard import kill_tree, prefer_for_oom_kill

Value = TypeVar("Value")
Item = TypeVar("Item")

_PR_SET_PDEATHSIG = 1
_RESTARTS = 3
_DEATH_SECONDS = 30.0
"""For a killed process to be gone: a driver that does not answer keeps it for ever."""


class TaskStatus(StrEnum):
    """How a task ended."""

    OK = "ok"
    TIMEOUT = "timeout"
    CRASH = "crash"
    ERROR = "error"
    HOST_MEMORY = "host_memory"
    """The guard of its machine has killed the worker."""


@dataclass(frozen=True)
class TaskResult(Generic[Value]):
    """What became of one task.

    Attributes:
        status: how it ended; only ``OK`` carries a value.
        value: what the function returned.
        seconds: wall time inside the function, without queueing and worker start-up; for a task
            without a value, the time limit or 0.
        message: the exception's type and text, or how the worker died.
        exit_code: of a crashed worker; negative is a signal's number.
    """

    status: TaskStatus
    value: Value | None = None
    seconds: float = 0.0
    message: str = ""
    exit_code: int | None = None


class _KillableProcess(SpawnProcess):
    """A process that leads a group; ending it kills its children (such as ptxas) at once.

    One that stays although it was killed is waited for no longer than ``_DEATH_SECONDS`` and then
    counts as dead, so that neither the pool nor the end of the program waits for it.
    """

    _given_up = False

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end; without ``timeout`` the process was killed.

        Asked again and again, because a process may have closed its files, which is what the
        standard library waits for, and still hang in the driver.
        """
        end = time.monotonic() + (_DEATH_SECONDS if timeout is None else timeout)
        while self.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        self._given_up |= timeout is None and self.is_alive()

    def is_alive(self) -> bool:
        """Whether it runs and is not given up."""
        return not self._given_up and super().is_alive()

    def terminate(self) -> None:
        """Kill the group; a worker inside C++ code would not answer anything gentler."""
        if self.pid is None or not self.is_alive():
            return
        with suppress(ProcessLookupError, PermissionError):  # the group may not exist yet
            os.killpg(self.pid, signal.SIGKILL)
        self.kill()

    @property
    def has_run_out(self) -> bool:
        """Whether somebody has seen its end; asks nobody, so that any thread may."""
        popen = getattr(self, "_popen", None)
        return popen is not None and popen.returncode is not None


class _KillableContext(SpawnContext):
    """The spawn context with :class:`_KillableProcess`; it knows all that it made."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[_KillableProcess] = []

    def Process(self, *args: Any, **more: Any) -> _KillableProcess:  # type: ignore[override]  # noqa: N802
        """Make a process that can be killed."""
        process = _KillableProcess(*args, **more)
        self._made = [*(one for one in self._made if not one.has_run_out), process]
        return process

    def kill_all(self) -> None:
        """Kill every process with its children, from whichever thread."""
        for process in self._made:
            if process.pid is not None and not process.has_run_out:
                kill_tree(process.pid)


class WorkerPool:
    """A pool of worker processes; use it as a context manager, from the thread that opened it.

    A worker starts with a fresh interpreter (spawn) and with ``TMPDIR`` set to a folder that goes
    away with the pool, so that a killed task leaves nothing behind. It ignores SIGINT: Ctrl-C is
    for the parent. Leaving the ``with`` block kills whatever still runs.
    """

    def __init__(
        self,
        workers: int,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        tasks_per_worker: int = 0,
    ) -> None:
        """Prepare the pool; workers start with the first task.

        Args:
            workers: how many processes, at least 1.
            initializer: called as ``initializer(*initargs)`` in each worker before its first task,
                within that task's time limit; if it raises, the task is an error.
            initargs: its arguments; they must pickle.
            tasks_per_worker: replace a worker after so many tasks; 0 is never.

        Raises:
            ValueError: if ``workers`` is below 1.
        """
        if workers < 1:
            raise ValueError(f"a pool needs at least one worker, not {workers}")
        self.workers = workers
        self._set_up = (initializer, initargs)
        self._tasks_per_worker = tasks_per_worker
        self._scratch = tempfile.mkdtemp(prefix="autotune-workers-")
        self._pool = self._new_pool()
        self._restarts = 0
        self._started: list[Any] = []

    def _new_pool(self) -> ProcessPool:
        self._context = _KillableContext()
        return ProcessPool(
            max_workers=self.workers,
            max_tasks=self._tasks_per_worker,
            initializer=_start_worker,
            initargs=(os.getpid(), self._scratch, *self._set_up),
            context=self._context,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers, with the tasks they run, and remove the scratch folder."""
        self._pool.stop()
        try:
            self._pool.join()
            self._give_up_started()
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def kill_workers(self) -> None:
        """Kill the workers that this process started, from whichever thread.

        Each task that one of them has under way is a crash. A pool of other machines' workers has
        none: what is short of memory here is nothing to them.
        """
        self._context.kill_all()

    def map_ordered(
        self, function: Callable[[Item], Value], items: Iterable[Item], timeout_s: float
    ) -> Generator[TaskResult[Value], None, None]:
        """Run ``function(item)`` for each item; yield results in input order, as soon as known.

        Nothing that a task does raises here. ``items`` is read lazily, a few ahead of the results.
        Closing the generator early cancels what is outstanding.

        Args:
            function: importable by name in a fresh interpreter; what it returns must pickle.
            items: the inputs; they must pickle.
            timeout_s: wall seconds a task may take before its worker is killed.

        Raises:
            MissingEnvironmentError: if no worker lives long enough to do anything.
        """
        source = iter(items)
        waiting: deque[tuple[Item, Any]] = deque()
        try:
            while True:
                while len(waiting) < 4 * self.workers:
                    try:
                        item = next(source)
                    except StopIteration:
                        break
                    waiting.append((item, self._schedule(function, item, timeout_s)))
                if not waiting:
                    return
                item, future = waiting[0]
                result = _result_of(future, timeout_s)
                if result is None:
                    self._restart()
                    waiting = deque(
                        (item, self._keep_or_schedule(old, function, item, timeout_s))
                        for item, old in waiting
                    )
                    continue
                waiting.popleft()
                if result.status is not TaskStatus.CRASH:
                    self._restarts = 0
                yield result
        finally:
            for _, future in waiting:
                future.cancel()

    def start(
        self, function: Callable[[Item], Value], item: Item, timeout_s: float
    ) -> Callable[[], TaskResult[Value]]:
        """Run ``function(item)`` in the background, such as to have a worker set up early.

        Returns:
            Waits for the result; a task that a broken pool never ran counts as a crash.
        """
        future = self._schedule(function, item, timeout_s)
        self._started.append(future)
        lost: TaskResult[Value] = TaskResult(TaskStatus.CRASH, message="never ran")
        return lambda: _result_of(future, timeout_s) or lost

    def _schedule(self, function: Callable[[Item], Value], item: Item, timeout_s: float) -> Any:
        try:
            return self._pool.schedule(_run, args=(function, item), timeout=timeout_s)
        except RuntimeError:  # a worker died idle, which pebble takes for the end of its pool
            self._restart()
            return self._pool.schedule(_run, args=(function, item), timeout=timeout_s)

    def _keep_or_schedule(
        self, future: Any, function: Callable[[Item], Value], item: Item, timeout_s: float
    ) -> Any:
        """The future if it already has a result, else the item scheduled anew."""
        if future.done() and not isinstance(future.exception(), BrokenProcessPool):
            return future
        return self._schedule(function, item, timeout_s)

    def _give_up_started(self) -> None:
        """Settle what the closed pool will not: whoever waits for it is told."""
        for future in self._started:
            future.cancel()
        self._started.clear()

    def _restart(self) -> None:
        """Replace a broken pool.

        Raises:
            MissingEnvironmentError: when workers die again and again without doing anything.
        """
        self._restarts += 1
        if self._restarts > _RESTARTS:
            raise MissingEnvironmentError(
                "worker processes die as soon as they start; is the memory of this machine full?"
            )
        self._pool.stop()
        self._pool.join()
        self._give_up_started()
        self._pool = self._new_pool()


def _result_of(future: Any, timeout_s: float) -> TaskResult[Any] | None:
    """Wait for a task; None means that the pool broke and the task never ran."""
    try:
        seconds, value, error_text = future.result()
    except BrokenProcessPool:
        return None
    except ProcessExpired as error:
        return TaskResult(
            TaskStatus.CRASH, message=_death(error.exitcode), exit_code=error.exitcode
        )
    except TimeoutError:
        return TaskResult(
            TaskStatus.TIMEOUT, seconds=timeout_s, message=f"killed after {timeout_s:g} s"
        )
    except (CancelledError, pickle.PicklingError, AttributeError, TypeError) as error:
        return TaskResult(TaskStatus.ERROR, message=_describe(error))  # it does not pickle
    if error_text:
        return TaskResult(TaskStatus.ERROR, seconds=seconds, message=error_text)
    return TaskResult(TaskStatus.OK, value, seconds)


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _death(exit_code: int) -> str:
    if exit_code >= 0:
        return f"worker exited with status {exit_code}"
    try:
        return f"worker killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"worker killed by signal {-exit_code}"


# ------------------------------------------------------------------------------------------
# In the worker process.

_pending: list[tuple[Callable[..., object], tuple[Any, ...]]] = []


def _start_worker(
    parent: int,
    scratch: str,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
) -> None:
    """Tie the worker's life to its parent's and note what to do before the first task."""
    os.setpgid(0, 0)
    prefer_for_oom_kill()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    if initializer is not None:
        _pending.append((initializer, initargs))


def _run(function: Callable[[Item], Value], item: Item) -> tuple[float, Value | None, str]:
    """One task in the worker: its wall seconds, its value, or the text of its error."""
    start = time.perf_counter()
    try:
        if _pending:
            initializer, initargs = _pending[0]
            initializer(*initargs)
            _pending.clear()
            start = time.perf_counter()
        value = function(item)
        return time.perf_counter() - start, value, ""
    # The one boundary where whatever a task raises becomes a value; as text, since exceptions of
    # foreign libraries need not pickle.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return time.perf_counter() - start, None, _describe(error)
