"""The tables of the database; `alembic/versions` holds how they came to be.

Enums are stored as their text, JSON as text, times as naive UTC. A change here needs a migration:
`alembic revision -m "what changes" --autogenerate`.
"""

# ruff: noqa: ARG002 - SQLAlchemy names the dialect, and there is one

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from autotune.util.secret import mask, masked


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time, kept as naive UTC because SQLite knows no time zones."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware to naive UTC."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Naive UTC to aware."""
        return None if value is None else value.replace(tzinfo=UTC)


class PlainText(TypeDecorator[str]):
    """Text without the secrets that this process knows."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Masked."""
        return None if value is None else mask(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """Text, whatever SQLite holds: a column of it takes any type."""
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{type(value).__name__} where a text is expected")
        return value


class PlainJson(TypeDecorator[Any]):
    """JSON without the secrets that this process knows, masked before it is written as text."""

    impl = JSON
    cache_ok = True
    _kind: type = dict

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Masked."""
        return masked(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """An object."""
        if value is not None and not isinstance(value, self._kind):
            found = type(value).__name__
            raise ValueError(f"{found} where a {self._kind.__name__} is expected")
        return value


class PlainList(PlainJson):
    """A list of JSON values."""

    cache_ok = True
    _kind: type = list


class Base(DeclarativeBase):
    """Names every constraint, so that a migration can find it, and maps the types above."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime,
        float: Double,
        str: PlainText,
        dict[str, Any]: PlainJson,
        list[float]: PlainList,
    }


class StudyRow(Base):
    """A named piece of work. `identity` must not change between two commands."""

    __tablename__ = "studies"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    identity: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class SearchRow(Base):
    """One study under one fixed setup: basis, kernel hash, space, sampler and seed."""

    __tablename__ = "searches"
    __table_args__ = (UniqueConstraint("study_id", "key"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("studies.id"))
    key: Mapped[str]
    setup: Mapped[dict[str, Any]]


class EnvironmentRow(Base):
    """What a run ran on: machine, driver, package versions."""

    __tablename__ = "environments"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    details: Mapped[dict[str, Any]]


class RunRow(Base):
    """One command at work on a search, and the verdict that it came to, where it came to one."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    search_id: Mapped[int] = mapped_column(ForeignKey("searches.id"), index=True)
    environment_id: Mapped[int] = mapped_column(ForeignKey("environments.id"))
    command: Mapped[str]
    pid: Mapped[int]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    status: Mapped[str]
    verdict: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class WorkloadRow(Base):
    """What candidates are measured on in one search."""

    __tablename__ = "workloads"
    __table_args__ = (UniqueConstraint("search_id", "key"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    search_id: Mapped[int] = mapped_column(ForeignKey("searches.id"))
    key: Mapped[str]
    label: Mapped[str]
    spec: Mapped[dict[str, Any]]


class TrialRow(Base):
    """One candidate tried; its measurement is stored in the same transaction."""

    __tablename__ = "trials"
    __table_args__ = (UniqueConstraint("search_id", "workload_id", "phase", "sequence"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    search_id: Mapped[int] = mapped_column(ForeignKey("searches.id"))
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    workload_id: Mapped[int] = mapped_column(ForeignKey("workloads.id"))
    phase: Mapped[str]
    sequence: Mapped[int]
    candidate_key: Mapped[str]
    candidate: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class MeasurementRow(Base):
    """What came of a trial. Only the outcome `ok` has a value."""

    __tablename__ = "measurements"
    __table_args__ = (CheckConstraint("(outcome = 'ok') = (value IS NOT NULL)", name="ok_value"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    trial_id: Mapped[int] = mapped_column(ForeignKey("trials.id"), unique=True)
    outcome: Mapped[str]
    basis: Mapped[str]
    value: Mapped[float | None]
    samples: Mapped[list[float]]
    message: Mapped[str]
    details: Mapped[dict[str, Any]]
    seconds: Mapped[float]


class PartRow(Base):
    """A finished part of a measurement that takes long, stored before the whole of it is known."""

    __tablename__ = "parts"
    __table_args__ = (UniqueConstraint("workload_id", "candidate_key", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    workload_id: Mapped[int] = mapped_column(ForeignKey("workloads.id"))
    candidate_key: Mapped[str]
    name: Mapped[str]
    value: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class BootRow(Base):
    """A server that was begun to be started; without an end nobody saw what became of it."""

    __tablename__ = "boots"

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"))
    workload_id: Mapped[int] = mapped_column(ForeignKey("workloads.id"))
    candidate_key: Mapped[str]
    candidate: Mapped[dict[str, Any]]
    begun_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class CompileResultRow(Base):
    """What compiling a candidate told, under a digest that the caller computes."""

    __tablename__ = "compile_results"

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class JobRow(Base):
    """A command that the service was asked to run, and how far it came; no id comes back."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_state_id", "state", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    args: Mapped[dict[str, Any]]
    priority: Mapped[int]
    max_time_s: Mapped[float | None]
    gpus_wanted: Mapped[int]
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    digest: Mapped[str]
    state: Mapped[str]
    reason: Mapped[str]
    stop: Mapped[str]
    exit_code: Mapped[int | None]
    attempt: Mapped[int]
    pid: Mapped[int | None]
    gpus: Mapped[str]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
