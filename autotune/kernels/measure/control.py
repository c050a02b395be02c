"""A search's times under control: vLLM's default is timed again with every batch.

A GPU that grows slower half-way, by heat, power or a neighbour, would make every later candidate
look bad: they all race against the smallest time ever seen. Here the default's time over its first
one says how slow the device is at the moment, and values are divided by that. It is the default at
the same batch size, because a slower clock and a slower memory hit different ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from autotune.core import (
    Candidate,
    HoldsNothing,
    Job,
    Measurement,
    Measurer,
    Workload,
)
from autotune.machine.clocks import LEAST_CLOCK, Reading, fallen, ranges_of
from autotune.tune import BATCH

TOLERATED = 0.05
"""A control that differs by more from the one before it leaves open when the device changed: what
was timed between them is measured again, once."""
LEAST_COPY = 0.85
MATTERS = 1.15
"""Only candidates that may be within this factor of the best are worth that."""


@dataclass(frozen=True)
class Pace:
    """What a job under control carries as its rules.

    Attributes:
        slow: how many times as long the default takes now as at first.
        control: whether this is the default, timed as a control; clocks are then read as well.
    """

    slow: float = 1.0
    control: bool = False


@dataclass
class Drift:
    """What the controls of a search saw.

    Attributes:
        controls: how often the default was timed again.
        least: smallest ratio of its time over its first.
        most: largest.
        again: candidates that were measured again.
        clocks: SM clock (MHz), temperature (°C) and power (mW) of each control, as far as read.
    """

    controls: int = 0
    least: float = 1.0
    most: float = 1.0
    again: int = 0
    clocks: list[Reading] = field(default_factory=list)

    def take(self, ratio: float, clocks: Reading) -> None:
        """Take in a control."""
        self.controls += 1
        self.least, self.most = min(self.least, ratio), max(self.most, ratio)
        if clocks:
            self.clocks.append(dict(clocks))

    def as_json(self) -> dict[str, Any]:
        """For provenance: counts, ratios, and the range of each clock."""
        return {
            "controls": self.controls,
            "least": round(self.least, 4),
            "most": round(self.most, 4),
            "measured_again": self.again,
            "clocks": {n: list(ends) for n, ends in sorted(ranges_of(self.clocks).items())},
        }


def slow_device(facts: Mapping[str, Any], expected_gbs: float) -> list[str]:
    """Return warnings of a device that was slow or unsteady, one line each.

    Args:
        facts: what the measuring process saw, and the ``drift`` of :meth:`Drift.as_json`.
        expected_gbs: what a copy reaches on such a device.
    """
    said = []
    copied, drift = facts["copy_gbs"], facts.get("drift", {})
    if copied < LEAST_COPY * expected_gbs:
        said.append(
            f"a copy reached {copied:.0f} GB/s, {copied / expected_gbs:.0%} of what this device "
            "is known for: something else uses the memory, or the device is throttled"
        )
    least, most = drift.get("least", 1.0), drift.get("most", 1.0)
    if most > (1 + TOLERATED) * least:
        said.append(
            f"the device was unsteady: vLLM's default took {least:.2f} to {most:.2f} times as "
            f"long in the search as before it; values are corrected by that, and "
            f"{drift['measured_again']} candidates were measured again"
        )
    return said + fallen(drift.get("clocks", {}), "during the search")


def throttled(after: Mapping[int, Mapping[str, float]], drift: Mapping[str, Any]) -> list[str]:
    """Return a warning of the comparisons that ended at a low clock; empty where none did.

    Args:
        after: by batch size what was read at the end of its comparison.
        drift: of the search (:meth:`Drift.as_json`), for the highest clock.
    """
    clocks = {m: read["sm_mhz"] for m, read in sorted(after.items()) if "sm_mhz" in read}
    searched = drift.get("clocks", {}).get("sm_mhz", (0.0, 0.0))
    most = max([*clocks.values(), searched[1]], default=0.0)
    low = {m: mhz for m, mhz in clocks.items() if mhz < LEAST_CLOCK * most}
    if not low:
        return []
    listed = ", ".join(f"M={m}: {mhz:.0f}" for m, mhz in low.items())
    return [
        f"the SM clock had fallen from {most:.0f} MHz by the end of some comparisons ({listed}): "
        "the device was throttled, by heat or its power limit; speed-ups there hold, since the "
        "default took its turns under the same clock, but the µs are too long"
    ]


@dataclass
class _Entry:
    """A job given to the measurer: one of a batch, or a control (without a slot)."""

    workload: Workload
    candidate: Candidate
    slot: int | None
    batch: _Batch


@dataclass
class _Batch:
    """Jobs of one workload in a row, between two controls."""

    workload: Workload
    jobs: list[Job] = field(default_factory=list)
    raw: dict[int, Measurement] = field(default_factory=dict)
    found: dict[int, Measurement] = field(default_factory=dict)
    """What is known for good, by place in the batch."""
    again: bool = False
    """Whether it was measured again already."""
    done: bool = False


class Controlled(HoldsNothing):
    """A measurer whose values are corrected by controls; for searches.

    Answers come batch by batch: those of a batch wait for the control after it.
    """

    def __init__(
        self,
        measurer: Measurer,
        defaults: Mapping[str, Candidate],
        references: Mapping[str, float],
    ) -> None:
        """Wrap a measurer.

        Args:
            measurer: times.
            defaults: vLLM's default by the key of a workload.
            references: its first time, where it has one; a workload without is passed through.
        """
        self._measurer, self._defaults = measurer, dict(defaults)
        self.basis = measurer.basis
        self._references = dict(references)
        self._slow: dict[str, float] = {}
        self._best = dict(references)
        self.drift = Drift()

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        """Yield corrected measurements, in the order of the jobs; see :class:`Measurer`."""
        stream = _Stream(iter(jobs), self)
        while True:
            # Kernels are measured in one go: no part ever comes.
            answers = cast("Iterator[Measurement]", self._measurer.measure(stream))
            try:
                for answer in answers:
                    yield from stream.take(answer)
            finally:  # the processes that it drives must not wait for the garbage collector
                if isinstance(answers, Generator):
                    answers.close()
            yield from stream.finished()
            if not stream.more:
                return

    def pace(self, workload: Workload) -> float:
        """Return how slow the device is, as the last control of the workload had it."""
        return self._slow.get(workload.key, 1.0)

    def is_controlled(self, workload: Workload) -> bool:
        """Tell whether the default has a time to compare with."""
        return workload.key in self._references

    def control_of(self, workload: Workload) -> Candidate:
        """Return the default of a workload."""
        return self._defaults[workload.key]

    def seen(self, workload: Workload, measurement: Measurement) -> float:
        """Take in a control; return its ratio, the last one where it failed."""
        if measurement.value is None:
            return self.pace(workload)
        ratio = measurement.value / self._references[workload.key]
        self._slow[workload.key] = ratio
        self.drift.take(ratio, measurement.details.get("clocks", {}))
        return ratio

    def corrected(self, workload: Workload, measurement: Measurement, slow: float) -> Measurement:
        """Divide a value by how slow the device was; the samples stay what was measured."""
        if measurement.value is None:
            return measurement
        value = measurement.value / slow
        self._best[workload.key] = min(value, self._best[workload.key])
        details = {**measurement.details, "control": round(slow, 4)}
        return replace(measurement, value=value, details=details)

    def matters(self, workload: Workload, measurement: Measurement, slowest: float) -> bool:
        """Tell whether a value may still win if the device was as slow as that."""
        value = measurement.value
        return value is not None and value <= MATTERS * slowest * self._best[workload.key]


class _Stream:
    """The jobs as the measurer gets them: each batch between two controls.

    Iterating ends where there are no jobs for now, and can be taken up again, as jobs can.
    """

    def __init__(self, jobs: Iterator[Job], owner: Controlled) -> None:
        self._jobs, self._owner = jobs, owner
        self._given: deque[_Entry] = deque()
        self._batches: deque[_Batch] = deque()
        self._open: _Batch | None = None
        self._next: deque[tuple[_Batch, int | None, Job]] = deque()

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Job:
        if not self._next:
            self._fill()
        batch, slot, job = self._next.popleft()
        self._given.append(_Entry(job.workload, job.candidate, slot, batch))
        pace = Pace(self._owner.pace(job.workload), control=slot is None)
        return replace(job, rules=pace)

    def _fill(self) -> None:
        """Put the next job in line, with the control before it if a batch begins.

        Raises:
            StopIteration: there is none for now; an open batch is closed first.
        """
        try:
            job = next(self._jobs)
        except StopIteration:
            if self._open is None:
                raise
            self._close()
            if not self._next:
                raise
            return
        batch = self._open
        if batch is None or batch.workload.key != job.workload.key or len(batch.jobs) == BATCH:
            self._close()
            batch = self._begin(job.workload)
        batch.jobs.append(job)
        self._next.append((batch, len(batch.jobs) - 1, job))

    def _begin(self, workload: Workload) -> _Batch:
        batch = self._open = _Batch(workload)
        self._batches.append(batch)
        return batch

    def _close(self) -> None:
        """End the open batch with a control of its own workload."""
        batch, self._open = self._open, None
        if batch is not None:
            self._control(batch)

    def _control(self, batch: _Batch) -> None:
        if self._owner.is_controlled(batch.workload):
            default = self._owner.control_of(batch.workload)
            self._next.append((batch, None, Job(default, batch.workload)))
        else:
            batch.done = True

    def take(self, answer: Measurement) -> Iterator[Measurement]:
        """Take in an answer; yield what is now known for good."""
        entry = self._given.popleft()
        batch = entry.batch
        if entry.slot is None:
            before = self._owner.pace(batch.workload)
            self._settle(batch, before, self._owner.seen(batch.workload, answer))
        elif not (batch.again and answer.value is None):  # a first answer is better than none
            batch.raw[entry.slot] = answer
        yield from self.finished()

    def _settle(self, batch: _Batch, before: float, now: float) -> None:
        """Correct a batch by the control after it, or have what matters of it measured again."""
        owner, workload = self._owner, batch.workload
        changed = not 1 - TOLERATED <= now / before <= 1 + TOLERATED
        open_slots = [slot for slot in batch.raw if slot not in batch.found]
        doubtful = [
            slot
            for slot in open_slots
            if changed and owner.matters(workload, batch.raw[slot], max(before, now))
        ]
        if doubtful and not batch.again:
            batch.again = True
            owner.drift.again += len(doubtful)
            for slot in doubtful:
                self._next.append((batch, slot, batch.jobs[slot]))
            self._control(batch)
        else:
            doubtful, batch.done = [], True
        for slot in open_slots:
            if slot not in doubtful:
                batch.found[slot] = owner.corrected(workload, batch.raw[slot], now)

    def finished(self) -> Iterator[Measurement]:
        """Yield the answers of batches that are settled, in order."""
        while self._batches and self._is_whole(self._batches[0]):
            batch = self._batches.popleft()
            found = batch.found or batch.raw  # uncontrolled ones are passed through
            for slot in range(len(batch.jobs)):
                yield found[slot]

    def _is_whole(self, batch: _Batch) -> bool:
        found = batch.found or batch.raw
        return batch.done and batch is not self._open and len(found) == len(batch.jobs)

    @property
    def more(self) -> bool:
        """Whether anything that was taken is not answered yet."""
        return bool(self._next or self._given or self._batches)
