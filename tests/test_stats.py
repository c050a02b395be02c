"""The statistics of small samples: exact coverage, and what holds for any sample."""

from __future__ import annotations

import math
import random
import statistics
from itertools import combinations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autotune.decide.stats import LEAST_PAIRS, geometric_mean, mad, median_interval, paired_ratio

numbers = st.floats(-1e6, 1e6)
positive = st.floats(1e-3, 1e6)
samples = st.lists(numbers, min_size=1, max_size=40)


def coverage(rank: int, n: int) -> float:
    """How often the rank-th smallest and largest of n enclose the median, counted exactly.

    Every value is above or below the median with equal chance; the pair misses where fewer than
    ``rank`` are on one side.
    """
    inside = [below for below in range(n + 1) if rank <= below <= n - rank]
    return sum(math.comb(n, below) for below in inside) / float(2**n)


@pytest.mark.parametrize(
    ("n", "rank", "covered"),
    [
        (6, 1, 1 - 2 / 64),
        (7, 1, 1 - 2 / 128),
        (8, 1, 1 - 2 / 256),
        (9, 2, 1 - 20 / 512),
        (11, 2, 1 - 24 / 2048),
        (12, 3, 1 - 158 / 4096),
        (20, 6, 1 - 43400 / 2**20),
    ],
)
def test_the_narrowest_pair_that_covers(n: int, rank: int, covered: float) -> None:
    assert coverage(rank, n) == covered
    assert coverage(rank + 1, n) < 0.95 <= covered
    assert median_interval(range(n)) == (rank - 1, n - rank)


def test_below_six_there_is_no_interval() -> None:
    assert LEAST_PAIRS == 6
    assert [median_interval([1.0] * n) for n in range(6)] == [None] * 6
    assert median_interval(range(LEAST_PAIRS)) == (0, 5)


@pytest.mark.parametrize("n", range(1, 61))
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_the_coverage_is_at_least_the_confidence(n: int, confidence: float) -> None:
    found = median_interval(range(n), confidence)
    best = max((r for r in range(1, n // 2 + 1) if coverage(r, n) >= confidence), default=None)
    assert found == (None if best is None else (best - 1, n - best))


@pytest.mark.parametrize("n", [6, 9])
def test_the_coverage_on_every_sample_of_signs(n: int) -> None:
    """All 2^n ways in which values fall to the two sides of a median of 0."""
    caught = 0
    for size in range(n + 1):
        for below in combinations(range(n), size):
            found = median_interval([-1.0 if i in below else 1.0 for i in range(n)])
            assert found is not None
            caught += found[0] < 0 < found[1]
    assert caught / 2**n == (1 - 2 / 64 if n == 6 else 1 - 20 / 512)


@given(values=samples, order=st.randoms())
def test_an_interval_is_ordered_encloses_the_median_and_knows_no_order(
    values: list[float], order: random.Random
) -> None:
    found = median_interval(values)
    if found is None:
        assert len(values) < LEAST_PAIRS
        return
    low, high = found
    assert low <= statistics.median(values) <= high
    assert low in values
    assert high in values
    shuffled = list(values)
    order.shuffle(shuffled)
    assert median_interval(shuffled) == found


@given(values=samples)
def test_more_confidence_never_narrows(values: list[float]) -> None:
    narrow, wide = median_interval(values, 0.8), median_interval(values, 0.99)
    if wide is not None:
        assert narrow is not None
        assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


@given(pairs=st.lists(st.tuples(positive, positive), min_size=1, max_size=20))
def test_a_ratio_is_of_pairs(pairs: list[tuple[float, float]]) -> None:
    numerators, denominators = [a for a, _ in pairs], [b for _, b in pairs]
    found = paired_ratio(numerators, denominators)
    ratios = [a / b for a, b in pairs]
    assert found.pairs == len(pairs)
    assert found.value == statistics.median(ratios)
    assert found.low <= found.value <= found.high
    assert (found.low, found.high) == (median_interval(ratios) or (0.0, math.inf))


@given(
    pairs=st.lists(st.tuples(positive, positive), min_size=6, max_size=20),
    shared=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=20, max_size=20),
)
def test_what_a_pair_shares_cancels(pairs: list[tuple[float, float]], shared: list[float]) -> None:
    plain = paired_ratio([a for a, _ in pairs], [b for _, b in pairs])
    scaled = [(a * s, b * s) for (a, b), s in zip(pairs, shared, strict=False)]
    assert paired_ratio([a for a, _ in scaled], [b for _, b in scaled]) == plain


def test_a_ratio_of_medians_is_something_else() -> None:
    """A drifting clock: each pair says 2, the medians of the two halves would not."""
    default, tuned = [2.0, 4.0, 8.0, 16.0, 32.0, 64.0], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    found = paired_ratio(default, tuned)
    assert (found.value, found.low, found.high) == (2, 2, 2)


def test_too_few_pairs_say_nothing_about_the_ends() -> None:
    found = paired_ratio([2.0] * 5, [1.0] * 5)
    assert (found.value, found.low, found.high, found.pairs) == (2, 0, math.inf, 5)


def test_pairs_that_are_none() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired_ratio([], [])
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3], 0), ([1, 1, 1], 0), ([1, 2], 0.5), ([1, 2, 4, 100], 1.5), ([0, 0, 0, 9, 9], 0)],
)
def test_mad_of(values: list[float], expected: float) -> None:
    assert mad(values) == expected


@given(values=st.lists(st.integers(-1000, 1000), min_size=1), shift=st.integers(-99, 99))
def test_mad_is_of_the_spread_alone(values: list[int], shift: int) -> None:
    assert mad([v + shift for v in values]) == mad(values)
    assert mad([-3 * v for v in values]) == 3 * mad(values)


def test_mad_of_nothing() -> None:
    with pytest.raises(statistics.StatisticsError):
        mad([])


@given(values=st.lists(positive, min_size=1, max_size=30))
def test_the_geometric_mean_is_of_ratios(values: list[float]) -> None:
    mean = geometric_mean(values)
    assert mean == pytest.approx(statistics.geometric_mean(values))
    assert min(values) * (1 - 1e-9) <= mean <= max(values) * (1 + 1e-9)
    assert geometric_mean([1 / v for v in values]) == pytest.approx(1 / mean)


@given(value=positive)
def test_a_gain_and_an_equal_loss_are_nothing(value: float) -> None:
    assume(value > 0)
    assert geometric_mean([value, 1 / value]) == pytest.approx(1)


@pytest.mark.parametrize("values", [[], [0.0], [1.0, -2.0]])
def test_no_geometric_mean_of(values: list[float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        geometric_mean(values)
