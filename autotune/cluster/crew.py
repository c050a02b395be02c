"""Tasks are pulled by workers that may vanish; what a lost one had goes back to the queue.

Nothing here knows Ray: ``actors.py`` has the crew of a cluster, tests one in memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from autotune.core import MissingEnvironmentError
from autotune.measure.pool import TaskResult, TaskStatus, WorkerPool

MOST_LOST = 3
"""So many workers lost in the middle of one task are no accident."""
AHEAD = 3
"""Tasks given to a worker at once: it begins the next one without waiting for us, also while one of
another purpose takes half a minute to set itself up."""
NOBODY_S = 120.0
"""For any worker to come back, where none is left: a process that Ray starts anew, say."""
_POLL_S = 1.0


@dataclass(frozen=True)
class Seat:
    """Where a worker works.

    Attributes:
        host: the name of the machine.
        node: Ray's id of the node.
        gpu: the index of its GPU on the machine; None where it has none.
        uuid: of the GPU.
    """

    host: str
    node: str
    gpu: int | None = None
    uuid: str | None = None

    @property
    def name(self) -> str:
        """For people and for the database; a GPU keeps it when its machine is started anew."""
        return f"{self.host}/{self.node[:8] if self.gpu is None else self.uuid or self.gpu}"

    def as_json(self) -> dict[str, Any]:
        """What every row stores of where it was measured."""
        return {"name": self.name, "host": self.host, "node": self.node, "gpu": self.uuid}


@dataclass(frozen=True)
class Setting:
    """What a worker process of a seat is started with.

    Attributes:
        name: of the purpose; a seat has a process for each.
        initializer: called with ``initargs`` before the first task.
        initargs: its arguments.
        fit: makes the arguments those of a seat, there.
        parcel: files that a node needs before a task, by their full path; given those it has.
    """

    name: str
    initializer: Callable[..., object]
    initargs: tuple[Any, ...] = ()
    fit: Callable[[tuple[Any, ...], Seat], tuple[Any, ...]] | None = None
    parcel: Callable[[frozenset[str]], dict[str, bytes]] | None = None
    collect: Callable[[frozenset[str], float], dict[str, bytes]] | None = None
    """Files that a task left on a node and that are wanted here; given those sent before, and when
    the task began, in seconds of the clock of files."""
    last_words: Callable[[tuple[Any, ...], Any], str | None] | None = None
    """What a process that died over a task left in a file, there."""
    tasks_per_worker: int = 0
    need: int | None = None
    """Bytes that a process takes of memory that host and GPU share, which the seat then guards."""


@dataclass
class Task:
    """A task, and what became of it so far."""

    setting: Setting
    function: Callable[[Any], Any]
    item: Any
    timeout_s: float
    seat: str | None = None
    """The only one that may do it; None is any."""
    lost: list[str] = field(default_factory=list)
    """Why workers were lost in the middle of it."""
    result: TaskResult[Any] | None = None


@dataclass(frozen=True)
class Lost:
    """The worker that had a task is gone; the text says why."""

    why: str


class Crew(Protocol):
    """Those who do the tasks."""

    @property
    def seats(self) -> dict[str, int]:
        """By the name of each seat that can be given a task, how many it has."""

    def begin(self, seat: str, task: Task) -> None:
        """Give a task to a seat; returns at once."""

    def wait(self, seconds: float) -> list[tuple[Task, TaskResult[Any] | Lost]]:
        """Tell what has ended, waiting so long for the first."""

    def clear(self, setting: Setting) -> None:
        """End the processes of a setting on all seats, whatever they do."""


class Queue:
    """Tasks that wait, on a crew that pulls them."""

    def __init__(
        self,
        crew: Crew,
        on_lost: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the crew.

        Args:
            crew: does the tasks.
            on_lost: told of every worker that was lost in the middle of a task.
            clock: in seconds.
        """
        self.crew = crew
        self._on_lost, self._clock = on_lost, clock
        self._waiting: deque[Task] = deque()
        self._lines: dict[tuple[str, str], list[Task]] = {}
        """By seat and purpose what was given, in order: of each only the first is under way."""
        self._behind: set[int] = set()
        """Ids of tasks behind one in the middle of which their worker was lost."""
        self._since: float | None = None

    def add(self, task: Task) -> None:
        """Queue a task, and give out what can be."""
        self._waiting.append(task)
        self._give()

    def wait_for(self, task: Task) -> TaskResult[Any]:
        """Wait for the result of a task, while others go on.

        Raises:
            MissingEnvironmentError: nobody is left to do it.
        """
        while task.result is None:
            self._give()
            for ended, what in self.crew.wait(_POLL_S):
                under_way = self._left_line(ended, lost=isinstance(what, Lost))
                if isinstance(what, TaskResult):
                    ended.result = what
                else:
                    self._take_back(ended, what.why, under_way=under_way)
            self._check()
        return task.result

    def forget(self, tasks: Iterable[Task]) -> None:
        """Take back what nobody has begun."""
        gone = {id(task) for task in tasks}
        self._waiting = deque(task for task in self._waiting if id(task) not in gone)

    def _begin(self, seat: str, task: Task) -> None:
        self._lines.setdefault((seat, task.setting.name), []).append(task)
        self.crew.begin(seat, task)

    def _left_line(self, task: Task, *, lost: bool) -> bool:
        """Take a task from its line, and tell whether it was under way: not behind another one."""
        line = next(line for line in self._lines.values() if any(task is one for one in line))
        first = next((one for one in line if id(one) not in self._behind), None)
        line[:] = [one for one in line if one is not task]
        self._behind.discard(id(task))
        if lost and task is first:
            self._behind.update(map(id, line))
        return task is first

    def _take_back(self, task: Task, why: str, *, under_way: bool) -> None:
        """Queue a task again, unless too many workers were lost in the middle of it."""
        if under_way:
            self._on_lost(why)
            task.lost.append(why)
        if len(task.lost) >= MOST_LOST:
            why = f"{len(task.lost)} workers were lost in the middle of it, the last: {why}"
        elif task.seat is None or task.seat in self.crew.seats:
            self._waiting.appendleft(task)
            return
        task.result = TaskResult(TaskStatus.CRASH, message=why)

    def _give(self) -> None:
        """Give the longest waiting tasks to the seats that have the fewest."""
        kept: deque[Task] = deque()
        while self._waiting:
            load = {seat: n for seat, n in self.crew.seats.items() if n < AHEAD}
            if not load:
                break
            task = self._waiting.popleft()
            if task.seat is None:
                self._begin(min(load, key=lambda seat: load[seat]), task)
            elif task.seat in load:
                self._begin(task.seat, task)
            else:
                kept.append(task)
        self._waiting.extendleft(reversed(kept))

    def _check(self) -> None:
        """See that somebody is there."""
        if self.crew.seats:
            self._since = None
            return
        self._since = self._clock() if self._since is None else self._since
        if self._clock() - self._since > NOBODY_S:
            raise MissingEnvironmentError(
                "--ray: every worker of the cluster is lost; what was learnt is kept, and the same "
                "command goes on"
            )


