"""Stands in for ``vllm``: serves tokens at a known speed with a known acceptance, or fails on cue.

Environment ``FAKE_SERVING`` is JSON: ``base_ms`` and ``draft_ms`` (time of a step and of a drafted
token), ``crowd_ms`` (of a drafted token for every other request), ``reached`` (acceptance by
position), ``fast`` (factors on the time by ``flag=value``), ``no_schedule`` (refuse one), and lists
of gammas: ``oom`` at the start, unless the file ``well`` is there, ``dies`` under load,
``other_text``, ``refuses`` requests. ``oom_at`` is the number of the one start that fails, by
gamma (needs ``boots``); ``right_text`` a ``flag=value`` with which no text is another.
``says`` are lines of the log; ``tuned`` the factor of a server that finds a tuned MoE file;
``memory`` gives the KV cache's ``tokens`` a hundredth of memory utilization from ``start`` on: more
in flight are preempted; above ``dies`` a long prompt ends the server. ``boots`` is a file that gets
a line for every start. ``eats`` gives GiB of a ``tests.support.box`` taken at the start, by gamma;
``holds`` the GiB taken beside the share of its memory that the server asks for; ``slow`` lists
gammas whose start takes ten minutes, unless the file ``well`` is there. Token k of an answer is the
word ``k``.
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


def share() -> float:
    """The memory utilization."""
    return float(argument("--gpu-memory-utilization", "0.9"))


class Counters:
    """What ``/metrics`` tells."""

    def __init__(self, gamma: int, schedule: list[list[int]]) -> None:
        self.lock, self.gamma, self.schedule = threading.Lock(), gamma, schedule
        self.running = self.in_flight = self.preemptions = 0
        self.capacity = 4096
        self.drafts = self.generated = self.steps = 0
        self.accepted = [0] * gamma

    def drafted(self) -> int:
        """Tokens drafted at the present batch size."""
        fitting = [g for low, high, g in self.schedule if low <= self.running <= high]
        return fitting[0] if fitting else self.gamma

    def step(self, rates: list[float], gamma: int) -> int:
        """Tokens of the next step; accepted drafts follow the rates exactly in the long run."""
        with self.lock:
            self.steps += 1
            share = self.steps * 0.6180339887 % 1
            taken = sum(share < rate for rate in rates[:gamma])
            self.drafts += gamma > 0
            for position in range(taken):
                self.accepted[position] += 1
            return 1 + taken

    def text(self) -> str:
        name = "vllm:spec_decode_num"
        lines = [
            f"vllm:generation_tokens_total {self.generated}",
            f'vllm:cache_config_info{{kv_cache_size_tokens="{self.capacity}"}} 1.0',
            f"vllm:num_preemptions_total {self.preemptions}",
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
    factor = 1.0

    def work(self, gamma: int) -> None:
        """Take the time of a step."""
        others = self.counters.running - 1
        drafting = GIVEN["draft_ms"] + GIVEN.get("crowd_ms", 0.0) * others
        taken = GIVEN["base_ms"] + gamma * drafting
        time.sleep(taken * self.factor / 1e3)

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
        flag, _, value = GIVEN.get("right_text", "").partition("=")
        other = gamma in GIVEN.get("other_text", ()) and not (flag and argument(flag, "") == value)
        done, word = 0, "other " if other else ""
        prompt = body.get("prompt", "")
        tokens = wanted + len(prompt) if isinstance(prompt, list) else 0
        if tokens and share() > GIVEN.get("memory", {}).get("dies", 1.0):
            say("(EngineCore pid=7) ERROR 01-01 10:00:00 [core.py:1] torch.OutOfMemoryError: long")
            os._exit(0)
        with self.counters.lock:
            self.counters.running += 1
            self.counters.in_flight += tokens
            self.counters.preemptions += self.counters.in_flight > self.counters.capacity
        while done < wanted:
            drafted = self.counters.drafted()
            self.work(drafted)
            left = wanted - done
            count = 1 if done == 0 else min(self.counters.step(GIVEN["reached"], drafted), left)
            text = "".join(f"{word}{done + i} " for i in range(count))
            done += count
            self.send({"choices": [{"delta": {"content": text}}]})
        with self.counters.lock:
            self.counters.running -= 1
            self.counters.in_flight -= tokens
            self.counters.generated += wanted
        self.send({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": wanted}})
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, data: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing."""


