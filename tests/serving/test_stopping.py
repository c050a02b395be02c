"""When a measurement is stopped: what is missed already, what cannot win any more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import BadInputError
from autotune.serving.measure.stopping import Bar, cannot_win, parse_slo, slo_missed
from autotune.serving.measure.timing import RequestRecord
from autotune.serving.scenario import SpecScenario


def requests(*ttft_ms: float) -> list[RequestRecord]:
    return [
        RequestRecord(0.0, ttft_s=ms / 1e3, latency_s=ms / 1e3 + 1.0, output_tokens=11)
        for ms in ttft_ms
    ]


def scenario(objective: str = "geomean", *levels: int) -> SpecScenario:
    return SpecScenario("t", "d", "p", "k", levels or (1, 8), 8, True, True, 3, 1, objective)


def test_limits_are_read_with_their_units() -> None:
    assert parse_slo(None) == ()
    assert parse_slo("tpot=50ms,ttft=1.5s") == (("ttft", 1500.0), ("tpot", 50.0))


@pytest.mark.parametrize("text", ["ttft=500", "itl=5ms", "ttft", "", "ttft=0ms", "ttft=1s,ttft=2s"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="--slo"):
        parse_slo(text)


def test_a_limit_is_missed_only_when_it_is_certain() -> None:
    slow = requests(900.0)
    assert slo_missed({"ttft": 500.0}, slow, 1) == "ttft p99 900.0 ms is above 500 ms"
    # One of a thousand may be slow, and of ten it may not.
    assert slo_missed({"ttft": 500.0}, slow, 1000) is None
    assert slo_missed({"ttft": 500.0}, slow, 10) is not None
    assert slo_missed({"ttft": 901.0}, slow, 1) is None
    assert slo_missed({"tpot": 99.0}, slow, 1) == "tpot p99 100.0 ms is above 99 ms"
    assert slo_missed({"e2e": 1899.0}, slow, 1) == "e2e p99 1900.0 ms is above 1899 ms"
    assert slo_missed({"ttft": 1.0}, [], 0) is None


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=40), st.integers(1, 40), st.floats(1, 999))
def test_what_is_stopped_would_have_missed_in_the_end(
    times: list[float], cut: int, limit: float
) -> None:
    made = requests(*times)
    if slo_missed({"ttft": limit}, made[:cut], len(made)):
        assert slo_missed({"ttft": limit}, made, len(made))


def test_a_stream_is_not_faster_in_company() -> None:
    bar = Bar(us=1e6 / (100 * 700) ** 0.5, tok_s={1: 100.0, 8: 700.0})
    # 50 alone is at best 400 of eight streams: half as fast, and slower at 8 too.
    found = cannot_win(scenario(), {1: [49, 50]}, bar)
    assert found is not None
    assert "at best 7071" in found
    assert cannot_win(scenario(), {1: [49, 84]}, bar) is None  # 672 of 8 may be the fastest there
    assert cannot_win(scenario("single"), {1: [84, 50]}, Bar(1e4, {1: 100, 8: 600})) is None
    assert cannot_win(scenario("single"), {1: [70, 70]}, Bar(1e4, {1: 100, 8: 800})) is not None
    assert cannot_win(scenario(), {}, bar) is None


def test_what_is_measured_to_the_end_is_not_stopped() -> None:
    bar = Bar(us=1.0, tok_s={1: 1e6, 8: 1e6})
    assert cannot_win(scenario(), {1: [1, 1, 1], 8: [2, 2]}, bar) is not None
    assert cannot_win(scenario(), {1: [1, 1, 1], 8: [2, 2, 2]}, bar) is None


rates = st.floats(10, 1000)


@given(rates, st.floats(0.01, 1.0), rates, rates)
def test_what_is_stopped_would_have_lost(
    alone: float, scaling: float, bar_alone: float, bar_all: float
) -> None:
    load = scenario()
    best = {1: bar_alone, 8: bar_all}
    if cannot_win(load, {1: [alone, alone]}, Bar(load.microseconds(best), best)):
        final = {1: alone, 8: alone * 8 * scaling}
        assert load.microseconds(final) > load.microseconds(best)
        assert final[8] < bar_all
