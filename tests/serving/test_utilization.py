"""Both borders of the memory utilization are found, whatever the machine is like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autotune.core import (
    BadInputError,
    Basis,
    Candidate,
    Measurement,
    NoFeasibleCandidateError,
    Outcome,
    Phase,
    Trial,
)
from autotune.serving.memory.search import first_step, memory_said
from autotune.serving.memory.utilization import Borders, Evidence, find_borders, parse_range


def evidence(percent: int, outcome: Outcome = Outcome.OK, **details: Any) -> Evidence:
    value = 1.0 if outcome is Outcome.OK else None
    found = Measurement(outcome, Basis.MEASURED, value, details=details, message="boom")
    candidate = Candidate.of({"gamma": 1, "gpu_memory_utilization": percent / 100})
    return Evidence(Trial(candidate, "w", Phase.SEARCH, 0, found))


class Machine:
    """The KV cache grows by ``slope`` tokens a hundredth from ``start`` on; ``dies`` above it."""

    def __init__(self, start: int, slope: int, dies: int) -> None:
        self.start, self.slope, self.dies = start, slope, dies
        self.boots: list[int] = []

    def tokens(self, percent: int) -> int:
        return self.slope * (percent - self.start)

    def probe(self, percent: int) -> Evidence:
        self.boots.append(percent)
        if percent > self.dies:
            return evidence(percent, Outcome.OUT_OF_MEMORY, failure="out_of_memory_under_load")
        tokens = self.tokens(percent)
        if tokens <= 0:
            return evidence(percent, Outcome.OUT_OF_MEMORY, failure="kv_cache_too_small")
        return evidence(percent, context=100, kv_cache_tokens=tokens, preemptions=int(tokens < 800))

    def find(self, low: int, high: int, slope: float | None = None) -> Borders:
        return find_borders(low, high, 8, self.probe, slope)


@given(
    start=st.integers(0, 60),
    dies=st.integers(20, 100),
    low=st.integers(1, 60),
    size=st.integers(1, 39),
)
def test_from_below_the_same_is_found_and_no_step_is_larger_than_what_held(
    start: int, dies: int, low: int, size: int
) -> None:
    high = low + size
    assume(start < low or start < dies)

    def found(upwards: bool) -> tuple[int | None, list[int]]:
        machine = Machine(start, 50, dies)
        try:
            borders = find_borders(low, high, 8, machine.probe, upwards=upwards)
        except NoFeasibleCandidateError:
            return None, machine.boots
        return borders.most, machine.boots

    most, boots = found(upwards=True)
    assert most == found(upwards=False)[0]
    assert boots[0] == low
    best = low - 1
    for boot in boots:
        assert boot <= max(low, 2 * best - low + 3), "twice as far as what held"
        best = max(best, boot) if boot <= dies else best


def test_a_good_model_needs_three_boots() -> None:
    machine = Machine(start=20, slope=50, dies=100)
    found = machine.find(30, 90, 50.0)
    assert (found.least, found.most, found.tokens) == (36, 90, 800)
    assert machine.boots == [90, 36, 35]


def test_a_wrong_model_is_put_right_by_the_first_boots() -> None:
    machine = Machine(start=20, slope=50, dies=100)
    assert machine.find(30, 90, 20.0).least == 36
    assert len(machine.boots) <= 5


def test_out_of_memory_under_load_lowers_the_most() -> None:
    machine = Machine(start=20, slope=50, dies=84)
    found = machine.find(30, 95, 50.0)
    assert (found.least, found.most) == (36, 84)


def test_what_even_the_most_does_not_hold_is_said() -> None:
    found = Machine(start=50, slope=10, dies=100).find(55, 90, 10.0)
    assert (found.least, found.most) == (None, 90)


@pytest.mark.parametrize("missing", ["preemptions", "kv_cache_tokens"])
def test_what_a_server_does_not_tell_is_not_taken_for_held(missing: str) -> None:
    def probe(percent: int) -> Evidence:
        counted: dict[str, Any] = {"context": 100, "kv_cache_tokens": 5000, "preemptions": 0}
        return evidence(percent, **(counted | {missing: None}))

    found = find_borders(40, 90, 8, probe)
    assert (found.least, found.most, found.told) == (None, 90, False)
    assert "which holds 800 tokens at once without preemption is not known" in memory_said(found)


def test_what_an_earlier_command_measured_may_not_be_free_now() -> None:
    found = Machine(start=20, slope=50, dies=100).find(30, 90, 50.0)
    assert "free now" not in memory_said(found)
    found.free = 90
    assert "free now" not in memory_said(found)
    found.free = 88
    assert memory_said(found).endswith(
        "at most 0.90 survives the full load, by an earlier command: 0.88 is free now, and a new "
        "start at more fails"
    )


@pytest.mark.parametrize(
    ("free", "stored", "expected"),
    [
        (90, [], 90),
        (91, [90, 40, 65], 90),
        (92, [90], 90),
        (93, [90], 93),  # so much more is worth measuring anew
        (80, [90, 40], 90),
    ],
)
def test_a_search_begins_where_the_earlier_one_did(
    free: int, stored: list[int], expected: int
) -> None:
    assert first_step(free, stored) == expected


def test_where_nothing_survives_there_is_no_answer() -> None:
    with pytest.raises(NoFeasibleCandidateError, match=r"none survives.*boom"):
        Machine(start=20, slope=50, dies=30).find(40, 90)


def test_a_failure_that_is_not_of_memory_ends_it() -> None:
    with pytest.raises(NoFeasibleCandidateError, match="another reason than memory: boom"):
        find_borders(40, 90, 8, lambda p: evidence(p, Outcome.CONSTRAINT, failure="bad_value"))


@given(
    st.integers(0, 60),
    st.integers(1, 400),
    st.integers(1, 100),
    st.integers(1, 60),
    st.one_of(st.none(), st.floats(0.5, 1000)),
)
def test_the_borders_are_those_of_trying_everything(
    start: int, slope: int, dies: int, low: int, guess: float | None
) -> None:
    machine, high = Machine(start, slope, dies), 95
    alive = [p for p in range(low, high + 1) if p <= dies and machine.tokens(p) > 0]
    assume(alive)
    found = machine.find(low, high, guess)
    assert found.most == max(alive)
    assert found.least == min((p for p in alive if machine.tokens(p) >= 800), default=None)
    assert len(machine.boots) == len(set(machine.boots)) <= 18


def test_a_range_is_in_hundredths() -> None:
    assert parse_range("0.4:0.9") == (40, 90)
    assert parse_range("0.85:1") == (85, 100)


@pytest.mark.parametrize(
    "text", ["0.9:0.4", "0:0.5", "0.4:1.2", "a:b", "0.4:", "0.401:0.9", "1:2:3"]
)
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="LOW:HIGH"):
        parse_range(text)
