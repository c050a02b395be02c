"""Which candidates the kernel and a device accept, told without compiling.

Pure arithmetic, found by compiling with Triton 3.8.0; the tests compile again. What the compiler
refuses is little: 8-bit operands need BLOCK_SIZE_K of 32 or more, bf16 16. It accepts every
other power of two tried on sm_90 and sm_121: BLOCK_SIZE_M and _N from 8, BLOCK_SIZE_K to 512,
num_warps 1 to 32, num_stages 1 to 8. What rules candidates out is shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from autotune.core import Candidate
from autotune.kernels.compile.kernel_source import has_swap_ab
from autotune.kernels.moe.shape import MoeShape, is_naive

Params = Mapping[str, Any]
"""BLOCK_SIZE_M, BLOCK_SIZE_N, BLOCK_SIZE_K, num_warps and num_stages, all integers."""

_THREADS_PER_WARP = 32
_MAX_WARPS = 32
_COPY_BYTES = 4  # the least that cp.async copies per thread
_HOPPER = 90
_REGISTERS = 256  # per thread, one of them always zero
_TENSOR_MEMORY = (100, 103, 110)
_BARRIER_BYTES = 8


class DeviceLimits(Protocol):
    """What the constraints ask of a device."""

    @property
    def arch(self) -> int:
        """Compute capability as an integer, such as 121."""

    @property
    def shared_memory_per_block(self) -> int:
        """Opt-in limit in bytes."""


def effective_block_k(block_k: int, shape: MoeShape) -> int:
    """BLOCK_SIZE_K as the kernel gets it: the launcher clamps it to a quantisation block.

    Source: ``invoke_fused_moe_triton_kernel`` in vLLM's ``fused_moe.py``.
    """
    return block_k if shape.block_shape is None else min(block_k, *shape.block_shape)


def swaps_operands(params: Params, shape: MoeShape, arch: int) -> bool:
    """Whether the kernel computes the transposed product, as vLLM does for small M on sm_90.

    Source: ``enable_swap_ab`` in vLLM's ``fused_moe/utils.py``, absent in old versions.
    """
    return (
        arch == _HOPPER
        and shape.variant.float8
        and params["BLOCK_SIZE_M"] < 64 <= params["BLOCK_SIZE_N"]
        and has_swap_ab()
    )


def uses_wgmma(params: Params, shape: MoeShape, arch: int) -> bool:
    """Whether sm_90's asynchronous tensor-core instructions are used.

    They need 64 rows and a group of four warps; elsewhere it is the older ``mma``.
    """
    wide = params["BLOCK_SIZE_M"] >= 64 or swaps_operands(params, shape, arch)
    return arch == _HOPPER and wide and params["num_warps"] % 4 == 0


def uses_tensor_memory(params: Params, arch: int) -> bool:
    """Whether tcgen05 is used, which keeps its sums in tensor memory."""
    return arch in _TENSOR_MEMORY and params["BLOCK_SIZE_M"] >= 64 and params["num_warps"] % 4 == 0


def shared_memory_bytes(params: Params, shape: MoeShape, arch: int) -> int:
    """Shared memory per block, in bytes.

    Each operand has ``num_stages - 1`` buffers, or ``num_stages`` where wgmma or tcgen05 reads them
    while the next ones are filled; tcgen05 has barriers besides. Exact for every candidate of
    vLLM's grid that was compiled. An estimate, off by a few KiB, for ``num_stages`` 1 and for
    operands under 4 bytes per thread, which Triton does not pipeline.

    Args:
        params: the candidate.
        shape: the problem.
        arch: compute capability as an integer: 90, 10x, 110 or 12x.
    """
    block_m, block_n, warps, stages = (
        int(params[name]) for name in ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "num_warps", "num_stages")
    )
    block_k = effective_block_k(params["BLOCK_SIZE_K"], shape)
    element = shape.variant.element
    operands = (block_m * block_k * element, block_n * block_k * element)
    tensor_memory = uses_tensor_memory(params, arch)
    if stages == 1:
        return sum(operands) + (_BARRIER_BYTES if tensor_memory else 0)
    if tensor_memory:
        # Block scales change their layout through shared memory.
        rows = block_m if block_m > _THREADS_PER_WARP * warps else 0
        scales = 4 * (block_n + rows) if shape.block_shape is not None else 0
        return sum(operands) * stages + 2 * _BARRIER_BYTES + scales
    buffers = stages if uses_wgmma(params, shape, arch) else stages - 1
    least = _COPY_BYTES * _THREADS_PER_WARP * warps
    total = sum(size * (buffers if size >= least else 1) for size in operands)
    longest = max(block_m, block_n)
    if shape.block_shape is not None and longest >= _THREADS_PER_WARP * warps:
        total += 4 * longest  # the block scales change their layout through shared memory
    return total


Constraint = Callable[[Params, MoeShape, DeviceLimits], str | None]


def powers_of_two(
    params: Params,
    shape: MoeShape,  # noqa: ARG001 - the signature of a constraint
    device: DeviceLimits,  # noqa: ARG001
) -> str | None:
    """Triton's tiles and warps are powers of two; GROUP_SIZE_M and num_stages need not be."""
    for name in ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "num_warps"):
        if params[name] < 1 or params[name] & (params[name] - 1):
            return f"{name}={params[name]} is not a power of two"
    return None


