"""Compile vLLM's fused-MoE kernel for a device that need not be there, and read the result.

A job runs vLLM's own launcher on meta tensors, so that the signature, the compile-time constants
and the divisibility hints are those of a real launch. Jobs run in worker processes, since some
candidates crash the compiler; only those import torch and Triton.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self

from autotune.core import Cache, MissingEnvironmentError, Outcome, digest
from autotune.kernels.compile.kernel_source import KernelInfo, kernel_info
from autotune.kernels.compile.worker import compile_in_worker, set_up_worker
from autotune.kernels.moe.shape import MoeShape, is_naive
from autotune.measure.pool import TaskResult, TaskStatus, WorkerPool

__all__ = [
    "CompileJob",
    "Compiled",
    "KernelInfo",
    "Specialisation",
    "compile_many",
    "compile_pool",
    "fp16_fallback",
    "kernel_info",
    "representative_m",
    "specialise",
]

_TASKS_PER_WORKER = 400
_CACHE_FORMAT = 2  # raise it when what a job does or a result holds changes
_FP8_FAMILIES = ("QMMA", "QGMMA")
_gave_up: dict[str, Compiled] = {}
"""What timed out or crashed in this process, by the job's key: not tried again, but not stored
either, since a slow machine or one without memory does the same. The next command tries again."""
_FAILURES = {
    TaskStatus.TIMEOUT: Outcome.TIMEOUT,
    TaskStatus.CRASH: Outcome.CRASH,
    TaskStatus.ERROR: Outcome.COMPILE_ERROR,
    TaskStatus.HOST_MEMORY: Outcome.HOST_MEMORY,
}


@dataclass(frozen=True)
class Specialisation:
    """What of M the compiled code depends on.

    Triton compiles anew when an integer argument is 1 or is (not) divisible by 16; M reaches the
    kernel through ``num_valid_tokens`` and ``EM`` only.

    Attributes:
        naive: no sorted token ids; each block takes one token.
        one_token: M * topk is 1.
        tokens_divisible_by_16: whether M * topk is.
        padded_divisible_by_16: whether ``EM``, the padded number of rows, is.
    """

    naive: bool
    one_token: bool
    tokens_divisible_by_16: bool
    padded_divisible_by_16: bool


def specialise(shape: MoeShape, m: int) -> Specialisation:
    """The specialisation that a launch with ``m`` tokens takes.

    ``EM`` is M * topk * BLOCK_SIZE_M while the tokens are fewer than the experts, else M * topk +
    E * (BLOCK_SIZE_M - 1); for a BLOCK_SIZE_M divisible by 16 its hint does not depend on it.

    Source: ``_prepare_expert_assignment`` and ``invoke_fused_moe_triton_kernel`` in vLLM's
    ``fused_moe.py``, ``moe_align_block_size`` in ``moe_align_block_size.py``.
    """
    tokens, experts = m * shape.topk, shape.global_experts
    return Specialisation(
        naive=is_naive(shape, m),
        one_token=tokens == 1,
        tokens_divisible_by_16=tokens % 16 == 0,
        padded_divisible_by_16=tokens < experts or (tokens - experts) % 16 == 0,
    )


def representative_m(shape: MoeShape, specialisation: Specialisation) -> int:
    """The smallest M with this specialisation.

    Raises:
        ValueError: if no M of this shape has it.
    """
    for m in range(1, shape.global_experts + 33):
        if specialise(shape, m) == specialisation:
            return m
    raise ValueError(f"no M gives {specialisation} with {shape}")


@dataclass(frozen=True)
class CompileJob:
    """One kernel to compile.

    Attributes:
        shape: the problem without M.
        arch: compute capability as an integer, such as 121.
        block_m: rows of a tile; ``block_n`` columns, ``block_k`` contraction, as in the file.
        gemm: 1 for gate and up, 2 for down.
        specialisation: what the code depends on of M.
        group_m: GROUP_SIZE_M. Registers and shared memory do not depend on it, so that it is left
            at 1 where only these are wanted; the code of a launch is another for each.
    """

    shape: MoeShape
    arch: int
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    gemm: Literal[1, 2]
    specialisation: Specialisation
    group_m: int = 1

    def key(self, kernel: KernelInfo) -> str:
        """Identity of the result in a cache: the job, the kernel file and the compiler."""
        return digest(
            {
                "format": _CACHE_FORMAT,
                "kernel": kernel.sha256,
                "triton": kernel.triton_version,
                "job": asdict(self),
            }
        )


@dataclass(frozen=True)
class Compiled:
    """What came of a job.

    Attributes:
        outcome: OK, COMPILE_ERROR, OUT_OF_RESOURCES, TIMEOUT or CRASH.
        registers: per thread.
        spill_bytes: local memory per thread.
        shared_bytes: shared memory per block.
        instructions: static counts in the machine code: ``total``, ``LDGSTS``, ``STL``, ``LDL``
            and each tensor-core family found (QMMA, HMMA, IMMA, QGMMA, HGMMA, IGMMA, ...); empty
            if it was not disassembled.
        message: why it failed, or why something is missing.
        seconds: wall time of the job.
    """

    outcome: Outcome
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    instructions: Mapping[str, int] = field(default_factory=dict)
    message: str = ""
    seconds: float = 0.0

    @property
    def lasting(self) -> bool:
        """Whether another try would surely end alike."""
        return self.outcome not in (Outcome.TIMEOUT, Outcome.CRASH)

    @property
    def mma_family(self) -> str | None:
        """The tensor-core instruction used most, such as QMMA; None if there is none."""
        families = {name: n for name, n in self.instructions.items() if "MMA" in name}
        return max(families, key=lambda name: families[name]) if families else None

    def summary(self) -> dict[str, Any]:
        """What is worth keeping with a measurement."""
        return {
            "outcome": self.outcome.value,
            "registers": self.registers,
            "spill_bytes": self.spill_bytes,
            "shared_bytes": self.shared_bytes,
            "mma": self.mma_family,
        }

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Back from :meth:`as_json`."""
        return cls(**{**values, "outcome": Outcome(values["outcome"])})


