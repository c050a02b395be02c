"""The choice: the incumbent stays unless it is clearly beaten."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from statistics import median

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
from autotune.decide.selection import select, select_confirmed
from tests.support.stores import Size

WORKLOAD = Size(8)


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


# -------------------------------------------------------------------------- side by side


ROUNDS = 9


def rounds(number: int, samples: Sequence[float] | Outcome) -> Trial:
    """A finalist; -1 is the incumbent's candidate."""
    measurement = (
        Measurement(samples, Basis.SYNTHETIC, samples=(1e-9,) * ROUNDS)
        if isinstance(samples, Outcome)
        else Measurement(Outcome.OK, Basis.SYNTHETIC, median(samples), tuple(samples))
    )
    candidate = Candidate.of({"n": number})
    return Trial(candidate, WORKLOAD.key, Phase.CONFIRM, number + 1, measurement)


nine = st.lists(st.floats(1, 100), min_size=ROUNDS, max_size=ROUNDS)
close = st.lists(st.floats(90, 110), min_size=ROUNDS, max_size=ROUNDS)
finalists = st.lists(st.one_of(close, nine, failures), max_size=5).map(
    lambda many: [rounds(n, samples) for n, samples in enumerate(many)]
)
INCUMBENT = rounds(-1, [100.0] * ROUNDS)


@given(default=close, others=finalists, min_gain=gains)
def test_a_finalist_wins_only_if_all_of_the_interval_gains(
    default: list[float], others: list[Trial], min_gain: float
) -> None:
    incumbent = rounds(-1, default)
    found = select_confirmed(WORKLOAD, incumbent, [incumbent, *others], min_gain)
    gaining = {}
    for t in others:
        if t.measurement.outcome is Outcome.OK:
            ratios = sorted(a / b for a, b in zip(default, t.measurement.samples, strict=True))
            if ratios[1] > 1 and ratios[ROUNDS // 2] * (1 - min_gain) >= 1:
                gaining[t.candidate] = ratios
    assert found.incumbent == incumbent
    assert found.kept_incumbent == (not gaining)
    if not gaining:
        assert (found.winner, found.speedup, found.interval) == (incumbent, 1, None)
        return
    best = max(ratios[ROUNDS // 2] for ratios in gaining.values())
    ratios = gaining[found.winner.candidate]
    assert found.speedup == ratios[ROUNDS // 2] == best
    assert found.interval == (ratios[1], ratios[-2])


def test_one_lucky_round_is_allowed_and_two_lost_ones_are_not() -> None:
    """Of nine rounds the second smallest ratio decides."""
    for lost, kept in ((0, False), (1, False), (2, True), (4, True)):
        finalist = rounds(0, [101.0] * lost + [50.0] * (ROUNDS - lost))
        found = select_confirmed(WORKLOAD, INCUMBENT, [INCUMBENT, finalist], 0.01)
        assert found.kept_incumbent == kept, lost


def test_the_interval_must_not_touch_one() -> None:
    touching = rounds(0, [100.0] * 2 + [50.0] * 7)
    assert select_confirmed(WORKLOAD, INCUMBENT, [touching], 0).kept_incumbent


@pytest.mark.parametrize(("us", "kept"), [(75.0, False), (75.1, True), (99.0, True)])
def test_a_sure_gain_that_is_too_small(us: float, kept: bool) -> None:
    finalist = rounds(0, [us] * ROUNDS)
    assert select_confirmed(WORKLOAD, INCUMBENT, [finalist], 0.25).kept_incumbent == kept


def test_rounds_are_compared_with_rounds() -> None:
    """Both drift alike: 2 % faster in every round, though the medians alone would not tell."""
    drift = [100.0 * 1.1**turn for turn in range(ROUNDS)]
    steady = rounds(0, [us / 1.02 for us in drift])
    found = select_confirmed(WORKLOAD, rounds(-1, drift), [steady], 0.01)
    assert found.winner == steady
    assert found.speedup == pytest.approx(1.02)
    shuffled = rounds(0, [us / 1.02 for us in reversed(drift)])
    assert select_confirmed(WORKLOAD, rounds(-1, drift), [shuffled], 0.01).kept_incumbent


def test_too_few_rounds_replace_nothing() -> None:
    five, six = ([100.0] * 5, [10.0] * 5), ([100.0] * 6, [10.0] * 6)
    for (default, fast), kept in ((five, True), (six, False)):
        found = select_confirmed(WORKLOAD, rounds(-1, default), [rounds(0, fast)], 0.01)
        assert found.kept_incumbent == kept


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.OK])
def test_what_failed_never_wins_however_fast(outcome: Outcome) -> None:
    bad, slower = rounds(0, outcome), rounds(1, [90.0] * ROUNDS)
    found = select_confirmed(WORKLOAD, INCUMBENT, [INCUMBENT, bad, slower], 0.01)
    assert found.winner == slower
    assert select_confirmed(WORKLOAD, INCUMBENT, [bad], 0.01).kept_incumbent
    for default in (None, rounds(-1, Outcome.CRASH)):
        assert select_confirmed(WORKLOAD, default, [bad, slower], 0.01).winner == slower
        with pytest.raises(NoFeasibleCandidateError, match="M=8: no candidate works"):
            select_confirmed(WORKLOAD, default, [bad], 0.01)


@given(others=finalists, failed=st.one_of(st.none(), failures), min_gain=gains)
def test_without_a_working_default_the_fastest_finalist_is_taken(
    others: list[Trial], failed: Outcome | None, min_gain: float
) -> None:
    default = None if failed is None else rounds(-1, failed)
    working = [t for t in others if t.measurement.outcome is Outcome.OK]
    given_trials = others if default is None else [default, *others]
    if not working:
        with pytest.raises(NoFeasibleCandidateError):
            select_confirmed(WORKLOAD, default, given_trials, min_gain)
        return
    found = select_confirmed(WORKLOAD, default, given_trials, min_gain)
    assert value(found.winner) == min(map(value, working))
    assert (found.incumbent, found.speedup, found.interval) == (None, None, None)
    assert not found.kept_incumbent


def test_the_default_among_the_finalists_gains_nothing_over_itself() -> None:
    """Even where a second measurement of it came out faster."""
    again = rounds(-1, [50.0] * ROUNDS)
    found = select_confirmed(WORKLOAD, INCUMBENT, [INCUMBENT, again], 0)
    assert (found.winner, found.kept_incumbent) == (INCUMBENT, True)
    slower = rounds(0, [90.0] * ROUNDS)
    assert select_confirmed(WORKLOAD, INCUMBENT, [again, slower], 0).winner == slower


def test_ties_side_by_side_do_not_depend_on_the_order() -> None:
    trials = [rounds(n, [50.0] * ROUNDS) for n in range(4)]
    winners = {
        select_confirmed(WORKLOAD, INCUMBENT, order, 0.01).winner.candidate
        for order in itertools.permutations(trials)
    }
    assert len(winners) == 1
    assert select_confirmed(WORKLOAD, INCUMBENT, [rounds(0, [100.0] * 9)], 0).kept_incumbent
