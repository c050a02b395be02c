"""Measuring kernels on an emulated Spark whose memory runs short: real processes are killed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core import Group, Job, Measurement, MissingEnvironmentError, Outcome
from autotune.kernels.job import Result, run
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.processes import GpuOptions
from autotune.kernels.measure.requests import Timing
from autotune.kernels.moe.shape import MoeWorkload
from autotune.machine.guard import GIB, Fall, Watched
from autotune.measure.pool import TaskResult, TaskStatus, WorkerPool
from autotune.store.store import Store
from tests import fake_kernel
from tests.kernels.test_gpu import SHAPE, NoCompiler, candidate, measurer, starts
from tests.kernels.test_measured_job import plan
from tests.support.box import Box, eat

SMALL, LARGE = MoeWorkload(SHAPE, 8), MoeWorkload(SHAPE, 64)
EATS = candidate(fake_kernel.EATS)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    with Box(tmp_path, free_gib=13).install(monkeypatch, tmp_path) as machine:
        yield machine


def guarded(**changes: Any) -> GpuMeasurer:
    return measurer(**{"unified": True, "need": 4 * GIB, **changes})


def outcomes(found: list[Measurement]) -> list[str]:
    return [one.outcome.value for one in found]


@pytest.mark.kill
def test_what_eats_the_memory_is_killed_and_nothing_as_large_is_tried(box: Box) -> None:
    jobs = [
        Job(candidate(stages=2), LARGE),
        Job(EATS, LARGE),
        Job(candidate(stages=3), LARGE),
        Job(candidate(stages=2), SMALL),
        Job(candidate(stages=3), MoeWorkload(SHAPE, 65)),
        Job(candidate(columns=32), SMALL),
        Job(candidate(stages=3), SMALL),
    ]
    with guarded() as opened:
        found = list(opened.measure(jobs))
        processes = starts(opened)
    short = Outcome.HOST_MEMORY.value
    assert outcomes(found) == ["ok", short, short, "ok", short, "compile_error", "ok"]
    assert "GiB of the host's memory were left, below the floor of 6.0 GiB" in found[1].message
    assert found[2].message == found[4].message == "not tried: M=64 ran the host short of memory"
    assert len(processes) == 2, "one was killed and one was begun"
    assert box.lowest == pytest.approx(5)


@pytest.mark.kill
def test_in_a_comparison_the_whole_group_ran_short(box: Box) -> None:
    good, better = candidate(stages=3), candidate(stages=2)
    groups = [Group(LARGE, (good, EATS), 1), Group(LARGE, (good,), 2), Group(SMALL, (better,), 3)]
    with guarded() as opened:
        (timed,) = opened.measure([Job(good, SMALL)])
        assert timed.outcome is Outcome.OK
        first, second, third = opened.compare(groups, check=False)
    assert {m.outcome for m in (*first.values(), *second.values())} == {Outcome.HOST_MEMORY}
    assert third[better].outcome is Outcome.OK


def test_a_fall_is_that_of_the_killed_process_whichever_answer_comes_first() -> None:
    """One that had ended before says nothing of it; a seat of a cluster says it itself."""
    request = Timing("1", 64, {}, None)
    watched = Watched("a measuring process", lambda: None, Fall(5 * GIB, 6 * GIB))
    timer = measurer()
    timer._pools["search"] = (WorkerPool(1), watched)
    ended = TaskResult[dict[str, Any]](TaskStatus.CRASH, message="died", exit_code=-11)
    killed = replace(ended, exit_code=-9)
    seat = replace(ended, status=TaskStatus.HOST_MEMORY, message="ended because")
    found = [timer._value(one, request) for one in (ended, killed, killed, seat)]
    assert outcomes([one for one in found if isinstance(one, Measurement)]) == [
        "crash",
        "host_memory",
        "crash",
        "host_memory",
    ]
    timer._close_pools()


@pytest.mark.usefixtures("box")
def test_the_search_is_closed_before_the_comparison_opens() -> None:
    with guarded() as opened:
        list(opened.measure([Job(candidate(), SMALL)]))
        opened.prepare_comparisons()
        assert list(opened._pools) == ["search"]
        list(opened.compare([Group(SMALL, (candidate(),), 1)], check=False))
        assert list(opened._pools) == ["compare"]
    with measurer() as opened:
        list(opened.measure([Job(candidate(), SMALL)]))
        opened.prepare_comparisons()
        assert list(opened._pools) == ["search", "compare"], "elsewhere it would only take longer"


@pytest.mark.kill
def test_where_the_memory_does_not_come_back_the_command_ends(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else took it: what is measured is kept, and the line says who is large."""
    monkeypatch.setattr("autotune.machine.guard.RECOVERY_S", 0.3)
    with guarded() as opened:
        answers = opened.measure([Job(EATS, LARGE), Job(candidate(), SMALL)])
        assert next(answers).outcome is Outcome.HOST_MEMORY
        box.free = 11
        with pytest.raises(MissingEnvironmentError) as ended:
            list(answers)
    assert "measuring takes about 4.0 GiB" in str(ended.value)
    assert "the same command goes on" in str(ended.value)