def take_memory(gamma: int) -> None:
    """Leave a note for the box, as ``tests.support.box.eat`` does."""
    taken = GIVEN.get("eats", {}).get(str(gamma), 0)
    if "holds" in GIVEN:
        taken = GIVEN["total"] * share() + GIVEN["holds"]
    if taken:
        folder = Path(os.environ["AUTOTUNE_MEMINFO"]).parent / "eaters"
        (folder / f".{os.getpid()}").write_text(f"1000 {taken}")
        (folder / f".{os.getpid()}").rename(folder / str(os.getpid()))
        time.sleep(0.5)


def count_boot(gamma: int) -> None:
    """Note the start; the one of this gamma that is to fail does."""
    with Path(GIVEN["boots"]).open("a") as file:
        file.write(" ".join(sys.argv[1:]) + "\n")
    like = f'"num_speculative_tokens": {gamma}' if gamma else ""
    lines = Path(GIVEN["boots"]).read_text().splitlines()
    same = [line for line in lines if (like in line if like else "speculative" not in line)]
    if len(same) == GIVEN.get("oom_at", {}).get(str(gamma)):
        GIVEN["oom"] = [gamma]


def set_pace() -> None:
    """By the flags, and by the tuned MoE file, which is looked for as vLLM does, in its words."""
    for setting, factor in GIVEN.get("fast", {}).items():
        flag, _, value = setting.partition("=")
        if argument(flag, "") == value:
            Handler.factor *= factor
    if "tuned" not in GIVEN:
        return
    name = "E=8,N=32,device_name=X.json"
    folder = os.environ.get("VLLM_TUNED_CONFIG_FOLDER")
    if folder and (Path(folder) / name).exists():
        say(f"INFO [fused_moe.py:1] Using configuration from {folder}/{name} for MoE layer.")
        Handler.factor *= GIVEN["tuned"]
    else:
        say(
            "WARNING [fused_moe.py:1] Using default MoE config. Performance might be sub-optimal! "
            f"Config file not found at /vllm/configs/{name}"
        )


def main() -> None:
    GIVEN.update(json.loads(os.environ.get("FAKE_SERVING", "{}")))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for line in GIVEN.get("says", ()):
        say(line)
    config = json.loads(argument("--speculative-config", "{}"))
    gamma = config.get("num_speculative_tokens", 0)
    if "boots" in GIVEN:
        count_boot(gamma)
    take_memory(gamma)
    ill = not Path(GIVEN.get("well", "/nowhere")).exists()
    if gamma in GIVEN.get("slow", ()) and ill:
        time.sleep(600)
    if argument("--kv-cache-dtype", "auto") == "banana":
        say("vllm serve: error: argument --kv-cache-dtype: invalid choice: 'banana'")
        sys.exit(2)
    if (gamma in GIVEN.get("oom", ()) and ill) or sys.argv[2] in GIVEN.get("oom_targets", ()):
        say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
        sys.exit(1)
    schedule = config.get("num_speculative_tokens_per_batch_size", [])
    if schedule and GIVEN.get("no_schedule"):
        say("TypeError: unexpected keyword argument 'num_speculative_tokens_per_batch_size'")
        sys.exit(1)
    Handler.counters = Counters(gamma, schedule)
    if "memory" in GIVEN:
        kept = GIVEN["memory"]["tokens"] * round(100 * share() - GIVEN["memory"]["start"])
        if kept <= 0:
            say("ValueError: No available memory for the cache blocks.")
            sys.exit(1)
        Handler.counters.capacity = kept
    set_pace()
    ThreadingHTTPServer(
        (argument("--host", "127.0.0.1"), int(argument("--port", "0"))), Handler
    ).serve_forever()


if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        say("0.32.0+fake")
    else:
        main()
