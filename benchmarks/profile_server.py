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
import sys
import tempfile
import urllib.request
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from autotune.environment import environment
from autotune.files import write_whole
from autotune.spec.client import Load, run_load
from autotune.spec.launchers import LocalLauncher
from autotune.spec.prompts import load_prompts
from autotune.spec.server import Server, start
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


def post(url: str) -> None:
    request = urllib.request.Request(url, method="POST")
    with urllib.request.urlopen(request, timeout=300):
        pass


def profiled(server: Server, load: dict[str, Any], concurrency: int, folder: Path) -> Any:
    """One round of a load, after one that warms up."""
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
    post(f"{server.url}/start_profile")
    run_load(asked)
    post(f"{server.url}/stop_profile")
    return kernels(folder)


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    config = json.loads(Path(sys.argv[1]).read_text())
    out = Path(sys.argv[2])
    result: dict[str, Any] = {
        "command": "python -m benchmarks.profile_server CONFIG.json OUT.json",
        "config": config,
        "environment": environment(),
        "profiled": [],
    }
    for setting in config["settings"]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            wanted = {
                "profiler": "torch",
                "torch_profiler_dir": name,
                "torch_profiler_with_stack": False,
                "ignore_frontend": True,
            }
            args = [*setting.get("args", []), "--profiler-config", json.dumps(wanted)]
            log = out.parent / "logs" / f"profile-{setting['name']}.log"
            settings = settings_of(config, setting | {"args": args})
            with start(LocalLauncher(), settings, log, START_S) as server:
                for load in config["loads"]:
                    for concurrency in load["concurrency"]:
                        rows = profiled(server, load, concurrency, folder)
                        said = {"setting": setting["name"], "load": load["name"]}
                        result["profiled"].append(
                            said | {"concurrency": concurrency, "kernels": rows}
                        )
                        write_whole(out, json.dumps(result, indent=1).encode())
                        print(said, concurrency, f"{len(rows)} kernels", flush=True)
                        for row in [row for row in rows if "moe" in row["name"]][:8]:
                            print("  ", row["name"][:40], *list(row.values())[1:], flush=True)


if __name__ == "__main__":
    main()
