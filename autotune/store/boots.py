"""Servers that were begun to be started: what a machine that hung left without an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import insert, select, update

from autotune.core import Candidate
from autotune.store.database import Session
from autotune.store.records import LostBoot, RunRecord, RunStatus, SearchRecord
from autotune.store.tables import BootRow, RunRow, WorkloadRow


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

    def lost(
        self, search: SearchRecord, together: Callable[[Mapping[str, Any]], bool] = lambda _: False
    ) -> list[LostBoot]:
        """The last boots in which the command died, oldest first.

        Each is the last of its candidate alone, or of its candidate beside the same others: how a
        boot ends that had the machine for itself tells nothing of several at once.

        Args:
            search: of which.
            together: whether servers of a workload, given its description, are up with others.
        """
        statement = (
            select(
                BootRow.candidate_key,
                BootRow.candidate,
                BootRow.begun_at,
                BootRow.ended_at,
                WorkloadRow.key,
                WorkloadRow.spec,
                RunRow.status,
            )
            .join(RunRow, BootRow.run_id == RunRow.id)
            .join(WorkloadRow, BootRow.workload_id == WorkloadRow.id)
            .where(RunRow.search_id == search.id)
            .order_by(BootRow.id)
        )
        last: dict[tuple[str, str], LostBoot | None] = {}
        with self._session.reading() as connection:
            for row in connection.execute(statement):
                group = row.key if together(row.spec) else ""
                died = row.ended_at is None and row.status == RunStatus.KILLED.value
                boot = LostBoot(Candidate.of(row.candidate), row.begun_at, group)
                last.pop((row.candidate_key, group), None)
                last[row.candidate_key, group] = boot if died else None
        return [boot for boot in last.values() if boot is not None]
