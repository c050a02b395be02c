"""The GPU's clock, temperature and power under load: which GPU, when, and what is too low."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from autotune.machine import clocks
from autotune.machine.clocks import extremes, fallen, ranges_of, read_busiest, reading_clocks


def gpu(busy: float | None, mhz: float | None, celsius: float, watts: float | None) -> Any:
    return {"busy_percent": busy, "clock_mhz": mhz, "celsius": celsius, "watts": watts}


@pytest.mark.parametrize(
    ("gpus", "read"),
    [
        ([], {}),
        ([gpu(None, 2400.0, 60.0, None)], {"sm_mhz": 2400.0, "temperature_c": 60.0}),
        (
            [gpu(0.0, 300.0, 30.0, 9.0), gpu(96.0, 2100.0, 71.0, 45.4)],
            {"sm_mhz": 2100.0, "temperature_c": 71.0, "power_mw": 45_400.0},
        ),
    ],
)
def test_the_gpu_that_works_is_read(gpus: Any, read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "now", lambda: {"gpus": gpus})
    assert read_busiest() == read


def test_it_is_read_while_the_body_runs_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ended = threading.Semaphore(0), threading.Event()
    threads: list[threading.Thread] = []

    def read() -> dict[str, float]:
        threads.append(threading.current_thread())
        asked.release()
        if len(threads) == 3:  # is asked in the body, and answers after it
            ended.wait()
        return {"sm_mhz": float(len(threads))}

    monkeypatch.setattr(clocks, "read_busiest", read)
    with reading_clocks(first_s=0.0, every_s=0.0) as found:
        for _ in range(3):
            asked.acquire()
    ended.set()
    threads[0].join()
    assert found == [{"sm_mhz": 1.0}, {"sm_mhz": 2.0}]


def test_where_nothing_is_told_it_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: queue.Queue[threading.Thread] = queue.Queue()

    def read() -> dict[str, float]:
        threads.put(threading.current_thread())
        return {}

    monkeypatch.setattr(clocks, "read_busiest", read)
    with reading_clocks(first_s=0.0, every_s=0.0) as found:
        threads.get().join()
    assert threads.empty()
    assert found == []


def test_two_readings_keep_the_least_and_the_most() -> None:
    read = [{"sm_mhz": 2000.0}, {"sm_mhz": 1500.0, "power_mw": 40.0}, {"sm_mhz": 2400.0}]
    kept = extremes(read)
    assert len(kept) == 2
    assert ranges_of(kept) == ranges_of(read) == {"sm_mhz": (1500.0, 2400.0), "power_mw": (40, 40)}
    assert extremes([]) == []


@pytest.mark.parametrize(
    ("low", "most", "warns"), [(1950.0, 0.0, False), (1900.0, 0.0, True), (1950.0, 2500.0, True)]
)
def test_a_clock_a_fifth_below_the_highest_is_throttling(
    low: float, most: float, warns: bool
) -> None:
    said = fallen({"sm_mhz": (low, 2400.0), "temperature_c": (60.0, 91.0)}, "in a load", most)
    high = max(most, 2400.0)
    words = f"the SM clock fell to {low:.0f} of {high:.0f} MHz in a load at 91 °C: the device was"
    assert [one.startswith(words) for one in said] == [True] * warns
    assert fallen({"power_mw": (1.0, 2.0)}, "in a load") == []
