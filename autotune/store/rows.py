"""Trials as rows of the database, and rows as trials."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Select, case, select

from autotune.core import Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.store.tables import MeasurementRow, TrialRow, WorkloadRow
from autotune.util import edge

TRIALS: Select[Any] = (
    select(
        WorkloadRow.key.label("workload_key"),
        TrialRow.phase,
        TrialRow.sequence,
        TrialRow.candidate,
        TrialRow.run_id,
        TrialRow.created_at,
        MeasurementRow.outcome,
        MeasurementRow.basis,
        MeasurementRow.value,
        MeasurementRow.samples,
        MeasurementRow.message,
        MeasurementRow.details,
        MeasurementRow.seconds,
    )
    .join(WorkloadRow, TrialRow.workload_id == WorkloadRow.id)
    .join(MeasurementRow, MeasurementRow.trial_id == TrialRow.id)
    .order_by(
        TrialRow.workload_id,
        case({phase.value: place for place, phase in enumerate(Phase)}, value=TrialRow.phase),
        TrialRow.sequence,
    )
)


def trial_row(trial: Trial) -> dict[str, Any]:
    """What of a trial stands in its own table."""
    return {
        "phase": trial.phase.value,
        "sequence": trial.sequence,
        "candidate_key": trial.candidate.key,
        "candidate": trial.candidate.params,
    }


def measurement_row(measurement: Measurement) -> dict[str, Any]:
    """What of a trial stands in the table of measurements."""
    return {
        "outcome": measurement.outcome.value,
        "basis": measurement.basis.value,
        "value": measurement.value,
        "samples": list(measurement.samples),
        # Output of a compiler may hold bytes that are no text; SQLite takes only UTF-8.
        "message": measurement.message.encode("utf-8", "backslashreplace").decode(),
        "details": dict(measurement.details),
        "seconds": measurement.seconds,
    }


def trial_of(row: Row[Any]) -> Trial:
    """A trial of a row.

    Raises:
        ValueError: it is none that was ever stored.
    """
    numbers = [row.seconds, *row.samples, *([] if row.value is None else [row.value])]
    for number in numbers:
        edge.number(number, "a measurement")
    if not isinstance(row.sequence, int):
        raise TypeError(f"a sequence is {edge.shown(row.sequence)}")
    for value in row.candidate.values():
        if not isinstance(value, str | int | float):
            raise TypeError(f"a parameter is {edge.shown(value)}")
    if not isinstance(row.details, dict):
        raise TypeError("details are no object")
    measurement = Measurement(
        outcome=Outcome(row.outcome),
        basis=Basis(row.basis),
        value=row.value,
        samples=tuple(row.samples),
        message=row.message,
        details=row.details,
        seconds=row.seconds,
    )
    candidate = Candidate.of(row.candidate)
    return Trial(candidate, row.workload_key, Phase(row.phase), row.sequence, measurement)
