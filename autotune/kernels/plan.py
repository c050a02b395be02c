"""A :class:`Plan` holds what ``autotune moe`` has decided before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from autotune.core import Basis, Candidate, digest
from autotune.kernels.compile.job import KernelInfo
from autotune.kernels.moe.constraints import CONSTRAINTS, distinct
from autotune.kernels.moe.notes import READS
from autotune.kernels.moe.routing import Routing
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.predict.cost_model import MODEL_VERSION
from autotune.kernels.published import GivenFile
from autotune.kernels.request import EFFORTS, PREDICTED_EFFORTS
from autotune.kind import MOE
from autotune.machine.devices import Device, GpuInfo
from autotune.machine.environment import environment
from autotune.propose.proposers import OPTUNA_VERSION
from autotune.space.space import Check, Space

FINALISTS = 4
"""Candidates of each M that meet the default again, side by side."""


@dataclass(frozen=True)
class Plan:
    """The plan holds everything that ``autotune moe`` has decided before it starts."""

    kind: ClassVar[str] = MOE
    study: str
    device: Device
    model: str
    shape: MoeShape
    batch_sizes: tuple[int, ...]
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
    retry_failed: bool = False
    """Try again what timed out or crashed in an earlier command."""
    notes: tuple[str, ...] = ()
    """What else vLLM will ask for, and what of this file it may not read; one line each."""
    unmeasured: str = ""
    """Why this is a prediction although the GPU is here."""
    first: tuple[GivenFile, ...] = ()
    """Files whose rows are tried first."""
    unified: bool = False
    """Whether host and GPU share one memory, which is then guarded."""

    @property
    def serve_flags(self) -> tuple[str, ...]:
        """Return the flags of ``vllm serve`` without which it would not read the file."""
        return READS if any(" ".join(READS) in note for note in self.notes) else ()

    @property
    def measured(self) -> bool:
        """Tell whether candidates are timed on a GPU; otherwise their times are predicted."""
        return bool(self.gpus)

    @property
    def basis(self) -> Basis:
        """Tell what the times are."""
        return Basis.MEASURED if self.measured else Basis.PREDICTED

    @property
    def file_name(self) -> str:
        """VLLM's name for the file."""
        return self.shape.config_file_name(self.device.vllm_name)

    @cached_property
    def feasible(self) -> list[Candidate]:
        """Return the candidates that the device can run."""
        return self.space.feasible(checks(self.shape, self.device))

    def feasible_at(self, m: int) -> list[Candidate]:
        """Return those that differ at M (:func:`autotune.kernels.moe.constraints.distinct`)."""
        return distinct(self.feasible, self.shape, m)

    @property
    def trials_per_m(self) -> int:
        """Return how many candidates are searched per M, at most."""
        wanted = (EFFORTS if self.measured else PREDICTED_EFFORTS)[self.effort]
        return len(self.feasible) if wanted is None else min(wanted, len(self.feasible))

    @property
    def steps(self) -> int:
        """Count the trials of the whole job for a progress bar; when measured, about so many."""
        steps = len(self.batch_sizes) * (self.trials_per_m + 1)
        return steps + len(self.batch_sizes) * (FINALISTS + 3) if self.measured else steps

    def identity(self) -> dict[str, Any]:
        """Return what the study is about, which must not change between two commands."""
        return {"device": self.device.name, "shape": self.shape.as_json()}

    def setup(self) -> dict[str, Any]:
        """Return what trials must share to be compared and resumed: part of the search's key."""
        where: dict[str, Any] = {
            "cost_model": MODEL_VERSION,
            "device": digest(self.device.model_dump(mode="json", exclude={"unified_memory"})),
        }
        if self.measured:
            where |= {
                "gpu": self.gpus[0].name,
                "driver": self.gpus[0].driver,
                "routing": self.routing.as_json(),
                "torch": environment()["packages"]["torch"],
            }
        if self.device.from_driver:  # whoever reads the study has no file of it
            where["device_described"] = self.device.model_dump(mode="json", exclude_unset=True)
        if self.first:
            rows = [{str(m): row.params for m, row in file.rows.items()} for file in self.first]
            where["first"] = digest(rows)
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


def checks(shape: MoeShape, device: Device) -> dict[str, Check]:
    """Bind the named constraints of the MoE half to a shape and a device."""

    def bind(name: str) -> Check:
        return lambda candidate: CONSTRAINTS[name](candidate.ints, shape, device)

    return {name: bind(name) for name in CONSTRAINTS}


def default_study(device: Device, shape: MoeShape) -> str:
    """Name a study by its device and shape, such as ``moe-gb10-e128-n704-fp8_w8a8``."""
    dtype = shape.dtype or shape.weight_dtype
    block = "" if not shape.block_shape else "-b" + "x".join(map(str, shape.block_shape))
    return f"moe-{device.name}-e{shape.experts}-n{shape.intermediate}-{dtype}{block}"
