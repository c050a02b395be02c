"""A stand-in for ``kernels/measure/process.py`` in a real measuring process: no GPU, real failures.

GROUP_SIZE_M says what a candidate does; the time of the others is a formula.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autotune.core import Outcome
from autotune.kernels.measure.requests import (
    EXIT_DEVICE_ERROR,
    EXIT_RECYCLE,
    Comparison,
    GpuSetup,
    Timing,
    claim_gpu,
    last_words,
    raced_samples,
)
from autotune.util.lockfile import Lock
from tests.support.box import eat

HANGS, LOSES_DEVICE, SEGFAULTS, WRONG, OUT_OF_MEMORY, NOT_A_NUMBER, GROWS, LUCKY = range(9001, 9009)
DISTURBED = 9009
"""Its first sample is ten times too long."""
EATS = 9010
"""It takes 8 GiB of a ``tests.support.box``, and keeps them until it is killed."""
FINE = 1

_setup: list[GpuSetup] = []
_gpu: list[int] = []
_locks: list[Lock] = []
_held: list[bytes] = []


def set_up(setup: GpuSetup) -> None:
    gpu, lock = claim_gpu(setup)
    _setup.append(setup)
    _gpu.append(gpu)
    _locks.append(lock)
    with (Path(setup.folder) / "starts").open("a") as file:
        file.write(f"{gpu}\n")


def set_up_here(setup: GpuSetup) -> None:
    """Instead of :func:`set_up`, in a process that stands for a new one each time."""
    _setup[:], _gpu[:] = [setup], [setup.gpus[0]]
    _held.clear()


def memory() -> dict[str, int]:
    return {"rss_mib": 1000 + 100 * len(_held), "device_mib": 2000}


def time_us(m: int, params: Any) -> float:
    """A bowl with its best at BLOCK_SIZE_N = 128 and few stages."""
    return float(m + 10 * abs(params["BLOCK_SIZE_N"].bit_length() - 8) + params["num_stages"])


def _misbehave(kind: int, key: str, limit_s: float) -> dict[str, Any] | None:
    folder = _setup[0].folder
    if kind == HANGS:
        faulthandler.dump_traceback_later(min(limit_s, 1.0), exit=True, file=sys.__stderr__ or 2)
        time.sleep(600)
    if kind == LOSES_DEVICE:
        last_words(folder, key).write_text("AcceleratorError: an illegal memory access")
        os._exit(EXIT_DEVICE_ERROR)
    if kind == EATS:
        eat(1000, most_gib=8)
        time.sleep(600)
    if kind == SEGFAULTS:
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == OUT_OF_MEMORY:
        return {"outcome": Outcome.OUT_OF_MEMORY, "message": "out of memory", "memory": memory()}
    return None


def _make_room() -> None:
    limit = _setup[0].memory_limit_mib
    if limit is not None and memory()["rss_mib"] > limit:
        os._exit(EXIT_RECYCLE)


def _replays(kind: int, value: float) -> Iterator[float]:
    if kind == DISTURBED:
        yield 10 * value
    yield from itertools.chain((value, value + 0.2), itertools.repeat(value + 0.1))


def time_candidate(request: Timing) -> dict[str, Any]:
    _make_room()
    kind = request.params["GROUP_SIZE_M"]
    failed = _misbehave(kind, request.key, request.limit_s)
    if failed is not None:
        return failed
    if kind == GROWS:
        _held.append(b"")
    time.sleep(0.02)
    value = 0.1 if kind == LUCKY else time_us(request.m, request.params)
    replays = _replays(kind, value)
    samples, raced = raced_samples(lambda: next(replays), request.best_us or float("inf"))
    return {
        "outcome": Outcome.OK,
        "samples": samples,
        "raced": raced,
        "memory": memory(),
        "compiled_here": 0,
        "gpu_seconds": 0.001,
        "gpu": _gpu[0],
    }


def compare(request: Comparison) -> dict[str, Any]:
    _make_room()
    errors: list[float | None] = []
    samples = []
    for params in request.params:
        kind = params["GROUP_SIZE_M"]
        failed = _misbehave(kind, request.key, request.limit_s)
        if failed is not None:
            return failed
        if kind == GROWS:
            _held.append(b"")
        errors.append({WRONG: 0.4, NOT_A_NUMBER: float("inf")}.get(kind, 0.004))
        value = time_us(request.m, params)
        samples.append([value * (1 + 0.001 * turn) for turn in range(request.rounds)])
    return {
        "outcome": Outcome.OK,
        "samples": samples,
        "errors": errors if request.check else [None] * len(samples),
        "clocks": [{}, {}],
        "tolerance": 0.02,
        "memory": memory(),
        "gpu": _gpu[0],
    }


def device_facts(_: int) -> dict[str, Any]:
    return {
        "gpu": "a fake",
        "torch": "0",
        "cuda": "0",
        "triton": "0",
        "vllm": "0",
        "copy_gbs": 4200.0,
        "bf16_tflops": 100.0,
        "clocks": {},
        "memory": memory(),
    }


def ready(_: None) -> None:
    """Nothing but the set-up."""
