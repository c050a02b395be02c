"""Settings of which the measurement was stopped half-way, and what was known of them by then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from autotune.core import Outcome, Trial
from autotune.serving.measure.levels import rate_of
from autotune.serving.report.tables import setting

_WHY = {
    Outcome.SLO_MISSED: "misses its SLO",
    Outcome.CANNOT_WIN: "cannot win any more",
    Outcome.CONSTRAINT: "nothing drafted is accepted",
}


def is_stopped(trial: Trial) -> bool:
    """Whether its server served, and the rest of the measurement was not worth its time."""
    outcome, details = trial.measurement.outcome, trial.measurement.details
    never_accepted = outcome is Outcome.CONSTRAINT and bool(details.get("nothing_accepted"))
    return never_accepted or outcome in {Outcome.SLO_MISSED, Outcome.CANNOT_WIN}


def stopped_rows(trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """One row for each; ``tok_s`` is measured, by concurrency, of ``repeats`` repeats."""
    rows = []
    for trial in filter(is_stopped, trials):
        levels = trial.measurement.details.get("partial", {})
        rows.append(
            {
                "candidate": trial.candidate.params,
                "setting": setting(trial.candidate),
                "why": _WHY[trial.measurement.outcome],
                "message": trial.measurement.message,
                "tok_s": {c: rate_of(level) for c, level in levels.items()},
                "repeats": {c: len(level["repeats"]) for c, level in levels.items()},
            }
        )
    return rows
