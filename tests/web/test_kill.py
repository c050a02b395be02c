"""Kill -9 of the service and of jobs: none is lost, none runs twice at once, no trial is lost."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.synthetic_service import TOTAL
from tests.web.served import REPOSITORY, Served, reached

pytestmark = pytest.mark.kill


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    root = tmp_path / "root"
    root.mkdir()
    made = Served(root)
    yield made
    if made.process.poll() is None:
        made.stop()


def rows(root: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(root / "autotune.db", timeout=30)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return database.execute(query).fetchall()


def check_trials(root: Path, studies: int) -> None:
    found = rows(root, "SELECT search_id, workload_id, phase, sequence FROM trials")
    assert len(found) == len(set(found)) == studies * TOTAL


def pid_of(root: Path, job: int) -> int | None:
    ((pid,),) = rows(root, f"SELECT pid FROM jobs WHERE id = {job}")
    return None if pid is None else int(pid)


def test_a_killed_service_finds_its_jobs_again(served: Served) -> None:
    job = served.submit("s")
    served.wait(job, reached(5))
    served.kill()
    time.sleep(0.3)
    served.start()  # the job went on meanwhile, and is watched again
    found = served.wait(job)
    assert (found["state"], found["attempt"], found["exit_code"]) == ("SUCCEEDED", 1, 0)
    assert found["progress"]["done"] == TOTAL
    check_trials(served.root, 1)


def test_a_job_that_ended_unseen_is_known_by_what_it_left(served: Served) -> None:
    job = served.submit("s")
    served.wait(job, reached(TOTAL - 20))
    served.kill()
    end = time.monotonic() + 30
    while not (served.root / "jobs" / str(job) / "exit-1.json").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    served.start()
    found = served.wait(job)
    assert (found["state"], found["attempt"]) == ("SUCCEEDED", 1)


def test_a_job_killed_with_its_service_goes_on(served: Served) -> None:
    job = served.submit("s")
    served.wait(job, reached(20))
    pid = pid_of(served.root, job)
    assert pid is not None
    served.kill()
    os.killpg(pid, signal.SIGKILL)
    served.start()
    found = served.wait(job)
    assert (found["state"], found["attempt"]) == ("SUCCEEDED", 2)
    assert found["progress"]["known_before"] >= 19
    check_trials(served.root, 1)


def test_a_job_killed_alone_has_failed_and_can_be_retried(served: Served) -> None:
    job = served.submit("s")
    served.wait(job, reached(10))
    os.killpg(pid_of(served.root, job) or 0, signal.SIGKILL)
    found = served.wait(job)
    assert (found["state"], found["exit_code"]) == ("FAILED", -9)
    assert "SIGKILL" in found["reason"]
    served.call("POST", f"/jobs/{job}:retry")
    assert served.wait(job, lambda one: one["state"] == "SUCCEEDED")["attempt"] == 2
    check_trials(served.root, 1)


def test_a_stopped_service_goes_on_when_it_starts_again(served: Served) -> None:
    job, waiting = served.submit("a"), served.submit("b")
    served.wait(job, reached(10))
    assert served.stop() == 0
    assert rows(served.root, "SELECT state FROM jobs ORDER BY id") == [
        ("INTERRUPTED",),
        ("QUEUED",),
    ]
    served.start()
    assert served.wait(job)["attempt"] == 2
    assert served.wait(waiting)["state"] == "SUCCEEDED"
    check_trials(served.root, 2)


def test_an_interrupted_job_stays_so_if_the_operator_says(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    served = Served(root, ("-m", "tests.support.synthetic_server"), "--no-resume")
    job = served.submit("a")
    served.wait(job, reached(5))
    served.stop()
    served.start()
    time.sleep(0.6)
    assert served.call("GET", f"/jobs/{job}")["state"] == "INTERRUPTED"
    served.call("POST", f"/jobs/{job}:cancel")
    assert served.call("GET", f"/jobs/{job}")["state"] == "CANCELLED"
    served.stop()


def test_a_cancel_survives_a_kill_of_the_service(served: Served) -> None:
    job = served.submit("s")
    served.wait(job, reached(3))
    served.call("POST", f"/jobs/{job}:cancel")
    served.kill()
    served.start()
    found = served.wait(job)
    if found["state"] == "SUCCEEDED":  # on a busy machine it was done before anybody could stop it
        assert found["progress"]["done"] == TOTAL
    else:
        assert found["state"] == "CANCELLED"


def test_a_database_locked_by_another_process_is_waited_for(served: Served) -> None:
    job = served.submit("s")
    served.wait(job, reached(3))
    with closing(sqlite3.connect(served.root / "autotune.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(2)
        assert served.call("GET", f"/jobs/{job}")["state"] == "RUNNING"  # readers do not wait
        other.execute("ROLLBACK")
    assert served.wait(job)["state"] == "SUCCEEDED"
    check_trials(served.root, 1)


def test_two_services_do_not_share_a_place(served: Served) -> None:
    db = f"sqlite:///{served.root}/autotune.db"
    second = subprocess.run(
        [
            *(sys.executable, "-m", "autotune", "serve", "--port", "0"),
            *("--root", str(served.root), "--db", db),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert second.returncode == 2
    assert "serves here already" in second.stderr
    assert second.stderr.count("\n") == 1


@pytest.mark.parametrize("seed", [1])
def test_kills_at_any_moment(served: Served, seed: int) -> None:
    """Service, job or both, ten times over; twenty kills stand in the nightly test."""
    kill_at_random(served, seed, 8)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [2, 3])
def test_kills_at_any_moment_more_often(served: Served, seed: int) -> None:
    kill_at_random(served, seed, 20)


def kill_at_random(served: Served, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    jobs = [served.submit(f"s{n}") for n in range(3)]
    for _ in range(kills):
        time.sleep(chance.uniform(0, 0.5))
        alive = rows(served.root, "SELECT id, pid FROM jobs WHERE state = 'RUNNING'")
        which = chance.choice(["service", "both"])
        served.kill()
        if which == "both":
            for _, pid in alive:
                if pid is not None:
                    try:
                        os.killpg(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
        served.start()
        running = rows(served.root, "SELECT count(*) FROM jobs WHERE state = 'RUNNING'")
        assert running[0][0] <= 1
    for job in jobs:
        assert served.wait(job, within_s=120)["state"] == "SUCCEEDED"
    check_trials(served.root, len(jobs))
    # Two processes of one study at once would be refused by its lock: exit code 2, FAILED.
    assert rows(served.root, "SELECT count(*) FROM jobs") == [(3,)]
