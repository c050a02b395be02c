"""Trials as ``autotune spec`` reads them back: the latest of each setting, failed ones on request.

Beside what failed for the moment (``store/retry.py``) that is a measurement of which the tasks
could not be evaluated; its repeats are kept.
"""

from __future__ import annotations

from autotune.core import Trial
from autotune.store import retry

TRANSIENT = retry.TRANSIENT


class ResumableLog(retry.ResumableLog):
    """See :class:`autotune.store.retry.ResumableLog`."""

    def failed(self, trial: Trial) -> bool:
        """Whether another try may change it."""
        tasks = trial.measurement.details.get("tasks", {})
        return super().failed(trial) or bool(tasks.get("error"))
