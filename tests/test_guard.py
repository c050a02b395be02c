"""The memory guard: real process trees under a MemAvailable that the test controls."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.machine.guard import GIB, Ender, Floors, MemoryGuard, guarded, kill_tree

EATER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
left = float(open(sys.argv[1]).read().split()[1]) / 2**20
while True:
    left -= 0.5
    with open(sys.argv[1] + ".new", "w") as f:
        f.write(f"MemTotal: 127000000 kB\\nMemAvailable: {int(max(left, 0) * 2**20)} kB\\n")
    os.replace(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(0.02)
"""
"""Starts a child and then takes 25 GiB a second, as the file tells it."""


WAIT = "import time; time.sleep(600)"


def wait_for_child(pid: int) -> int:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if children := psutil.Process(pid).children():
            return int(children[0].pid)
        time.sleep(0.01)
    raise AssertionError("no child")


def write(source: Path, gib: float) -> None:
    source.write_text(f"MemTotal: 127000000 kB\nMemAvailable: {int(gib * 2**20)} kB\n")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    write(path, 20)
    return path


@pytest.fixture(scope="module")
def childless() -> Iterator[int]:
    """A process in whose place the guard ends children: those of the tests are not its own."""
    with process("-c", WAIT) as child:
        yield child.pid


@contextmanager
def process(*args: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, *args], stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def tree(process: subprocess.Popen[str]) -> Ender:
    return functools.partial(kill_tree, process.pid)


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@pytest.mark.timing
def test_a_tree_that_eats_memory_is_killed_within_half_a_second_of_the_floor(source: Path) -> None:
    for _ in range(4):  # a busy machine may hold up the guard, the eater or us, but not each time
        write(source, 20)
        if _killed_after(source) < 0.5:
            return
    raise AssertionError("four times it was not")


def _killed_after(source: Path) -> float:
    """Seconds from the floor to the end of one that eats memory."""
    guard = MemoryGuard(Floors(6 * GIB, 0), source=source, period_s=0.1)
    with guard, process("-c", EATER, str(source)) as eater:
        assert eater.stdout is not None
        grandchild = int(eater.stdout.readline())
        with guard.watch("the server", tree(eater)) as watched:
            while float(source.read_text().split()[4]) > 6 * 2**20:
                time.sleep(0.005)
            crossed = time.monotonic()
            eater.wait(timeout=60)
            took = time.monotonic() - crossed
    assert watched.fall is not None
    assert "GiB of the host's memory were left, below the floor of 6.0 GiB" in str(watched.fall)
    assert gone(grandchild)
    return took


def test_above_the_floors_nothing_is_killed(source: Path) -> None:
    guard = MemoryGuard(source=source)
    with (
        process("-c", WAIT) as child,
        guard.watch("x", tree(child)) as watched,
    ):
        write(source, 6.0)
        assert guard.check() is None
        assert child.poll() is None
    assert watched.fall is None
    assert guard.lowest == 6 * GIB


PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {WAIT!r}])"


def test_between_the_floors_what_is_not_watched_lives(source: Path) -> None:
    with process("-c", PARENT) as ours, process("-c", WAIT) as measuring:
        compiler = wait_for_child(ours.pid)
        guard = MemoryGuard(source=source, root=ours.pid)
        with guard.watch("measuring", tree(measuring)) as watched:
            write(source, 5)
            assert guard.check() is not None
        assert measuring.wait(timeout=60) == -9
        assert not gone(compiler)
        assert watched.fall is not None
        write(source, 3.9)
        assert guard.check() is not None
        psutil.wait_procs([psutil.Process(compiler)] if psutil.pid_exists(compiler) else [], 60)
        assert gone(compiler)


def test_a_watcher_that_wakes_late_acts_earlier(source: Path, childless: int) -> None:
    times = iter([0.0, 2.5])
    guard = MemoryGuard(source=source, root=childless, clock=lambda: next(times))
    with (
        process("-c", WAIT) as child,
        guard.watch("server", tree(child)) as watched,
    ):
        assert guard.check() is None
        write(source, 8)  # 12 GiB in 2.5 s: as much again would pass the floor unseen
        assert guard.check() is not None
        assert child.wait(timeout=60) == -9
    assert watched.fall is not None


def test_a_watcher_in_time_does_not(source: Path, childless: int) -> None:
    times = iter([0.0, 0.3])
    guard = MemoryGuard(source=source, root=childless, clock=lambda: next(times))
    assert guard.check() is None
    write(source, 8)
    assert guard.check() is None


