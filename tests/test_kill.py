"""Kill -9 at random moments of a real run, then run again: same file, no trial lost or doubled."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

SPACE = Path(__file__).parent / "data" / "small-space.yaml"
KILLS = 20
RUN = "import sys; from autotune.cli import main; sys.argv[0] = 'autotune'; main()"


def command(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-c", RUN, "moe", "--device", "gb10", "--space", str(SPACE)),
        *("--batch-sizes", "1,24,512", "--out", str(folder), "--workers", "2"),
        *("--db", f"sqlite:///{folder}/autotune.db"),
    ]


def final_file(folder: Path) -> bytes:
    (path,) = folder.glob("*/predicted/E=*.json")
    return path.read_bytes()


def stored(folder: Path) -> list[tuple[str, str, int, str, float]]:
    query = """
        SELECT w.label, t.phase, t.sequence, t.candidate_key, m.value
        FROM trials t JOIN workloads w ON w.id = t.workload_id
        JOIN measurements m ON m.trial_id = t.id ORDER BY 1, 2, 3
    """
    with closing(sqlite3.connect(folder / "autotune.db")) as database:
        return database.execute(query).fetchall()


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


@pytest.mark.kill
@pytest.mark.timeout(900)
def test_killed_twenty_times_gives_the_file_of_an_undisturbed_run(tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    for folder in (calm, rough):
        folder.mkdir()
    began = time.monotonic()
    subprocess.run(command(calm), check=True, capture_output=True)
    undisturbed_s = time.monotonic() - began

    moments = random.Random(20260101)
    killed, saw_trials = 0, False
    seen: set[tuple[str, str, int, str, float]] = set()
    while killed < KILLS:
        # Early kills hit the set-up, late ones the search: every run gets a little further.
        wait_s = moments.uniform(0.05, 0.15 * undisturbed_s + 2.5)
        process = subprocess.Popen(
            command(rough), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            process.wait(wait_s)
            assert process.returncode == 0, process.stderr and process.stderr.read()
            assert final_file(rough) == final_file(calm)
            assert stored(rough) == stored(calm)
            rough, seen = tmp_path / f"rough{killed}", set()  # it got through: begin anew
            rough.mkdir(exist_ok=True)
            continue
        except subprocess.TimeoutExpired:
            children = children_of(process.pid)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            assert gone(children, within_s=3), "a worker outlived its killed parent"
        killed += 1
        if (rough / "autotune.db").exists():
            with closing(sqlite3.connect(rough / "autotune.db")) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                tables = {r[0] for r in database.execute("SELECT name FROM sqlite_master")}
            if "measurements" in tables:
                now = set(stored(rough))
                assert seen <= now, "a stored trial was lost"
                seen = now
                saw_trials = saw_trials or bool(seen)
    assert saw_trials, "no kill came after a trial was stored: the moments are too early"

    subprocess.run(command(rough), check=True, capture_output=True)
    assert final_file(rough) == final_file(calm)
    assert stored(rough) == stored(calm)


@pytest.mark.kill
def test_ctrl_c_saves_and_says_so(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    database = tmp_path / "autotune.db"
    end = time.monotonic() + 60
    while time.monotonic() < end and not (database.exists() and _trials(database)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "saved" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT status FROM runs").fetchall() == [("interrupted",)]


def _trials(database: Path) -> int:
    try:
        with closing(sqlite3.connect(database)) as connection:
            (count,) = connection.execute("SELECT count(*) FROM trials").fetchone()
            return int(count)
    except sqlite3.OperationalError:
        return 0
