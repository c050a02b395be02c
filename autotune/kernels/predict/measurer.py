"""The measurer of the predicted mode: compile the real kernel, then apply the cost model."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Literal, Self

from autotune.core import Basis, Cache, Candidate, Job, Measurement, Outcome
from autotune.kernels.compile.job import Compiled, CompileJob, fp16_fallback, specialise
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.moe.constraints import effective_block_k, shared_memory_bytes, uses_wgmma
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.moe.variants import VARIANTS
from autotune.kernels.predict.cost_model import Resources, Tile, predict
from autotune.machine.devices import Device
from autotune.machine.guard import guarded


def tile_of(candidate: Candidate, shape: MoeShape) -> Tile:
    """The launch parameters of a candidate, with the launcher's clamp of BLOCK_SIZE_K."""
    return Tile(
        block_m=candidate.int("BLOCK_SIZE_M"),
        block_n=candidate.int("BLOCK_SIZE_N"),
        block_k=effective_block_k(candidate.int("BLOCK_SIZE_K"), shape),
        group_m=candidate.int("GROUP_SIZE_M"),
        num_warps=candidate.int("num_warps"),
        num_stages=candidate.int("num_stages"),
    )


def _mma_key(family: str) -> str:
    """``QMMA`` to ``qmma_fp8``: the letter before MMA or GMMA says what is multiplied."""
    letter = family.removeprefix("UTC")[0]
    weights = (variant.weights for variant in VARIANTS.values() if variant.letter == letter)
    return f"{family.lower()}_{next(weights, 'bf16')}"


def resources_of(compiled: Compiled) -> Resources:
    """What the cost model needs of a compiled GEMM.

    Raises:
        ValueError: if no tensor-core instruction was found.
    """
    family = compiled.mma_family
    if family is None:
        raise ValueError("no tensor-core instruction in the compiled kernel")
    return Resources(
        compiled.registers, compiled.spill_bytes, compiled.shared_bytes, _mma_key(family)
    )


def estimated_resources(candidate: Candidate, shape: MoeShape, device: Device) -> Resources:
    """Resources before compiling, to order candidates: accumulators, fragments and addresses.

    Registers per thread: 40, BM·BN/(32·warps) accumulators (2.5 times as many where block scales
    are applied to each product before it is added), and 4 per 16 bytes that the thread copies in a
    K step. Where products and the 40 pass the limit of a thread, each register too many costs
    2 bytes of spills, or 8 where already the accumulators do. Read off 117 kernels compiled with
    Triton 3.8.0, most for sm_90; nine in ten deviate by 22 registers or less.
    """
    tile = tile_of(candidate, shape)
    threads = 32 * tile.num_warps
    accumulators = tile.block_m * tile.block_n // threads
    products = accumulators if shape.block_shape is None else accumulators * 5 // 2
    element = shape.variant.element
    copies = (tile.block_m + tile.block_n) * tile.block_k * element / 16 / threads
    needed = products + math.ceil(4 * copies) + 40
    limit = device.max_registers_per_thread
    spilled = 0
    if products + 40 > limit:
        spilled = (8 if accumulators + 40 > limit else 2) * (needed - limit)
    return Resources(
        registers=min(needed, limit),
        spill_bytes=spilled,
        shared_bytes=shared_memory_bytes(candidate.ints, shape, device.arch),
        mma=_expected_mma(candidate, shape, device),
    )


def _expected_mma(candidate: Candidate, shape: MoeShape, device: Device) -> str:
    """The tensor-core instruction that Triton takes: for 8-bit types too, half rate is the last."""
    kind = "gmma" if uses_wgmma(candidate.ints, shape, device.arch) else "mma"
    mma = f"{shape.variant.letter.lower()}{kind}_{shape.variant.weights}"
    return mma if mma in device.tensor_flops_per_sm_per_clock else "hmma_bf16"


