"""Kill -9 of the service and of jobs: none is lost, none runs twice at once, no trial is lost.

What a new start finds is decided in this process, where a service is left as by SIGKILL
(:meth:`tests.web.conftest.Site.killed`); real services with real jobs are killed at random moments.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.synthetic_service import TOTAL, hold, release
from tests.web.conftest import Site
from tests.web.served import Served, reached

pytestmark = pytest.mark.kill
API = "/api/v1"
Start = Callable[..., Site]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    root = tmp_path / "root"
    root.mkdir()
    made = Served(root)
    yield made
    if made.process.poll() is None:
        made.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a service at the place of the one before, which is left as by SIGKILL."""
    made: list[Site] = []

    def begin(**settings: Any) -> Site:
        if made:
            made[-1].abandon()
        made.append(Site(tmp_path, **settings))
        made[-1].runner.start()
        return made[-1]

    yield begin
    made[-1].close()


def rows(root: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(root / "autotune.db", timeout=30)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return database.execute(query).fetchall()


def check_trials(root: Path, studies: int) -> None:
    found = rows(root, "SELECT search_id, workload_id, phase, sequence FROM trials")
    assert len(found) == len(set(found)) == studies * TOTAL


def held(site: Site, measured: int, *study: str) -> int:
    """Submit a job that stands still after so many measurements, and wait until it does."""
    hold(site.root, measured)
    job = int(site.submit(*study)["id"])
    site.wait(job, reached(measured))
    return job


def kill_job(root: Path, job: int) -> None:
    ((pid,),) = rows(root, f"SELECT pid FROM jobs WHERE id = {job}")
    os.killpg(int(pid), signal.SIGKILL)


def test_a_killed_service_finds_its_jobs_again(start: Start) -> None:
    site = start()
    job = held(site, 5)
    site = start()  # the job runs yet, and is watched again
    assert site.job(job)["state"] == "RUNNING"
    release(site.root)
    found = site.wait(job)
    assert (found["state"], found["attempt"], found["exit_code"]) == ("SUCCEEDED", 1, 0)
    assert found["progress"]["done"] == TOTAL
    check_trials(site.root, 1)


def test_a_job_that_ended_unseen_is_known_by_what_it_left(start: Start) -> None:
    site = start()
    job = held(site, 5)
    site.abandon()
    release(site.root)
    end = time.monotonic() + 60
    while not (site.root / "jobs" / str(job) / "exit-1.json").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    found = start().wait(job)
    assert (found["state"], found["attempt"]) == ("SUCCEEDED", 1)


def test_a_job_killed_with_its_service_goes_on(start: Start) -> None:
    site = start()
    job = held(site, 20)
    site.abandon()
    kill_job(site.root, job)
    release(site.root)
    site = start()
    found = site.wait(job)
    assert (found["state"], found["attempt"]) == ("SUCCEEDED", 2)
    assert found["progress"]["known_before"] >= 19
    check_trials(site.root, 1)


def test_a_job_killed_alone_has_failed_and_can_be_retried(start: Start) -> None:
    site = start()
    job = held(site, 10)
    kill_job(site.root, job)
    release(site.root)
    found = site.wait(job)
    assert (found["state"], found["exit_code"]) == ("FAILED", -9)
    assert "SIGKILL" in found["reason"]
    site.client.post(f"{API}/jobs/{job}:retry", json={})
    assert site.wait(job, lambda one: one["state"] == "SUCCEEDED")["attempt"] == 2
    check_trials(site.root, 1)


def test_a_stopped_service_goes_on_when_it_starts_again(served: Served) -> None:
    hold(served.root, 10)
    job, waiting = served.submit("a"), served.submit("b")
    served.wait(job, reached(10))
    assert served.stop() == 0
    release(served.root)
    assert rows(served.root, "SELECT state FROM jobs ORDER BY id") == [
        ("INTERRUPTED",),
        ("QUEUED",),
    ]
    served.start()
    assert served.wait(job)["attempt"] == 2
    assert served.wait(waiting)["state"] == "SUCCEEDED"
    check_trials(served.root, 2)


def test_an_interrupted_job_stays_so_if_the_operator_says(start: Start) -> None:
    site = start(resume=False)
    job = held(site, 5, "a")
    site.close()
    site = start(resume=False)  # what it finds is settled before the queue runs
    assert site.job(job)["state"] == "INTERRUPTED"
    site.client.post(f"{API}/jobs/{job}:cancel", json={})
    assert site.job(job)["state"] == "CANCELLED"


def test_a_cancel_survives_a_kill_of_the_service(start: Start) -> None:
    site = start()
    job = held(site, 3)
    site.client.post(f"{API}/jobs/{job}:cancel", json={})
    assert start().wait(job)["state"] == "CANCELLED"


def test_a_database_locked_by_another_process_is_waited_for(start: Start) -> None:
    site = start()
    job = held(site, 3)
    with closing(sqlite3.connect(site.root / "autotune.db", timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        release(site.root)
        time.sleep(1)  # the job tries to write meanwhile; those who read do not wait
        assert site.job(job)["state"] == "RUNNING"
        other.rollback()
    second = site.submit("b")["id"]
    for one in (job, second):
        assert site.wait(one)["progress"]["done"] == TOTAL
    check_trials(site.root, 2)


def test_kills_at_any_moment(served: Served) -> None:
    """The service or both, thrice; twenty kills stand in the nightly test."""
    kill_at_random(served, 1, 3)


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
