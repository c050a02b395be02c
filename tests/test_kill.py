"""Kill -9 at random moments of a run, then run again: same file, no trial lost or doubled."""

from __future__ import annotations

import itertools
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

import pytest

from autotune.store.records import RunStatus
from tests.support import synthetic_job
from tests.support.forks import FORKS

pytestmark = pytest.mark.kill

SPACE = Path(__file__).parent / "data" / "small-space.yaml"
RUN = "import sys; from autotune.cli import main; sys.argv[0] = 'autotune'; main()"
Row = tuple[str, str, int, str, float]


def command(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-c", RUN, "moe", "--device", "gb10", "--space", str(SPACE)),
        *("--batch-sizes", "1,512", "--out", str(folder), "--workers", "2"),
        *("--db", f"sqlite:///{folder}/autotune.db"),
    ]


def stored(folder: Path) -> list[Row]:
    """All trials, in order; none where there is no database yet."""
    query = """
        SELECT w.label, t.phase, t.sequence, t.candidate_key, m.value
        FROM trials t JOIN workloads w ON w.id = t.workload_id
        JOIN measurements m ON m.trial_id = t.id ORDER BY 1, 2, 3
    """
    if not (folder / "autotune.db").exists():
        return []
    with closing(sqlite3.connect(folder / "autotune.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
        return database.execute(query).fetchall() if "measurements" in tables else []


def count(folder: Path) -> int:
    """How many trials are stored, while a run stores them."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/autotune.db?mode=ro", uri=True)) as database:
            (found,) = database.execute("SELECT count(*) FROM trials").fetchone()
            return int(found)
    except sqlite3.OperationalError:
        return 0


def children_of(pid: int) -> set[int]:
    found = subprocess.run(
        ["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    return {int(child) for child in found}


def gone(pids: set[int], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


class Running(Protocol):
    """A command that was started."""

    def over(self, within_s: float) -> bool:
        """Whether it ended, and well, within this time."""

    def kill(self) -> None:
        """End it by SIGKILL, and see that its workers end too."""


class RealCommand:
    """``autotune moe`` with its compiling processes."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    def over(self, within_s: float) -> bool:
        try:
            _, errors = self.process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            return False
        assert self.process.returncode == 0, errors
        return True

    def kill(self) -> None:
        children = children_of(self.process.pid)
        self.process.kill()
        self.process.communicate()
        assert gone(children, within_s=20), "a worker outlived its killed parent"

    @staticmethod
    def final_file(folder: Path) -> bytes:
        (path,) = folder.glob("*/predicted/E=*.json")
        return path.read_bytes()


class SyntheticCommand:
    """The same steps in a process of its own, with a measurer that is made up."""

    def __init__(self, folder: Path) -> None:
        self.process = FORKS.Process(target=synthetic_job.run, args=(folder,))
        self.process.start()

    def over(self, within_s: float) -> bool:
        self.process.join(within_s)
        assert self.process.exitcode in (0, None)
        return self.process.exitcode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    @staticmethod
    def final_file(folder: Path) -> bytes:
        return synthetic_job.final_file(folder).read_bytes()


Moment = Callable[[Running, Path], bool]
"""Waits with a run for the moment to kill it; whether the run was over before."""


def further(run: Running, folder: Path) -> bool:
    """Wait until the run has stored something."""
    before = count(folder)
    while count(folder) == before:
        if run.over(0.02):
            return True
    return False


def at_random(set_up_s: float, search_s: float) -> Iterator[Moment]:
    """By turns during the set-up, and some time after something new was stored."""
    random_ = random.Random(20260101)
    while True:
        early, late = random_.uniform(0.0, set_up_s), random_.uniform(0.0, search_s)
        yield lambda run, _, wait_s=early: run.over(wait_s)  # type: ignore[misc]
        yield lambda run, folder, wait_s=late: further(run, folder) or run.over(wait_s)  # type: ignore[misc]


def as_it_goes_on() -> Iterator[Moment]:
    """First during the set-up, then each time that something new was stored."""
    yield lambda run, _: run.over(0.3)
    yield from itertools.repeat(further)


def kill_and_go_on(
    kind: type[RealCommand | SyntheticCommand],
    folder: Path,
    moments: Callable[[float], Iterator[Moment]],
    kills: int,
) -> None:
    """Kill a run again and again, and compare what is left with an undisturbed run.

    Args:
        kind: what is run.
        folder: where the runs work.
        moments: when to kill, given the seconds of an undisturbed run.
        kills: how often.
    """
    calm = folder / "calm"
    calm.mkdir()
    began = time.monotonic()
    assert kind(calm).over(within_s=420)
    following = moments(time.monotonic() - began)
    expected = kind.final_file(calm), stored(calm)
    assert expected[1]

    rough, seen, advances, killed = folder / "rough", set[Row](), 0, 0
    rough.mkdir()
    while killed < kills:
        run = kind(rough)
        if next(following)(run, rough):
            assert (kind.final_file(rough), stored(rough)) == expected
            rough, seen = folder / f"rough{killed}", set()  # it got through: begin again
            rough.mkdir(exist_ok=True)
            continue
        run.kill()
        killed += 1
        now = set(stored(rough))
        assert seen <= now, "a stored trial was lost"
        advances += now != seen
        seen = now
    assert advances >= kills // 3, "few kills came after something new was stored"
    assert kind(rough).over(within_s=420)
    assert (kind.final_file(rough), stored(rough)) == expected


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("moments", "kills"),
    [
        (lambda _: as_it_goes_on(), 3),
        pytest.param(
            lambda calm_s: at_random(0.15 * calm_s + 2.5, 0.1 * calm_s),
            20,
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["three", "twenty"],
)
def test_a_killed_command_gives_the_file_of_an_undisturbed_run(
    moments: Callable[[float], Iterator[Moment]], kills: int, tmp_path: Path
) -> None:
    kill_and_go_on(RealCommand, tmp_path, moments, kills)


def test_the_loop_and_the_store_killed_twenty_times(tmp_path: Path) -> None:
    kill_and_go_on(
        SyntheticCommand, tmp_path, lambda calm_s: at_random(0.3 * calm_s, 0.1 * calm_s), kills=20
    )
    (last, *_) = sorted(tmp_path.glob("rough*/autotune.db"), key=lambda it: -it.stat().st_mtime)
    with closing(sqlite3.connect(last)) as connection:
        found = [status for (status,) in connection.execute("SELECT status FROM runs ORDER BY id")]
    assert found[-1] == RunStatus.DONE
    # One that stored its end and was killed before its process was gone is done.
    assert set(found[:-1]) <= {RunStatus.KILLED, RunStatus.DONE}


def test_ctrl_c_saves_and_says_so(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60
    while time.monotonic() < end and not count(tmp_path):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "saved" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    with closing(sqlite3.connect(tmp_path / "autotune.db")) as connection:
        assert connection.execute("SELECT status FROM runs").fetchall() == [("interrupted",)]
