"""The loop that every tuner shares: ask, measure, store, tell.

All that it learns is in the store before the next step, and what it does next depends only on the
seed and on what is stored. Killed at any instruction and started again, it goes on where it was.

Workloads are searched side by side, a batch of each in turn, so that one is measured while the next
batch of another is being prepared. Neighbours in the order given are taken to be alike: in the end
what is best on one is tried on the other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from typing import Any, Protocol, Self, TypeVar

from autotune.core import (
    Candidate,
    Group,
    Job,
    Measurement,
    Measurer,
    Part,
    Phase,
    Proposer,
    SideBySide,
    Trial,
    Workload,
)

BATCH = 8
"""Candidates asked for at once. Constant: a batch is told as a whole, so it shapes the search."""


HINTS = 2
"""How many of a neighbour's best are tried."""
LATE = 0.7
"""From this share of the trials on: before it, neighbours are still searching themselves."""


class TrialLog(Protocol):
    """The part of the store that the loop needs, bound to one run of one search."""

    def load(self, workload: Workload, phase: Phase) -> list[Trial]:
        """The trials stored so far, by sequence."""

    def append(self, workload: Workload, trial: Trial) -> None:
        """Store a trial; durable on return."""

    def load_parts(
        self, workload: Workload, candidate: Candidate
    ) -> Mapping[str, Mapping[str, Any]]:
        """What runs that were cut off had finished of a measurement, by name."""

    def append_part(
        self, workload: Workload, candidate: Candidate, name: str, value: Mapping[str, Any]
    ) -> None:
        """Store a finished part of a measurement under way; durable on return."""


@dataclass(frozen=True)
class Progress:
    """Told to the caller after every trial."""

    workload: Workload
    trial: Trial
    reused: bool
    """Read back from the store rather than measured now."""


OnProgress = Callable[[Progress], None]
"""Told of every trial."""


Event = TypeVar("Event")
"""What a measurer yields besides the parts: a measurement, or those of a group."""


@dataclass(frozen=True)
class Limits:
    """When to stop a workload: ``trials`` searched, or the clock at ``deadline`` (seconds)."""

    trials: int
    deadline: float = float("inf")
    clock: Callable[[], float] = time.monotonic


def measured(
    jobs: Iterable[Job], measurer: Measurer, log: TrialLog
) -> Generator[Measurement, None, None]:
    """Yield the measurements of ``jobs``; every part is stored before the next one is begun.

    Each job takes along what is stored of its parts.
    """

    def with_parts(job: Job) -> Job:
        return replace(job, parts=log.load_parts(job.workload, job.candidate))

    # A map, unlike a generator, goes on where the jobs had run dry for a while.
    return _parts_stored(measurer.measure(map(with_parts, jobs)), log)


def compared(
    groups: Iterable[Group], measurer: SideBySide, log: TrialLog, *, check: bool
) -> Iterator[dict[Candidate, Measurement]]:
    """Yield what was measured side by side of each group; parts as in :func:`measured`."""

    def with_parts(group: Group) -> Group:
        kept = {c: log.load_parts(group.workload, c) for c in group.candidates}
        return replace(group, parts=kept)

    return _parts_stored(measurer.compare(map(with_parts, groups), check=check), log)


def _parts_stored(events: Iterator[Part | Event], log: TrialLog) -> Generator[Event, None, None]:
    """Yield what is no part; every part is stored before the next is begun."""
    try:
        for event in events:
            if isinstance(event, Part):
                log.append_part(event.workload, event.candidate, event.name, event.value)
            else:
                yield event
    finally:  # at once, if the log fails: what is measured may be a server that runs
        if isinstance(events, Generator):
            events.close()


def measure_all(
    jobs: Sequence[Job],
    phase: Phase | Callable[[Job], Phase],
    measurer: Measurer,
    log: TrialLog,
    on_progress: OnProgress,
) -> list[Trial]:
    """Measure given candidates in order (baselines), reusing what is stored.

    ``phase`` is why all of them are measured, or tells it of each; ``on_progress`` is told of each
    trial before the next begins.
    """
    phase_of = phase if callable(phase) else lambda _: phase
    phases = {job: phase_of(job) for job in jobs}
    stored = {(job.workload.key, why): log.load(job.workload, why) for job, why in phases.items()}
    known = {(t.candidate, *key): t for key, trials in stored.items() for t in trials}
    counts = {key: len(trials) for key, trials in stored.items()}
    missing = [
        job for job, why in phases.items() if (job.candidate, job.workload.key, why) not in known
    ]
    trials = []
    with closing(measured(missing, measurer, log)) as fresh:  # what is measured may be a server
        for job, why in phases.items():
            candidate, workload = job.candidate, job.workload
            trial = known.get((candidate, workload.key, why))
            reused = trial is not None
            if trial is None:
                number = counts[workload.key, why]
                trial = Trial(candidate, workload.key, why, number, next(fresh))
                counts[workload.key, why] += 1
                log.append(workload, trial)
            trials.append(trial)
            on_progress(Progress(workload, trial, reused=reused))
    return trials


