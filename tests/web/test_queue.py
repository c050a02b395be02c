"""What the service decides, in memory: who starts, what an end means, what a new start finds."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import BadInputError
from autotune.machine.devices import GpuInfo
from autotune.store.records import JobRecord, JobState, Stop
from autotune.web.kinds import gpus_needed, parse
from autotune.web.queue import (
    CRASHED,
    LIGHT,
    MOST_ATTEMPTS,
    Capacity,
    ended,
    resumed,
    rooms,
    starts,
)

GPUS = [GpuInfo(n, "NVIDIA H100", f"GPU-{n}", "610", "81559", "9.0") for n in range(4)]
SPEC: dict[str, Any] = {"target": "a/b", "drafter": "ngram"}


@pytest.mark.parametrize(
    ("args", "on_four", "on_none"),
    [
        ({}, 1, 1),
        ({"ray": "local"}, 4, 1),
        ({"ray": "10.0.0.1:6379"}, 4, 1),
        ({"server_arg": "--tensor-parallel-size 2"}, 2, 1),
        ({"server_arg": "--tensor-parallel-size=2 --pipeline-parallel-size 2"}, 4, 1),
        ({"set": ["tensor-parallel-size=1,4", "block-size=16"]}, 4, 1),
        ({"launcher": "docker", "image": "i"}, 4, 1),
        ({"launcher": "url", "url": "http://127.0.0.1:1", "target": (), "drafter": ()}, 1, 1),
    ],
    ids=str,
)
def test_a_job_keeps_all_gpus_that_its_servers_take(
    args: dict[str, Any], on_four: int, on_none: int
) -> None:
    request = parse("spec", {n: v for n, v in (SPEC | args).items() if v})
    assert gpus_needed(request, GPUS, None) == on_four
    assert gpus_needed(request, [], None) == on_none


def test_a_server_that_fits_on_no_gpus_of_this_machine_is_refused() -> None:
    request = parse("spec", SPEC | {"server_arg": "--tensor-parallel-size 8"})
    with pytest.raises(BadInputError, match="takes 8 GPUs, and this machine has 4"):
        gpus_needed(request, GPUS, None)
    assert gpus_needed(parse("moe", {"device": "gb10", "ray": "local"}), GPUS, None) == 4
    assert gpus_needed(parse("moe", {"device": "gb10", "ray": "local"}), [], None) == 0


JOB = JobRecord(
    *(1, "moe", "", {}, 0, None, 0, None, "", JobState.QUEUED, "", Stop.NO, None, 0, None, ""),
    *(datetime(2026, 1, 1, tzinfo=UTC), None, None, None),
)


def job(number: int, kind: str = "moe", **more: Any) -> JobRecord:
    args = more.pop("args", {"study": f"s{number}"})
    return dataclasses.replace(JOB, id=number, kind=kind, args=args, **more)


def started(queued: list[JobRecord], alive: list[JobRecord], **capacity: Any) -> list[Any]:
    found = starts(queued, alive, Capacity(**capacity))
    return [(start.job.id, *start.gpus) for start in found]


def test_one_job_a_gpu_and_predictions_beside_it() -> None:
    queued = [job(1, "spec", gpus_wanted=1), job(2, "spec", gpus_wanted=1), job(3), job(4)]
    assert started(queued, [], gpus=("0",)) == [(1, "0"), (3,)]
    assert started(queued, [], gpus=("0", "1"), predictions=2) == [(1, "0"), (2, "1"), (3,), (4,)]
    alive = [job(9, "spec", gpus_wanted=1, gpus="0", state=JobState.RUNNING)]
    assert started(queued, alive, gpus=("0", "1")) == [(1, "1"), (3,)]
    assert started([job(1, "spec", gpus_wanted=1)], [], gpus=("",)) == [(1, "")]


def test_a_higher_priority_starts_first_and_the_rest_as_they_came() -> None:
    queued = [job(1), job(2, priority=5), job(3, priority=5)]
    assert started(queued, [], predictions=2) == [(2,), (3,)]


def test_one_that_wants_many_gpus_is_not_overtaken_for_ever() -> None:
    alive = [job(9, "spec", gpus_wanted=1, gpus="0")]
    queued = [job(1, "spec", gpus_wanted=2), job(2, "spec", gpus_wanted=1)]
    assert started(queued, alive, gpus=("0", "1")) == []
    assert started(queued, [], gpus=("0", "1")) == [(1, "0", "1")]
    assert started([job(1, "spec", gpus_wanted=8)], [], gpus=("0", "1")) == [(1, "0", "1")]


def test_two_jobs_of_one_study_do_not_run_at_once() -> None:
    same = {"device": "gb10", "model": "m"}
    queued = [job(1, args=same), job(2, args=same | {"seed": 1}), job(3, args=same | {"tp": 2})]
    assert started(queued, [], predictions=3) == [(1,), (3,)]
    assert started(queued, [job(9, args=same)], predictions=3) == [(3,)]


def test_reading_files_waits_for_nothing_long() -> None:
    alive = [job(8), job(9, "spec", gpus_wanted=1)]
    queued = [job(1), *(job(n, "files", args={"model": "m"}) for n in (2, 3, 4))]
    assert started(queued, alive, light=2) == [(2,), (3,)]


@given(
    st.lists(st.tuples(st.sampled_from(["moe", "spec", "files"]), st.integers(0, 3)), max_size=12),
    st.integers(1, 3),
)
def test_never_two_on_a_gpu(wanted: list[tuple[str, int]], gpus: int) -> None:
    queued = [job(n, kind, gpus_wanted=g, priority=n % 3) for n, (kind, g) in enumerate(wanted)]
    capacity = Capacity(tuple(map(str, range(gpus))))
    alive: list[JobRecord] = []
    while found := starts(queued, alive, capacity):
        alive += [dataclasses.replace(s.job, gpus=",".join(s.gpus)) for s in found]
        used = [gpu for one in alive if one.gpus_wanted for gpu in one.gpus.split(",")]
        assert len(used) == len(set(used)) <= gpus
        assert sum(not one.gpus_wanted and one.kind not in LIGHT for one in alive) <= 1
        queued = [one for one in queued if one.id not in {other.id for other in alive}]
        alive.pop(0)


@pytest.mark.parametrize(
    ("stop", "code", "state", "said"),
    [
        (Stop.NO, 0, JobState.SUCCEEDED, ""),
        (Stop.NO, 1, JobState.FAILED, "two errors"),
        (Stop.NO, 2, JobState.FAILED, "two errors"),
        (Stop.NO, 4, JobState.FAILED, "two errors"),
        (Stop.NO, CRASHED, JobState.FAILED, "traceback"),
        (Stop.NO, -9, JobState.FAILED, "SIGKILL"),
        (Stop.NO, -77, JobState.FAILED, "77"),
        (Stop.NO, 130, JobState.INTERRUPTED, "from outside"),
        (Stop.NO, None, JobState.INTERRUPTED, "nobody looked"),
        (Stop.CANCEL, 130, JobState.CANCELLED, "saved"),
        (Stop.CANCEL, -9, JobState.CANCELLED, "saved"),
        (Stop.CANCEL, None, JobState.CANCELLED, "saved"),
        (Stop.CANCEL, 0, JobState.SUCCEEDED, ""),
        (Stop.TIME, 130, JobState.CANCELLED, "max_time"),
        (Stop.LOG, 130, JobState.FAILED, "log"),
        (Stop.DRAIN, 130, JobState.INTERRUPTED, "goes on"),
    ],
)
def test_what_an_end_means(stop: Stop, code: int | None, state: JobState, said: str) -> None:
    change = ended(job(1, stop=stop), code, "two errors")
    assert change.state is state
    assert said in change.reason


def test_what_is_flagged_is_an_answer_of_some_kinds() -> None:
    assert ended(job(1, kind="verify"), 1, "two errors").state is JobState.SUCCEEDED
    assert ended(job(1, kind="moe"), 1, "two errors").state is JobState.FAILED


def test_what_goes_on_when_the_service_starts() -> None:
    left = job(1, state=JobState.INTERRUPTED, attempt=1)
    found = resumed(left, resume=True)
    assert found is not None
    assert found.state is JobState.QUEUED
    assert resumed(left, resume=False) is None
    assert resumed(dataclasses.replace(left, attempt=MOST_ATTEMPTS), resume=True) is None
    drained = dataclasses.replace(left, attempt=MOST_ATTEMPTS, stop=Stop.DRAIN)
    assert resumed(drained, resume=True) is not None
    assert resumed(dataclasses.replace(left, state=JobState.FAILED), resume=True) is None


def test_only_jobs_with_room_are_looked_for() -> None:
    assert rooms([], Capacity()) == {"gpu", "prediction", "light"}
    alive = [job(1), job(2, "spec", gpus_wanted=1), job(3, "files")]
    assert rooms(alive, Capacity()) == {"light"}
    assert rooms(alive, Capacity(("0", "1"), predictions=2, light=1)) == {"gpu", "prediction"}
