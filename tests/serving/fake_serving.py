"""Stands in for ``vllm``: serves :mod:`formula` over HTTP, and sleeps for every step.

What it is like is JSON in the environment ``FAKE_SERVING``. Besides what a formula knows, ``eats``
gives GiB of a ``tests.support.box`` taken at the start, by gamma; ``holds`` the GiB taken beside
the share of its memory that the server asks for; ``slow`` lists gammas whose start takes ten
minutes, unless the file ``well`` is there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.serving.formula import EndError, Formula, RefusalError, wanted_of


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Process(Formula):
    """Takes memory and time as well."""

    def begin(self) -> None:
        """Leave a note for the box, as ``tests.support.box.eat`` does."""
        given = self.given
        taken = given.get("eats", {}).get(str(self.gamma), 0)
        if "holds" in given:
            taken = given["total"] * self.share() + given["holds"]
        if taken:
            folder = Path(os.environ["AUTOTUNE_MEMINFO"]).parent / "eaters"
            (folder / f".{os.getpid()}").write_text(f"1000 {taken}")
            (folder / f".{os.getpid()}").rename(folder / str(os.getpid()))
            time.sleep(0.5)
        if self.gamma in given.get("slow", ()) and self.is_ill():
            time.sleep(600)


class Handler(BaseHTTPRequestHandler):
    formula: Formula

    def do_GET(self) -> None:
        formula = self.formula
        text = json.dumps({"data": [{"id": formula.model, "max_model_len": formula.context}]})
        if self.path == "/metrics":
            text = formula.counters.text()
        self.answer(200, text)

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer, begun = self.formula.answer(body), False
        try:
            for step in answer:
                if not begun:
                    begun = True
                    self.send_response(200)
                    self.send_header("Content-Type", "text/event-stream")
                    self.end_headers()
                if isinstance(step, float):
                    time.sleep(step)
                else:
                    self.send({"choices": [{"delta": {"content": step}}]})
        except EndError as end:
            os._exit(end.status)
        except RefusalError:
            self.answer(400, "no")
            return
        usage = {"prompt_tokens": 3, "completion_tokens": wanted_of(body)}
        self.send({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, data: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    given = json.loads(os.environ.get("FAKE_SERVING", "{}"))
    Handler.formula = Process(given, sys.argv[1:], os.environ, say)
    try:
        Handler.formula.boot()
    except EndError as end:
        sys.exit(end.status)
    argument = Handler.formula.argument
    place = (argument("--host", "127.0.0.1"), int(argument("--port", "0")))
    ThreadingHTTPServer(place, Handler).serve_forever()


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        say("0.32.0+fake")
    else:
        main()
