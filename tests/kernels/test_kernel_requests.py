"""The real kernel module without a GPU: what it does around the launches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
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


def test_a_slow_device_races_against_a_slower_best_and_a_control_reads_the_clocks(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_clocks", lambda: {"sm_mhz": 1500.0})
    found = kernel.time_candidate(Timing("k", 64, {}, best_us=80.0, slow=1.25, clocks=True))
    assert (found["raced"], found["clocks"]) == (False, {"sm_mhz": 1500.0})
    again = kernel.time_candidate(Timing("k", 64, {}))  # the best stays 80 at full speed
    assert again["raced"]
    assert "clocks" not in again
    assert done.count(CAPTURE) == 2


def torch_with(monkeypatch: pytest.MonkeyPatch, **cuda: Any) -> None:
    known = {"memory_reserved": lambda: 3 * 2**20, "synchronize": lambda: None}
    module = SimpleNamespace(cuda=SimpleNamespace(**(known | cuda)))
    monkeypatch.setitem(sys.modules, "torch", module)


@pytest.mark.parametrize(
    ("integrated", "told", "mib"),
    [(False, (10 * 2**20, 15 * 2**20), 5), (True, (0, 2**40), 3), (False, None, 3)],
    ids=["told", "unified: the host's files would count", "cudaMemGetInfo fails"],
)
def test_the_memory_of_the_device_never_ends_a_command(
    monkeypatch: pytest.MonkeyPatch, integrated: bool, told: tuple[int, int] | None, mib: int
) -> None:
    def info() -> tuple[int, int]:
        if told is None:
            raise RuntimeError("CUDA error: out of memory")
        return told

    def properties(_: int) -> SimpleNamespace:
        return SimpleNamespace(is_integrated=integrated)

    torch_with(monkeypatch, mem_get_info=info, get_device_properties=properties)
    assert kernel._memory()["device_mib"] == mib


class Captures:
    """Stands for ``torch.cuda.graph``: refuses a pool in which a block is still alive."""

    def __init__(self, frozen: set[str]) -> None:
        self.frozen, self.tried = frozen, list[str]()

    @contextmanager
    def __call__(self, _: Any, *, pool: str) -> Iterator[None]:
        self.tried.append(pool)
        if pool in self.frozen:
            raise RuntimeError("it->second->use_count > 0 INTERNAL ASSERT FAILED at CUDACaching")
        yield


def captured(
    monkeypatch: pytest.MonkeyPatch, folder: Path, frozen: set[str]
) -> tuple[kernel._Worker, Captures]:
    captures, drawn = Captures(frozen), iter(["second", "third"])
    torch_with(
        monkeypatch,
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: None),
        graph=captures,
        graph_pool_handle=lambda: next(drawn),
        Event=lambda **_: None,
    )
    layers = SimpleNamespace(override_config=lambda _: nullcontext())
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers.fused_moe", layers)
    own = worker(folder, SimpleNamespace(run=lambda *_: None))
    own.pool = "first"
    kernel._Graph(own, {}, SimpleNamespace(calls=[1, 2]))
    return own, captures


def test_a_block_left_in_the_graph_pool_is_not_blamed_on_the_next_candidate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own, captures = captured(monkeypatch, tmp_path, {"first"})
    assert captures.tried == ["first", "second"]
    assert own.pool == "second"
    with pytest.raises(RuntimeError, match="use_count > 0"):
        captured(monkeypatch, tmp_path, {"first", "second"})


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
