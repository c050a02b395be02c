"""Several places measure at once, and the answers come in the order of the questions.

A place is lost with its node. What it was measuring goes back to the queue with the repeats that
had come, and nothing is held against the setting, unless two places were lost in the middle of it.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, Self

from autotune.core import (
    Basis,
    Candidate,
    Group,
    Job,
    Measurement,
    MissingEnvironmentError,
    Outcome,
    Part,
    Workload,
)
from autotune.serving.dial.columns import columns, largest
from autotune.serving.scenario import SpecScenario

MOST_LOST = 2
"""So many places lost in the middle of one setting are no accident."""
FINISHED = "finished"
"""The name under which a measurement is kept until its turn to be told."""
_POLL_S = 0.2
_OPEN_S = 5.0
"""For a place that takes the place of a lost one, while others go on."""
_WAIT_S = 120.0
"""For any place, where none is left: a node that was restarted, say."""


Event = Measurement | Part | dict[Candidate, Measurement]
"""What a place says: of jobs measurements, of a group all of them at once, and parts of both."""


class PlaceLostError(Exception):
    """The node of a place, or the process that measured there, is gone; the text says why."""


class Place(Protocol):
    """A place is a GPU, or several, on which one server at a time is measured."""

    @property
    def name(self) -> str:
        """Which GPUs of which hosts, the same in every run."""

    def begin(self, jobs: Sequence[Job]) -> None:
        """Have the jobs of one server measured; returns at once.

        Raises:
            PlaceLostError: it is gone.
        """

    def begin_group(self, group: Group, *, check: bool) -> None:
        """Have a group measured side by side; returns at once.

        Raises:
            PlaceLostError: it is gone.
        """

    def events(self) -> Sequence[Event]:
        """Give what has come since; waits for nothing.

        Raises:
            PlaceLostError: it is gone.
            AutotuneError: nothing can be measured there.
        """

    def close(self) -> None:
        """End what runs there and give the GPUs back; also of a place that is lost."""


class Gate(Protocol):
    """Who is asked before a server is started (``measure/boots.py``)."""

    def kept_from(self, candidate: Candidate) -> Measurement | None:
        """Give the failure of a candidate that is not to be started; None where it may be."""

    def boot(self, workload: Workload, candidate: Candidate) -> AbstractContextManager[None]:
        """Store that a server is about to be started, and after the block that it ended."""

    def ended(self, candidate: Candidate, measurement: Measurement) -> None:
        """Take in what came of it."""


class _Open:
    """Lets everything through."""

    def kept_from(self, candidate: Candidate) -> None:
        del candidate

    def boot(self, workload: Workload, candidate: Candidate) -> AbstractContextManager[None]:
        del workload, candidate
        return contextlib.nullcontext()

    def ended(self, candidate: Candidate, measurement: Measurement) -> None:
        del candidate, measurement


@dataclass(eq=False)
class _Task:
    """The jobs of one server, what is known of them, and who is at it."""

    jobs: list[Job]
    found: list[Measurement] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    place: Place | None = None
    boot: ExitStack = field(default_factory=ExitStack)

    @property
    def done(self) -> bool:
        return len(self.found) == len(self.jobs)

    @property
    def candidate(self) -> Candidate:
        """What its server is started for."""
        return largest(self.jobs).candidate

    @property
    def pin(self) -> str | None:
        """The place that it wants; empty is the home, None is any."""
        load = self.jobs[0].workload
        if not isinstance(load, SpecScenario):
            return None
        return load.control or ("" if load.round else None)

    def keep(self, part: Part) -> None:
        """Keep a part for the place that begins again."""
        for index, job in enumerate(self.jobs):
            if (job.candidate, job.workload) == (part.candidate, part.workload):
                self.jobs[index] = replace(job, parts={**job.parts, part.name: part.value})

    def parts(self) -> Iterator[Part]:
        """What is finished, as parts: earlier answers are awaited, and a kill must not take it."""
        for job, one in zip(self.jobs, self.found, strict=True):
            if one.outcome is Outcome.OK and "tasks" not in one.details:
                value = asdict(one) | {"outcome": one.outcome.value, "basis": one.basis.value}
                yield Part(job.candidate, job.workload, FINISHED, value)

    def recall(self) -> None:
        """Take in what an earlier run had finished of all its jobs."""
        if all(FINISHED in job.parts for job in self.jobs):
            self.found = [_measurement(job.parts[FINISHED]) for job in self.jobs]


def _measurement(value: Mapping[str, Any]) -> Measurement:
    outcome, basis = Outcome(value["outcome"]), Basis(value["basis"])
    samples = tuple(value["samples"])
    return Measurement(**{**value, "outcome": outcome, "basis": basis, "samples": samples})


class Fleet:
    """Measures servers on several places; a :class:`autotune.core.SideBySide`.

    What is compared, in turns or side by side, is measured on one place, the home: the first.
    """

    def __init__(
        self,
        opener: Callable[[float], Place | None],
        count: int,
        basis: Basis,
        *,
        sleep: Callable[[float], None] = time.sleep,
        on_lost: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Take what opens places; none is opened yet.

        Args:
            opener: opens a place, or gives None where none comes free within so many seconds.
            count: how many to open.
            basis: what the values are.
            sleep: waits so many seconds.
            on_lost: told of every place that is lost.
        """
        self._opener, self._count, self.basis = opener, count, basis
        self._on_lost, self.sleep = on_lost, sleep
        self.places: list[Place] = []
        """Those that there are, the home first."""

    def __enter__(self) -> Self:
        """Open the places.

        Raises:
            MissingEnvironmentError: there is none.
        """
        try:
            self.add(_WAIT_S)
            while len(self.places) < self._count and self.add(_OPEN_S):
                pass
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Give every place back."""
        while self.places:
            self.places.pop().close()

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement | Part]:
        """Measure as many at once as there are places; see :class:`autotune.core.Measurer`."""
        return self.admitted(jobs, _Open())

    def admitted(self, jobs: Iterable[Job], gate: Gate) -> Iterator[Measurement | Part]:
        """As :meth:`measure`, asking ``gate`` before each start."""
        return _Run(self, iter(jobs), gate).events()

    def compare(
        self, groups: Iterable[Group], *, check: bool
    ) -> Iterator[dict[Candidate, Measurement] | Part]:
        """Measure every group at home, whichever place that is; see ``core.SideBySide``."""
        for group in groups:
            yield from self._compared(group, check=check)

    def _compared(
        self, group: Group, *, check: bool
    ) -> Iterator[dict[Candidate, Measurement] | Part]:
        lost: list[str] = []
        while len(lost) < MOST_LOST:
            home = self.places[0]
            try:
                home.begin_group(group, check=check)
                while True:
                    for event in home.events():
                        if isinstance(event, Part):
                            group = _with_part(group, event)
                            yield event
                        elif isinstance(event, dict):
                            yield event
                            return
                    self.sleep(_POLL_S)
            except PlaceLostError as error:
                lost.append(f"{home.name} is lost: {error}")
                self.lose(home, lost[-1])
            except GeneratorExit:  # nobody listens any more
                self.drop(home)
                raise
        yield dict.fromkeys(group.candidates, self.blamed(lost))

    def add(self, within_s: float) -> bool:
        """Open one more place.

        Raises:
            MissingEnvironmentError: none is left, and none came.
        """
        why = f"no node has had a free GPU for {within_s:.0f} s"
        try:
            place = self._opener(within_s)
        except PlaceLostError as lost:
            place, why = None, f"nothing starts where a GPU is free: {lost}"
        if place is not None:
            self.places.append(place)
        elif not self.places:
            raise MissingEnvironmentError(
                f"--ray: {why}; what was measured is kept, and the same command goes on"
            )
        return place is not None

    def lose(self, place: Place, said: str) -> None:
        """Close a place that is lost, and open another one instead if one comes free.

        Raises:
            MissingEnvironmentError: none is left, and none came.
        """
        self._on_lost(said)
        self.drop(place)
        self.add(_OPEN_S if self.places else _WAIT_S)

    def drop(self, place: Place) -> None:
        """Close a place for good."""
        self.places.remove(place)
        place.close()

    def blamed(self, lost: Sequence[str]) -> Measurement:
        """Make the outcome of a setting in the middle of which too many places were lost."""
        return Measurement(
            outcome=Outcome.CRASH,
            basis=self.basis,
            message=f"{len(lost)} nodes were lost in the middle of it: {lost[-1]}",
            details={"boots": len(lost), "lost": list(lost)},
        )


def _with_part(group: Group, part: Part) -> Group:
    known = {c: dict(parts) for c, parts in group.parts.items()}
    known.setdefault(part.candidate, {})[part.name] = part.value
    return replace(group, parts=known)


class _Run:
    """One call of :meth:`Fleet.admitted`: what was asked, what waits, what is under way."""

    def __init__(self, fleet: Fleet, source: Iterator[Job], gate: Gate) -> None:
        self._fleet, self._source, self._gate = fleet, source, gate
        self._groups = columns(source)
        self._asked = deque[_Task]()
        """All without an answer, in the order in which they came."""
        self._waiting = deque[_Task]()

    def events(self) -> Iterator[Measurement | Part]:
        """Yield parts as they come, and measurements in the order of the jobs."""
        try:
            while self._read_ahead():
                self._start()
                while self._asked and self._asked[0].done:
                    yield from self._asked.popleft().found
                news = False
                for task in list(self._asked):
                    for part in self._news(task):  # stored before another place can fail
                        news = True
                        yield part
                if not news and self._asked and not self._asked[0].done:
                    self._fleet.sleep(_POLL_S)
        finally:
            for task in self._asked:
                self._abandon(task)

    def _read_ahead(self) -> bool:
        """Read jobs as far as places are free; tell whether any is left to answer.

        The source may run dry and have more later.
        """
        while len(self._waiting) < max(1, len(self._free())):
            group = next(self._groups, None)
            if group is None:
                self._groups = columns(self._source)
                group = next(self._groups, None)
            if group is None:
                break
            task = _Task(group)
            task.recall()
            self._asked.append(task)
            if not task.done:
                self._waiting.append(task)
        return bool(self._asked)

    def _free(self) -> list[Place]:
        busy = [task.place for task in self._asked]
        return [place for place in self._fleet.places if place not in busy]

    def _start(self) -> None:
        """Give waiting tasks to free places, in order; one that wants a busy place waits."""
        for task in list(self._waiting):
            kept = self._gate.kept_from(task.candidate)
            if kept is None and len(task.lost) >= MOST_LOST:
                kept = self._fleet.blamed(task.lost)
            place = self._place_for(task)
            if kept is None and place is None:
                continue
            self._waiting.remove(task)
            if kept is not None:
                task.found = [kept] * len(task.jobs)
            elif place is not None:
                self._begin(task, place)

    def _place_for(self, task: _Task) -> Place | None:
        free, places = self._free(), self._fleet.places
        if task.pin is None:
            return free[0] if free else None
        wanted = next((p for p in places if p.name == task.pin), places[0])
        return wanted if wanted in free else None

    def _begin(self, task: _Task, place: Place) -> None:
        started = largest(task.jobs)
        task.boot.enter_context(self._gate.boot(started.workload, started.candidate))
        task.place = place
        try:
            place.begin(task.jobs)
        except PlaceLostError as error:
            self._requeue(task, place, error)

    def _news(self, task: _Task) -> list[Part]:
        """Take in what has come of a task; gives what is to be stored at once."""
        place, parts = task.place, list[Part]()
        if place is None:
            return parts
        try:
            for event in place.events():
                if isinstance(event, Measurement):
                    self._gate.ended(task.candidate, event)
                    task.found.append(event)
                elif isinstance(event, Part):
                    task.keep(event)
                    parts.append(event)
        except PlaceLostError as error:
            self._requeue(task, place, error)
            return parts
        if task.done:
            task.place = None
            task.boot.close()
            parts += task.parts() if task is not self._asked[0] else ()
        return parts

    def _requeue(self, task: _Task, place: Place, error: PlaceLostError) -> None:
        """Put a task first in line: nothing is held against it that its place is lost."""
        task.place = None
        task.found.clear()
        task.boot.close()
        said = f"{place.name} is lost: {error}"
        task.lost.append(said)
        self._waiting.appendleft(task)
        self._fleet.lose(place, said)

    def _abandon(self, task: _Task) -> None:
        """End what runs for somebody who no longer listens."""
        place, task.place = task.place, None
        task.boot.close()
        if place is not None:
            self._fleet.drop(place)


def place_of(details: Mapping[str, Any]) -> str | None:
    """The place on which a measurement was made; None without a cluster."""
    found = details.get("place")
    return found["name"] if found else None
