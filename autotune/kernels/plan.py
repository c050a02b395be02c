"""What ``autotune moe`` has decided before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from autotune.core import BadInputError, Basis, Candidate, digest
from autotune.kernels.compile.job import KernelInfo, kernel_info
from autotune.kernels.config_file import FIELDS
from autotune.kernels.measure.available import cannot_measure
from autotune.kernels.moe.constraints import CONSTRAINTS, distinct
from autotune.kernels.moe.from_model import explicit_shape, load_config, shape_from_config
from autotune.kernels.moe.routing import Routing, parse_routing
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.predict.cost_model import MODEL_VERSION
from autotune.machine.devices import Device, GpuInfo, present_gpus, resolve_device
from autotune.machine.environment import environment, usable_cpus
from autotune.propose.proposers import OPTUNA_VERSION
from autotune.space.space import Check, Space, load_space

STANDARD_LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
"""The 18 keys of vLLM's own tuner (benchmarks/kernels/benchmark_moe.py)."""
DEFAULT_MODEL = "gemma-4-26b-a4b"

EFFORTS: dict[str, int | None] = {"quick": 24, "standard": 64, "exhaustive": None}
"""Candidates measured per M; None is every feasible one."""

PREDICTED_EFFORTS: dict[str, int | None] = {"quick": 12, "standard": 32, "exhaustive": None}
"""Candidates predicted per M: each is compiled first, and the model has put them in order."""

FINALISTS = 4
"""Candidates of each M that meet the default again, side by side."""


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
    retry_failed: bool = False
    """Try again what timed out or crashed in an earlier command."""
    unmeasured: str = ""
    """Why this is a prediction although the GPU is here."""

    @property
    def measured(self) -> bool:
        """Whether candidates are timed on a GPU; otherwise their times are predicted."""
        return bool(self.gpus)

    @property
    def basis(self) -> Basis:
        """What the times are."""
        return Basis.MEASURED if self.measured else Basis.PREDICTED

    @property
    def file_name(self) -> str:
        """VLLM's name for the file."""
        return self.shape.config_file_name(self.device.vllm_name)

    @cached_property
    def feasible(self) -> list[Candidate]:
        """The candidates that the device can run."""
        return self.space.feasible(checks(self.shape, self.device))

    def feasible_at(self, m: int) -> list[Candidate]:
        """Those that differ at M (see :func:`autotune.kernels.moe.constraints.distinct`)."""
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


@dataclass(frozen=True)
class Request:
    """What the user of ``autotune moe`` asks for; each value is within its bounds by itself.

    Attributes:
        device: a name, the path of a file, or ``auto``.
        command: as typed.
        model: a preset, a folder or a hub id; None for the default, or for ``sizes``.
        sizes: ``experts``, ``intermediate``, ``hidden`` and ``topk``, instead of a model.
        dtype: of the weights; ``auto`` for the model's own.
        scheme: how they are scaled; None for the model's own.
        tp: tensor-parallel size.
        ep: expert-parallel size.
        ms: batch sizes, ascending.
        space: name or path.
        effort: a key of :data:`EFFORTS`.
        budget_s: of the search.
        sampler: ``tpe`` or ``random``.
        seed: of the search.
        min_gain: as a fraction.
        workers: compile processes; None for as many as the CPUs allow.
        study: its name; None for one from device and shape.
        predict: do not measure, whatever GPU is here.
        routing: see :func:`autotune.kernels.moe.routing.parse_routing`.
        memory_limit_mib: of a measuring process.
        retry_failed: try again what timed out or crashed before.
    """

    device: str
    command: str
    model: str | None = None
    sizes: Mapping[str, int | None] = field(default_factory=dict)
    dtype: str = "auto"
    scheme: str | None = None
    tp: int = 1
    ep: int = 1
    ms: tuple[int, ...] = STANDARD_LADDER
    space: str = "stock"
    effort: str = "standard"
    budget_s: float | None = None
    sampler: str = "tpe"
    seed: int = 0
    min_gain: float = 0.01
    workers: int | None = None
    study: str | None = None
    predict: bool = False
    routing: str = "uniform"
    memory_limit_mib: int | None = None
    retry_failed: bool = False


def make_plan(request: Request, visible: str | None) -> Plan:
    """Decide everything, and whether it is measured or predicted.

    Args:
        request: what is asked for.
        visible: ``CUDA_VISIBLE_DEVICES``, if set.

    Raises:
        BadInputError: values that do not go together, or name nothing.
        MissingEnvironmentError: vLLM, or the GPU of ``auto``.
        NoFeasibleCandidateError: the device can run nothing of the space.
    """
    device = resolve_device(request.device, visible)
    shape, model = _layer(request)
    routing = parse_routing(request.routing)
    routing.weights(shape.global_experts)  # refuses a file for another number of experts
    gpus, unmeasured = _to_measure_on(request, device, visible)
    # The processes that measure, and the one that searches, must not wait for a compiler's CPU.
    spare = 1 + len(gpus) if gpus else 0
    plan = Plan(
        study=request.study or default_study(device, shape),
        device=device,
        model=model,
        shape=shape,
        ms=request.ms,
        space=load_space(request.space, "moe", whole=FIELDS),
        effort=request.effort,
        budget_s=request.budget_s,
        sampler=request.sampler,
        seed=request.seed,
        min_gain=request.min_gain,
        workers=request.workers or max(1, usable_cpus() - spare),
        kernel=kernel_info(),
        command=request.command,
        gpus=gpus,
        routing=routing,
        memory_limit_mib=request.memory_limit_mib,
        retry_failed=request.retry_failed,
        unmeasured=unmeasured,
    )
    _ = plan.trials_per_m  # before anything is written: is any candidate feasible?
    return plan


def _layer(request: Request) -> tuple[MoeShape, str]:
    """The shape, and the model's name for people."""
    if all(size is None for size in request.sizes.values()):
        model = DEFAULT_MODEL if request.model is None else request.model
        shape = shape_from_config(
            load_config(model),
            dtype=request.dtype,
            tp=request.tp,
            ep=request.ep,
            scheme=request.scheme,
        )
        return shape, model
    if request.model is not None:
        raise BadInputError(
            "--model and --experts/--intermediate/--hidden/--topk exclude each other"
        )
    shape = explicit_shape(
        **request.sizes,
        dtype=request.dtype,
        scheme=request.scheme,
        tp=request.tp,
        ep=request.ep,
    )
    return shape, "given by its sizes"


def _to_measure_on(
    request: Request, device: Device, visible: str | None
) -> tuple[tuple[GpuInfo, ...], str]:
    """The GPUs to measure on, or none and why those that are here are left alone."""
    gpus = () if request.predict else present_gpus(device, visible)
    lacking = cannot_measure() if gpus else None
    return ((), lacking) if lacking else (gpus, "")
