"""The measurer of a plan: of this machine or of a cluster, measured or predicted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from autotune.kernels.cluster import ClusterCompilers, ClusterTimer, Team
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.processes import GpuOptions
from autotune.kernels.measure.protocol import KernelMeasurer
from autotune.kernels.memory import measuring_bytes
from autotune.kernels.plan import Plan
from autotune.kernels.predict.measurer import PredictingMeasurer


def cluster_measurer(plan: Plan, team: Team, on_lost: Callable[[str], None]) -> KernelMeasurer:
    """Make the measurer that works on the nodes of a cluster.

    Args:
        plan: says whether times are measured.
        team: the nodes, and their GPUs.
        on_lost: told of every worker that is lost.
    """
    if plan.measured:
        processes = CompileProcesses(plan.kernel, plan.workers)
        if team.compilers:
            processes = ClusterCompilers(plan.kernel, team, on_lost)
        return ClusterTimer(plan.shape, _options(plan, None), processes).on(team, on_lost)
    return PredictingMeasurer(
        plan.device, plan.shape, ClusterCompilers(plan.kernel, team, on_lost), unified=plan.unified
    )


def local_measurer(plan: Plan, shared_locks: Path | None = None) -> KernelMeasurer:
    """Make the measurer that works on this machine: times on its GPUs, or predictions.

    Args:
        plan: says which.
        shared_locks: a folder that other machines or containers may see, for locks of GPUs.
    """
    processes = CompileProcesses(plan.kernel, plan.workers)
    if plan.measured:
        return GpuMeasurer(plan.shape, _options(plan, shared_locks), processes)
    return PredictingMeasurer(plan.device, plan.shape, processes, unified=plan.unified)


def _options(plan: Plan, shared: Path | None) -> GpuOptions:
    return GpuOptions(
        gpus=tuple(gpu.index for gpu in plan.gpus),
        arch=plan.device.arch,
        l2_bytes=plan.device.l2_bytes,
        routing=plan.routing,
        seed=plan.seed,
        memory_limit_mib=plan.memory_limit_mib,
        uuids={gpu.index: gpu.uuid for gpu in plan.gpus},
        shared_locks=shared,
        unified=plan.unified,
        need=measuring_bytes(plan) if plan.unified else 0,
    )