def compile_jobs(
    candidate: Candidate, workload: MoeWorkload, arch: int, group_m: int = 1
) -> tuple[CompileJob, CompileJob]:
    """The compilations of both GEMMs that a candidate needs at this M."""
    specialisation = specialise(workload.shape, workload.m)

    def job(gemm: Literal[1, 2]) -> CompileJob:
        return CompileJob(
            shape=workload.shape,
            arch=arch,
            block_m=candidate.int("BLOCK_SIZE_M"),
            block_n=candidate.int("BLOCK_SIZE_N"),
            block_k=candidate.int("BLOCK_SIZE_K"),
            num_warps=candidate.int("num_warps"),
            num_stages=candidate.int("num_stages"),
            gemm=gemm,
            specialisation=specialisation,
            group_m=group_m,
        )

    return job(1), job(2)


class PredictingMeasurer:
    """Predicts: compiles both GEMMs offline for ``device`` and applies the cost model.

    A :class:`autotune.kernels.measure.protocol.KernelMeasurer`.
    """

    def __init__(
        self,
        device: Device,
        shape: MoeShape,
        processes: CompileProcesses,
        *,
        unified: bool = False,
    ) -> None:
        """Take what the predictions need; the processes start on entering the context.

        Args:
            device: to predict for.
            shape: of every workload that will be given.
            processes: compile.
            unified: whether a GPU of this machine allocates from the host's memory, which is then
                guarded.
        """
        self._device, self._shape, self._processes = device, shape, processes
        self._unified, self._stack = unified, ExitStack()
        self._cache: Cache | None = None

    def __enter__(self) -> Self:
        self._guard = self._stack.enter_context(guarded(self._unified))
        self._stack.enter_context(self._processes)
        return self

    def __exit__(self, *ended: Any) -> None:
        self._stack.__exit__(*ended)

    def use(self, cache: Cache) -> None:
        """Take a cache of compile results."""
        self._cache = cache

    def defaults(self, batch_sizes: Sequence[int]) -> dict[int, Candidate]:
        """Return what vLLM would run at each M without a file."""
        return self._processes.defaults(self._shape, batch_sizes)

    @property
    def basis(self) -> Basis:
        """Always predicted."""
        return Basis.PREDICTED

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        """Yield a prediction per job, in order."""
        given: deque[tuple[Candidate, MoeWorkload]] = deque()

        def gemms() -> Iterator[CompileJob]:
            for job in jobs:
                if not isinstance(job.workload, MoeWorkload) or job.workload.shape != self._shape:
                    raise TypeError(f"not a workload of this measurer: {job.workload!r}")
                given.append((job.candidate, job.workload))
                yield from compile_jobs(job.candidate, job.workload, self._device.arch)

        results = self._processes.compile(gemms(), self._cache)
        for first in results:
            candidate, workload = given.popleft()
            second = next(results)
            self._guard.raise_if_ended()  # then no compile failed of itself
            yield self._measurement(candidate, workload, (first, second))

    def _measurement(
        self, candidate: Candidate, workload: MoeWorkload, gemms: tuple[Compiled, Compiled]
    ) -> Measurement:
        details = {"compiled": [gemm.summary() for gemm in gemms]}
        seconds = sum(gemm.seconds for gemm in gemms)
        for number, gemm in enumerate(gemms, start=1):
            outcome, message = gemm.outcome, gemm.message
            if outcome is Outcome.OK and gemm.shared_bytes > self._device.shared_memory_per_block:
                outcome = Outcome.OUT_OF_RESOURCES
                message = (
                    f"{gemm.shared_bytes} bytes of shared memory; {self._device.name} gives a "
                    f"block {self._device.shared_memory_per_block}"
                )
            if outcome is Outcome.OK and gemm.mma_family is None:
                outcome, message = Outcome.COMPILE_ERROR, "no tensor-core instruction found"
            if outcome is not Outcome.OK:
                return Measurement(
                    outcome,
                    Basis.PREDICTED,
                    message=f"GEMM {number}: {message}",
                    details=details,
                    seconds=seconds,
                )
        shape = workload.shape
        first, second = (resources_of(gemm) for gemm in gemms)
        prediction = predict(workload, tile_of(candidate, shape), (first, second), self._device)
        return Measurement(
            Outcome.OK,
            Basis.PREDICTED,
            value=prediction.us,
            details=details
            | prediction.as_json()
            | {"fp16_fallback": any(fp16_fallback(gemm, shape) for gemm in gemms)},
            seconds=seconds,
        )
