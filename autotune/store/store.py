"""The only writer of the database: studies, searches, runs, trials and compile results.

Only the parent process writes; workers return values. Every method raises one clear line
(`BadInputError` or `MissingEnvironmentError`) when the file cannot be read or written.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from autotune.core import (
    BadInputError,
    Candidate,
    Phase,
    Trial,
    Workload,
    canonical_json,
    digest,
)
from autotune.store import catalogue
from autotune.store import study_lock as studylock
from autotune.store.boots import StoredBoots
from autotune.store.compile_cache import StoredCache
from autotune.store.database import Session, database_path, open_database
from autotune.store.jobs import StoredJobs
from autotune.store.records import (
    DatedTrial,
    EnvironmentRecord,
    RunRecord,
    RunStatus,
    SearchRecord,
    StudyDetail,
    StudyRecord,
    StudySummary,
    WorkloadRecord,
)
from autotune.store.rows import TRIALS, measurement_row, trial_of, trial_row
from autotune.store.tables import (
    Base,
    EnvironmentRow,
    MeasurementRow,
    PartRow,
    RunRow,
    SearchRow,
    StudyRow,
    TrialRow,
    WorkloadRow,
)
from autotune.util.secret import masked
from autotune.util.words import counted


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


class Store:
    """An open database. Use as a context manager; one per process."""

    def __init__(self, engine: Engine, path: Path, now: Callable[[], datetime]) -> None:
        self.path = path
        self._now = now
        self._session = Session(engine, path, now)

    @classmethod
    def open(
        cls,
        url: str,
        *,
        create: bool = True,
        now: Callable[[], datetime] = utc_now,
        busy_seconds: float = 30.0,
    ) -> Self:
        """Open the database at ``url``, made or brought up to date as needed.

        Args:
            url: such as ``sqlite:///outputs/autotune.db``.
            create: make a database that does not exist.
            now: the clock, giving aware times.
            busy_seconds: how long to wait for another process that writes.

        Raises:
            BadInputError: the URL or the file cannot be used.
            MissingEnvironmentError: read-only, locked too long, no space.
        """
        path = database_path(url)
        return cls(open_database(path, create=create, busy_seconds=busy_seconds), path, now)

    def close(self) -> None:
        """Close every connection."""
        self._session.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cache(self) -> StoredCache:
        """The compile results, as a cache."""
        return StoredCache(self._session)

    def boots(self) -> StoredBoots:
        """The servers that were begun to be started."""
        return StoredBoots(self._session)

    def jobs(self) -> StoredJobs:
        """Return the jobs of the service."""
        return StoredJobs(self._session)

    def study(self, name: str, kind: str, identity: Mapping[str, Any]) -> StudyRecord:
        """The study ``name``, made if there is none.

        Raises:
            BadInputError: if it exists with another kind or identity, or the name is unusable.
        """
        values = {"kind": kind, "identity": dict(identity), "created_at": self._now()}
        if not name.strip() or not name.isprintable():
            raise BadInputError(f"study name {name!r} is empty or not printable; choose another")
        row = self._get_or_create(StudyRow, {"name": name}, values)
        record = StudyRecord(**row)
        differences = _differences({"kind": record.kind}, {"kind": kind})
        differences = differences or _differences(record.identity, identity)
        if differences:
            raise BadInputError(
                f"study {name!r} in {self.path} was made with another {', '.join(differences)}; "
                "use --study NAME for a new one"
            )
        return record

    def measured_otherwise(self, study: StudyRecord, setup: Mapping[str, Any]) -> str | None:
        """How ``setup`` differs from the one under which the study's trials were made.

        None while there are no trials, or once there are some of ``setup`` itself.
        """
        detail = self.get_study(study.name)
        trials: Counter[int] = Counter()
        for count in detail.counts:
            trials[count.search_id] += count.count
        made = {search.id: search for search in detail.searches if trials[search.id]}
        if not made or digest(setup) in {search.key for search in made.values()}:
            return None
        most = made[max(made, key=trials.__getitem__)]
        differences = _differences(dict(_leaves(most.setup)), dict(_leaves(setup)))
        number = trials[most.id]
        said = f"{counted(number, 'trial')} {'was' if number == 1 else 'were'}"
        return f"{said} made with another {', '.join(differences)}"

    @contextmanager
    def lock_study(self, name: str) -> Iterator[None]:
        """Be the only process that tunes study ``name``; runs left by a killed one are marked.

        Raises:
            BadInputError: if another process tunes it.
        """
        with studylock.hold(self.path, name, self._now()):
            self._mark_killed(name)
            yield

    def search(self, study: StudyRecord, setup: Mapping[str, Any]) -> SearchRecord:
        """The search of ``study`` under ``setup``, made if there is none."""
        key = {"study_id": study.id, "key": digest(setup)}
        row = self._get_or_create(SearchRow, key, {"setup": dict(setup)})
        return SearchRecord(**row)

    def environment(self, details: Mapping[str, Any]) -> EnvironmentRecord:
        """The environment described by ``details``, made if there is none."""
        key = {"key": digest(details)}
        row = self._get_or_create(EnvironmentRow, key, {"details": dict(details)})
        return EnvironmentRecord(**row)

    def workload(self, search: SearchRecord, workload: Workload) -> WorkloadRecord:
        """The stored form of ``workload`` in ``search``, made if there is none."""
        key = {"search_id": search.id, "key": workload.key}
        values = {"label": workload.label, "spec": workload.as_json()}
        row = self._get_or_create(WorkloadRow, key, values)
        return WorkloadRecord(**row)

    def workloads(self, search: SearchRecord) -> list[WorkloadRecord]:
        """The workloads of ``search``, oldest first."""
        statement = select(WorkloadRow.__table__).where(WorkloadRow.search_id == search.id)
        with self._session.reading() as connection:
            rows = connection.execute(statement.order_by(WorkloadRow.id)).mappings()
            return [WorkloadRecord(**row) for row in rows]

    def start_run(
        self, search: SearchRecord, environment: EnvironmentRecord, command: str
    ) -> RunRecord:
        """Note that this process starts to work on ``search``; hold the study's lock meanwhile."""
        values = {
            "search_id": search.id,
            "environment_id": environment.id,
            "command": command,
            "pid": os.getpid(),
            "started_at": self._now(),
            "ended_at": None,
            "status": RunStatus.RUNNING,
        }
        with self._session.writing() as connection:
            added = connection.execute(insert(RunRow).values(values).returning(*catalogue.RUN))
            return catalogue.run_record(added.one())

    def end_run(self, run: RunRecord, status: RunStatus) -> None:
        """Note how ``run`` ended."""
        ended = update(RunRow).where(RunRow.id == run.id)
        with self._session.writing() as connection:
            connection.execute(ended.values(status=RunStatus(status), ended_at=self._now()))

    def set_verdict(self, search: SearchRecord, verdict: Mapping[str, Any]) -> None:
        """Store what the last run that this process made of ``search`` concluded.

        Args:
            search: what the run worked on.
            verdict: JSON values, as the kind's result file holds them.

        Raises:
            ValueError: this process has made no run of ``search``.
        """
        own = (RunRow.search_id == search.id) & (RunRow.pid == os.getpid())
        last = select(func.max(RunRow.id)).where(own).scalar_subquery()
        stored = update(RunRow).where(RunRow.id == last).values(verdict=masked(dict(verdict)))
        with self._session.writing() as connection:
            if not connection.execute(stored).rowcount:
                raise ValueError(f"this process has made no run of search {search.id}")

    def verdicts(self, search: SearchRecord) -> list[dict[str, Any]]:
        """Return the verdicts of the runs of ``search``, the newest first."""
        statement = select(RunRow.verdict).where(
            RunRow.search_id == search.id, RunRow.verdict.is_not(None)
        )
        with self._session.reading() as connection:
            return [
                verdict
                for verdict in connection.scalars(statement.order_by(RunRow.id.desc()))
                if verdict
            ]

    def add_trials(self, run: RunRecord, workload_id: int, trials: Sequence[Trial]) -> None:
        """Store ``trials`` and their measurements: all or none, durable on return.

        Raises:
            BadInputError: if one of them (by phase and sequence) is stored already.
            ValueError: if a trial is of another workload or its value is NaN.
        """
        if any(trial.measurement.value != trial.measurement.value for trial in trials):
            raise ValueError("a measurement has the value NaN")
        with self._session.writing() as connection:
            wanted = {"workload_id": workload_id, "search_id": run.search_id}
            key, first = connection.execute(_NEXT_TRIAL, wanted).one_or_none() or (None, 1)
            others = {trial.workload_key for trial in trials} - {key}
            if others:
                raise ValueError(f"trials of workloads {others} given for workload {key}")
            common = {
                "search_id": run.search_id,
                "run_id": run.id,
                "workload_id": workload_id,
                "created_at": self._now(),
            }
            rows = [{"id": first + i, **common, **trial_row(t)} for i, t in enumerate(trials)]
            measured = [
                {"trial_id": first + i, **measurement_row(trial.measurement)}
                for i, trial in enumerate(trials)
            ]
            if not rows:
                return
            try:
                connection.execute(insert(TrialRow), rows)
            except IntegrityError as error:
                raise BadInputError(
                    f"{self.path}: run {run.id} measured trials that are stored already for "
                    f"workload {key}; two commands tuned the same study, start this one again"
                ) from error
            connection.execute(insert(MeasurementRow), measured)

    def trials(
        self, search: SearchRecord, workload_key: str | None = None, phase: Phase | None = None
    ) -> list[Trial]:
        """The trials of ``search``, by workload (oldest first), phase and sequence."""
        statement = TRIALS.where(TrialRow.search_id == search.id)
        if workload_key is not None:
            statement = statement.where(WorkloadRow.key == workload_key)
        if phase is not None:
            statement = statement.where(TrialRow.phase == phase.value)
        with self._session.reading() as connection:
            return [trial_of(row) for row in connection.execute(statement)]

    def dated_trials(self, search: SearchRecord) -> list[DatedTrial]:
        """The trials of ``search`` in the order in which they were stored."""
        statement = TRIALS.where(TrialRow.search_id == search.id).order_by(None)
        with self._session.reading() as connection:
            rows = connection.execute(statement.order_by(TrialRow.id))
            return [DatedTrial(trial_of(row), row.run_id, row.created_at) for row in rows]

    def trial_page(self, study: str, after: int, limit: int) -> list[dict[str, Any]]:
        """The next ``limit`` trials of a study behind the trial ``after``, as JSON values."""
        with self._session.reading() as connection:
            return catalogue.trial_page(connection, study, after, limit)

    def add_part(
        self,
        run: RunRecord,
        workload_id: int,
        candidate: Candidate,
        name: str,
        value: Mapping[str, Any],
    ) -> None:
        """Store a finished part of a measurement under way; durable on return.

        Raises:
            BadInputError: if it is stored already.
        """
        row = {
            "run_id": run.id,
            "workload_id": workload_id,
            "candidate_key": candidate.key,
            "name": name,
            "value": dict(value),
            "created_at": self._now(),
        }
        with self._session.writing() as connection:
            try:
                connection.execute(insert(PartRow), row)
            except IntegrityError as error:
                raise BadInputError(
                    f"{self.path}: run {run.id} measured {name}, which is stored already; two "
                    "commands tuned the same study, start this one again"
                ) from error

    def parts(
        self, search: SearchRecord, workload_key: str, candidate: Candidate
    ) -> dict[str, dict[str, Any]]:
        """What is stored of the measurement of ``candidate``, by name, oldest first."""
        statement = (
            select(PartRow.name, PartRow.value)
            .join(WorkloadRow, PartRow.workload_id == WorkloadRow.id)
            .where(WorkloadRow.search_id == search.id, WorkloadRow.key == workload_key)
            .where(PartRow.candidate_key == candidate.key)
            .order_by(PartRow.id)
        )
        with self._session.reading() as connection:
            return {row.name: row.value for row in connection.execute(statement)}

    def list_studies(self) -> list[StudySummary]:
        """Every study with its counts, by name."""
        with self._session.reading() as connection:
            running = catalogue.studies_with_running_runs(connection)
        self._mark_abandoned(running)
        with self._session.reading() as connection:
            return catalogue.summaries(connection)

    def get_study(self, name: str, kind: str | None = None) -> StudyDetail:
        """Everything about study ``name`` but its trials.

        Args:
            name: of the study.
            kind: that it must be of, where only one will do.

        Raises:
            BadInputError: if there is none of that name, or it is of another kind.
        """
        found = self.find_study(name)
        if found is None:
            with self._session.reading() as connection:
                names = list(connection.scalars(select(StudyRow.name).order_by(StudyRow.name)))
            raise BadInputError(f"no study {name!r} in {self.path}; {_hint(name, names)}")
        if kind is not None and found.study.kind != kind:
            raise BadInputError(f"study {name!r} is of kind {found.study.kind}, not {kind}")
        return found

    def find_study(self, name: str) -> StudyDetail | None:
        """Everything about study ``name`` but its trials; None if there is none of that name."""
        with self._session.reading() as connection:
            running = catalogue.studies_with_running_runs(connection)
        self._mark_abandoned([study for study in running if study == name])
        with self._session.reading() as connection:
            return catalogue.detail(connection, name)

    def _mark_abandoned(self, studies: Sequence[str]) -> None:
        for name in studies:
            with studylock.try_hold(self.path, name) as held:
                if held:
                    self._mark_killed(name)

    def _mark_killed(self, study: str) -> None:
        """Call after the lock of ``study`` was taken: then no run of it can be running."""
        searches = select(SearchRow.id).join(StudyRow).where(StudyRow.name == study)
        left = (RunRow.status == RunStatus.RUNNING.value) & RunRow.search_id.in_(searches)
        with self._session.writing() as connection:
            connection.execute(update(RunRow).where(left).values(status=RunStatus.KILLED.value))

    def _get_or_create(
        self, table: type[Base], key: Mapping[str, Any], values: Mapping[str, Any]
    ) -> dict[str, Any]:
        columns = table.__table__
        with self._session.writing() as connection:
            found = connection.execute(select(columns).filter_by(**key)).one_or_none()
            if found is None:
                added = insert(table).values(**key, **values).returning(columns)
                found = connection.execute(added).one()
            return dict(found._mapping)


# Made once: this runs for every trial, and building it takes longer than the query.
_NEXT_TRIAL = select(
    WorkloadRow.key, func.coalesce(select(func.max(TrialRow.id)).scalar_subquery(), 0) + 1
).where(WorkloadRow.id == bindparam("workload_id"), WorkloadRow.search_id == bindparam("search_id"))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One text per key whose JSON values differ."""
    texts = []
    keys = old.keys() | new.keys()
    # An empty mapping on one side is told by what it holds on the other.
    keys = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)}
    for key in sorted(keys):
        before, after = (
            canonical_json(values[key]) if key in values else "absent" for values in (old, new)
        )
        if before != after:
            texts.append(f"{key} ({before}, now {after})")
    return texts


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """What a nested mapping holds, by path: ``recipe.env.NAME``."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _hint(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"it holds {', '.join(names)}" if names else "it holds none yet"
