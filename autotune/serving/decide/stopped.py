"""Settings of which the measurement was stopped half-way, and what was known of them by then."""

from __future__ import annotations

from typing import Any

from autotune.core import Outcome, Trial
from autotune.serving.job import Result
from autotune.serving.measure.levels import rate_of
from autotune.serving.report.markdown import number, table
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


def stopped_rows(result: Result) -> list[dict[str, Any]]:
    """One row for each; ``tok_s`` is measured, by concurrency, of ``repeats`` repeats."""
    rows = []
    for trial in filter(is_stopped, result.trials):
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


def stopped_section(result: Result) -> list[str]:
    """The lines of the report; none where nothing was stopped."""
    rows = [
        [
            row["setting"],
            f"{row['why']}: {row['message']}",
            ", ".join(
                f"{number(rate)} at {c} ({row['repeats'][c]})" for c, rate in row["tok_s"].items()
            ),
        ]
        for row in stopped_rows(result)
    ]
    if not rows:
        return []
    said = "Not measured to the end, and never recommended; the repeats until then are measured."
    heads = ["setting", "why", "tok/s at concurrency (repeats)"]
    return ["## Stopped", "", said, "", *table(heads, rows), ""]