class Search:
    """One workload's search: proposer, limits, and the batch that is being measured.

    Whole batches that are stored are told to the proposer as history. A batch that was cut off is
    asked for again, which gives the same candidates, and only what is missing of it is measured,
    past the deadline too: no stored trial is left out.
    """

    def __init__(
        self,
        workload: Workload,
        proposer: Proposer,
        limits: Limits,
        rules_of: Callable[[Candidate], Any] = lambda _: None,
    ) -> None:
        """Take what the search needs; nothing is asked for yet.

        Args:
            workload: what is measured on.
            proposer: chooses the candidates.
            limits: when to stop.
            rules_of: what may stop the measurement of a candidate that is about to begin.
        """
        self.workload, self._proposer, self._limits = workload, proposer, limits
        self.rules_of = rules_of
        self.trials: list[Trial] = []
        """All that was told so far, in order."""
        self.out_of_time = False
        """Whether the deadline ended it before the trials did."""
        self.neighbours: list[Search] = []
        """Searches whose best candidates are hints for this one."""
        self._known: dict[Candidate, Trial] = {}
        self._stored = 0
        self._takes_all = True
        self._batch: list[Candidate] = []

    def restore(self, stored: Sequence[Trial]) -> list[Trial]:
        """Take in the stored trials; gives those that were told as history."""
        whole = min(len(stored), self._limits.trials) // BATCH * BATCH
        for trial in stored[:whole]:
            self._tell(trial)
        self._known = {trial.candidate: trial for trial in stored[whole:]}
        self._stored = len(stored)
        self._takes_all = len(stored) <= self._limits.trials
        return list(stored[:whole])

    def next_batch(self) -> tuple[list[Candidate], list[Trial]] | None:
        """What to measure now, and what of the batch was stored; None when the search is over."""
        limits, searched = self._limits, len(self.trials)
        if searched >= limits.trials:
            return self._left_over()
        if searched >= self._stored and limits.clock() >= limits.deadline:
            self.out_of_time = True
            return self._left_over()
        # In turns of a batch each, the others have been told at least all but the last batch that
        # this one was told: so much of them, and no more, is known whatever was interrupted when.
        late = searched >= LATE * limits.trials
        alike = [n.best(searched - BATCH) for n in self.neighbours if late]
        hints = [candidate for best in zip_longest(*alike) for candidate in best if candidate]
        self._batch = self._proposer.ask(min(BATCH, limits.trials - searched), hints)
        if not self._batch:
            return self._left_over()
        reused = [self._known[c] for c in self._batch if c in self._known]
        return [c for c in self._batch if c not in self._known], reused

    def _left_over(self) -> tuple[list[Candidate], list[Trial]] | None:
        """Stored trials that were not asked for again, as after a kill and with a larger limit."""
        left = list(self._known.values())
        if not left or not self._takes_all:
            return None
        self._batch = [trial.candidate for trial in left]
        return [], left

    def best(self, told: int) -> list[Candidate]:
        """The best few of the first ``told`` trials."""
        ok = [t for t in self.trials[: max(0, told)] if t.measurement.value is not None]
        ok.sort(key=lambda t: (t.measurement.value or 0.0, t.sequence))
        return [trial.candidate for trial in ok[:HINTS]]

    def add(self, candidate: Candidate, measurement: Measurement) -> Trial:
        """Take in a measurement of the batch, in the order in which it was given out."""
        trial = Trial(candidate, self.workload.key, Phase.SEARCH, self._stored, measurement)
        self._known[candidate] = trial
        self._stored += 1
        return trial

    def finish_batch(self) -> bool:
        """Tell the batch, in the order asked, if all of it is known."""
        if not all(candidate in self._known for candidate in self._batch):
            return False
        for candidate in self._batch:
            self._tell(self._known.pop(candidate))
        self._batch = []
        return True

    def _tell(self, trial: Trial) -> None:
        self._proposer.tell(trial)
        self.trials.append(trial)


class _Feed:
    """The jobs of all searches, a batch of each in turn.

    It has none while every search waits for its batch, and may have some again later: iterating
    ends where it runs dry, and can be taken up again.
    """

    def __init__(self, searches: Sequence[Search]) -> None:
        self._askable = deque(searches)
        self._jobs: deque[tuple[Search, Candidate]] = deque()
        self.given: deque[tuple[Search, Candidate]] = deque()
        self.reused: deque[Progress] = deque()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Job:
        while not self._jobs:
            if not self._askable:
                raise StopIteration
            self._ask(self._askable.popleft())
        search, candidate = self._jobs.popleft()
        self.given.append((search, candidate))
        return Job(candidate, search.workload, search.rules_of(candidate))

    def _ask(self, search: Search) -> None:
        batch = search.next_batch()
        if batch is None:
            return
        missing, reused = batch
        self.reused.extend(Progress(search.workload, trial, reused=True) for trial in reused)
        self._jobs.extend((search, candidate) for candidate in missing)
        if not missing:
            self.finished(search)

    def finished(self, search: Search) -> None:
        """A trial of ``search`` was taken in: its next batch can be asked for once all are."""
        if search.finish_batch():
            self._askable.append(search)

    @property
    def open(self) -> bool:
        """Whether something is left to ask for or to give out."""
        return bool(self._askable or self._jobs)


def search_all(searches: Sequence[Search], measurer: Measurer, log: TrialLog) -> Iterator[Progress]:
    """Search workloads side by side until their limits, or until nothing is left to propose."""
    for left, right in pairwise(searches):
        left.neighbours.append(right)
        right.neighbours.append(left)
    for search in searches:
        for trial in search.restore(log.load(search.workload, Phase.SEARCH)):
            yield Progress(search.workload, trial, reused=True)
    # Whatever was interrupted when, those that are behind are asked first, as if undisturbed.
    feed = _Feed(sorted(searches, key=lambda search: len(search.trials)))
    while feed.open:
        for measurement in measured(feed, measurer, log):
            while feed.reused:
                yield feed.reused.popleft()
            search, candidate = feed.given.popleft()
            trial = search.add(candidate, measurement)
            log.append(search.workload, trial)
            feed.finished(search)
            yield Progress(search.workload, trial, reused=False)
        while feed.reused:
            yield feed.reused.popleft()