def compile_pool(workers: int, kernel: KernelInfo) -> WorkerPool:
    """A pool whose workers have loaded the kernel; they are replaced now and then for memory."""
    return WorkerPool(workers, set_up_worker, (kernel.path,), tasks_per_worker=_TASKS_PER_WORKER)


def compile_many(
    pool: WorkerPool,
    jobs: Iterable[CompileJob],
    kernel: KernelInfo,
    cache: Cache | None,
    timeout_s: float = 120,
    *,
    disassemble: bool = True,
    keep: str | None = None,
) -> Iterator[Compiled]:
    """Compile jobs in the pool; yield results in their order. Equal jobs are compiled once.

    Args:
        pool: from :func:`compile_pool`.
        jobs: what to compile; read lazily.
        kernel: from :func:`kernel_info`.
        cache: what it holds is not compiled again; each result is stored as soon as it is known,
            but not timeouts and crashes, of which the machine may be the cause.
        timeout_s: wall seconds per job.
        disassemble: count instructions (about 0.3 s each); results without are not cached.
        keep: a Triton cache in which the kernels stay, for a process that will launch them; of the
            results only outcome and shared memory are filled in, so it needs a cache of its own.

    Raises:
        MissingEnvironmentError: if the workers cannot load the kernel, or lack space or memory.
    """
    order: deque[tuple[str, Compiled | None]] = deque()
    known: dict[str, Compiled] = {}
    store = cache if disassemble or keep else None

    def missing() -> Iterator[CompileJob]:
        asked = set()
        for job in jobs:
            key = job.key(kernel)
            held = _look_up(cache, key)
            order.append((key, held))
            if held is None and key not in asked:
                asked.add(key)
                yield job

    def answered() -> Iterator[Compiled]:
        while order and (held := order[0][1] or known.get(order[0][0])) is not None:
            order.popleft()
            yield held

    run = partial(compile_in_worker, disassemble=disassemble, keep=keep)
    with closing(pool.map_ordered(run, missing(), timeout_s)) as results:
        for result in results:
            yield from answered()
            key = order[0][0]
            known[key] = _compiled(result)
            if not known[key].lasting:
                _gave_up[key] = known[key]
            elif store is not None:
                store.put(key, known[key].as_json())
            yield from answered()
    yield from answered()


def _look_up(cache: Cache | None, key: str) -> Compiled | None:
    values = cache.get(key) if cache is not None else None
    if values is not None and (compiled := Compiled.from_json(values)).lasting:
        return compiled
    return _gave_up.get(key)


def _compiled(result: TaskResult[dict[str, Any]]) -> Compiled:
    if result.value is not None:
        return replace(Compiled.from_json(result.value), seconds=result.seconds)
    if result.message.startswith(MissingEnvironmentError.__name__):
        raise MissingEnvironmentError(result.message.partition(": ")[2])
    return Compiled(_FAILURES[result.status], message=result.message, seconds=result.seconds)


def fp16_fallback(compiled: Compiled, shape: MoeShape) -> bool:
    """Whether fp8 operands are widened and multiplied as fp16 (Triton before 3.8 on sm_121)."""
    return (
        shape.variant.float8
        and any(family in compiled.instructions for family in ("HMMA", "HGMMA"))
        and not any(family in compiled.instructions for family in _FP8_FAMILIES)
    )
