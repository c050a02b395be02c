"""One run of one search in the store, as the loop sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from autotune.core import Candidate, Phase, Trial, Workload
from autotune.machine.environment import environment
from autotune.store.records import RunRecord, RunStatus, SearchRecord
from autotune.store.store import Store


class StoredLog:
    """The store as the loop sees it: one run of one search; a :class:`autotune.tune.TrialLog`."""

    def __init__(self, store: Store, search: SearchRecord, run: RunRecord) -> None:
        self._store, self._search, self._run = store, search, run
        self._ids: dict[str, int] = {}
        self.appended = 0

    def load(self, workload: Workload, phase: Phase) -> list[Trial]:
        """The trials stored so far."""
        return self._store.trials(self._search, workload.key, phase)

    def append(self, workload: Workload, trial: Trial) -> None:
        """Store a trial of this run."""
        self._store.add_trials(self._run, self._id(workload), [trial])
        self.appended += 1

    def load_parts(self, workload: Workload, candidate: Candidate) -> dict[str, dict[str, Any]]:
        """What a run that was cut off had finished of a measurement, by name."""
        return self._store.parts(self._search, workload.key, candidate)

    def append_part(
        self, workload: Workload, candidate: Candidate, name: str, value: Mapping[str, Any]
    ) -> None:
        """Store a finished part of a measurement under way."""
        self._store.add_part(self._run, self._id(workload), candidate, name, value)

    def boot(self, workload: Workload, candidate: Candidate) -> AbstractContextManager[None]:
        """Store that a server is about to be started, and after the block that it ended."""
        return self._store.boots().begun(self._run, self._id(workload), candidate)

    def _id(self, workload: Workload) -> int:
        if workload.key not in self._ids:
            self._ids[workload.key] = self._store.workload(self._search, workload).id
        return self._ids[workload.key]


@contextmanager
def recorded(store: Store, search: SearchRecord, command: str) -> Iterator[StoredLog]:
    """The log of a new run, whose status in the store says in the end how it went."""
    run = store.start_run(search, store.environment(environment()), command)
    status = RunStatus.FAILED
    try:
        yield StoredLog(store, search, run)
        status = RunStatus.DONE
    except KeyboardInterrupt:
        status = RunStatus.INTERRUPTED
        raise
    finally:
        store.end_run(run, status)
