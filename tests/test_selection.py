"""The choice: the incumbent stays unless it is clearly beaten."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import (
    Basis,
    Candidate,
    Measurement,
    NoFeasibleCandidateError,
    Outcome,
    Phase,
    Trial,
)
from autotune.selection import select
from tests.synthetic import Tokens

WORKLOAD = Tokens(8)


def trial(number: int, result: float | Outcome, sequence: int | None = None) -> Trial:
    measurement = (
        Measurement(result, Basis.SYNTHETIC)
        if isinstance(result, Outcome)
        else Measurement(Outcome.OK, Basis.SYNTHETIC, result)
    )
    candidate = Candidate.of({"n": number})
    place = number if sequence is None else sequence
    return Trial(candidate, WORKLOAD.key, Phase.SEARCH, place, measurement)


values = st.floats(0.01, 1e6)
failures = st.sampled_from([o for o in Outcome if o is not Outcome.OK])
results = st.one_of(values, failures)
searched = st.lists(results, max_size=12).map(lambda rs: [trial(n, r) for n, r in enumerate(rs)])
gains = st.floats(0, 0.5)


def value(chosen: Trial) -> float:
    assert chosen.measurement.value is not None
    return chosen.measurement.value


@given(incumbent=values, trials=searched, min_gain=gains)
def test_the_incumbent_stays_unless_beaten_by_the_least_gain(
    incumbent: float, trials: list[Trial], min_gain: float
) -> None:
    default = trial(-1, incumbent)
    found = select(WORKLOAD, default, trials, min_gain)
    working = [value(t) for t in trials if t.measurement.value is not None]
    beaten = any(v <= incumbent * (1 - min_gain) and v < incumbent for v in working)
    assert found.kept_incumbent == (not beaten)
    assert found.incumbent == default
    assert found.workload_key == WORKLOAD.key
    if beaten:
        assert value(found.winner) == min(working)
        assert found.speedup == pytest.approx(incumbent / min(working))
        assert value(found.winner) < incumbent
    else:
        assert found.winner == default
        assert found.speedup == 1


@given(trials=searched, failed=st.one_of(st.none(), failures), min_gain=gains)
def test_without_a_working_incumbent_the_best_wins(
    trials: list[Trial], failed: Outcome | None, min_gain: float
) -> None:
    default = None if failed is None else trial(-1, failed)
    working = [t for t in trials if t.measurement.outcome is Outcome.OK]
    if not working:
        with pytest.raises(NoFeasibleCandidateError, match="M=8: no candidate works"):
            select(WORKLOAD, default, trials, min_gain)
        return
    found = select(WORKLOAD, default, trials, min_gain)
    assert value(found.winner) == min(map(value, working))
    assert (found.incumbent, found.speedup, found.kept_incumbent) == (None, None, False)


@given(st.lists(st.sampled_from([1.0, 2.0]), min_size=1), st.integers())
def test_ties_go_to_the_earliest_in_whatever_order(given_values: list[float], seed: int) -> None:
    trials = [trial(n, v) for n, v in enumerate(given_values)]
    shuffled = random.Random(seed).sample(trials, len(trials))
    winner = select(WORKLOAD, None, shuffled, 0.01).winner
    assert winner.sequence == given_values.index(min(given_values))


def test_ties_in_the_same_place_go_by_the_candidate() -> None:
    trials = [trial(n, 1.0, sequence=0) for n in range(4)]
    first = min(trials, key=lambda t: t.candidate.key)
    for order in itertools.permutations(trials):
        assert select(WORKLOAD, None, order, 0).winner == first


def test_exactly_the_least_gain_is_enough() -> None:
    assert select(WORKLOAD, trial(-1, 100.0), [trial(0, 75.0)], 0.25).speedup == 100 / 75
    assert select(WORKLOAD, trial(-1, 100.0), [trial(0, 75.1)], 0.25).kept_incumbent


def test_an_equal_candidate_does_not_replace_the_incumbent() -> None:
    assert select(WORKLOAD, trial(-1, 100.0), [trial(0, 100.0)], 0).kept_incumbent


def test_the_incumbent_gains_nothing_over_itself() -> None:
    """Searched again, its own configuration came out faster by chance."""
    found = select(WORKLOAD, trial(-1, 100.0), [trial(-1, 80.0), trial(0, 90.0)], 0.01)
    assert found.kept_incumbent
    assert found.speedup == 1


def test_the_reasons_are_named() -> None:
    trials = [trial(0, Outcome.TIMEOUT), trial(1, Outcome.CRASH), trial(2, Outcome.CRASH)]
    with pytest.raises(NoFeasibleCandidateError, match=r"^M=8: no candidate works \(crash, timeou"):
        select(WORKLOAD, trial(-1, Outcome.CRASH), trials, 0.01)
    with pytest.raises(NoFeasibleCandidateError, match="none was tried"):
        select(WORKLOAD, None, [], 0.01)
