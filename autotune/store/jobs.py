"""The jobs of the service in the database: one table, and changes that expect a state.

A change names the states that it starts from and does nothing in another one, so that a cancel and
an end that happen at the same moment cannot undo each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update

from autotune.core import digest
from autotune.store.database import Session
from autotune.store.records import ENDED, JobRecord, JobState, NewJob, Stop
from autotune.store.tables import JobRow

_JOB = JobRow.__table__


class QueueFullError(Exception):
    """As many jobs wait as may."""


class StoredJobs:
    """The jobs table; only the service writes it."""

    def __init__(self, session: Session) -> None:
        """Take the database."""
        self._session = session

    def add(self, job: NewJob, most_queued: int) -> tuple[JobRecord, bool]:
        """Queue a job; gives it, and whether it is new.

        The same ``idempotency_key`` gives the job again that was queued with it; its ``digest``
        tells whether it was the same job.

        Raises:
            QueueFullError: ``most_queued`` jobs wait already.
        """
        wanted = select(_JOB).where(JobRow.idempotency_key == job.idempotency_key)
        waiting = select(func.count()).where(JobRow.state == JobState.QUEUED.value)
        values = {
            "kind": job.kind,
            "name": job.name,
            "args": job.args,
            "priority": job.priority,
            "max_time_s": job.max_time_s,
            "gpus_wanted": job.gpus_wanted,
            "idempotency_key": job.idempotency_key,
            "digest": request_digest(job),
            "state": JobState.QUEUED.value,
            "reason": "",
            "stop": Stop.NO.value,
            "attempt": 0,
            "gpus": "",
            "created_at": self._session.now(),
        }
        with self._session.writing() as connection:
            if job.idempotency_key is not None:
                found = connection.execute(wanted).one_or_none()
                if found is not None:
                    return _record(found), False
            if connection.execute(waiting).scalar_one() >= most_queued:
                raise QueueFullError
            added = insert(JobRow).values(values).returning(_JOB)
            return _record(connection.execute(added).one()), True

    def has_key(self, key: str | None) -> bool:
        """Tell whether a job was queued with this idempotency key; none was with None."""
        wanted = select(JobRow.id).where(JobRow.idempotency_key == key)
        with self._session.reading() as connection:
            return key is not None and connection.execute(wanted).one_or_none() is not None

    def get(self, job_id: int) -> JobRecord | None:
        """Return a job; None if there is none of this number."""
        with self._session.reading() as connection:
            found = connection.execute(select(_JOB).where(JobRow.id == job_id)).one_or_none()
        return None if found is None else _record(found)

    def page(
        self,
        states: Collection[JobState] = (),
        kinds: Collection[str] = (),
        before: int | None = None,
        limit: int = 50,
    ) -> list[JobRecord]:
        """Return jobs, the newest first; with ``before`` those older than this number."""
        statement = select(_JOB).order_by(JobRow.id.desc()).limit(limit)
        if states:
            statement = statement.where(JobRow.state.in_(sorted(state.value for state in states)))
        if kinds:
            statement = statement.where(JobRow.kind.in_(sorted(kinds)))
        if before is not None:
            statement = statement.where(JobRow.id < before)
        with self._session.reading() as connection:
            return [_record(row) for row in connection.execute(statement)]

    def in_states(self, states: Iterable[JobState]) -> list[JobRecord]:
        """Return every job in one of these states, the oldest first."""
        wanted = [state.value for state in states]
        statement = select(_JOB).where(JobRow.state.in_(wanted)).order_by(JobRow.id)
        with self._session.reading() as connection:
            return [_record(row) for row in connection.execute(statement)]

    def place(self, job: JobRecord) -> int | None:
        """Tell where a job stands in the queue: 1 is next; None if it is not queued."""
        if job.state is not JobState.QUEUED:
            return None
        sooner = (JobRow.priority > job.priority) | (
            (JobRow.priority == job.priority) & (JobRow.id < job.id)
        )
        waiting = select(func.count()).where(JobRow.state == JobState.QUEUED.value, sooner)
        with self._session.reading() as connection:
            return 1 + int(connection.execute(waiting).scalar_one())

    def next_of(self, sorts: Collection[str], light: Collection[str], most: int) -> list[JobRecord]:
        """Return the next queued jobs of each sort, by priority, then as they came.

        Args:
            sorts: of ``gpu``, ``prediction`` and ``light``.
            light: kinds of jobs that are light.
            most: how many of each sort.
        """
        is_light = JobRow.kind.in_(sorted(light))
        of_sort = {
            "gpu": JobRow.gpus_wanted > 0,
            "prediction": (JobRow.gpus_wanted == 0) & ~is_light,
            "light": (JobRow.gpus_wanted == 0) & is_light,
        }
        waiting = select(_JOB).where(JobRow.state == JobState.QUEUED.value)
        found: list[JobRecord] = []
        with self._session.reading() as connection:
            for name in sorted(sorts):
                first = waiting.where(of_sort[name]).order_by(JobRow.priority.desc(), JobRow.id)
                found += [_record(row) for row in connection.execute(first.limit(most))]
        return found

    def counts(self) -> dict[JobState, int]:
        """Count the jobs of each state; a state without jobs has 0."""
        statement = select(JobRow.state, func.count()).group_by(JobRow.state)
        with self._session.reading() as connection:
            found = {row[0]: row[1] for row in connection.execute(statement)}
        return {state: int(found.get(state.value, 0)) for state in JobState}

    def change(
        self, job_id: int, expected: Collection[JobState], **values: Any
    ) -> JobRecord | None:
        """Change a job that is in one of the expected states; None if it is in another, or gone."""
        states = [state.value for state in expected]
        plain = {name: _plain(value) for name, value in values.items()}
        changed = update(JobRow).where(JobRow.id == job_id, JobRow.state.in_(states)).values(plain)
        with self._session.writing() as connection:
            found = connection.execute(changed.returning(_JOB)).one_or_none()
        return None if found is None else _record(found)

    def remove(self, job_id: int) -> bool:
        """Forget a job that has ended; tells whether there was one."""
        states = [state.value for state in ENDED]
        gone = delete(JobRow).where(JobRow.id == job_id, JobRow.state.in_(states))
        with self._session.writing() as connection:
            return bool(connection.execute(gone).rowcount)


def request_digest(job: NewJob) -> str:
    """Return a digest of what a job asks for, to tell a repeated request from another one."""
    return digest([job.kind, job.args, job.name, job.priority, job.max_time_s, job.gpus_wanted])


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, JobState | Stop) else value


def _record(row: Row[Any]) -> JobRecord:
    values = dict(row._mapping)
    states = {"state": JobState(values["state"]), "stop": Stop(values["stop"])}
    return JobRecord(**values | states)
