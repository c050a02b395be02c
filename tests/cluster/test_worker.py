"""What an actor does on its node, without Ray around it."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from autotune.cluster.crew import Lost, Seat, Setting, Task
from autotune.core import MissingEnvironmentError
from autotune.kernels.cluster import _new_files
from autotune.machine.guard import GIB, MemoryGuard
from autotune.measure.pool import TaskStatus
from tests.support.box import Box, eat
from tests.support.processes import wait_for

pytest.importorskip("ray")
from ray.exceptions import ActorUnschedulableError, NodeDiedError, RayError, RayTaskError

from autotune.cluster.actors import RayCrew, Worker, put


def begin(folder: str) -> None:
    Path(folder).mkdir()


def leave(path: str) -> dict[str, Any]:
    """As a compile does: the kernel stays in a folder."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(b"code")
    return {"outcome": "ok"}


def die(path: str) -> None:
    Path(path).write_text("the device was lost")
    os._exit(70)


def fit(initargs: tuple[Any, ...], seat: Seat) -> tuple[Any, ...]:
    return (f"{initargs[0]}-{seat.node}",)


def words(initargs: tuple[Any, ...], item: str) -> str:
    assert initargs[0].endswith("-n1")
    return Path(item).read_text()


def test_kernels_come_from_another_machine_once_and_last_words_too(tmp_path: Path) -> None:
    worker = Worker("n1", "the driver's machine", gpu=False)
    setting = Setting(
        "search",
        begin,
        (str(tmp_path / "made"),),
        fit=fit,
        collect=partial(_new_files, tmp_path),
        last_words=words,
    )
    kernel = tmp_path / "hash" / "k.cubin"
    first = worker.run(setting, leave, str(kernel), 60.0, {str(tmp_path / "a" / "sent"): b"x"})
    assert first.value is not None
    assert (tmp_path / "made-n1").is_dir(), "the arguments are those of the seat"
    assert first.value["place"]["node"] == "n1"
    assert first.value["files"] == {str(kernel): b"code", str(tmp_path / "a" / "sent"): b"x"}
    os.utime(kernel, (0, 0))
    again = worker.run(setting, leave, str(kernel), 60.0, {})
    assert again.value is not None
    assert again.value["files"] == {}
    (tmp_path / "made-n1").rmdir()  # the process after the dead one makes it anew
    dead = worker.run(setting, die, str(tmp_path / "words"), 60.0, {})
    assert (dead.status, dead.message) == (TaskStatus.CRASH, "the device was lost")
    worker.close(None)


def eats(_: None) -> None:
    eat(1000, most_gib=105)
    time.sleep(600)


@pytest.mark.kill
def test_the_guard_of_a_seat_ends_what_eats_its_memory_and_nobody_is_blamed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees its own machine, and no other; the next task has a new process."""
    monkeypatch.setattr("autotune.machine.guard.RECOVERY_S", 0.3)
    guarded = Setting("search", int, need=4 * GIB)
    with Box(tmp_path, free_gib=110).install(monkeypatch, tmp_path) as box:
        worker = Worker("n1", "the driver's machine", gpu=False)
        short = worker.run(guarded, eats, None, 60.0, {})
        assert short.status is TaskStatus.HOST_MEMORY
        assert "of the host's memory were left" in short.message
        assert worker.run(guarded, abs, -1, 60.0, {}).value == 1
        worker.clear("search")
        box.free = 11
        wait_for(lambda: MemoryGuard().available() < 12 * GIB)
        with pytest.raises(MissingEnvironmentError, match=r"measuring takes about 4\.0 GiB"):
            worker.run(guarded, abs, -1, 60.0, {})
        worker.close(None)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ActorUnschedulableError("its node does not exist any more"), True),
        (NodeDiedError("its node died"), True),  # type: ignore[no-untyped-call]
        (RayTaskError("run", "", MissingEnvironmentError("x")), False),  # type: ignore[no-untyped-call]
    ],
)
def test_whatever_ray_calls_it_a_seat_that_is_gone_gives_its_task_back(
    monkeypatch: pytest.MonkeyPatch, error: RayError, lost: bool
) -> None:
    """A raylet that is killed without its workers leaves actors that cannot be scheduled."""

    def fails(_: Any) -> None:
        raise error

    monkeypatch.setattr("ray.get", fails)
    crew, task = RayCrew.__new__(RayCrew), Task(Setting("search", int), abs, 1, 1.0)
    crew._given, crew._load = {"answer": ("seat", task)}, {"seat": 1}
    crew._absent, crew._has = {}, {}
    _, what = crew._ended("answer")
    assert isinstance(what, Lost) is lost
    assert ("seat" in crew._absent) is lost
    assert crew._load == {"seat": 0}


@pytest.mark.parametrize("had", [True, False])
def test_a_seat_goes_by_the_gpu_that_its_actor_has_now(
    monkeypatch: pytest.MonkeyPatch, had: bool
) -> None:
    """Two actors were lost at once; Ray gave the first the GPU of the second, or one of nobody."""
    first, second, third = (Seat("host", "n" * 56, n, f"GPU-{n}") for n in range(3))
    crew = RayCrew.__new__(RayCrew)
    crew._actors = {first.name: "a", second.name: "b"}
    crew._seats = {first.name: first, second.name: second}
    crew._load, crew._given, crew._has = dict.fromkeys(crew._actors, 0), {}, {}
    crew._absent = {first.name: 0.0, second.name: 0.0}
    crew._pings = {"of a": first.name, "of b": second.name}
    now = {"of a": second if had else third, "of b": first if had else second}
    monkeypatch.setattr("ray.get", now.get)
    crew._heard("of a")
    assert list(crew.seats) == [now["of a"].name]
    crew._heard("of b")
    assert crew._actors == {now["of a"].name: "a", now["of b"].name: "b"}
    assert crew.seats == dict.fromkeys(crew._actors, 0)
    assert {name: seat.name for name, seat in crew._seats.items()} == {n: n for n in crew._actors}


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    file = tmp_path / "k"
    file.write_bytes(b"whole")
    put({str(file): b"other", str(tmp_path / "sub" / "new"): b"n"})
    assert file.read_bytes() == b"whole"
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["new"]
