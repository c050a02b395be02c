"""A service in a process of its own, and a plain client of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SYNTHETIC = ("-m", "tests.support.synthetic_server")
REAL = ("-m", "autotune", "serve")
ENDED = {"SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED"}


class Served:
    """The service on a root folder; it can be killed and started again."""

    def __init__(self, root: Path, program: tuple[str, ...] = SYNTHETIC, *more: str) -> None:
        self.root, self._program, self._more = root, program, more
        self.port = 0
        self.start()

    def start(self) -> None:
        words = ("--root", str(self.root), "--db", f"sqlite:///{self.root}/autotune.db", "--json")
        self.log = (self.root.parent / "serve.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, *self._program, *words, "--port", str(self.port), *self._more],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert self.process.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, (self.root.parent / "serve.log").read_text()
            said += line
        self.place = json.loads(said)
        self.url = self.place["url"].rstrip("/")
        self.port = int(self.url.rpartition(":")[2])
        self.token = Path(self.place["token_file"]).read_text().strip()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        head = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        asked = urllib.request.Request(f"{self.url}/api/v1{path}", data, head, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def submit(self, study: str, **more: Any) -> int:
        body = {"kind": "moe", "args": {"device": "gb10", "study": study}, **more}
        return int(self.call("POST", "/jobs", body)["id"])

    def wait(
        self, job: int, done: Callable[[Any], bool] | None = None, within_s: float = 180
    ) -> Any:
        end = time.monotonic() + within_s
        found: Any = None
        while time.monotonic() < end:
            found = self.call("GET", f"/jobs/{job}")
            if (done or (lambda one: one["state"] in ENDED))(found):
                return found
            time.sleep(0.05)
        raise AssertionError(f"still {found}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._closed()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._closed()
        return code

    def _closed(self) -> None:
        self.log.close()
        assert self.process.stdout is not None
        self.process.stdout.close()


def reached(done: int) -> Callable[[Any], bool]:
    """Whether a job has come so far, or has ended."""
    return lambda job: (job["progress"] or {}).get("done", 0) >= done or job["state"] in ENDED
