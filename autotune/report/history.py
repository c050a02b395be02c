"""How a search came to its best: against trials, and against seconds at work. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.core import Phase
from autotune.decide.stats import geometric_mean
from autotune.store.records import DatedTrial, RunRecord


@dataclass(frozen=True)
class Step:
    """After so many ``trials`` and ``seconds`` at work, ``value`` was the best."""

    trials: int
    seconds: float
    value: float


def seconds_at_work(dated: Sequence[DatedTrial], runs: Sequence[RunRecord]) -> list[float]:
    """Of each trial, how long the search had been worked on: pauses between runs do not count.

    A run without an end, because it was killed or still goes on, ends with its last trial.

    Args:
        dated: of one search, in the order stored.
        runs: of that search, oldest first.
    """
    last = {one.run_id: one.created_at for one in dated}
    before, total = {}, 0.0
    for run in runs:
        before[run.id] = total
        end = run.ended_at or last.get(run.id, run.started_at)
        total += max(0.0, (end - run.started_at).total_seconds())
    started = {run.id: run.started_at for run in runs}
    return [
        before[one.run_id] + max(0.0, (one.created_at - started[one.run_id]).total_seconds())
        for one in dated
    ]


def best_so_far(dated: Sequence[DatedTrial], runs: Sequence[RunRecord]) -> dict[str, list[Step]]:
    """By workload, a step for every trial from the first that worked; confirmations do not count.

    Args:
        dated: of one search, in the order stored.
        runs: of that search, oldest first.
    """
    best: dict[str, list[Step]] = {}
    counts: dict[str, int] = {}
    for one, seconds in zip(dated, seconds_at_work(dated, runs), strict=True):
        trial = one.trial
        if trial.phase is Phase.CONFIRM:
            continue
        key, value = trial.workload_key, trial.measurement.value
        counts[key] = counts.get(key, 0) + 1
        known = best.get(key)
        if known:
            reached = known[-1].value if value is None else min(known[-1].value, value)
        elif value is None:
            continue
        else:
            reached = value
        best.setdefault(key, []).append(Step(counts[key], seconds, reached))
    return best


def together(histories: Mapping[str, Sequence[Step]], by: str) -> list[tuple[float, float]]:
    """Geometric mean over the workloads of (best so far / best in the end).

    Begins where every workload has a value.

    Args:
        histories: as from :func:`best_so_far`.
        by: ``trials`` (of each workload) or ``seconds``.

    Returns:
        (trials or seconds, mean of the factors), ascending.
    """
    events = sorted(
        (getattr(step, by), key, step.value / steps[-1].value)
        for key, steps in histories.items()
        for step in steps
    )
    now: dict[str, float] = {}
    points: dict[float, float] = {}
    for place, key, factor in events:
        now[key] = factor
        if len(now) == len(histories):
            points[place] = geometric_mean(list(now.values()))
    return sorted(points.items())
