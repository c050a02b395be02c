"""A SYNTHETIC landscape: a formula over the real stock space, for tests of the search alone.

It says nothing about any GPU. It is a bowl with a coupling between two parameters, ripples, and a
few candidates that fail, with an optimum that moves with M.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from autotune.core import Basis, Candidate, Measurement, Outcome, digest
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.plan import checks
from autotune.machine.devices import get_device
from autotune.space.space import Space, load_space
from tests.support.stores import Size

SHAPE = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)
FAILURES = (Outcome.COMPILE_ERROR, Outcome.CRASH, Outcome.TIMEOUT, Outcome.OUT_OF_RESOURCES)


@lru_cache(maxsize=1)
def space() -> Space:
    return load_space("stock", "moe")


@lru_cache(maxsize=1)
def feasible() -> tuple[Candidate, ...]:
    """The points of the stock space that fit Gemma 4 on a GB10."""
    return tuple(space().feasible(checks(SHAPE, get_device("gb10"))))


def _ripple(candidate: Candidate) -> float:
    """From 0 to 1, the same at every M and in every process."""
    return int(candidate.key[:8], 16) / 0xFFFFFFFF


def synthetic(candidate: Candidate, workload: Size) -> Measurement:
    """The formula: one candidate in 16 fails, the others have a value in µs."""
    if int(digest([candidate.key, workload.m])[:4], 16) % 16 == 0:
        outcome = FAILURES[int(candidate.key[:4], 16) % len(FAILURES)]
        return Measurement(outcome, Basis.SYNTHETIC)
    p = {name: math.log2(candidate.int(name)) for name, _ in space().parameters}
    best_m = 4 + 3 * min(1.0, math.log2(workload.m) / 12)
    bowl = 0.08 * (p["BLOCK_SIZE_M"] - best_m) ** 2
    bowl += 0.06 * (p["BLOCK_SIZE_N"] - 6.5 + 0.5 * (p["BLOCK_SIZE_M"] - best_m)) ** 2
    bowl += 0.05 * (p["BLOCK_SIZE_K"] - 7) ** 2 + 0.01 * p["GROUP_SIZE_M"]
    bowl += 0.06 * (candidate.int("num_stages") - 4) ** 2
    bowl += 0.1 * (p["num_warps"] - 2) * (7 - p["BLOCK_SIZE_N"])
    value = 50 * workload.m**0.3 * math.exp(bowl) * (1 + 0.03 * _ripple(candidate))
    return Measurement(Outcome.OK, Basis.SYNTHETIC, round(value, 6))


def write_csv(path: Path, candidates: Sequence[Candidate], workloads: Sequence[Size]) -> None:
    """Record the formula as a landscape."""
    names = [name for name, _ in space().parameters]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["workload", *names, "outcome", "value", "basis"])
        for workload in workloads:
            for candidate in candidates:
                m = synthetic(candidate, workload)
                values = [candidate[name] for name in names]
                writer.writerow([workload.label, *values, m.outcome.value, m.value, m.basis.value])
