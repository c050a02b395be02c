"""The loop that every tuner shares: ask, measure, store, tell.

All that it learns is in the store before the next step, and what it does next depends only on the
seed and on what is stored. Killed at any instruction and started again, it goes on where it was.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from autotune.core import Candidate, Measurer, Phase, Proposer, Trial, Workload

BATCH = 8
"""Candidates asked for at once. Constant: a batch is told as a whole, so it shapes the search."""


class TrialLog(Protocol):
    """The part of the store that the loop needs, bound to one run of one search."""

    def load(self, workload: Workload, phase: Phase) -> list[Trial]:
        """The trials stored so far, by sequence."""

    def append(self, workload: Workload, trial: Trial) -> None:
        """Store a trial; durable on return."""


@dataclass(frozen=True)
class Progress:
    """Told to the caller after every trial."""

    workload: Workload
    trial: Trial
    reused: bool
    """Read back from the store rather than measured now."""


@dataclass(frozen=True)
class Limits:
    """When to stop a workload: ``trials`` searched, or the clock at ``deadline`` (seconds)."""

    trials: int
    deadline: float = float("inf")
    clock: Callable[[], float] = time.monotonic


def _measure_batch(
    batch: Sequence[Candidate],
    workload: Workload,
    phase: Phase,
    start: int,
    known: dict[Candidate, Trial],
    measurer: Measurer,
) -> Iterator[tuple[Trial, bool]]:
    """Trials of a batch in its order; what is known is reused, the rest measured together."""
    fresh = measurer.measure([c for c in batch if c not in known], workload)
    sequences = itertools.count(start)
    for candidate in batch:
        if candidate in known:
            yield known[candidate], True
        else:
            yield Trial(candidate, workload.key, phase, next(sequences), next(fresh)), False


def measure_all(
    candidates: Sequence[Candidate],
    workload: Workload,
    phase: Phase,
    measurer: Measurer,
    log: TrialLog,
) -> Iterator[Progress]:
    """Measure given candidates in order (baselines, confirmations), reusing what is stored."""
    stored = log.load(workload, phase)
    known = {trial.candidate: trial for trial in stored}
    wanted = list(dict.fromkeys(candidates))
    for trial, reused in _measure_batch(wanted, workload, phase, len(stored), known, measurer):
        if not reused:
            log.append(workload, trial)
        yield Progress(workload, trial, reused)


def search(
    workload: Workload,
    proposer: Proposer,
    measurer: Measurer,
    log: TrialLog,
    limits: Limits,
) -> Iterator[Progress]:
    """Search one workload until its limits, or until the proposer has nothing left.

    Whole batches that are stored are told to the proposer as history. A batch that was cut off is
    asked for again, which gives the same candidates, and only what is missing of it is measured,
    past the deadline too: no stored trial is left out.
    """
    stored = log.load(workload, Phase.SEARCH)
    whole = min(len(stored), limits.trials) // BATCH * BATCH
    for trial in stored[:whole]:
        proposer.tell(trial)
        yield Progress(workload, trial, reused=True)
    known = {trial.candidate: trial for trial in stored[whole:]}
    searched, sequence = whole, len(stored)
    while searched < limits.trials and (searched < len(stored) or limits.clock() < limits.deadline):
        batch = proposer.ask(min(BATCH, limits.trials - searched))
        if not batch:
            return
        for trial, reused in _measure_batch(
            batch, workload, Phase.SEARCH, sequence, known, measurer
        ):
            if not reused:
                log.append(workload, trial)
                sequence += 1
            proposer.tell(trial)
            yield Progress(workload, trial, reused)
        searched += len(batch)
