"""What ``autotune moe`` has decided before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from autotune.core import Basis, Candidate, digest
from autotune.devices import Device, GpuInfo
from autotune.environment import environment
from autotune.moe.compile import KernelInfo, specialise
from autotune.moe.feasibility import CONSTRAINTS, distinct
from autotune.moe.predict import MODEL_VERSION
from autotune.moe.routing import Routing
from autotune.moe.shape import MoeShape
from autotune.propose import OPTUNA_VERSION
from autotune.space import Check, Space

STANDARD_LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
"""The 18 keys of vLLM's own tuner (benchmarks/kernels/benchmark_moe.py)."""


EFFORTS: dict[str, int | None] = {"quick": 24, "standard": 64, "exhaustive": None}
"""Candidates measured per M; None is every feasible one."""

PREDICTED_EFFORTS: dict[str, int | None] = {"quick": 12, "standard": 32, "exhaustive": None}
"""Candidates predicted per M: each is compiled first, and the model has put them in order."""

FINALISTS = 4
"""Candidates of each M that meet the default again, side by side."""

SECONDS_PER_COMPILE = 0.8
"""For the estimate only: mean over the stock grid for sm_121, both GEMMs, one x86 core."""

MEASURED_START_S = 30.0
SECONDS_PER_MEASUREMENT = 0.03
"""For the estimate only: read on one H200, where importing vLLM is most of the start."""


@dataclass(frozen=True)
class Plan:
    """Everything that ``autotune moe`` has decided before it starts."""

    study: str
    device: Device
    model: str
    shape: MoeShape
    ms: tuple[int, ...]
    space: Space
    effort: str
    budget_s: float | None
    sampler: str
    seed: int
    min_gain: float
    workers: int
    kernel: KernelInfo
    command: str
    gpus: tuple[GpuInfo, ...] = ()
    """The GPUs to measure on; none is the predicted mode."""
    routing: Routing = field(default_factory=Routing)
    memory_limit_mib: int | None = None

    @property
    def measured(self) -> bool:
        """Whether candidates are timed on a GPU; otherwise their times are predicted."""
        return bool(self.gpus)

    @property
    def basis(self) -> Basis:
        """What the times are."""
        return Basis.MEASURED if self.measured else Basis.PREDICTED

    @cached_property
    def feasible(self) -> list[Candidate]:
        """The candidates that the device can run."""
        return self.space.feasible(checks(self.shape, self.device))

    def feasible_at(self, m: int) -> list[Candidate]:
        """Those that differ at M (see :func:`autotune.moe.feasibility.distinct`)."""
        return distinct(self.feasible, self.shape, m)

    @property
    def trials_per_m(self) -> int:
        """Candidates searched per M, at most."""
        wanted = (EFFORTS if self.measured else PREDICTED_EFFORTS)[self.effort]
        return len(self.feasible) if wanted is None else min(wanted, len(self.feasible))

    @property
    def steps(self) -> int:
        """Trials of the whole job, for a progress bar; in the measured mode about that many."""
        steps = len(self.ms) * (self.trials_per_m + 1)
        return steps + len(self.ms) * (FINALISTS + 3) if self.measured else steps

    @property
    def expected_compiles(self) -> int:
        """Compilations from an empty cache if every M tried the same tiles: a rough upper estimate.

        GROUP_SIZE_M is not compiled, and M only by its specialisation.
        """
        tiles = len({_without_group(candidate) for candidate in self.feasible})
        specialisations = len({specialise(self.shape, m) for m in self.ms})
        return 2 * min(self.trials_per_m, tiles) * specialisations

    @property
    def estimated_seconds(self) -> float:
        """A rough estimate from an empty cache, or the budget where that is less."""
        estimate = self.expected_compiles * SECONDS_PER_COMPILE / self.workers
        if self.measured:
            estimate += MEASURED_START_S + self.steps * SECONDS_PER_MEASUREMENT
        return min(estimate, self.budget_s or math.inf)

    def identity(self) -> dict[str, Any]:
        """What a study is about: must not change between two commands."""
        return {"device": self.device.name, "shape": self.shape.as_json()}

    def setup(self) -> dict[str, Any]:
        """Under what trials can be compared and a search goes on: part of the search's key."""
        where: dict[str, Any] = {
            "cost_model": MODEL_VERSION,
            "device": digest(self.device.model_dump(mode="json")),
        }
        if self.measured:
            where |= {
                "gpu": self.gpus[0].name,
                "driver": self.gpus[0].driver,
                "routing": self.routing.as_json(),
                "torch": environment()["packages"]["torch"],
            }
        return where | {
            "basis": self.basis.value,
            "kernel_sha256": self.kernel.sha256,
            "optuna": OPTUNA_VERSION,
            "sampler": "ordered" if self.effort == "exhaustive" else self.sampler,
            "seed": self.seed,
            "space": {"name": self.space.name, "digest": self.space.digest},
            "triton": self.kernel.triton_version,
            "vllm": self.kernel.vllm_version,
        }


def _without_group(candidate: Candidate) -> Candidate:
    return Candidate.of({n: v for n, v in candidate.params.items() if n != "GROUP_SIZE_M"})


def checks(shape: MoeShape, device: Device) -> dict[str, Check]:
    """The named constraints of the MoE half, bound to a shape and a device."""

    def bind(name: str) -> Check:
        return lambda candidate: CONSTRAINTS[name](candidate.ints, shape, device)

    return {name: bind(name) for name in CONSTRAINTS}


def default_study(device: Device, shape: MoeShape) -> str:
    """Such as ``moe-gb10-e128-n704-fp8_w8a8``."""
    dtype = shape.dtype or shape.weight_dtype
    block = "" if not shape.block_shape else "-b" + "x".join(map(str, shape.block_shape))
    return f"moe-{device.name}-e{shape.experts}-n{shape.intermediate}-{dtype}{block}"
