"""Stands in for ``vllm``: serves tokens at a known speed with a known acceptance, or fails on cue.

Environment ``FAKE_SERVING`` is JSON: ``base_ms`` and ``draft_ms`` (time of a step and of a drafted
token), ``reached`` (acceptance by position), ``fast`` (factors on the time by ``flag=value``), and
lists of gammas: ``oom`` at the start, ``dies`` under load, ``other_text``, ``refuses`` requests.
``boots`` is a file that gets a line for every start. Token k of an answer is the word ``k``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

GIVEN: dict[str, Any] = {"base_ms": 3.0, "draft_ms": 0.3, "reached": [0.8, 0.6, 0.4, 0.2, 0.1, 0.0]}


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def argument(name: str, default: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


class Counters:
    """What ``/metrics`` tells."""

    def __init__(self, gamma: int) -> None:
        self.lock, self.gamma = threading.Lock(), gamma
        self.drafts = self.generated = self.steps = 0
        self.accepted = [0] * gamma

    def step(self, rates: list[float]) -> int:
        """Tokens of the next step; accepted drafts follow the rates exactly in the long run."""
        with self.lock:
            self.steps += 1
            share = self.steps * 0.6180339887 % 1
            taken = sum(share < rate for rate in rates[: self.gamma])
            self.drafts += self.gamma > 0
            for position in range(taken):
                self.accepted[position] += 1
            return 1 + taken

    def text(self) -> str:
        name = "vllm:spec_decode_num"
        lines = [
            f"vllm:generation_tokens_total {self.generated}",
            'vllm:cache_config_info{kv_cache_size_tokens="4096"} 1.0',
        ]
        if self.gamma:
            lines += [
                f"{name}_drafts_total {self.drafts}",
                f"{name}_draft_tokens_total {self.drafts * self.gamma}",
                f"{name}_accepted_tokens_total {sum(self.accepted)}",
            ]
            lines += [
                f'{name}_accepted_tokens_per_pos_total{{position="{i}"}} {count}'
                for i, count in enumerate(self.accepted)
            ]
        return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    counters: Counters
    step_s: float

    def do_GET(self) -> None:
        text = json.dumps({"data": [{"id": sys.argv[2], "max_model_len": 1024}]})
        if self.path == "/metrics":
            text = self.counters.text()
        self.answer(200, text)

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        gamma = self.counters.gamma
        if gamma in GIVEN.get("dies", ()):
            say("(EngineCore pid=7) ERROR 01-01 10:00:00 [core.py:1] torch.OutOfMemoryError: boom")
            os._exit(0)
        if gamma in GIVEN.get("refuses", ()):
            self.answer(400, "no")
            return
        wanted = body.get("max_completion_tokens") or body["max_tokens"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        done, word = 0, "other " if gamma in GIVEN.get("other_text", ()) else ""
        while done < wanted:
            time.sleep(self.step_s)
            count = 1 if done == 0 else min(self.counters.step(GIVEN["reached"]), wanted - done)
            text = "".join(f"{word}{done + i} " for i in range(count))
            done += count
            self.send({"choices": [{"delta": {"content": text}}]})
        with self.counters.lock:
            self.counters.generated += wanted
        self.send({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": wanted}})
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, data: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


def main() -> None:
    GIVEN.update(json.loads(os.environ.get("FAKE_SERVING", "{}")))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    config = json.loads(argument("--speculative-config", "{}"))
    gamma = config.get("num_speculative_tokens", 0)
    if "boots" in GIVEN:
        with Path(GIVEN["boots"]).open("a") as file:
            file.write(" ".join(sys.argv[1:]) + "\n")
    if argument("--kv-cache-dtype", "auto") == "banana":
        say("vllm serve: error: argument --kv-cache-dtype: invalid choice: 'banana'")
        sys.exit(2)
    if gamma in GIVEN.get("oom", ()):
        say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
        sys.exit(1)
    Handler.counters = Counters(gamma)
    Handler.step_s = (GIVEN["base_ms"] + gamma * GIVEN["draft_ms"]) / 1e3
    for setting, factor in GIVEN.get("fast", {}).items():
        flag, _, value = setting.partition("=")
        if argument(flag, "") == value:
            Handler.step_s *= factor
    ThreadingHTTPServer(("127.0.0.1", int(argument("--port", "0"))), Handler).serve_forever()


if __name__ == "__main__":
    main()