@given(
    available=st.floats(0, 200),
    before=st.floats(0, 200),
    gap=st.floats(0.01, 1000, allow_nan=False),
)
def test_below_a_floor_it_always_acts(
    tmp_path_factory: pytest.TempPathFactory,
    childless: int,
    available: float,
    before: float,
    gap: float,
) -> None:
    source = tmp_path_factory.getbasetemp() / "property"
    times = iter([0.0, gap])
    guard = MemoryGuard(
        Floors(6 * GIB, 0), source=source, root=childless, clock=lambda: next(times)
    )
    write(source, before)
    guard.check()
    write(source, available)
    fell = guard.check() is not None
    assert fell or int(available * 2**20) >= 6 * 2**20
    if available >= before and available >= 6.001:
        assert not fell, "memory that grows ends nothing"


def test_on_a_spark_where_the_watcher_is_slow_it_acts_before_the_memory_is_gone(
    source: Path, childless: int
) -> None:
    """25 GiB go in a second, and every reading comes three quarters of a second after the last."""
    now = 0.0
    guard = MemoryGuard(source=source, root=childless, clock=lambda: now)
    with process("-c", WAIT) as server, guard.watch("the server", tree(server)) as watched:
        write(source, 60)
        while guard.check() is None and now < 3:
            now += 0.75
            write(source, max(0.0, 60 - 25 * now))
        assert server.wait(timeout=60) == -9
    assert watched.fall is not None
    assert watched.fall.available > 6 * GIB, "before the floor: the next reading would be too late"


def test_a_command_that_ends_what_is_watched_is_spared(source: Path) -> None:
    """As ``docker rm --force``, without which a container would go on."""
    done = source.with_name("done")
    ender = subprocess.Popen(["sh", "-c", f"sleep 0.5; touch {done}"])
    with (
        process("-c", WAIT) as ours,
        MemoryGuard(source=source, period_s=60) as guard,
        guard.watch("the container", lambda: ender),
    ):
        write(source, 1)
        assert guard.check() is not None
        assert ours.wait(timeout=60) == -9
        assert not done.exists()
    assert done.exists()


def test_what_fails_after_everything_was_ended_failed_for_that(
    source: Path, childless: int
) -> None:
    def work() -> None:
        guard = MemoryGuard(source=source, root=childless)
        with guarded(unified=True, guard=guard):
            write(source, 3)
            guard.check()
            raise BadInputError("worker processes die")

    with pytest.raises(MissingEnvironmentError, match=r"3\.0 GiB of the host's .* goes on"):
        work()


def test_where_memory_is_not_unified_nothing_is_watched(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_MEMINFO", str(source / "nowhere"))
    with guarded(unified=False) as guard:
        assert not guard.watches
        assert guard.has_room(2**60)


def test_room_is_waited_for_and_leaves_the_reserve(source: Path, childless: int) -> None:
    with MemoryGuard(source=source, root=childless) as guard:
        assert guard.has_room(12 * GIB, within_s=0)
        assert not guard.has_room(13 * GIB, within_s=0.3)
        waiting = threading.Timer(0.3, write, (source, 21.0))
        waiting.start()
        assert guard.has_room(13 * GIB, within_s=10)


def test_a_fall_is_told_once(source: Path, childless: int) -> None:
    guard = MemoryGuard(source=source, root=childless)
    with guard.watch("x", lambda: None) as watched:
        write(source, 5)
        guard.check()
        assert watched.take() is not None
        assert watched.take() is None


def test_a_source_that_goes_away_ends_what_is_watched(source: Path, childless: int) -> None:
    guard = MemoryGuard(source=source, period_s=0.01, root=childless)
    with (
        guard,
        process("-c", WAIT) as child,
        guard.watch("server", tree(child)) as watched,
    ):
        source.unlink()
        assert child.wait(timeout=60) == -9
        assert watched.fall is not None
        assert guard.error is not None


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 3\n"])
def test_a_machine_that_cannot_be_watched_is_an_error_before_anything_starts(
    source: Path, text: str
) -> None:
    source.write_text(text)
    with pytest.raises(MissingEnvironmentError, match="meminfo"), MemoryGuard(source=source):
        pytest.fail("it started")


def test_floors_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="out of order"):
        Floors(measuring=1, everything=2)


def test_children_are_preferred_by_the_oom_killer() -> None:
    code = (
        "from autotune.machine.guard import prefer_for_oom_kill as p; p();"
        "print(open('/proc/self/oom_score_adj').read())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "1000"