def launchable(
    params: Params,
    shape: MoeShape,  # noqa: ARG001
    device: DeviceLimits,  # noqa: ARG001
) -> str | None:
    """A block has at most 1024 threads; stages and groups are counted from 1."""
    if params["num_warps"] > _MAX_WARPS:
        return f"num_warps={params['num_warps']} is over 1024 threads"
    for name in ("num_stages", "GROUP_SIZE_M"):
        if params.get(name, 1) < 1:
            return f"{name}={params[name]} is below 1"
    return None


def block_k_deep_enough(
    params: Params,
    shape: MoeShape,
    device: DeviceLimits,  # noqa: ARG001
) -> str | None:
    """The smallest contraction of ``tl.dot``: 32 for 8-bit operands, 16 for bf16."""
    least = shape.variant.least_k
    block_k = effective_block_k(params["BLOCK_SIZE_K"], shape)
    return f"BLOCK_SIZE_K={block_k} is below {least}" if block_k < least else None


def block_k_not_clamped(
    params: Params,
    shape: MoeShape,
    device: DeviceLimits,  # noqa: ARG001
) -> str | None:
    """Under block quantisation a larger BLOCK_SIZE_K is the same kernel as the clamped one."""
    block_k = effective_block_k(params["BLOCK_SIZE_K"], shape)
    if block_k == params["BLOCK_SIZE_K"]:
        return None
    return f"BLOCK_SIZE_K={params['BLOCK_SIZE_K']} repeats {block_k} (quantisation blocks)"


def fits_shared_memory(params: Params, shape: MoeShape, device: DeviceLimits) -> str | None:
    """A block's shared memory is within what the device gives one block."""
    need = shared_memory_bytes(params, shape, device.arch)
    limit = device.shared_memory_per_block
    return f"needs {need} B of shared memory, the device has {limit} B" if need > limit else None


def accumulators_fit(
    params: Params,
    shape: MoeShape,  # noqa: ARG001
    device: DeviceLimits,
) -> str | None:
    """The float32 sums of a tile fit into the registers of its threads (255 each).

    A tile that cannot but spill them took 2.7 to 24 times the best time at every M of the landscape
    recorded on an H200 (benchmarks/results), and compiles slowest. Tensor memory holds the sums on
    sm_100.
    """
    sums = params["BLOCK_SIZE_M"] * params["BLOCK_SIZE_N"]
    each = sums // (_THREADS_PER_WARP * params["num_warps"])
    if each >= _REGISTERS and device.arch not in _TENSOR_MEMORY:
        return f"{each} sums per thread do not fit into {_REGISTERS - 1} registers"
    return None


CONSTRAINTS: dict[str, Constraint] = {
    "accumulators_fit": accumulators_fit,
    "powers_of_two": powers_of_two,
    "launchable": launchable,
    "block_k_deep_enough": block_k_deep_enough,
    "block_k_not_clamped": block_k_not_clamped,
    "fits_shared_memory": fits_shared_memory,
}


def row_blocks_most(shape: MoeShape, m: int, block_m: int) -> int:
    """Row tiles of the launch grid at M: as many as routing can need, whatever it is.

    Source: ``EM`` in ``invoke_fused_moe_triton_kernel`` and ``moe_align_block_size``.
    """
    tokens = m * shape.topk
    if is_naive(shape, m):
        return tokens
    padded = tokens + shape.global_experts * (block_m - 1)
    if tokens < shape.global_experts or m < block_m:
        padded = min(padded, tokens * block_m)
    return -(-padded // block_m)


def without_group(candidate: Candidate) -> Candidate:
    """What of the candidate is compiled: GROUP_SIZE_M only orders the programs of a launch."""
    return Candidate.of({n: v for n, v in candidate.params.items() if n != "GROUP_SIZE_M"})


def distinct(candidates: Sequence[Candidate], shape: MoeShape, m: int) -> list[Candidate]:
    """Those of ``candidates`` that differ at M.

    The kernel takes row tiles in groups of GROUP_SIZE_M, or of all that are left where these are
    fewer: of several groups as large as the whole grid, only the smallest is kept.
    """
    smallest: dict[Candidate, int] = {}
    kept = []
    for candidate in sorted(candidates, key=lambda c: c.int("GROUP_SIZE_M")):
        group, block_m = candidate.int("GROUP_SIZE_M"), candidate.int("BLOCK_SIZE_M")
        everything = group >= row_blocks_most(shape, m, block_m)
        if everything and smallest.setdefault(without_group(candidate), group) != group:
            continue
        kept.append(candidate)
    order = {candidate: index for index, candidate in enumerate(candidates)}
    return sorted(kept, key=order.__getitem__)
