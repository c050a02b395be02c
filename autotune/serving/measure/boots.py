"""Boots that the machine survives: stored before they start, and none as large as one that fell.

On unified memory a boot that takes too much hangs the machine. What it leaves is a boot that began
and never ended; then neither it nor anything as large is started again until that is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

from autotune.core import (
    Candidate,
    Group,
    HoldsNothing,
    Job,
    Measurement,
    Measurer,
    Outcome,
    Part,
    Scalar,
    SideBySide,
    Workload,
)
from autotune.serving.cluster.fleet import Fleet
from autotune.serving.dial.columns import columns, largest
from autotune.serving.logs.kinds import FailureKind
from autotune.serving.recipe import GAMMA, UTILIZATION
from autotune.store.records import DatedTrial, LostBoot

NEVER_ENDED = "never_ended"
"""What stands in place of the class of a failure."""
_GROWING = {
    GAMMA,
    UTILIZATION,
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "kv_cache_memory_bytes",
}
"""Parameters of which a larger value takes more memory, if any."""


class BootLog(Protocol):
    """The part of the store that knows of boots, such as ``autotune.store.retry.ResumableLog``."""

    def boot(self, workload: Workload, candidate: Candidate) -> AbstractContextManager[None]:
        """Store that a server is about to be started, and after the block that it ended."""


def ran_short(trials: Iterable[DatedTrial]) -> dict[Candidate, str]:
    """Tell which candidates ran the host short of memory when they were last booted, and how.

    Args:
        trials: of a search, oldest first.
    """
    last = {t.trial.candidate: t.trial.measurement for t in trials if _booted(t)}
    return {c: m.message for c, m in last.items() if m.outcome is Outcome.HOST_MEMORY}


def _booted(dated: DatedTrial) -> bool:
    """Alone: what several servers ran short of together, none of them did by itself."""
    details = dated.trial.measurement.details
    return bool(details.get("boots")) and "compared" not in details


def is_as_large(candidate: Candidate, other: Candidate) -> bool:
    """Tell whether a candidate takes at least the memory of another, by its parameters alone.

    Those that grow with the memory are no smaller, and all others are the same.
    """
    ours, theirs = candidate.params, other.params
    if ours.keys() != theirs.keys():
        return False
    return all(
        value == theirs[name] or (_grows(name) and _at_least(value, theirs[name]))
        for name, value in ours.items()
    )


def _grows(name: str) -> bool:
    return name.replace("-", "_") in _GROWING


def _at_least(value: Scalar, other: Scalar) -> bool:
    try:
        return float(value) >= float(other)
    except ValueError:
        return False


class Boots(HoldsNothing):
    """Passes jobs to a measurer server by server, less those that would hang the machine."""

    def __init__(
        self,
        measurer: Measurer,
        log: BootLog,
        lost: Sequence[LostBoot] = (),
        short: Mapping[Candidate, str] | None = None,
        *,
        unified: bool = False,
    ) -> None:
        """Take what is known.

        Args:
            measurer: boots a server for every job.
            log: stores that a boot begins.
            lost: boots that began and never ended.
            short: candidates that ran the host short of memory, and how.
            unified: whether host and GPU share the memory. A start that vLLM refused for want of it
                is then not repeated either, nor a larger one: each costs minutes, and a risk.
        """
        self._measurer, self._unified, self.basis = measurer, unified, measurer.basis
        self.boot = log.boot
        self._lost = {boot.candidate: _at(boot) for boot in lost if not boot.group}
        self._short = dict(short or {})
        self._refused: dict[Candidate, str] = {}

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement | Part]:
        """One after the other, or on each place one; see :class:`autotune.core.Measurer`."""
        if isinstance(self._measurer, Fleet):
            yield from self._measurer.admitted(jobs, self)
            return
        for group in columns(jobs):
            started = largest(group)
            kept = self.kept_from(started.candidate)
            if kept is not None:
                yield from [kept] * len(group)
                continue
            with self.boot(started.workload, started.candidate):
                yield from self._measured(group, started)

    def _measured(self, group: Sequence[Job], started: Job) -> Iterator[Measurement | Part]:
        events = self._measurer.measure(group)
        try:
            for event in events:
                if isinstance(event, Measurement):
                    self.ended(started.candidate, event)
                yield event
        finally:  # a server may run
            if isinstance(events, Generator):
                events.close()

    def ended(self, candidate: Candidate, measurement: Measurement) -> None:
        """Remember what ran the host short of memory, or was refused for want of it."""
        failure = measurement.details.get("failure")
        if measurement.outcome is Outcome.HOST_MEMORY:
            self._short[candidate] = measurement.message
        elif self._unified and failure == FailureKind.OUT_OF_MEMORY_AT_START.value:
            self._refused[candidate] = measurement.message

    def kept_from(self, candidate: Candidate) -> Measurement | None:
        """The failure of a candidate that is not started; None where it is."""
        for other, began in self._lost.items():
            if is_as_large(candidate, other):
                said = f"a start that was begun at {began} never ended: the machine hung in it, or "
                said += f"the command was killed{_not_itself(candidate, other)}"
                return self._failed(Outcome.CRASH, said, NEVER_ENDED)
        for known, outcome, failure in (
            (self._short, Outcome.HOST_MEMORY, FailureKind.HOST_MEMORY),
            (self._refused, Outcome.OUT_OF_MEMORY, FailureKind.OUT_OF_MEMORY_AT_START),
        ):
            for other, how in known.items():
                if is_as_large(candidate, other):
                    said = f"not started: it takes as much memory as {_named(other)}, {how}"
                    return self._failed(outcome, said, failure.value)
        return None

    def _failed(self, outcome: Outcome, message: str, failure: str) -> Measurement:
        details = {"boots": 0, "log": None, "failure": failure}
        return Measurement(outcome, self.basis, message=message, details=details)


class ComparingBoots(Boots):
    """The same for a measurer that also has several servers up at once."""

    def __init__(
        self,
        measurer: SideBySide,
        log: BootLog,
        lost: Sequence[LostBoot] = (),
        short: Mapping[Candidate, str] | None = None,
        *,
        unified: bool = False,
    ) -> None:
        """Take what is known, as :class:`Boots`."""
        super().__init__(measurer, log, lost, short, unified=unified)
        self._comparing = measurer
        self._hung = Counter(boot.group for boot in lost if boot.group)
        self._hung_at = {boot.group: _at(boot) for boot in lost}

    def compare(
        self, groups: Iterable[Group], *, check: bool
    ) -> Iterator[dict[Candidate, Measurement] | Part]:
        """All of a group at once; see :class:`autotune.core.SideBySide`.

        A fall of several servers together tells of none of them that it is too large; but where
        so many hung the machine, no more are started at once.
        """
        for group in groups:
            each = map(self.kept_from, group.candidates)
            kept = self._too_many(len(group.candidates)) or next(filter(None, each), None)
            if kept is not None:
                yield dict.fromkeys(group.candidates, kept)
                continue
            with ExitStack() as stack:
                for candidate in group.candidates:
                    stack.enter_context(self.boot(group.workload, candidate))
                yield from self._comparing.compare([group], check=check)

    def _too_many(self, servers: int) -> Measurement | None:
        for group, count in self._hung.items():
            if count <= servers:
                said = f"a start of {count} servers at once that was begun at "
                said += f"{self._hung_at[group]} never ended: the machine hung in it, or the "
                return self._failed(Outcome.CRASH, f"{said}command was killed", NEVER_ENDED)
        return None


def is_together(spec: Mapping[str, Any]) -> bool:
    """Tell whether servers of a stored load are up at once, several of them."""
    return "beside" in spec


def _at(boot: LostBoot) -> str:
    return f"{boot.begun_at:%Y-%m-%d %H:%M} UTC"


def _not_itself(candidate: Candidate, other: Candidate) -> str:
    return "" if candidate == other else f"; this takes as much memory as that, {_named(other)}"


def _named(candidate: Candidate) -> str:
    return ", ".join(f"{name} {value}" for name, value in candidate.items)
