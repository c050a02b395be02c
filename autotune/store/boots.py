"""Servers that were begun to be started: what a machine that hung left without an end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import func, insert, select, update

from autotune.core import Candidate
from autotune.store.database import Session
from autotune.store.records import RunRecord, RunStatus, SearchRecord
from autotune.store.tables import BootRow, RunRow


class StoredBoots:
    """The table of boots; each is durable before its server starts."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @contextmanager
    def begun(self, run: RunRecord, workload_id: int, candidate: Candidate) -> Iterator[None]:
        """Store that a server is about to be started, and after the block that it ended.

        A command that dies within, alone or with the machine, leaves a boot without an end.
        """
        row = {
            "run_id": run.id,
            "workload_id": workload_id,
            "candidate_key": candidate.key,
            "candidate": candidate.params,
            "begun_at": self._session.now(),
        }
        with self._session.writing() as connection:
            boot = connection.execute(insert(BootRow).values(row).returning(BootRow.id)).scalar()
        try:
            yield
        finally:
            ended = update(BootRow).where(BootRow.id == boot)
            with self._session.writing() as connection:
                connection.execute(ended.values(ended_at=self._session.now()))

    def lost(self, search: SearchRecord) -> dict[Candidate, datetime]:
        """When the last boot of a candidate began, of those in which the command died."""
        in_search = RunRow.search_id == search.id
        last = select(func.max(BootRow.id)).join(RunRow, BootRow.run_id == RunRow.id)
        statement = (
            select(BootRow.candidate, BootRow.begun_at)
            .join(RunRow, BootRow.run_id == RunRow.id)
            .where(BootRow.id.in_(last.where(in_search).group_by(BootRow.candidate_key)))
            .where(BootRow.ended_at.is_(None), RunRow.status == RunStatus.KILLED.value)
            .order_by(BootRow.id)
        )
        with self._session.reading() as connection:
            rows = connection.execute(statement)
            return {Candidate.of(row.candidate): row.begun_at for row in rows}
