"""What a server's kernels take while it serves: torch's profiler inside vLLM.

    python -m benchmarks.profile_server CONFIG.json OUT.json

CONFIG is one of :mod:`benchmarks.record_grid`: each of its settings is booted once, and of each
load one round is profiled after a warm-up. OUT has, for every kernel and launch grid, how often it
ran and its µs: a fused-MoE kernel timed alone and the same in the server can be compared. The
profiler slows the host, so the rates of these boots say nothing.
"""

from __future__ import annotations

import gzip
import json
import shlex
import sys
import tempfile
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from autotune.export.files import write_whole
from autotune.machine.environment import environment
from autotune.serving.measure.client import Load, run_load
from autotune.serving.measure.prompts import load_prompts
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.server import Server, start
from benchmarks.record_grid import START_S, settings_of


def kernels(folder: Path) -> list[dict[str, Any]]:
    """Of the traces in a folder, longest in all first."""
    found: dict[tuple[str, tuple[int, ...]], list[float]] = defaultdict(list)
    for path in folder.glob("*.json*"):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt") as file:
            events = json.load(file)["traceEvents"]
        for event in events:
            if event.get("cat") == "kernel":
                grid = tuple(event.get("args", {}).get("grid", ()))
                found[event["name"], grid].append(event["dur"])
    rows = [
        {
            "name": name,
            "grid": grid,
            "calls": len(us),
            "total_us": round(sum(us), 1),
            "median_us": median(us),
        }
        for (name, grid), us in found.items()
    ]
    return sorted(rows, key=lambda row: -row["total_us"])


def post(server: Server, path: str) -> None:
    request = urllib.request.Request(server.url + path, None, dict(server.headers), method="POST")
    with urllib.request.urlopen(request, timeout=300):
        pass


def profiled(
    server: Server, load: dict[str, Any], concurrency: int, folder: Path
) -> list[dict[str, Any]]:
    """The kernels of one round of a load, after a round that warms up."""
    for old in folder.glob("*"):
        old.unlink()
    asked = Load(
        server.url,
        server.model,
        load_prompts(load["prompts"]),
        requests=concurrency,
        concurrency=concurrency,
        max_tokens=load["max_tokens"],
        headers=server.headers,
    )
    run_load(replace(asked, requests=4 * concurrency))
    post(server, "/start_profile")
    run_load(asked)
    post(server, "/stop_profile")
    return kernels(folder)


def boot(
    config: dict[str, Any], setting: dict[str, Any], log: Path
) -> Iterator[tuple[str, int, list[dict[str, Any]]]]:
    """Name, concurrency and kernels of every load of one server."""
    with tempfile.TemporaryDirectory() as name:
        profiler = {
            "profiler": "torch",
            "torch_profiler_dir": name,
            "torch_profiler_with_stack": False,
            "ignore_frontend": True,
        }
        args = [*setting.get("args", []), "--profiler-config", json.dumps(profiler)]
        settings = settings_of(config, setting | {"args": args})
        with start(LocalLauncher(), settings, log, START_S) as server:
            for load in config["loads"]:
                for concurrency in load["concurrency"]:
                    found = profiled(server, load, concurrency, Path(name))
                    yield load["name"], concurrency, found


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    config = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.profile_server", *sys.argv[1:]]),
        "config": config,
        "environment": environment(),
        "profiled": [],
    }
    for setting in config["settings"]:
        log = out.parent / "logs" / f"profile-{setting['name']}.log"
        for load, concurrency, found in boot(config, setting, log):
            said = {"setting": setting["name"], "load": load, "concurrency": concurrency}
            result["profiled"].append(said | {"kernels": found})
            write_whole(out, json.dumps(result, indent=1).encode())
            print(*said.values(), f"{len(found)} kernels", flush=True)
            for kernel in [kernel for kernel in found if "moe" in kernel["name"]][:8]:
                print("  ", *(str(value)[:40] for value in kernel.values()), flush=True)


if __name__ == "__main__":
    main()
