"""Best so far: against trials, against seconds at work, over runs with pauses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.report.history import Step, best_so_far, seconds_at_work, together
from autotune.store.records import DatedTrial, RunRecord, RunStatus

ZERO = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return ZERO + timedelta(seconds=seconds)


def run(number: int, start: float, end: float | None) -> RunRecord:
    ended = None if end is None else at(end)
    return RunRecord(number, 1, 1, "autotune", 1, at(start), ended, RunStatus.DONE)


def dated(
    seconds: float,
    value: float | None,
    key: str = "a",
    run_id: int = 1,
    phase: Phase = Phase.SEARCH,
) -> DatedTrial:
    outcome = Outcome.CRASH if value is None else Outcome.OK
    measurement = Measurement(outcome, Basis.MEASURED, value)
    trial = Trial(Candidate.of({}), key, phase, 0, measurement)
    return DatedTrial(trial, run_id, at(seconds))


def test_pauses_between_runs_do_not_count() -> None:
    runs = [run(1, 0, 10), run(2, 1000, None), run(3, 5000, 5010)]
    found = [
        dated(5, 1),
        dated(1002, 1, run_id=2),
        dated(1004, 1, run_id=2),
        dated(5001, 1, run_id=3),
    ]
    # The second was killed: it ends with its last trial.
    assert seconds_at_work(found, runs) == [5, 12, 14, 15]


def test_only_what_is_better_moves_the_line() -> None:
    found = [
        dated(1, None),
        dated(2, 8.0, phase=Phase.BASELINE),
        dated(3, 9.0),
        dated(4, None),
        dated(5, 4.0),
        dated(6, 1.0, phase=Phase.CONFIRM),
    ]
    assert best_so_far(found, [run(1, 0, 10)]) == {
        "a": [Step(2, 2, 8.0), Step(3, 3, 8.0), Step(4, 4, 8.0), Step(5, 5, 4.0)]
    }


def test_a_workload_where_nothing_worked_has_no_line() -> None:
    assert best_so_far([dated(1, None)], [run(1, 0, 2)]) == {}


def test_the_mean_begins_where_every_workload_has_a_value() -> None:
    histories = {
        "a": [Step(1, 1.0, 4.0), Step(2, 5.0, 1.0)],
        "b": [Step(1, 3.0, 9.0), Step(2, 4.0, 9.0)],
    }
    assert together(histories, "seconds") == [(3.0, pytest.approx(2.0)), (4.0, 2.0), (5.0, 1.0)]
    assert together(histories, "trials") == [(1, pytest.approx(2.0)), (2, 1.0)]
    assert together({}, "trials") == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 100)), min_size=1))
def test_the_mean_falls_to_one(values: list[tuple[str, float]]) -> None:
    found = [dated(i, value, key) for i, (key, value) in enumerate(values)]
    histories = best_so_far(found, [run(1, 0, 1000)])
    for by in ("seconds", "trials"):
        factors = [factor for _, factor in together(histories, by)]
        assert factors == sorted(factors, reverse=True)
        assert factors[-1] == pytest.approx(1.0)
