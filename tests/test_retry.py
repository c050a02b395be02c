"""A study's log: the latest trial of each candidate, failed ones again on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autotune.core import Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.kernels.moe.shape import MoeWorkload
from autotune.store.retry import ResumableLog
from autotune.store.run_log import recorded
from autotune.store.store import Store
from tests.kernels.test_gpu import SHAPE, candidate

WORKLOAD = MoeWorkload(SHAPE, 8)
A, B = candidate(stages=2), candidate(stages=3)
NONE: frozenset[Phase] = frozenset()


@contextmanager
def log(
    folder: Path, retry: bool = False, always: frozenset[Phase] = NONE
) -> Iterator[ResumableLog]:
    """The log of another run."""
    with Store.open(f"sqlite:///{folder}/a.db") as store:
        search = store.search(store.study("s", "moe", {}), {})
        with recorded(store, search, "autotune") as stored:
            yield ResumableLog(stored, retry_failed=retry, always=always)


def trial(one: Candidate, outcome: Outcome, phase: Phase = Phase.SEARCH, **details: Any) -> Trial:
    value = 1.0 if outcome is Outcome.OK else None
    return Trial(
        one, WORKLOAD.key, phase, 0, Measurement(outcome, Basis.MEASURED, value, details=details)
    )


def loaded(it: ResumableLog, phase: Phase = Phase.SEARCH) -> list[tuple[Candidate, Outcome, int]]:
    found = it.load(WORKLOAD, phase)
    return [(t.candidate, t.measurement.outcome, t.sequence) for t in found]


def test_the_latest_counts_and_nothing_stored_is_lost(tmp_path: Path) -> None:
    with log(tmp_path) as first:
        first.append(WORKLOAD, trial(A, Outcome.CRASH))
        first.append(WORKLOAD, trial(B, Outcome.OK))
    with log(tmp_path) as plain:
        assert loaded(plain) == [(A, Outcome.CRASH, 0), (B, Outcome.OK, 1)]
    with log(tmp_path, retry=True) as again:
        assert loaded(again) == [(B, Outcome.OK, 1)]
        again.append(WORKLOAD, trial(A, Outcome.TIMEOUT))
        # What failed in this run is not hidden from it.
        assert loaded(again) == [(B, Outcome.OK, 1), (A, Outcome.TIMEOUT, 2)]
    with log(tmp_path) as last:
        assert loaded(last) == [(B, Outcome.OK, 1), (A, Outcome.TIMEOUT, 2)]
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        assert len(store.trials(store.search(store.study("s", "moe", {}), {}))) == 3


@pytest.mark.parametrize("outcome", [Outcome.WRONG_RESULT, Outcome.COMPILE_ERROR, Outcome.OK])
def test_what_fails_for_good_is_not_tried_again(tmp_path: Path, outcome: Outcome) -> None:
    with log(tmp_path) as first:
        first.append(WORKLOAD, trial(A, outcome))
    with log(tmp_path, retry=True) as again:
        assert loaded(again) == [(A, outcome, 0)]


def test_some_phases_are_tried_again_unasked(tmp_path: Path) -> None:
    with log(tmp_path) as first:
        for phase in (Phase.BASELINE, Phase.SEARCH):
            first.append(WORKLOAD, trial(A, Outcome.CRASH, phase))
    with log(tmp_path, always=frozenset({Phase.BASELINE})) as again:
        assert loaded(again, Phase.BASELINE) == []
        assert loaded(again, Phase.SEARCH) == [(A, Outcome.CRASH, 0)]


def test_each_comparison_keeps_its_trials(tmp_path: Path) -> None:
    with log(tmp_path) as it:
        for name in ("one", "two", "two"):
            it.append(WORKLOAD, trial(A, Outcome.OK, Phase.CONFIRM, compared=name))
    with log(tmp_path) as again:
        assert [t.sequence for t in again.load(WORKLOAD, Phase.CONFIRM)] == [0, 2]
