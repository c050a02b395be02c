"""The real kernel module without a GPU: what it does around the launches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.core import MissingEnvironmentError
from autotune.kernels.measure import process as kernel
from autotune.kernels.measure.requests import EXIT_RECYCLE, Comparison, GpuSetup, Timing
from autotune.kernels.moe.routing import Routing
from tests.synthetic import SHAPE

STEP, CAPTURE, REPLAY, CHECK = "step", "capture", "replay", "check"


def worker(folder: Path, problem: Any = None, limit: int | None = None) -> kernel._Worker:
    setup = GpuSetup(SHAPE, Routing(), 0, 1, (4,), "", str(folder), limit)
    return kernel._Worker(setup, 4, problem, None, None, ExitStack())


class _Problem:
    """Draws nothing."""

    def inputs(self, m: int, calls: int, seed: int) -> str:
        return f"M={m}"

    def redraw(self, inputs: str, seed: int) -> None:
        pass


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the module does, in order."""
    log: list[str] = []

    class Graph:
        def __init__(self, *_: Any) -> None:
            log.append(CAPTURE)

        def replay_us(self) -> float:
            log.append(REPLAY)
            return 100.0

        def close(self) -> None:
            pass

    @contextmanager
    def guarded(_: Any, __: str, seconds: float) -> Iterator[dict[str, Any]]:
        kernel._begin_step(seconds)
        yield {}

    def errors(_: Any, request: Comparison) -> list[float | None]:
        log.append(CHECK)
        return [0.0] * len(request.params)

    watchdog = SimpleNamespace(dump_traceback_later=lambda *_, **__: log.append(STEP))
    monkeypatch.setattr(kernel, "faulthandler", watchdog)
    monkeypatch.setattr(kernel, "_worker", [worker(tmp_path, _Problem())])
    monkeypatch.setattr(kernel, "_Graph", Graph)
    monkeypatch.setattr(kernel, "_guarded", guarded)
    monkeypatch.setattr(kernel, "_errors", errors)
    monkeypatch.setattr(kernel, "_clocks", dict)
    return log


def steps(done: list[str]) -> list[list[str]]:
    """What was done between two resets of the watchdog."""
    found: list[list[str]] = []
    for what in done:
        if what == STEP:
            found.append([])
        else:
            found[-1].append(what)
    return found


def test_the_time_limit_of_a_comparison_is_of_each_step(done: list[str]) -> None:
    """Not of the whole, whose length depends on the device."""
    found = kernel.compare(Comparison("k", 64, ({}, {}, {}), 9, 0, check=True))
    round_of_one = [REPLAY] * (1 + kernel.REPLAYS_PER_ROUND)
    assert steps(done) == [[CHECK], *[[CAPTURE]] * 3, *[round_of_one] * 27]
    assert found["gpu"] == 4
    assert found["samples"] == [[100.0] * 9] * 3


def test_a_candidate_is_captured_in_one_step_and_replayed_in_the_next(done: list[str]) -> None:
    found = kernel.time_candidate(Timing("k", 64, {}))
    assert steps(done) == [[CAPTURE], [REPLAY] * 5]
    assert (found["samples"], found["raced"], found["gpu"]) == ([100.0] * 5, False, 4)
    slow = kernel.time_candidate(Timing("k", 64, {}, best_us=50.0))
    assert (slow["samples"], slow["raced"]) == ([100.0] * 2, True)


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def _mortal(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(kernel, "os", SimpleNamespace(_exit=end))


@pytest.mark.usefixtures("_mortal")
def test_a_process_ends_when_it_holds_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = worker(tmp_path, limit=100)
    for held in (60, 100):
        monkeypatch.setattr(kernel, "_held_mib", lambda held=held: held)
        kernel._make_room(it)
    monkeypatch.setattr(kernel, "_held_mib", lambda: 101)
    with pytest.raises(Ended) as ended:
        kernel._make_room(it)
    assert ended.value.args == (EXIT_RECYCLE,)
    kernel._make_room(worker(tmp_path, limit=None))


@pytest.mark.usefixtures("_mortal")
def test_a_limit_that_no_process_can_keep_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replacing it would go on for ever, half a minute each."""
    monkeypatch.setattr(kernel, "_held_mib", lambda: 101)
    with pytest.raises(MissingEnvironmentError, match=r"--memory-limit: .* 101 MiB .* of 100 MiB"):
        kernel._make_room(worker(tmp_path, limit=100))


def test_what_other_processes_hold_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what the device has in use for them, nor what torch keeps for later."""
    kept = [50 * 2**20]
    cuda = SimpleNamespace(empty_cache=kept.clear, memory_reserved=lambda: 7 * 2**20 + sum(kept))
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=30 * 2**20))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(kernel, "psutil", SimpleNamespace(Process=lambda: process))
    assert kernel._held_mib() == 37
