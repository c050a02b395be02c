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
from tests.support.synthetic_service import TOTAL, hold, release
from tests.web.conftest import Site
from tests.web.served import Served, reached

STREAMS = 8
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


def until(done: Any, within_s: float = 120) -> None:
    end = time.monotonic() + within_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


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
            hold(root, 5)
            job = served.submit("s")
            served.wait(job, reached(5))
            filler = root / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            release(root)
            time.sleep(2)  # for the job to need room; what it does then is its own business
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
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the system takes little for it
    made.settimeout(120)
    made.connect(("127.0.0.1", served.port))
    head = f"GET /api/v1/jobs/{job}/events HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\n"
    made.sendall(f"{head}Authorization: Bearer {served.token}\r\n\r\n".encode())
    assert made.recv(12) == b"HTTP/1.1 200"
    return made


def test_clients_that_read_nothing_or_vanish_cost_nothing(served: Served) -> None:
    done = served.submit("refused")
    served.wait(done)
    step = {"event": "step", "phase": "search", "at": "M=1", "outcome": "ok", "value": 1.0}
    with JobFolder.of(served.root, done).events.open("ab") as file:
        file.write((json.dumps(step).encode() + b"\n") * (20 * MIB // 90))
    process = psutil.Process(served.process.pid)
    before = process.memory_info().rss
    slow = [followed(served, done) for _ in range(STREAMS)]
    until(lambda: figure(served, "autotune_streams") == STREAMS)
    most = 0
    for _ in range(10):  # each could have 20 MiB sent; what nobody reads is not read either
        time.sleep(0.1)
        most = max(most, process.memory_info().rss - before)
    assert most < STREAMS * 6 * MIB
    for one in slow:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()  # without a farewell
    until(lambda: figure(served, "autotune_streams") == 0)
    assert served.call("GET", f"/jobs/{done}")["state"] == "FAILED"


def test_a_job_of_ten_thousand_trials_is_told_in_little(running: Site) -> None:
    hold(running.root, 1)
    job = running.submit("s")["id"]
    running.wait(job, reached(1))
    step = {"event": "step", "phase": "search", "outcome": "ok", "known": True, "value": 2.0}
    with JobFolder.of(running.root, job).events.open("ab") as file:
        for number in range(10_000):
            line = step | {"at": f"M={number % 300}"}
            file.write(json.dumps(line).encode() + b"\n")
    release(running.root)
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
    hold(running.root, 1)
    first = running.submit("a", max_time="1h")["id"]
    running.wait(first, lambda one: one["state"] == "RUNNING")

    class Back(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - timedelta(days=1)

    monkeypatch.setattr(runner, "datetime", Back)
    release(running.root)
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
