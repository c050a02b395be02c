"""Which measurements share a server that the dial turns: those that differ in gamma alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from autotune.core import Job
from autotune.serving.forecast.error_process import Others
from autotune.serving.forecast.forecast import others
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import SpecScenario


def is_dialled(job: Job) -> bool:
    """Tell whether a job wants a server that the dial turns."""
    return isinstance(job.workload, SpecScenario) and job.workload.dial


def columns(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Yield the jobs server by server, in order; a job without the dial has one of its own."""
    for shared, group in itertools.groupby(jobs, _shared):
        if shared is None:
            yield from ([job] for job in group)
        else:
            yield list(group)


def largest(jobs: Sequence[Job]) -> Job:
    """Return the job that drafts most, which says what its server takes."""
    return max(jobs, key=lambda job: int(job.candidate.params.get(GAMMA, 0)))


def _shared(job: Job) -> tuple[Others, str] | None:
    return (others(job.candidate), job.workload.key) if is_dialled(job) else None