class ClusterPool(WorkerPool):
    """A :class:`WorkerPool` whose workers are on the nodes of a cluster, one a seat."""

    def __init__(self, queue: Queue, setting: Setting) -> None:
        """Take what it needs; processes start with the first task.

        Args:
            queue: of the crew, which other pools use too.
            setting: of the processes.
        """
        self._queue, self._setting = queue, setting

    @property
    def workers(self) -> int:  # type: ignore[override] # as many as there are
        """How many there are now."""
        return max(1, len(self._queue.crew.seats))

    def map_ordered(
        self, function: Callable[[Any], Any], items: Iterable[Any], timeout_s: float
    ) -> Generator[TaskResult[Any], None, None]:
        """See :meth:`WorkerPool.map_ordered`; tasks of a worker that is lost are done again.

        Raises:
            MissingEnvironmentError: nobody is left.
        """
        source, waiting = iter(items), deque[Task]()
        try:
            while True:
                while len(waiting) < 4 * AHEAD * self.workers:
                    try:
                        item = next(source)
                    except StopIteration:
                        break
                    waiting.append(Task(self._setting, function, item, timeout_s))
                    self._queue.add(waiting[-1])
                if not waiting:
                    return
                result = self._queue.wait_for(waiting[0])
                waiting.popleft()
                yield result
        finally:
            self._queue.forget(waiting)

    def start(
        self, function: Callable[[Any], Any], item: Any, timeout_s: float
    ) -> Callable[[], TaskResult[Any]]:
        """See :meth:`WorkerPool.start`."""
        task = Task(self._setting, function, item, timeout_s)
        self._queue.add(task)
        return lambda: self._queue.wait_for(task)

    def each(
        self, function: Callable[[Any], Any], item: Any, timeout_s: float
    ) -> dict[str, TaskResult[Any]]:
        """Run a task on every seat, and give the results by its name."""
        tasks = {
            seat: Task(self._setting, function, item, timeout_s, seat)
            for seat in self._queue.crew.seats
        }
        for task in tasks.values():
            self._queue.add(task)
        return {seat: self._queue.wait_for(task) for seat, task in tasks.items()}

    def kill_workers(self) -> None:
        """Kill nothing: no worker is this process's; the guard of each seat ends its own."""

    def close(self) -> None:
        """Kill the processes."""
        self._queue.crew.clear(self._setting)
