"""Seconds per candidate of vLLM's own tuner, benchmarks/kernels/benchmark_moe.py, on this GPU.

    TRITON_CACHE_DIR=$(mktemp -d) python benchmarks/stock_tuner.py benchmark_moe.py OUT.json 100

Calls vLLM's ``benchmark_config`` as its ``tune`` does (20 replays of 10 calls), on random
candidates of its grid: each first at M=8, compiled cold, then at M=1024, where the compiled kernel
is in Triton's cache. Ray only spreads it over GPUs and is replaced by nothing. Its whole run of 18
keys compiles each candidate for three specialisations (M=1; 2 and 4; the rest) and finds it in the
cache for the other 15 keys.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import time
import types
from contextlib import suppress
from pathlib import Path
from statistics import mean

import torch
from vllm.config import VllmConfig, set_current_vllm_config

from autotune.machine.environment import environment

KEYS, COLD_KEYS = 18, 3
E, N, K, TOPK = 128, 704, 2816, 8


def load(path: Path) -> types.ModuleType:
    ray = types.ModuleType("ray")
    ray.remote = lambda *_, **__: lambda thing: thing  # type: ignore[attr-defined]
    experimental = types.ModuleType("ray.experimental")
    progress = types.ModuleType("ray.experimental.tqdm_ray")
    progress.tqdm = iter  # type: ignore[attr-defined]
    sys.modules |= {
        "ray": ray,
        "ray.experimental": experimental,
        "ray.experimental.tqdm_ray": progress,
    }
    spec = importlib.util.spec_from_file_location("benchmark_moe", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    path, out = Path(sys.argv[1]), Path(sys.argv[2])
    limit = float(sys.argv[3]) if len(sys.argv) > 3 else 100.0
    module = load(path)
    torch.set_default_device("cuda")
    grid = module.get_configs_compute_bound(False, None)
    random.Random(1).shuffle(grid)
    seconds: dict[int, list[float]] = {8: [], 1024: []}
    begin = time.monotonic()
    with set_current_vllm_config(VllmConfig()):
        measure(module, grid[-1], 8)  # what only the first call pays
        for config in grid:
            for m, taken in seconds.items():
                start = time.monotonic()
                measure(module, config, m)
                taken.append(time.monotonic() - start)
            if time.monotonic() - begin > limit:
                break
    cold, warm = mean(seconds[8]), mean(seconds[1024])
    hours = len(grid) * (COLD_KEYS * cold + (KEYS - COLD_KEYS) * warm) / 3600
    result = {
        "command": "python benchmarks/stock_tuner.py benchmark_moe.py OUT.json",
        "candidates": len(seconds[8]),
        "measurements": sum(map(len, seconds.values())),
        "seconds_per_candidate_m8_cold": cold,
        "seconds_per_candidate_m1024_compiled": warm,
        "grid": len(grid),
        "keys": KEYS,
        "hours_for_all_keys": hours,
        "raw_seconds": seconds,
        "environment": environment(),
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    hidden = {"raw_seconds", "environment"}
    print({name: value for name, value in result.items() if name not in hidden})


def measure(module: types.ModuleType, config: dict[str, int], m: int) -> None:
    with suppress(module.triton.runtime.autotuner.OutOfResources):
        module.benchmark_config(
            config, m, E, 2 * N, K, TOPK, torch.bfloat16, True, False, num_iters=20
        )


if __name__ == "__main__":
    main()
