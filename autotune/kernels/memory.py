"""This module estimates the memory of a plan, and cuts the plan to what unified memory can give.

Sources of the sizes: measuring processes 1.4 to 1.6 GiB resident (``benchmarks/``, an H200) and
0.53 GiB for a CUDA context (an H100), compile processes 0.59 GiB with torch 2.11 for CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from autotune.core import MissingEnvironmentError
from autotune.kernels.measure.requests import copies_of
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.plan import Plan
from autotune.machine.devices import Device, GpuInfo
from autotune.machine.guard import GIB, RESERVE
from autotune.machine.memory import (
    MemoryKind,
    MemoryReading,
    read_memory,
    shared_with_host,
)
from autotune.machine.resident import shortage

COMPILER = int(0.6 * GIB)
"""Bytes of a compile process."""
PROCESS = int(2.2 * GIB)
"""Bytes of a measuring process beside its tensors: vLLM, torch, the CUDA context."""
FACTS = int(2.4 * GIB)
"""Bytes for measuring the device's ceilings at the start (``device_facts``), given back then."""


def weight_bytes(shape: MoeShape) -> int:
    """Count the bytes of one copy of the layer's weights; scales are left out."""
    values = shape.experts * (shape.columns + shape.intermediate) * shape.hidden
    return values * shape.variant.element


def buffer_bytes(shape: MoeShape, m: int) -> int:
    """Estimate, from above, the bytes of activations at ``m`` tokens.

    The reference in float32 has four arrays as wide as the hidden size and three as wide as the
    first GEMM's output at once; the graphs two sets of vLLM's bf16 caches.
    """
    rows, up = m * shape.topk, shape.columns
    reference = 4 * (4 * shape.hidden + 3 * up)
    caches = 2 * (max(up, shape.hidden) + shape.intermediate)
    return rows * (reference + 2 * caches)


def process_bytes(shape: MoeShape, device: Device, batch_sizes: tuple[int, ...]) -> int:
    """Estimate the bytes of one measuring process."""
    weights = weight_bytes(shape)
    copies = copies_of(weights, device.l2_bytes)
    return PROCESS + copies * weights + max(FACTS, buffer_bytes(shape, max(batch_sizes)))


def measuring_bytes(plan: Plan) -> int:
    """Estimate the bytes of all measuring processes; none of a prediction.

    On unified memory the one that searches is closed before the one that compares is opened.
    """
    return len(plan.gpus) * process_bytes(plan.shape, plan.device, plan.batch_sizes)


def memory_of(device: Device, gpus: Sequence[GpuInfo]) -> MemoryReading:
    """Read the memory that these GPUs use, or without any the GPU that this machine has."""
    if gpus and device.unified_memory:
        return shared_with_host(gpus[0].name)
    return read_memory(gpus[0].index if gpus else 0)


def fitting_workers(workers: int, measuring: int, memory: MemoryReading, what: str) -> int:
    """Return how many compile processes there is room for beside what measures.

    All of them where memory is not unified: what runs out of a GPU's own memory dies alone.

    Args:
        workers: how many are wanted.
        measuring: bytes of the measuring processes.
        memory: what there is.
        what: is to be done, as a noun.

    Raises:
        MissingEnvironmentError: there is no room for one, with who holds the memory.
    """
    if memory.kind is not MemoryKind.UNIFIED:
        return workers
    fitting = (memory.free - RESERVE - measuring) // COMPILER
    if fitting < 1:
        said = shortage(what, measuring + COMPILER, memory.free)
        raise MissingEnvironmentError(f"{said}; stop that, and start this again")
    return min(workers, fitting)


def within_memory(plan: Plan, memory: MemoryReading) -> Plan:
    """Return the plan with as many compile processes as unified memory has room for.

    Raises:
        MissingEnvironmentError: there is no room for one, with who holds the memory.
    """
    what = f"measuring {plan.model}" if plan.measured else "compiling"
    workers = fitting_workers(plan.workers, measuring_bytes(plan), memory, what)
    notes = plan.notes
    if workers < plan.workers:
        notes += (
            f"{workers} compile processes in place of {plan.workers}: {memory.free / GIB:.1f} GiB "
            f"of memory are available, {RESERVE // GIB} of which stay with the host",
        )
    unified = memory.kind is MemoryKind.UNIFIED
    return replace(plan, workers=workers, unified=unified, notes=notes)
