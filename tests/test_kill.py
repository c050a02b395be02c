"""Kill -9 at random moments of a run, then run again: same file, no trial lost or doubled.

By day the loop and the store are killed in a process of their own, with times that are made up, and
the real command in a container (tests/test_containers.py). By night the command itself works in the
smallest space that has something left to do after each stop, and is killed twenty times in a larger
one.
"""

from __future__ import annotations

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

from autotune.core import ExitCode
from autotune.store.records import RunStatus
from tests.support import synthetic_job
from tests.support.forks import FORKS

pytestmark = pytest.mark.kill

SPACE = Path(__file__).parent / "data" / "small-space.yaml"
FEW = {"[16, 32]": "[16]", "[32, 64]": "[32]", "[2, 3, 4, 5]": "[2, 3, 4]"}
"""What leaves three of its sixteen candidates; vLLM's default comes before them."""
PATIENCE_S = 420.0
RUN = "import sys; from autotune.cli import main; sys.argv[0] = 'autotune'; main()"
Row = tuple[str, str, int, str, float]
Expected = tuple[bytes, list[Row]]


def command(folder: Path, space: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-c", RUN, "moe", "--device", "gb10", "--space", str(space)),
        *("--out", str(folder), "--db", f"sqlite:///{folder}/autotune.db", *more),
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
            self.command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def command(self, folder: Path) -> list[str]:
        return command(folder, SPACE, "--batch-sizes", "1,512", "--workers", "2")

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
        assert gone(children, within_s=60), "a worker outlived its killed parent"

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == ExitCode.INTERRUPTED, errors
        assert "saved" in errors.splitlines()[-1]
        assert "Traceback" not in errors

    @staticmethod
    def final_file(folder: Path) -> bytes:
        (path,) = folder.glob("*/predicted/E=*.json")
        return path.read_bytes()


class SmallCommand(RealCommand):
    """The same with three candidates and one process to compile them."""

    def command(self, folder: Path) -> list[str]:
        text = SPACE.read_text()
        for whole, part in FEW.items():
            text = text.replace(whole, part)
        space = folder.parent / "space.yaml"
        space.write_text(text)
        return command(folder, space, "--batch-sizes", "1", "--workers", "1")


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


def undisturbed(kind: type[RealCommand | SyntheticCommand], folder: Path) -> Expected:
    """What a run that nobody disturbs leaves."""
    calm = folder / "calm"
    calm.mkdir()
    assert kind(calm).over(within_s=PATIENCE_S)
    expected = kind.final_file(calm), stored(calm)
    assert expected[1]
    return expected


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
    began = time.monotonic()
    expected = undisturbed(kind, folder)
    following = moments(time.monotonic() - began)

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
    assert kind(rough).over(within_s=PATIENCE_S)
    assert (kind.final_file(rough), stored(rough)) == expected


def statuses(folder: Path) -> list[str]:
    """How the runs of a database ended, the first one first."""
    with closing(sqlite3.connect(folder / "autotune.db")) as connection:
        return [status for (status,) in connection.execute("SELECT status FROM runs ORDER BY id")]


@pytest.mark.nightly  # by day in a container, and the files of a run that is made up
@pytest.mark.timeout(900)
def test_a_command_killed_and_interrupted_gives_the_file_of_an_undisturbed_run(
    tmp_path: Path,
) -> None:
    """Killed before there is a trial, killed after one, Ctrl-C after another."""
    expected = undisturbed(SmallCommand, tmp_path)
    rough = tmp_path / "rough"
    rough.mkdir()
    first = SmallCommand(rough)
    assert not first.over(0.3)
    first.kill()
    second = SmallCommand(rough)
    assert not further(second, rough)
    second.kill()
    kept = set(stored(rough))
    assert kept
    third = SmallCommand(rough)
    assert not further(third, rough)
    third.interrupt()
    more = set(stored(rough))
    assert kept < more < set(expected[1])
    assert statuses(rough)[-1] == RunStatus.INTERRUPTED
    assert SmallCommand(rough).over(PATIENCE_S)
    assert (SmallCommand.final_file(rough), stored(rough)) == expected
    assert statuses(rough)[-3:] == [RunStatus.KILLED, RunStatus.INTERRUPTED, RunStatus.DONE]


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_killed_command_gives_the_file_of_an_undisturbed_run(tmp_path: Path) -> None:
    kill_and_go_on(
        RealCommand, tmp_path, lambda calm_s: at_random(0.15 * calm_s + 2.5, 0.1 * calm_s), kills=20
    )


def test_the_loop_and_the_store_killed_twenty_times(tmp_path: Path) -> None:
    kill_and_go_on(
        SyntheticCommand, tmp_path, lambda calm_s: at_random(0.3 * calm_s, 0.1 * calm_s), kills=20
    )
    last = max(tmp_path.glob("rough*/autotune.db"), key=lambda it: it.stat().st_mtime_ns)
    *before, end = statuses(last.parent)
    assert end == RunStatus.DONE
    # One that stored its end and was killed before its process was gone is done.
    assert set(before) <= {RunStatus.KILLED, RunStatus.DONE}
