"""What the service decides about jobs: who starts, what an end means, what a new start finds.

Plain functions of records: nothing here starts a process, reads a clock or writes anything.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.core import ExitCode, canonical_json
from autotune.store.records import JobRecord, JobState, Stop
from autotune.util.words import counted

LIGHT = frozenset({"export", "files", "explain"})
"""Kinds that read files and are done in a second."""
CRASHED = 70
"""Exit code of a job that ended by an error of the program (EX_SOFTWARE)."""
MOST_ATTEMPTS = 10
"""A job that brings the service down each time is not started for ever."""
_NAMING: dict[str, tuple[str, ...]] = {
    "moe": (
        *("device", "model", "experts", "intermediate", "hidden", "topk"),
        *("dtype", "scheme", "layer", "tp", "ep"),
    ),
    "spec": ("target", "drafter", "launcher", "url"),
}
"""Flags that a study's default name comes from."""


@dataclass(frozen=True)
class Capacity:
    """What may run at once.

    Attributes:
        gpus: one slot each, by index as nvidia-smi counts; a machine without has one without name.
        predictions: jobs that compile and measure on no GPU.
        light: jobs of :data:`LIGHT`.
    """

    gpus: tuple[str, ...] = ("",)
    predictions: int = 1
    light: int = 2


@dataclass(frozen=True)
class Start:
    """A job to start now, and the GPUs that it may use."""

    job: JobRecord
    gpus: tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """What becomes of a job."""

    state: JobState
    reason: str


def study_key(job: JobRecord) -> str | None:
    """Name what two jobs must not work on at the same time; None where any number may."""
    if job.kind not in _NAMING:
        return None
    if job.args.get("study"):
        return str(job.args["study"])
    named: dict[str, Any] = {name: job.args.get(name) for name in _NAMING[job.kind]}
    return canonical_json([job.kind, named])


def rooms(alive: Sequence[JobRecord], capacity: Capacity) -> frozenset[str]:
    """Name the sorts of jobs that one more of may start: ``gpu``, ``prediction``, ``light``."""
    taken = sum(len(job.gpus.split(",")) for job in alive if job.gpus_wanted)
    others = [job for job in alive if not job.gpus_wanted]
    light = sum(job.kind in LIGHT for job in others)
    room = {
        "gpu": taken < len(capacity.gpus),
        "prediction": len(others) - light < capacity.predictions,
        "light": light < capacity.light,
    }
    return frozenset(name for name, is_there in room.items() if is_there)


def starts(
    queued: Iterable[JobRecord], alive: Sequence[JobRecord], capacity: Capacity
) -> list[Start]:
    """Choose the jobs that start now; one that has to wait holds up only its own sort."""
    taken = {gpu for job in alive if job.gpus_wanted for gpu in job.gpus.split(",")}
    free = [gpu for gpu in capacity.gpus if gpu not in taken]
    others = [job for job in alive if not job.gpus_wanted]
    light = capacity.light - sum(job.kind in LIGHT for job in others)
    heavy = capacity.predictions - sum(job.kind not in LIGHT for job in others)
    studies = {study_key(job) for job in alive}
    chosen: list[Start] = []
    gpus_wait = False
    for job in sorted(queued, key=lambda job: (-job.priority, job.id)):
        key = study_key(job)
        if key is not None and key in studies:
            continue
        gpus: tuple[str, ...] = ()
        if job.gpus_wanted:
            wanted = min(job.gpus_wanted, len(capacity.gpus))
            if gpus_wait or wanted > len(free):
                gpus_wait = True  # else one that wants many would wait for ever
                continue
            gpus, free = tuple(free[:wanted]), free[wanted:]
        elif job.kind in LIGHT:
            if light <= 0:
                continue
            light -= 1
        else:
            if heavy <= 0:
                continue
            heavy -= 1
        chosen.append(Start(job, gpus))
        studies.add(key)
    return chosen


_STOPPED: dict[Stop, Change] = {
    Stop.CANCEL: Change(JobState.CANCELLED, "cancelled; what was measured is saved"),
    Stop.TIME: Change(JobState.CANCELLED, "stopped at max_time; what was measured is saved"),
    Stop.LOG: Change(JobState.FAILED, "stopped: its log grew beyond the limit of this service"),
    Stop.DRAIN: Change(
        JobState.INTERRUPTED, "the service was stopped; the job goes on when it starts again"
    ),
}


def ended(job: JobRecord, exit_code: int | None, last_line: str = "") -> Change:
    """Tell what the end of a job's process means.

    Args:
        job: as it was while it ran.
        exit_code: of the process; negative for a signal; None if nobody saw it end.
        last_line: what the command said last, without its ``autotune:``.
    """
    if job.stop is not Stop.NO and exit_code != ExitCode.DONE:
        return _STOPPED[job.stop]
    if exit_code is not None and exit_code < 0:
        name = _SIGNALS.get(-exit_code, str(-exit_code))
        return Change(JobState.FAILED, f"its process was ended by signal {name}")
    if exit_code == ExitCode.FLAGGED and job.kind in FLAGGING:
        return Change(JobState.SUCCEEDED, last_line or "it flagged something, see its result")
    failed = Change(JobState.FAILED, last_line or f"exit code {exit_code}")
    return _ENDS.get(exit_code, failed)


FLAGGING = frozenset({"verify", "explain"})
"""Kinds whose exit code 1 is an answer. Of others it can only be Python's, for a crash."""
_SIGNALS = {int(one): one.name for one in signal.Signals}
_ENDS: dict[int | None, Change] = {
    ExitCode.DONE: Change(JobState.SUCCEEDED, ""),
    None: Change(JobState.INTERRUPTED, "its process went while nobody looked"),
    ExitCode.INTERRUPTED: Change(
        JobState.INTERRUPTED, "interrupted from outside; retry goes on from there"
    ),
    CRASHED: Change(JobState.FAILED, "an error of autotune itself; its traceback is in the log"),
}


def resumed(job: JobRecord, *, resume: bool) -> Change | None:
    """Tell what becomes of an interrupted job when the service starts; None leaves it."""
    if job.state is not JobState.INTERRUPTED or not resume:
        return None
    if job.attempt >= MOST_ATTEMPTS and job.stop is not Stop.DRAIN:
        return None
    return Change(JobState.QUEUED, f"goes on after {counted(job.attempt, 'start')}")