@pytest.mark.kill
def test_below_the_lower_floor_all_ends_and_no_candidate_is_blamed(box: Box) -> None:
    with guarded() as opened:
        answers = opened.measure([Job(candidate(), SMALL), Job(EATS, LARGE)])
        assert next(answers).outcome is Outcome.OK
        box.free = 3
        assert next(answers).outcome is Outcome.HOST_MEMORY
        with pytest.raises(MissingEnvironmentError, match="everything that was started was ended"):
            list(answers)


@pytest.mark.usefixtures("box")
def test_an_earlier_commands_limit_is_kept() -> None:
    with guarded() as opened:
        opened.spare(64)
        opened.spare(99)
        found = list(opened.measure([Job(candidate(), w) for w in (SMALL, LARGE, SMALL)]))
    assert outcomes(found) == ["ok", "host_memory", "ok"]


def test_where_memory_is_not_unified_nothing_is_watched(box: Box) -> None:
    box.free = 1
    with measurer() as opened:
        found = list(opened.measure([Job(candidate(fake_kernel.SEGFAULTS), SMALL)]))
    assert outcomes(found) == ["crash"]


# ------------------------------------------------------ this module in place of the kernel

EATS_AT = "AUTOTUNE_TEST_EATS_AT"
"""In the environment: the M at which everything eats."""
set_up, device_facts, ready = fake_kernel.set_up, fake_kernel.device_facts, fake_kernel.ready
compare = fake_kernel.compare


def time_candidate(request: Timing) -> dict[str, Any]:
    if os.environ.get(EATS_AT) == str(request.m):
        eat(1000, most_gib=8)
        time.sleep(600)
    return fake_kernel.time_candidate(request)


def tune(folder: Path, **changes: Any) -> Result:
    options = GpuOptions(
        gpus=(0,),
        arch=90,
        l2_bytes=60 * 2**20,
        kernel="tests.kernels.test_host_memory",
        locks=(folder / "locks",),
        unified=True,
    )
    timer = GpuMeasurer(SHAPE, options, NoCompiler())
    with Store.open(f"sqlite:///{folder}/a.db") as store:
        return run(plan(unified=True, **changes), store, timer, lambda _: None)


@pytest.mark.kill
@pytest.mark.usefixtures("box")
def test_a_job_goes_on_without_what_ran_short_until_it_is_asked_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EATS_AT, "64")
    first = tune(tmp_path)
    assert set(first.selections) >= {1, 8}
    assert "ran the host short of memory" in first.failed[64]
    assert first.counts["host_memory"] > 1
    assert not {m for m in first.selections if m >= 64}
    monkeypatch.delenv(EATS_AT)
    second = tune(tmp_path)
    assert second.counts["ok"] == first.counts["ok"], "nothing lost, nothing repeated"
    assert second.failed == first.failed
    third = tune(tmp_path, retry_failed=True)
    assert 64 in third.selections
    assert not third.failed
    assert third.counts["host_memory"] == second.counts["host_memory"], "it stays on record"
