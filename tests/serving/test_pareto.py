"""The Pareto front and its knee."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import Candidate
from autotune.serving.decide.pareto import Point, ends_and_knee, front, knee, point_of


def points(*rates: tuple[float, float]) -> list[Point]:
    return [Point(Candidate.of({"gamma": i}), *pair) for i, pair in enumerate(rates)]


def gammas(found: list[Point]) -> list[int]:
    return [point.candidate.int("gamma") for point in found]


def test_a_point_is_one_stream_s_rate_against_all_streams_rate() -> None:
    found = point_of(Candidate.of({"gamma": 1}), {2: 100.0, 4: 160.0, 8: 240.0})
    assert found is not None
    assert (found.single, found.aggregate) == (50.0, 240.0)
    assert point_of(Candidate.of({"gamma": 1}), {}) is None


def test_what_another_beats_in_both_is_not_on_the_front() -> None:
    made = points((10, 100), (20, 90), (15, 80), (20, 80), (30, 50))
    assert gammas(front(made)) == [4, 1, 0]


def test_equal_points_are_on_the_front_once() -> None:
    assert gammas(front(points((10, 100), (10, 100)))) == [0]


def test_the_knee_is_farthest_from_the_line_through_the_ends() -> None:
    # The line from (30, 50) to (10, 100): (28, 60) is above it by little, (24, 90) by much.
    made = points((30, 50), (28, 60), (24, 90), (10, 100))
    assert knee(front(made)).candidate.int("gamma") == 2
    assert gammas(ends_and_knee(made)) == [2, 0, 3]


def test_of_a_straight_or_hollow_front_the_knee_is_its_single_end() -> None:
    assert knee(front(points((30, 50), (20, 75), (10, 100)))).single == 30
    assert knee(front(points((30, 50), (12, 55), (10, 100)))).single == 30
    assert gammas(ends_and_knee(points((30, 50)))) == [0]
    assert ends_and_knee([]) == []
    with pytest.raises(ValueError, match="no knee"):
        knee([])


rates = st.floats(1, 1e4)


@given(st.lists(st.tuples(rates, rates), min_size=1, max_size=12))
def test_a_front_is_ordered_and_every_other_point_is_beaten_or_equal(
    pairs: list[tuple[float, float]],
) -> None:
    made = points(*pairs)
    found = front(made)
    assert [p.single for p in found] == sorted({p.single for p in found}, reverse=True)
    assert [p.aggregate for p in found] == sorted({p.aggregate for p in found})
    assert not any(a.dominates(b) for a in found for b in found)
    for point in made:
        equal = [(p.single, p.aggregate) == (point.single, point.aggregate) for p in found]
        assert any(equal) or any(p.dominates(point) for p in found)
    assert knee(found) in found
