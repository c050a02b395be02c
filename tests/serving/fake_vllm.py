"""Stands in for ``vllm`` where a real server would take half a minute: starts, answers, ends.

The model's name says what it does; see :data:`BEHAVIOURS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event

BEHAVIOURS = {
    "good": "answers until SIGTERM",
    "stubborn": "ignores SIGTERM, as does an orphan of its that is in another session",
    "mute": "never answers",
    "out-of-memory": "once it has named its model: dies at the next request, with status 0",
    "killed": "the same, by SIGKILL",
    "silent-end": "the same, with status 0 and no word",
}


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Handler(BaseHTTPRequestHandler):
    was_named = Event()

    def do_GET(self) -> None:
        if self.was_named.is_set():
            self.end_badly()
        if self.path == "/v1/models":
            self.was_named.set()
        body = json.dumps({"data": [{"id": self.server_name, "max_model_len": 7}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @property
    def server_name(self) -> str:
        return sys.argv[2]

    def end_badly(self) -> None:
        if self.server_name == "out-of-memory":
            error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
            say(f"(EngineCore pid=7) ERROR 01-01 10:00:00 [core.py:1510] {error}")
        if self.server_name in {"out-of-memory", "silent-end"}:
            os._exit(0)
        if self.server_name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


def main() -> None:
    model, port = sys.argv[2], int(sys.argv[sys.argv.index("--port") + 1])
    say(" ".join(["serving", *sys.argv[1:]]))
    pids = [os.getpid()]
    if model == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        loop = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        orphan = [sys.executable, "-c", loop]
        options = "start_new_session=True, stdout=2"
        leave = f"import subprocess as s; print(s.Popen({orphan}, {options}).pid)"
        pids.append(int(subprocess.check_output([sys.executable, "-c", leave])))
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with contextlib.suppress(KeyError):
        Path(os.environ["FAKE_VLLM_PIDS"]).write_text(" ".join(map(str, pids)))
    if model == "mute":
        time.sleep(600)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
