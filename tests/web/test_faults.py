"""A full disk, a locked database, a clock set back, clients that are slow or gone, many trials."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import struct
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.store.records import JobState
from autotune.web import runner
from autotune.web.folders import JobFolder
from tests.support.synthetic_service import TOTAL
from tests.web.conftest import Site
from tests.web.served import Served, reached

STREAMS = 40
MIB = 1 << 20


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    root = tmp_path / "root"
    root.mkdir()
    made = Served(root)
    yield made
    made.stop()


def figure(served: Served, name: str) -> float:
    head = {"Authorization": f"Bearer {served.token}"}
    with urllib.request.urlopen(
        urllib.request.Request(f"{served.url}/metrics", headers=head)
    ) as got:
        lines = got.read().decode().splitlines()
    (line,) = [one for one in lines if one.startswith(f"{name} ")]
    return float(line.split()[1])


def until(done: Any, within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_database_that_another_process_locks_is_waited_for(served: Served) -> None:
    first = served.submit("a")
    served.wait(first, reached(5))
    with closing(sqlite3.connect(served.root / "autotune.db", timeout=30)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(3)
        assert served.call("GET", f"/jobs/{first}")["state"] == "RUNNING", "reading goes on"
        other.rollback()
    second = served.submit("b")
    for job in (first, second):
        assert served.wait(job)["progress"]["done"] == TOTAL


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    place.mkdir()
    if os.getuid() or shutil.which("mount") is None:
        pytest.skip("only root mounts a small file system")
    mounted = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_full_disk_costs_no_job(tmp_path: Path) -> None:
    with small_disk(tmp_path / "root") as root:
        served = Served(root)
        try:
            job = served.submit("s")
            served.wait(job, reached(5))
            filler = root / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            time.sleep(2)
            answer = served.call("GET", f"/jobs/{job}")
            assert answer["id"] == job
            with contextlib.suppress(urllib.error.HTTPError):
                served.submit("t")
            filler.unlink()
            found = served.wait(job)
            if found["state"] != "SUCCEEDED":  # its command ended in one line, and goes on
                assert found["state"] == "FAILED"
                log = JobFolder.of(root, job).log.read_text()
                assert "No space left" in log or "disk is full" in log
                served.call("POST", f"/jobs/{job}:retry", {})
                found = served.wait(job)
            assert found["state"] == "SUCCEEDED"
            with closing(sqlite3.connect(root / "autotune.db", timeout=30)) as database:
                assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                query = "SELECT count(*) FROM trials t JOIN searches s ON s.id = t.search_id JOIN "
                query += "studies u ON u.id = s.study_id WHERE u.name = 's'"
                assert database.execute(query).fetchone() == (TOTAL,)
        finally:
            served.stop()


def followed(served: Served, job: int) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", served.port), timeout=10)
    head = f"GET /api/v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
    made.sendall(f"{head}Authorization: Bearer {served.token}\r\n\r\n".encode())
    assert made.recv(12) == b"HTTP/1.1 200"
    return made


def test_clients_that_read_nothing_or_vanish_cost_nothing(served: Served) -> None:
    done = served.submit("s")
    served.wait(done)
    step = {"event": "step", "phase": "search", "at": "M=1", "outcome": "ok", "value": 1.0}
    with JobFolder.of(served.root, done).events.open("ab") as file:
        file.write((json.dumps(step).encode() + b"\n") * (20 * MIB // 90))
    process = psutil.Process(served.process.pid)
    before = process.memory_info().rss
    slow = [followed(served, done) for _ in range(STREAMS)]
    until(lambda: figure(served, "autotune_streams") == STREAMS)
    time.sleep(3)
    # Each could have 20 MiB sent; what nobody reads is not read from the disk either.
    assert process.memory_info().rss - before < STREAMS * 5 * MIB
    for one in slow:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()  # without a farewell
    until(lambda: figure(served, "autotune_streams") == 0)
    assert served.call("GET", f"/jobs/{done}")["state"] == "SUCCEEDED"


def test_a_job_of_ten_thousand_trials_is_told_in_little(running: Site) -> None:
    job = running.submit("s")["id"]
    running.wait(job, lambda one: (one["progress"] or {}).get("done", 0) >= 1)
    step = {"event": "step", "phase": "search", "outcome": "ok", "known": True, "value": 2.0}
    with JobFolder.of(running.root, job).events.open("ab") as file:
        for number in range(10_000):
            line = step | {"at": f"M={number % 300}"}
            file.write(json.dumps(line).encode() + b"\n")
    found = running.wait(job)
    assert found["state"] == "SUCCEEDED"
    assert found["progress"]["done"] == 10_000 + TOTAL
    assert len(found["progress"]["levels"]) <= 64
    assert len(json.dumps(found)) < 30_000
    page = running.client.get(f"/jobs/{job}", headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert len(page.content) < 30_000
    tail = running.client.get(f"/api/v1/jobs/{job}/events?tail=200000")
    assert len(tail.content) < 800_000
    assert tail.text.rstrip().endswith('data: "SUCCEEDED"')


def test_a_clock_that_is_set_back_ends_no_job_and_changes_no_order(
    running: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = running.submit("a", max_time="1h")["id"]
    running.wait(first, lambda one: one["state"] == "RUNNING")

    class Back(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - timedelta(days=1)

    monkeypatch.setattr(runner, "datetime", Back)
    second = running.submit("b", max_time="1h")["id"]
    for job in (first, second):
        found = running.wait(job)
        assert found["state"] == "SUCCEEDED", "its time was not up"
    assert datetime.fromisoformat(found["ended_at"]) < datetime.now(UTC) - timedelta(hours=20)
    listed = running.client.get("/api/v1/jobs").json()["jobs"]
    assert [job["id"] for job in listed] == [second, first]
    # One that was running when the clock was set back is watched again, with all of its time.
    jobs = running.store.jobs()
    assert not jobs.in_states({JobState.RUNNING})
