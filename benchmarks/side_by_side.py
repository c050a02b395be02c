"""Compares settings of `vllm serve` on one GPU: servers side by side, loads in turn.

    python benchmarks/side_by_side.py SERVERS.json OUT.json --concurrency 1,8 --seconds 500

Boots that follow each other differ by up to 47 % at one stream (docs/lab/); servers side by side
tell settings apart to 1 %. SERVERS.json holds `model`, `args` of all, `speculative` of all and, by
name, `args` and `speculative` of each; the first is what the others are compared with. Every server
wants memory of its own: give `--kv-cache-memory-bytes` and a small `--gpu-memory-utilization`.
The rounds end in time for `--seconds`, and OUT.json is written after each.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.decide.stats import paired_ratio
from autotune.export.files import write_whole
from autotune.machine.environment import environment
from autotune.serving.measure.client import Load, run_load
from autotune.serving.measure.prompts import load_prompts
from autotune.serving.parse import parse_concurrency
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.server import Server, ServeSettings, start

TELLING = re.compile(
    r"capturing|graph|model runner|KV cache size|dynamic speculative", re.IGNORECASE
)
"""Lines of a log that say what was captured."""
LOAD_S = 20.0
"""A round may take so much longer than the one before."""


def settings(spec: dict[str, Any], one: dict[str, Any]) -> ServeSettings:
    """The settings of one server."""
    speculative = spec.get("speculative", {}) | one.get("speculative", {})
    return ServeSettings(
        spec["model"],
        speculative or None,
        extra_args=(*spec.get("args", ()), *one.get("args", ())),
        env=spec.get("env", {}) | one.get("env", {}),
    )


def telling(log: Path) -> list[str]:
    """What a log says of CUDA graphs, without progress bars."""
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    found = [line[:600] for line in lines if TELLING.search(line) and "it/s" not in line]
    return list(dict.fromkeys(found))


def rate(server: Server, load: Load, concurrency: int, waves: int, salt: str) -> float:
    """Output tokens per second of one load."""
    one = replace(
        load,
        url=server.url,
        model=server.model,
        concurrency=concurrency,
        requests=waves * concurrency,
        cache_salt=salt,
    )
    result = run_load(one)
    if result.errors():
        raise SystemExit(f"{server.url}: {result.errors()[0]}")
    return result.summary().tok_s


def main() -> None:
    """Start the servers, load them in turn, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--concurrency", type=parse_concurrency, default=(1, 8))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--waves", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompts", default="chat")
    parser.add_argument("--chat", action="store_true", help="with the model's chat template")
    parser.add_argument("--seconds", type=float, default=500.0)
    args = parser.parse_args()
    began = time.monotonic()
    spec = json.loads(args.servers.read_text())
    prompts = load_prompts(args.prompts)
    load = Load(
        "", "", prompts, requests=1, concurrency=1, max_tokens=args.max_tokens, ignore_eos=True,
        chat=args.chat, timeout_s=120.0,
    )  # fmt: skip
    found: dict[str, Any] = {"environment": environment(), "spec": spec, "arguments": {
        "concurrency": args.concurrency, "waves": args.waves, "max_tokens": args.max_tokens,
        "prompts": args.prompts, "chat": args.chat}, "servers": {}, "tok_s": {}}  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        servers = _start(spec, args.out.parent, args.seconds - 120, stack)
        for name, server in servers.items():
            log = args.out.parent / f"{name}.log"
            found["servers"][name] = {"start_s": server.start_seconds, "log": telling(log)}
        names = list(servers)
        for name in names:
            for c in args.concurrency:
                for again in range(2):
                    rate(servers[name], load, c, args.waves, f"warm-{name}-{c}-{again}")
        print(f"warm after {time.monotonic() - began:.0f} s", flush=True)
        longest = 0.0
        for number in range(args.rounds):
            at = time.monotonic()
            if at - began + longest + LOAD_S > args.seconds:
                break
            turned = names[number % len(names) :] + names[: number % len(names)]
            start_at = number * args.waves * max(args.concurrency)
            shift = start_at % len(prompts)
            same = replace(load, prompts=(*prompts[shift:], *prompts[:shift]))
            for c in args.concurrency:
                for name in turned:
                    value = rate(servers[name], same, c, args.waves, f"{number}-{name}-{c}")
                    found["tok_s"].setdefault(str(c), {}).setdefault(name, []).append(value)
            longest = max(longest, time.monotonic() - at)
            write_whole(args.out, json.dumps(found, indent=1).encode())
    _say(found, names)


def _start(
    spec: dict[str, Any], folder: Path, timeout_s: float, stack: ExitStack
) -> dict[str, Server]:
    """All servers at once; one that does not come up is said and left out."""
    with ThreadPoolExecutor(len(spec["servers"])) as pool:
        coming = {
            name: pool.submit(
                start, LocalLauncher(), settings(spec, one), folder / f"{name}.log", timeout_s
            )
            for name, one in spec["servers"].items()
        }
        up = {}
        for name, future in coming.items():
            try:
                up[name] = stack.enter_context(future.result())
            except Exception as error:  # noqa: BLE001  (the others are measured without it)
                print(f"{name}: {error}", flush=True)
            else:
                print(f"{name}: serves after {up[name].start_seconds:.0f} s", flush=True)
    return up


def _say(found: dict[str, Any], names: list[str]) -> None:
    for c, rates in found["tok_s"].items():
        for name in names:
            ratio = paired_ratio([1 / r for r in rates[names[0]]], [1 / r for r in rates[name]])
            print(
                f"{c:>3} streams {name:24} {statistics.median(rates[name]):8.1f} tok/s "
                f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {ratio.pairs} rounds"
            )


if __name__ == "__main__":
    main()
