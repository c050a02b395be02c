"""Trials as a run reads them back: the latest of each candidate, failed ones on request.

Some failures are of the moment: another process held the memory, the driver lost the device. They
stand until another try is asked for, because an attempt can cost minutes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from autotune.core import Outcome, Phase, Trial, Workload

if TYPE_CHECKING:
    from autotune.store.run_log import StoredLog

TRANSIENT = frozenset(
    {
        Outcome.OUT_OF_MEMORY,
        Outcome.HOST_MEMORY,
        Outcome.CRASH,
        Outcome.TIMEOUT,
        Outcome.RUNTIME_ERROR,
    }
)
"""Outcomes that another try may change; a wrong result or a bad flag stays what it is."""


class ResumableLog:
    """The log of a run; a :class:`autotune.tune.TrialLog`.

    Nothing stored is changed or taken away: a retried candidate has both trials, and the latest
    counts. A candidate has one in each comparison that it took part in.
    """

    def __init__(
        self, log: StoredLog, *, retry_failed: bool, always: frozenset[Phase] = frozenset()
    ) -> None:
        """Wrap ``log``.

        Args:
            log: of one run.
            retry_failed: hide what failed for the moment before this run.
            always: phases in which that is hidden unasked, unless the host ran short of memory.
        """
        self._log, self._retry, self._always = log, retry_failed, always
        self._own: set[tuple[str, Phase, int]] = set()
        self._next: dict[tuple[str, Phase], int] = {}
        self.load_parts, self.append_part, self.boot = log.load_parts, log.append_part, log.boot

    def load(self, workload: Workload, phase: Phase) -> list[Trial]:
        """The latest trial of every candidate, by sequence."""
        stored = self._log.load(workload, phase)
        latest = {(t.candidate, t.measurement.details.get("compared")): t for t in stored}
        kept = [trial for trial in latest.values() if not self._hidden(trial)]
        return sorted(kept, key=lambda trial: trial.sequence)

    def append(self, workload: Workload, trial: Trial) -> None:
        """Store a trial of this run, after all that are stored, hidden ones too."""
        place = (workload.key, trial.phase)
        if place not in self._next:  # read once: nobody else writes while the study is locked
            stored = self._log.load(workload, trial.phase)
            self._next[place] = max((one.sequence for one in stored), default=-1) + 1
        number = self._next[place]
        self._own.add((*place, number))
        self._log.append(workload, replace(trial, sequence=number))
        self._next[place] = number + 1

    def _hidden(self, trial: Trial) -> bool:
        ours = (trial.workload_key, trial.phase, trial.sequence) in self._own
        safe = trial.measurement.outcome is not Outcome.HOST_MEMORY
        wanted = self._retry or (trial.phase in self._always and safe)
        return wanted and not ours and is_transient(trial)


def is_transient(trial: Trial) -> bool:
    """Whether another try may change it; that its tasks could not be evaluated, too."""
    tasks = trial.measurement.details.get("tasks", {})
    return trial.measurement.outcome in TRANSIENT or bool(tasks.get("error"))
