"""What a database holds, study by study: the reading behind `autotune studies` and `show`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from autotune.core import Basis, Outcome
from autotune.store.records import (
    EnvironmentRecord,
    RunRecord,
    RunStatus,
    SearchRecord,
    StudyDetail,
    StudyRecord,
    StudySummary,
    TrialCount,
    WorkloadRecord,
)
from autotune.store.tables import (
    EnvironmentRow,
    MeasurementRow,
    RunRow,
    SearchRow,
    StudyRow,
    TrialRow,
    WorkloadRow,
)

RUN = [column for column in RunRow.__table__.columns if column.name != "verdict"]
"""The columns of a run's record. A verdict is long, and whoever wants it asks for it."""


def run_record(row: Row[Any]) -> RunRecord:
    """Make the record of the columns :data:`RUN` of a row."""
    values = dict(row._mapping)
    return RunRecord(**values | {"status": RunStatus(values["status"])})


def studies_with_running_runs(connection: Connection) -> list[str]:
    """The names of studies whose runs say that they are running."""
    running = select(StudyRow.name).join(SearchRow).join(RunRow).distinct()
    return list(connection.scalars(running.where(RunRow.status == RunStatus.RUNNING.value)))


def summaries(connection: Connection) -> list[StudySummary]:
    """Every study with its counts, by name."""
    studies = _rows(connection, select(StudyRow.__table__).order_by(StudyRow.name))
    searches = connection.execute(select(SearchRow.id, SearchRow.study_id))
    of_search = {row.id: row.study_id for row in searches}
    counts: dict[int, list[TrialCount]] = defaultdict(list)
    for count in _counts(connection, list(of_search)):
        counts[of_search[count.search_id]].append(count)
    runs: dict[int, list[RunRecord]] = defaultdict(list)
    for row in connection.execute(select(*RUN).order_by(RunRow.id)):
        run = run_record(row)
        runs[of_search[run.search_id]].append(run)
    return [
        StudySummary(
            study=StudyRecord(**study),
            counts=tuple(counts[study["id"]]),
            runs=len(runs[study["id"]]),
            last_run=runs[study["id"]][-1] if runs[study["id"]] else None,
        )
        for study in studies
    ]


def detail(connection: Connection, name: str) -> StudyDetail | None:
    """Everything about study ``name`` but its trials, or None if there is no such study."""
    studies = _rows(connection, select(StudyRow.__table__).where(StudyRow.name == name))
    if not studies:
        return None
    study = StudyRecord(**studies[0])
    of_study = select(SearchRow.__table__).where(SearchRow.study_id == study.id)
    searches = _rows(connection, of_study.order_by(SearchRow.id))
    ids = [search["id"] for search in searches]
    workloads = select(WorkloadRow.__table__).where(WorkloadRow.search_id.in_(ids))
    runs = select(*RUN).where(RunRow.search_id.in_(ids)).order_by(RunRow.id)
    all_runs = tuple(run_record(row) for row in connection.execute(runs))
    used = {run.environment_id for run in all_runs}
    environments = select(EnvironmentRow.__table__).where(EnvironmentRow.id.in_(used))
    return StudyDetail(
        study=study,
        counts=tuple(_counts(connection, ids)),
        runs=len(all_runs),
        last_run=all_runs[-1] if all_runs else None,
        searches=tuple(SearchRecord(**row) for row in searches),
        workloads=tuple(
            WorkloadRecord(**row) for row in _rows(connection, workloads.order_by(WorkloadRow.id))
        ),
        all_runs=all_runs,
        environments=tuple(
            EnvironmentRecord(**row)
            for row in _rows(connection, environments.order_by(EnvironmentRow.id))
        ),
    )


def trial_page(connection: Connection, study: str, after: int, limit: int) -> list[dict[str, Any]]:
    """The next trials of a study behind the trial ``after``, by id; times are in µs."""
    statement = (
        select(
            TrialRow.id,
            TrialRow.search_id.label("search"),
            TrialRow.run_id.label("run"),
            WorkloadRow.label.label("workload"),
            TrialRow.phase,
            TrialRow.sequence,
            TrialRow.created_at,
            TrialRow.candidate,
            MeasurementRow.outcome,
            MeasurementRow.basis,
            MeasurementRow.value.label("value_us"),
            MeasurementRow.seconds,
            MeasurementRow.message,
        )
        .join(WorkloadRow, TrialRow.workload_id == WorkloadRow.id)
        .join(MeasurementRow, MeasurementRow.trial_id == TrialRow.id)
        .join(SearchRow, TrialRow.search_id == SearchRow.id)
        .join(StudyRow, SearchRow.study_id == StudyRow.id)
        .where(StudyRow.name == study, TrialRow.id > after)
        .order_by(TrialRow.id)
        .limit(limit)
    )
    rows = _rows(connection, statement)
    return [row | {"created_at": row["created_at"].isoformat()} for row in rows]


def _counts(connection: Connection, searches: list[int]) -> list[TrialCount]:
    group = (TrialRow.search_id, MeasurementRow.basis, MeasurementRow.outcome)
    statement = (
        select(*group, func.count())
        .join(MeasurementRow, MeasurementRow.trial_id == TrialRow.id)
        .where(TrialRow.search_id.in_(searches))
        .group_by(*group)
        .order_by(*group)
    )
    return [
        TrialCount(search, Basis(basis), Outcome(outcome), count)
        for search, basis, outcome, count in connection.execute(statement)
    ]


def _rows(connection: Connection, statement: Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(statement).mappings()]
