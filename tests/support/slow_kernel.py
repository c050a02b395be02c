"""The fake kernel for jobs that are killed: its processes are known, and one can hang."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.kernels.measure.requests import Comparison, GpuSetup, Timing
from tests import fake_kernel

PIDS = "AUTOTUNE_TEST_PIDS"
"""In the environment: a file with the measuring processes."""
STUCK = "stuck"
"""Beside it: while this file is there and empty, the next candidate never returns."""
device_facts, ready = fake_kernel.device_facts, fake_kernel.ready


def set_up(setup: GpuSetup) -> None:
    """As the fake does; every process leaves its pid."""
    fake_kernel.set_up(setup)
    with Path(os.environ[PIDS]).open("a") as file:
        file.write(f"{os.getpid()}\n")


def time_candidate(request: Timing) -> dict[str, Any]:
    """Times without the race, which knows nothing of an earlier process."""
    stuck = Path(os.environ[PIDS]).with_name(STUCK)
    if stuck.exists() and not stuck.read_text() and request.best_us is not None:
        with stuck.open("a") as file:
            file.write(f"{os.getpid()}\n")
        # As inside a driver that does not answer: the interpreter itself stands still.
        ctypes.PyDLL(None).sleep(600)
    return fake_kernel.time_candidate(replace(request, best_us=None))


def compare(request: Comparison) -> dict[str, Any]:
    """Slow enough for a kill to come between two."""
    time.sleep(0.2)
    return fake_kernel.compare(request)
