"""What the store hands out about studies, searches and runs: frozen, and ready for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from autotune.core import Basis, Candidate, Outcome, Trial


class RunStatus(StrEnum):
    """How far a run came. ``KILLED``: found running although no process held its study."""

    RUNNING = "running"
    DONE = "done"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    KILLED = "killed"


@dataclass(frozen=True)
class Record:
    """Base of all records."""

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; times in ISO 8601 with their UTC offset."""
        return {name: _as_json(value) for name, value in asdict(self).items()}


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {name: _as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return value


@dataclass(frozen=True)
class StudyRecord(Record):
    """A study: its name and what must not change between two commands."""

    id: int
    name: str
    kind: str
    identity: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class SearchRecord(Record):
    """One study under one fixed setup."""

    id: int
    study_id: int
    key: str
    setup: dict[str, Any]


@dataclass(frozen=True)
class EnvironmentRecord(Record):
    """What runs ran on."""

    id: int
    key: str
    details: dict[str, Any]


@dataclass(frozen=True)
class RunRecord(Record):
    """One command at work on a search. A killed run has no end: nobody saw it."""

    id: int
    search_id: int
    environment_id: int
    command: str
    pid: int
    started_at: datetime
    ended_at: datetime | None
    status: RunStatus


@dataclass(frozen=True)
class WorkloadRecord(Record):
    """What candidates are measured on in one search."""

    id: int
    search_id: int
    key: str
    label: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class DatedTrial:
    """A trial, the run that made it, and when it was stored."""

    trial: Trial
    run_id: int
    created_at: datetime


@dataclass(frozen=True)
class TrialCount(Record):
    """How many trials of a search came from ``basis`` and ended as ``outcome``."""

    search_id: int
    basis: Basis
    outcome: Outcome
    count: int


@dataclass(frozen=True)
class StudySummary(Record):
    """One line of ``autotune studies``."""

    study: StudyRecord
    counts: tuple[TrialCount, ...]
    runs: int
    last_run: RunRecord | None

    @property
    def trials(self) -> int:
        """Trials of every basis and outcome."""
        return sum(count.count for count in self.counts)


@dataclass(frozen=True)
class StudyDetail(StudySummary):
    """Everything about one study but its trials, oldest first."""

    searches: tuple[SearchRecord, ...]
    workloads: tuple[WorkloadRecord, ...]
    all_runs: tuple[RunRecord, ...]
    environments: tuple[EnvironmentRecord, ...]


class JobState(StrEnum):
    """How far a job of the service came. ``INTERRUPTED``: its process went without an end."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    INTERRUPTED = "INTERRUPTED"


ALIVE = frozenset({JobState.RUNNING, JobState.STOPPING})
"""States of a job that has, or had a moment ago, a process."""
ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED})
"""States that a job leaves only when somebody asks for it, or the service starts again."""


class Stop(StrEnum):
    """Why a job is asked to stop; empty while nobody asked."""

    NO = ""
    CANCEL = "cancel"
    DRAIN = "drain"
    TIME = "time"
    LOG = "log"


@dataclass(frozen=True)
class NewJob:
    """What somebody asks the service to run."""

    kind: str
    args: dict[str, Any]
    name: str = ""
    priority: int = 0
    max_time_s: float | None = None
    gpus_wanted: int = 0
    idempotency_key: str | None = None


@dataclass(frozen=True)
class LostBoot:
    """A server that was begun to be started and of which nobody saw the end.

    Attributes:
        candidate: its setting.
        begun_at: when.
        group: the workload's key where others were to be up beside it; else empty.
    """

    candidate: Candidate
    begun_at: datetime
    group: str = ""


@dataclass(frozen=True)
class JobRecord(Record):
    """A job; ``attempt`` counts its processes, ``gpus`` are those of the last one."""

    id: int
    kind: str
    name: str
    args: dict[str, Any]
    priority: int
    max_time_s: float | None
    gpus_wanted: int
    idempotency_key: str | None
    digest: str
    state: JobState
    reason: str
    stop: Stop
    exit_code: int | None
    attempt: int
    pid: int | None
    gpus: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    progress: dict[str, Any] | None
