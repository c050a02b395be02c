"""The crew of a Ray cluster: an actor a seat, which owns ordinary worker processes.

Imported only where Ray is; it is an extra.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autotune.cluster.crew import Lost, Seat, Setting, Task
from autotune.core import AutotuneError, MissingEnvironmentError
from autotune.machine.devices import detect_gpus
from autotune.machine.gpu_lock import hold_gpus, lock_folders
from autotune.machine.guard import MemoryGuard, Watched
from autotune.machine.resident import wait_for_room
from autotune.measure.pool import TaskResult, TaskStatus, WorkerPool

LOOK_S = 60.0
_START_S = 120.0
_CLOSE_S = 10.0
_AGAIN_S = 1.0


@dataclass(frozen=True)
class _Process:
    """The process of a setting, what it was started with, and what ends it."""

    pool: WorkerPool
    initargs: tuple[Any, ...]
    watched: Watched
    stack: ExitStack


class Worker:
    """A worker owns the processes of one seat, one for each setting, until its own ends."""

    def __init__(self, node: str, driver: str, *, gpu: bool) -> None:
        """Take the seat.

        Args:
            node: Ray's id of it.
            driver: the name of the machine on which the command runs; its files are ours there.
            gpu: whether it measures on the GPU that Ray has given us.
        """
        self._away, self._sent = platform.node() != driver, frozenset[str]()
        self._stack = ExitStack()
        self._guard = MemoryGuard()
        self._pools: dict[str, _Process] = {}
        self._holds = False
        self._seat = Seat(platform.node(), node)
        if gpu:
            here = {str(one.index): one for one in detect_gpus()}
            here |= {one.uuid: one for one in here.values()}
            mine = here[str(ray.get_gpu_ids()[0])]
            self._seat = Seat(platform.node(), node, mine.index, mine.uuid)

    def take(self) -> Seat | str:
        """Hold the GPU of the seat, if it has one; tell the seat, or why it cannot be had."""
        seat = self._seat
        if seat.gpu is not None and seat.uuid is not None and not self._holds:
            try:
                held = hold_gpus([seat.gpu], lock_folders(), {seat.gpu: seat.uuid})
                self._stack.enter_context(held)
                self._holds = True
            except AutotuneError as error:
                return str(error)
        return seat

    def run(
        self,
        setting: Setting,
        function: Callable[[Any], Any],
        item: Any,
        timeout_s: float,
        files: Mapping[str, bytes],
    ) -> TaskResult[Any]:
        """Do one task; whatever it does to its process is a result.

        Raises:
            MissingEnvironmentError: the machine is short of memory that host and GPU share.
        """
        put(files)
        began = time.time()
        process = self._process(setting)
        (result,) = process.pool.map_ordered(function, [item], timeout_s)
        if isinstance(result.value, dict):
            return replace(result, value=self._completed(setting, result.value, began))
        self._guard.raise_if_ended()
        if result.exit_code == -signal.SIGKILL and (fall := process.watched.take()):
            return replace(result, status=TaskStatus.HOST_MEMORY, message=str(fall))
        words = setting.last_words(process.initargs, item) if setting.last_words else None
        if result.status is TaskStatus.CRASH and words:
            return replace(result, message=words)
        return result

    def _completed(self, setting: Setting, value: dict[str, Any], began: float) -> dict[str, Any]:
        """Add where it was done, and on another machine the files that are wanted."""
        value = {**value, "place": self._seat.as_json()}
        if setting.collect is not None and self._away:
            value["files"] = setting.collect(self._sent, began - 1)
            self._sent |= value["files"].keys()
        return value

    def _process(self, setting: Setting) -> _Process:
        if setting.name not in self._pools:
            if setting.need is not None:
                self._watch(setting.need)
            initargs = setting.initargs
            if setting.fit is not None:
                initargs = setting.fit(initargs, self._seat)
            stack = ExitStack()
            pool = WorkerPool(
                1, setting.initializer, initargs, tasks_per_worker=setting.tasks_per_worker
            )
            stack.enter_context(pool)
            watched = self._guard.watch("a measuring process", pool.kill_workers)
            made = _Process(pool, initargs, stack.enter_context(watched), stack)
            self._pools[setting.name] = made
        return self._pools[setting.name]

    def _watch(self, need: int) -> None:
        """Guard the memory of this machine from now on, and wait until so many bytes are free."""
        if not self._guard.watches:
            self._stack.enter_context(self._guard)
        wait_for_room(self._guard, "measuring", need)

    def clear(self, name: str) -> None:
        """End the process of a setting."""
        if name in self._pools:
            self._pools.pop(name).stack.close()

    def close(self, folder: str | None) -> None:
        """End all processes; remove the folder, if it is of this command and not of its host."""
        for name in list(self._pools):
            self.clear(name)
        self._stack.close()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def put(files: Mapping[str, bytes]) -> None:
    """Write files of another machine by their full path, so that nobody sees half of one."""
    for name, data in files.items():
        path = Path(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.{os.getpid()}")
            new.write_bytes(data)
            new.replace(path)


class RayCrew:
    """Actors that do tasks; a :class:`autotune.cluster.crew.Crew`."""

    def __init__(self, places: Sequence[tuple[str, int]], *, gpu: bool) -> None:
        """Start the actors.

        Args:
            places: ids of nodes, and how many seats each has.
            gpu: whether a seat is a GPU; else it is a CPU.

        Raises:
            MissingEnvironmentError: not one of them can be had.
        """
        self._actors: dict[str, Any] = {}
        self._seats: dict[str, Seat] = {}
        self._load: dict[str, int] = {}
        self._given: dict[Any, tuple[str, Task]] = {}
        self._absent: dict[str, float] = {}
        self._pings: dict[Any, str] = {}
        self._has: dict[str, frozenset[str]] = {}
        self.left_out: list[str] = []
        """Seats that could not be had, and why."""
        asked = {}
        for node, count in places:
            for _ in range(count):
                actor = _options(node, gpu=gpu).remote(node, platform.node(), gpu=gpu)
                asked[actor.take.options(concurrency_group="control").remote()] = actor
        self._open(asked)

    def _open(self, asked: dict[Any, Any]) -> None:
        ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_START_S)
        self.left_out += [f"an actor was not started within {_START_S:.0f} s" for _ in late]
        for answer in ready:
            try:
                seat = ray.get(answer)
            except RayError as error:
                self.left_out.append(_first_line(error))
                continue
            if isinstance(seat, str):
                self.left_out.append(seat)
                ray.kill(asked[answer])
                continue
            name = seat.name if seat.gpu is not None else f"{seat.name}:{len(self._actors)}"
            self._actors[name], self._seats[name] = asked[answer], seat
            self._load[name] = 0
        for answer in late:
            ray.kill(asked[answer])
        if not self._actors:
            raise MissingEnvironmentError("--ray: nobody can work: " + "; ".join(self.left_out))

    @property
    def places(self) -> list[Seat]:
        """All seats that were had at the start."""
        return list(self._seats.values())

    @property
    def seats(self) -> dict[str, int]:
        """By the name of each seat that is there, how many tasks it has."""
        return {name: n for name, n in self._load.items() if name not in self._absent}

    def begin(self, seat: str, task: Task) -> None:
        """Give a task to a seat, with the files that its node lacks."""
        files: dict[str, bytes] = {}
        if task.setting.parcel is not None and self._seats[seat].host != platform.node():
            files = task.setting.parcel(self._has.get(seat, frozenset()))
            self._has[seat] = self._has.get(seat, frozenset()) | files.keys()
        run = self._actors[seat].run.options(concurrency_group=_lane(task.setting))
        answer = run.remote(task.setting, task.function, task.item, task.timeout_s, files)
        self._given[answer] = seat, task
        self._load[seat] += 1

    def wait(self, seconds: float) -> list[tuple[Task, TaskResult[Any] | Lost]]:
        """Tell what has ended, waiting so long for the first."""
        self._ask_absent()
        asked = [*self._given, *self._pings]
        if not asked:
            time.sleep(min(seconds, _AGAIN_S))
            return []
        ready, _ = ray.wait(asked, num_returns=1, timeout=seconds)
        more, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        ended: list[tuple[Task, TaskResult[Any] | Lost]] = []
        for answer in dict.fromkeys([*ready, *more]):
            if answer in self._pings:
                self._heard(answer)
            else:
                ended.append(self._ended(answer))
        return ended

    def _ended(self, answer: Any) -> tuple[Task, TaskResult[Any] | Lost]:
        seat, task = self._given.pop(answer)
        if seat in self._load:
            self._load[seat] -= 1
        try:
            result = ray.get(answer)
            if isinstance(result.value, dict):
                put(result.value.pop("files", {}))
                if task.setting.name == "compile":
                    del result.value["place"]  # a result by its content; where does not matter
            return task, result
        except RayTaskError as error:  # of the seat: what the task does is a result
            cause = getattr(error, "cause", None) or error
            said = f"{MissingEnvironmentError.__name__}: {seat}: {_first_line(cause)}"
            return task, TaskResult(TaskStatus.ERROR, message=said)
        except RayError as error:  # the actor, its node, or the result on it: Ray has many words
            if seat in self._load:  # else nobody is to be asked any more
                self._absent.setdefault(seat, time.monotonic())
            self._has.pop(seat, None)
            return task, Lost(f"{seat} is lost: {_first_line(error)}")

    def _ask_absent(self) -> None:
        """Ask those who are away, once a second, whether Ray has started them anew."""
        now = time.monotonic()
        for seat, since in list(self._absent.items()):
            if now >= since and seat not in self._pings.values():
                self._pings[
                    self._actors[seat].take.options(concurrency_group="control").remote()
                ] = seat
                self._absent[seat] = now + _AGAIN_S

    def _heard(self, answer: Any) -> None:
        seat = self._pings.pop(answer)
        try:
            taken = ray.get(answer)
        except ActorUnavailableError:
            return
        except RayError:  # its node is gone, and the actor with it
            self._absent.pop(seat)
            self._load.pop(seat)
            return
        if isinstance(taken, str):
            return
        if taken.gpu is not None and taken.name != seat:
            self._rename(seat, taken)
            seat = taken.name
        self._absent.pop(seat, None)

    def _rename(self, seat: str, taken: Seat) -> None:
        """Call an actor by the GPU that it has now: Ray gives one that starts anew any free one."""
        new, actor = taken.name, self._actors.pop(seat)
        if new in self._actors:  # whose actor is away too: it is asked under the free name
            self._actors[seat] = self._actors[new]
            self._pings = {p: seat if name == new else name for p, name in self._pings.items()}
        else:
            for known in (self._seats, self._has, self._load, self._absent):
                known.pop(seat, None)
            self._load[new] = 0
        self._actors[new], self._seats[new] = actor, taken

    def clear(self, setting: Setting) -> None:
        """End the processes of a setting on all seats; those under way end at once."""
        asked = [
            self._actors[name].clear.options(concurrency_group="control").remote(setting.name)
            for name in self.seats
        ]
        if asked:  # who comes after must not meet them
            ray.wait(asked, num_returns=len(asked), timeout=_CLOSE_S)

    def close(self, folder: str | None = None) -> None:
        """End the actors.

        Args:
            folder: of this command, to be removed on the nodes of other machines.
        """
        closing = [
            self._actors[name]
            .close.options(concurrency_group="control")
            .remote(None if self._seats[name].host == platform.node() else folder)
            for name in self.seats
        ]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        for actor in self._actors.values():
            with contextlib.suppress(RayError):
                ray.kill(actor)


def _options(node: str, *, gpu: bool) -> Any:
    """An actor that is started anew on its node, and whose tasks Ray never repeats."""
    lanes: Any = ray.remote  # its types know no lanes
    made = lanes(concurrency_groups={"search": 1, "compare": 1, "control": 1})
    return made(Worker).options(
        num_gpus=1 if gpu else 0,
        num_cpus=0 if gpu else 1,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )


def _lane(setting: Setting) -> str:
    """The thread of an actor: processes of a comparison are set up while a search goes on."""
    return "compare" if setting.name == "compare" else "search"


def ask_nodes(function: Callable[[], Any]) -> dict[str, Any]:
    """Ask every living node; by its id what it says, or in words why it says nothing.

    Args:
        function: importable by name there.
    """
    asked = {
        node["NodeID"]: ray.remote(function)
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote()
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }
    found: dict[str, Any] = {}
    end = time.monotonic() + LOOK_S
    for node, answer in asked.items():
        try:
            found[node] = ray.get(answer, timeout=max(0.1, end - time.monotonic()))
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            found[node] = f"cannot be looked at: {_first_line(cause)}"
    return found


def free_of(kind: str) -> dict[str, int]:
    """How many of a resource each node has that Ray has given to nobody."""
    from ray._private.state import available_resources_per_node  # noqa: PLC0415 - no public one

    each = available_resources_per_node()  # type: ignore[no-untyped-call]
    return {node: int(has.get(kind, 0)) for node, has in each.items()}


def _first_line(error: BaseException) -> str:
    text = [line for line in str(error).splitlines() if line.strip()]
    return f"{text[0].strip()}" if text else type(error).__name__
