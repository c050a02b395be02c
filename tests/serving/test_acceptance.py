"""The arithmetic of speculative decoding: laws that hold for all rates, figures worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.serving.forecast.acceptance import (
    StepTimes,
    distinct_experts,
    predict,
    step_seconds,
    tokens_per_step,
)
from autotune.serving.measure.counters import DraftCounters


def reached_from_conditional(conditional: Sequence[float]) -> tuple[float, ...]:
    """Rates by position from those where all positions before were accepted."""
    return tuple(accumulate(conditional, mul))


rate = st.floats(0, 1)
conditional_rates = st.lists(rate, min_size=1, max_size=9)
reached_rates = conditional_rates.map(reached_from_conditional)
seconds = st.floats(1e-4, 1)
MTP_RATES = (0.844, 0.599, 0.385, 0.271)
"""By position, as of an MTP drafter at gamma 4."""


def counted(accepted: Sequence[int], gamma: int) -> DraftCounters:
    """The counters after one full draft for each number of accepted tokens."""
    by_position = tuple(sum(n > position for n in accepted) for position in range(gamma))
    return DraftCounters(len(accepted), len(accepted) * gamma, sum(accepted), by_position)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], int]:
    gamma = draw(st.integers(1, 8))
    return draw(st.lists(st.integers(0, gamma), min_size=1, max_size=50)), gamma


@given(reached_rates)
def test_tokens_per_step_lies_between_1_and_gamma_plus_1_and_rises_with_gamma(
    reached: tuple[float, ...],
) -> None:
    by_gamma = [tokens_per_step(reached, gamma) for gamma in range(len(reached) + 1)]
    assert by_gamma[0] == 1.0
    assert all(earlier <= later <= earlier + 1 for earlier, later in pairwise(by_gamma))
    assert by_gamma[-1] == tokens_per_step(reached) <= len(reached) + 1


@given(conditional_rates, st.data())
def test_tokens_per_step_rises_with_every_rate(
    conditional: list[float], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(conditional) - 1))
    better = list(conditional)
    better[position] = data.draw(st.floats(conditional[position], 1))
    less, more = (tokens_per_step(reached_from_conditional(c)) for c in (conditional, better))
    assert less <= more


@given(st.floats(0, 0.999), st.integers(0, 12))
def test_a_constant_rate_gives_the_closed_form(alpha: float, gamma: int) -> None:
    closed = (1 - alpha ** (gamma + 1)) / (1 - alpha)
    assert tokens_per_step(reached_from_conditional([alpha] * gamma)) == pytest.approx(closed)


@given(histories())
def test_counters_give_the_rates_of_the_history(history: tuple[list[int], int]) -> None:
    accepted, gamma = history
    counters = counted(accepted, gamma)
    reached = counters.reached
    assert reached is not None
    assert counters.acceptance_length is not None
    assert counters.acceptance_length == pytest.approx(1 + sum(accepted) / len(accepted))
    assert tokens_per_step(reached) == pytest.approx(counters.acceptance_length)
    for smaller in range(gamma + 1):
        cut = [min(n, smaller) for n in accepted]
        assert tokens_per_step(reached, smaller) == pytest.approx(1 + sum(cut) / len(cut))


@given(histories(), st.data())
def test_differences_of_counters_undo_sums(
    history: tuple[list[int], int], data: st.DataObject
) -> None:
    accepted, gamma = history
    cut = data.draw(st.integers(0, len(accepted)))
    early, late = counted(accepted[:cut], gamma), counted(accepted[cut:], gamma)
    assert early + late == counted(accepted, gamma)
    assert (early + late) - early == late


@given(histories(), st.integers(0, 40))
def test_steps_without_a_draft_lower_the_rates_per_step(
    history: tuple[list[int], int], idle: int
) -> None:
    accepted, gamma = history
    counters = counted(accepted, gamma)
    steps = len(accepted) + idle
    per_step = counters.per_step(generated=steps + sum(accepted))
    assert counters.reached is not None
    assert tokens_per_step(per_step) == pytest.approx(1 + sum(accepted) / steps)
    assert all(mine <= most for mine, most in zip(per_step, counters.reached, strict=True))


def test_the_counters_by_hand() -> None:
    counters = counted([0, 1, 4, 3], 4)
    assert counters == DraftCounters(4, 16, 8, (3, 2, 2, 1))
    assert counters.reached == (0.75, 0.5, 0.5, 0.25)
    assert counters.acceptance_length == 3.0


def test_where_nothing_is_drafted_there_is_no_rate() -> None:
    counters = DraftCounters(0, 0, 0, (0, 0))
    assert counters.reached is None
    assert counters.acceptance_length is None
    assert counters.per_step(10) == (0.0, 0.0)


@pytest.mark.parametrize(
    "counts",
    [
        (4, 16, 8, (3, 2, 2, 2)),
        (4, 16, 7, (2, 3, 1, 1)),
        (2, 8, 8, (3, 2, 2, 1)),
        (4, 7, 8, (3, 2, 2, 1)),
        (4, 17, 8, (3, 2, 2, 1)),
        (4, 16, 0, (1, 0, 0, -1)),
    ],
)
def test_counters_that_cannot_be_are_refused(
    counts: tuple[int, int, int, tuple[int, ...]],
) -> None:
    with pytest.raises(ValueError, match=r"drafted|position"):
        DraftCounters(*counts)


def test_too_few_tokens_for_the_drafts_are_refused() -> None:
    with pytest.raises(ValueError, match="steps"):
        counted([0, 1, 4, 3], 4).per_step(generated=11)


@given(st.integers(1, 256), st.data())
def test_distinct_experts_grow_from_topk_to_all(experts: int, data: st.DataObject) -> None:
    topk = data.draw(st.integers(1, experts))
    by_tokens = [distinct_experts(experts, topk, m) for m in (0, 1, 2, 8, 64, 100_000)]
    assert by_tokens == sorted(by_tokens)
    assert by_tokens[0] == 0
    assert by_tokens[1] == pytest.approx(topk)
    assert by_tokens[-1] <= experts


def test_distinct_experts_of_gemma_4() -> None:
    assert distinct_experts(128, 8, 2) == pytest.approx(15.5)


@given(st.floats(0, 0.99), st.integers(1, 9), st.floats(0, 0.9), seconds)
def test_the_speed_up_is_that_of_leviathan(
    alpha: float, gamma: int, cost: float, baseline: float
) -> None:
    times = StepTimes(baseline, baseline * (1 + gamma * cost), gamma, draft=cost * baseline)
    found = predict(reached_from_conditional([alpha] * gamma), times)
    for p in found:
        theorem = (1 - alpha ** (p.gamma + 1)) / ((1 - alpha) * (p.gamma * cost + 1))
        assert p.aggregate / found[0].aggregate == pytest.approx(theorem)


@given(reached_rates, seconds, seconds, st.floats(0, 0.99), st.integers(1, 64), st.booleans())
def test_a_prediction_meets_both_measured_points(
    reached: tuple[float, ...], base: float, probe: float, share: float, streams: int, moe: bool
) -> None:
    gamma = len(reached)
    growth = (lambda m: distinct_experts(128, 8, m)) if moe else float
    times = StepTimes(base, probe, gamma, streams, share * probe / gamma, growth)
    found = predict(reached, times)
    assert [p.gamma for p in found] == list(range(gamma + 1))
    assert found[0].step_seconds == pytest.approx(base)
    assert found[-1].step_seconds == pytest.approx(probe)
    for p in found:
        assert p.step_seconds > 0
        assert p.aggregate == pytest.approx(streams * p.per_request)
        assert step_seconds(p.aggregate, streams, p.tokens_per_step) == pytest.approx(
            p.step_seconds
        )


@given(seconds, st.floats(1, 4), st.integers(2, 9), st.integers(1, 16))
def test_experts_make_the_first_tokens_the_dearest(
    base: float, slower: float, gamma: int, streams: int
) -> None:
    flat = StepTimes(base, base * slower, gamma, streams)
    moe = StepTimes(
        base, base * slower, gamma, streams, growth=lambda m: distinct_experts(64, 4, m)
    )
    for g in range(gamma + 1):
        assert moe.seconds(g) >= flat.seconds(g) * (1 - 1e-9)


def test_a_prediction_by_hand() -> None:
    times = StepTimes(baseline=0.024, probe=0.030, probe_gamma=4, draft=0.001)
    found = predict(MTP_RATES, times)
    assert [round(p.tokens_per_step, 3) for p in found] == [1, 1.844, 2.443, 2.828, 3.099]
    assert found[2].step_seconds == pytest.approx(0.024 + 0.002 + 0.001)
    assert found[2].per_request == pytest.approx(2.443 / 0.027)


@pytest.mark.parametrize("reached", [[1.1], [-0.1], [0.5, 0.6], [math.nan]])
def test_rates_that_cannot_be_are_refused(reached: list[float]) -> None:
    with pytest.raises(ValueError, match="acceptance rates"):
        tokens_per_step(reached)


@pytest.mark.parametrize("gamma", [-1, 5])
def test_a_gamma_that_was_not_probed_is_refused(gamma: int) -> None:
    with pytest.raises(ValueError, match="gamma"):
        tokens_per_step(MTP_RATES, gamma)
    with pytest.raises(ValueError, match="gamma"):
        StepTimes(0.02, 0.03, 4).seconds(gamma)


@pytest.mark.parametrize(
    "times",
    [
        {"baseline": 0.0},
        {"probe": -1.0},
        {"baseline": math.nan},
        {"probe": math.inf},
        {"probe_gamma": 0},
        {"concurrency": 0},
        {"draft": 0.01},
        {"draft": -0.001},
    ],
)
def test_times_that_cannot_be_are_refused(times: dict[str, float]) -> None:
    usual = {"baseline": 0.02, "probe": 0.03, "probe_gamma": 4}
    with pytest.raises(ValueError, match=r"step time|at least 1|drafting"):
        StepTimes(**{**usual, **times})  # type: ignore[arg-type]


def test_other_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="topk"):
        distinct_experts(8, 9, 1)
    with pytest.raises(ValueError, match="tok/s"):
        step_seconds(0, 1, 1)
    with pytest.raises(ValueError, match="rates for a probe"):
        predict(MTP_RATES, StepTimes(0.02, 0.03, 3))
