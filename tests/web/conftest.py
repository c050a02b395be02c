"""A service in this process, with jobs whose command is made up."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from autotune.store.store import Store
from autotune.util.secret import Secret
from autotune.web import runner
from autotune.web.app import make_app
from autotune.web.gate import Names
from autotune.web.policy import Policy
from autotune.web.runner import Runner, Settings
from autotune.web.service import Service
from tests.support.forked_jobs import ForkedJob

TOKEN = "a-token-for-tests-of-the-service"
PROGRAM = (sys.executable, "-m", "tests.support.synthetic_service")
ENDED = {"SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED"}


@cache
def _empty_database() -> bytes:
    """What migrations make of nothing, once: they take as long as most of these tests."""
    with tempfile.TemporaryDirectory() as folder:
        Store.open(f"sqlite:///{folder}/a.db").close()
        return Path(folder, "a.db").read_bytes()


class Site:
    """A service and a client that may do everything."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root, self.settings = root, settings
        if not (root / "autotune.db").exists():
            (root / "autotune.db").write_bytes(_empty_database())
        self.store = Store.open(f"sqlite:///{root}/autotune.db")
        self.said: list[str] = []
        made = Settings(root, f"sqlite:///{root}/autotune.db", **{"program": PROGRAM} | settings)
        self.runner = Runner(self.store.jobs(), made, self.said.append)
        self.service = Service(self.store, self.runner, Policy(root))
        names = Names(80, frozenset({"testserver", "127.0.0.1"}))
        self.app = make_app(self.service, Secret(TOKEN), names)
        self.client = TestClient(self.app, raise_server_exceptions=False, follow_redirects=False)
        self.client.headers["Authorization"] = f"Bearer {TOKEN}"

    def stranger(self) -> TestClient:
        return TestClient(self.app, raise_server_exceptions=False, follow_redirects=False)

    def submit(self, study: str = "s", **more: Any) -> dict[str, Any]:
        args = {"device": "gb10", "study": study, **more.pop("args", {})}
        answer = self.client.post("/api/v1/jobs", json={"kind": "moe", "args": args, **more})
        assert answer.status_code == 202, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def job(self, job_id: int) -> dict[str, Any]:
        document: dict[str, Any] = self.client.get(f"/api/v1/jobs/{job_id}").json()
        return document

    def wait(self, job_id: int, done: Callable[[dict[str, Any]], bool] | None = None) -> Any:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            job = self.job(job_id)
            if (done or (lambda j: j["state"] in ENDED))(job):
                return job
            time.sleep(0.05)
        raise AssertionError(f"still {self.job(job_id)}")

    def abandon(self) -> None:
        """Leave all as a service does that ends by SIGKILL: nothing is stopped, nobody is told.

        Its jobs run on. They stay children of this process, of whom nobody waits for their end.
        """
        self.runner._quit.set()
        self.runner.wake(0)
        self.runner._thread.join()
        self._leave()

    def close(self, patience_s: float = 20) -> None:
        self.service.stopping = True
        self.runner.drain(patience_s)
        self._leave()

    def _leave(self) -> None:
        self.client.close()
        self.store.close()


@pytest.fixture(autouse=True)
def _jobs_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = SimpleNamespace(Popen=ForkedJob, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(runner, "subprocess", processes)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A service whose queue does not run."""
    made = Site(tmp_path)
    yield made
    made.close(0)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Site]:
    """A service whose queue runs."""
    made = Site(tmp_path)
    made.runner.start()
    yield made
    made.close()
