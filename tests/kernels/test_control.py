"""Controls of a search: what drifts is corrected, what changed half-way is measured again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.core import Basis, Candidate, HoldsNothing, Job, Measurement, Outcome
from autotune.kernels.measure.control import Controlled, Drift, Pace, slow_device, throttled
from autotune.kernels.moe.from_model import load_config, shape_from_config
from autotune.kernels.moe.shape import MoeWorkload

GEMMA = shape_from_config(load_config("gemma-4-26b-a4b"))
DEFAULT = Candidate.of({"n": 0})
ONE, TWO = MoeWorkload(GEMMA, 1), MoeWorkload(GEMMA, 2)


class Device(HoldsNothing):
    """Takes 100 µs and the candidate's number, as many times as ``slow`` says of the n-th job."""

    basis = Basis.SYNTHETIC

    def __init__(self, slow: Callable[[int], float] = lambda _: 1.0) -> None:
        self.slow, self.asked = slow, list[Job]()

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        for job in jobs:
            slow = self.slow(len(self.asked))
            self.asked.append(job)
            if job.candidate["n"] == 13:
                yield Measurement(Outcome.CRASH, self.basis, message="died")
            else:
                yield Measurement(Outcome.OK, self.basis, (100 + job.candidate.int("n")) * slow)


def jobs(count: int, workload: MoeWorkload = ONE, start: int = 1) -> list[Job]:
    return [Job(Candidate.of({"n": start + n}), workload) for n in range(count)]


def controlled(device: Device, *without: MoeWorkload) -> Controlled:
    keys = [w.key for w in (ONE, TWO) if w not in without]
    return Controlled(device, dict.fromkeys(keys, DEFAULT), dict.fromkeys(keys, 100.0))


def values(found: Iterable[Measurement]) -> list[float | None]:
    return [None if m.value is None else round(m.value, 6) for m in found]


def test_a_steady_device_is_left_alone_and_costs_one_job_in_nine() -> None:
    device = Device()
    control = controlled(device)
    found = list(control.measure([*jobs(8), *jobs(8, TWO), *jobs(3, start=20)]))
    assert values(found) == [101 + n for n in range(8)] * 2 + [120, 121, 122]
    assert len(device.asked) == 19 + 3
    assert [j.rules.control for j in device.asked].count(True) == 3
    assert (control.drift.controls, control.drift.again) == (3, 0)


def test_a_slow_drift_is_divided_out() -> None:
    device = Device(lambda n: 1 + 0.003 * n)
    found = list(controlled(device).measure(jobs(64)))
    assert [v / (101 + n) for n, v in enumerate(values(found)) if v and n != 12] == pytest.approx(
        [1.0] * 63, abs=0.03
    )
    assert all("control" in m.details for m in found if m.value)


def test_after_a_step_what_matters_is_measured_again_under_the_new_pace() -> None:
    device = Device(lambda n: 1.25 if n >= 4 else 1.0)
    control = controlled(device)
    found = list(control.measure(jobs(8)))
    assert values(found) == [101 + n for n in range(8)]
    assert control.drift.again == 8
    assert control.drift.most == pytest.approx(1.25)


def test_what_cannot_win_is_not_measured_again() -> None:
    device = Device(lambda n: 1.25 if n >= 4 else 1.0)
    control = controlled(device)
    found = list(control.measure([*jobs(4), *jobs(4, start=500)]))
    assert control.drift.again == 4
    assert values(found)[:4] == [101, 102, 103, 104]


def test_a_failure_stays_one_and_a_second_try_takes_no_value_away() -> None:
    assert [m.outcome for m in controlled(Device()).measure(jobs(2, start=12))] == [
        Outcome.OK,
        Outcome.CRASH,
    ]


def test_a_batch_size_without_a_default_is_passed_through() -> None:
    device = Device(lambda _: 2.0)
    found = list(controlled(device, TWO).measure([*jobs(2), *jobs(2, TWO)]))
    assert values(found) == [101, 102, 202, 204]


def test_the_pace_goes_with_each_job_for_the_race() -> None:
    device = Device(lambda _: 1.5)
    control = controlled(device)
    list(control.measure(jobs(8)))
    list(control.measure(jobs(1, start=20)))
    assert device.asked[-2].rules == Pace(1.5, control=False)


def test_jobs_that_run_dry_and_come_again_are_answered_in_order() -> None:
    """As the loop does: the next batch is known only once the last one is told."""
    control = controlled(Device())
    told: list[float | None] = []
    for turn in range(3):
        told += values(control.measure(jobs(8, start=20 + 8 * turn)))
    assert told == [120 + n for n in range(24)]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([ONE, TWO]), st.integers(1, 30)), max_size=40),
    st.lists(st.floats(0.7, 1.6), min_size=1, max_size=9),
)
def test_every_job_is_answered_once_in_order(
    given_jobs: list[tuple[MoeWorkload, int]], paces: list[float]
) -> None:
    device = Device(lambda n: paces[n // 5 % len(paces)])
    wanted = [Job(Candidate.of({"n": n}), workload) for workload, n in given_jobs]
    found = list(controlled(device).measure(iter(wanted)))
    assert len(found) == len(wanted)
    for job, one in zip(wanted, found, strict=True):
        assert (one.value is None) == (job.candidate["n"] == 13)


def facts(**changes: Any) -> dict[str, Any]:
    drift = Drift()
    drift.take(1.0, {"sm_mhz": 2400, "temperature_c": 60})
    return {"copy_gbs": 215.0, "drift": drift.as_json() | changes}


def test_a_steady_device_is_no_warning() -> None:
    assert slow_device(facts(), 218) == []
    assert slow_device({"copy_gbs": 215.0}, 218) == [], "facts of older studies"


def test_a_slow_memory_a_drift_and_a_low_clock_are_named() -> None:
    clocks = {"sm_mhz": [1500, 2400], "temperature_c": [60, 91]}
    found = facts(least=0.98, most=1.3, measured_again=7, clocks=clocks) | {"copy_gbs": 170.0}
    slow, unsteady, throttled = slow_device(found, 218)
    assert "170 GB/s, 78%" in slow
    assert "0.98 to 1.30 times" in unsteady
    assert "7 candidates" in unsteady
    assert "1500 of 2400 MHz during the search at 91 °C" in throttled


def test_a_comparison_that_ended_at_a_low_clock_is_named() -> None:
    drift = {"clocks": {"sm_mhz": [2300, 2400]}}
    steady = {m: {"sm_mhz": 2350.0, "power_mw": 1.0} for m in (1, 8)}
    assert throttled(steady | {64: {}}, drift) == []
    (said,) = throttled(steady | {4096: {"sm_mhz": 1400.0}}, drift)
    assert "from 2400 MHz" in said
    assert "(M=4096: 1400)" in said
    (alone,) = throttled(steady | {4096: {"sm_mhz": 1400.0}}, {})
    assert "from 2350 MHz" in alone
    assert throttled({}, {}) == []
