"""The arithmetic of shared memory against real compiles, and what the constraints refuse."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import dataclass

import pytest

from autotune.core import Outcome
from autotune.moe import feasibility
from autotune.moe.compile import CompileJob, compile_many, compile_pool, kernel_info, specialise
from autotune.moe.feasibility import CONSTRAINTS, shared_memory_bytes
from autotune.moe.shape import MoeShape, Scheme

PARAMETERS = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "num_warps", "num_stages")
STOCK = (
    (16, 32, 64, 128, 256), (32, 64, 128, 256), (64, 128, 256), (4, 8), (2, 3, 4, 5),
)  # fmt: skip
GROUPS = (1, 16, 32, 64)


def shape(kind: str) -> MoeShape:
    """Gemma 4 26B-A4B; with blocks, the width rounded to them."""
    dtype, weights, scheme, block = {
        "channel": ("fp8_w8a8", "fp8", Scheme.CHANNEL, None),
        "tensor": ("fp8_w8a8", "fp8", Scheme.TENSOR, None),
        "block": ("fp8_w8a8", "fp8", Scheme.BLOCK, (128, 128)),
        "int8": (None, "int8", Scheme.CHANNEL, None),
        "bf16": (None, "bf16", Scheme.NONE, None),
    }[kind]
    return MoeShape(
        experts=128, intermediate=768 if block else 704, hidden=2816, topk=8, dtype=dtype,
        weight_dtype=weights, scheme=scheme, block_shape=block, global_experts=128,
    )  # fmt: skip


KINDS = ("channel", "tensor", "block", "int8", "bf16")


@dataclass(frozen=True)
class Limits:
    arch: int
    shared_memory_per_block: int


GB10 = Limits(121, 101376)


def params(*values: int) -> dict[str, int]:
    return dict(zip(PARAMETERS, values, strict=True))


def job(kind: str, arch: int, candidate: tuple[int, ...], gemm: int = 1, m: int = 64) -> CompileJob:
    block_m, block_n, block_k, warps, stages = candidate
    return CompileJob(
        shape=shape(kind),
        arch=arch,
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        num_warps=warps,
        num_stages=stages,
        gemm=1 if gemm == 1 else 2,
        specialisation=specialise(shape(kind), m),
    )


def sample() -> list[tuple[str, int, int, tuple[int, ...]]]:
    """(kind, arch, gemm, candidate): corners of the grid and a seeded draw from inside it.

    Tiles over 128 x 128 take seconds each and are left to the corners.
    """
    draw = random.Random(20)
    grid = [c for c in itertools.product(*STOCK) if c[0] * c[1] <= 128 * 128]
    corners = [
        (16, 32, 64, 8, 2), (16, 32, 256, 4, 5), (16, 256, 256, 8, 5), (256, 32, 64, 4, 2),
        (256, 64, 256, 8, 3), (32, 256, 128, 4, 4),
    ]  # fmt: skip
    chosen: list[tuple[str, int, int, tuple[int, ...]]] = []
    for kind, arch in itertools.product(KINDS, (121, 90)):
        rest = draw.sample(grid, 20 if kind in ("channel", "tensor", "block") else 8)
        for index, candidate in enumerate([*corners, *rest]):
            chosen.append((kind, arch, 1 + index % 2, candidate))
    return chosen


@pytest.mark.vllm
def test_predicted_shared_memory_is_what_the_compiler_takes() -> None:
    kernel, chosen = kernel_info(), sample()
    jobs = [
        job(kind, arch, candidate, gemm, m)
        for m, (kind, arch, gemm, candidate) in zip(
            itertools.cycle((1, 7, 8, 64, 1024)), chosen, strict=False
        )
    ]
    assert len(jobs) >= 200
    wrong = []
    with compile_pool(os.cpu_count() or 1, kernel) as pool:
        results = compile_many(pool, jobs, kernel, None, disassemble=False)
        for (kind, arch, gemm, candidate), compiled in zip(chosen, results, strict=True):
            assert compiled.outcome is Outcome.OK, compiled.message
            predicted = shared_memory_bytes(params(*candidate), shape(kind), arch)
            if predicted != compiled.shared_bytes:
                wrong.append((kind, arch, gemm, candidate, predicted, compiled.shared_bytes))
    assert wrong == []


@pytest.mark.vllm
@pytest.mark.parametrize("arch", [121, 90])
def test_the_extremes_that_the_compiler_accepts_and_refuses(arch: int) -> None:
    """What the ``wide`` space may hold: the constraints say no exactly where Triton does."""
    limits = Limits(arch, 10**9)
    candidates = [
        (8, 64, 64, 4, 2), (16, 8, 64, 4, 2), (16, 16, 512, 4, 2), (32, 64, 64, 1, 3),
        (64, 64, 64, 2, 3), (64, 64, 64, 16, 3), (64, 64, 64, 32, 3), (64, 64, 64, 4, 1),
        (64, 64, 64, 4, 8), (16, 64, 32, 4, 2), (16, 64, 16, 4, 2), (16, 64, 8, 4, 2),
        (48, 64, 64, 4, 2), (16, 64, 64, 3, 2),
    ]  # fmt: skip
    kernel = kernel_info()
    for kind in ("channel", "bf16"):
        it = shape(kind)
        jobs = [job(kind, arch, candidate) for candidate in candidates]
        with compile_pool(2, kernel) as pool:
            results = list(compile_many(pool, jobs, kernel, None, 60, disassemble=False))
        for candidate, compiled in zip(candidates, results, strict=True):
            refused = [
                name for name, check in CONSTRAINTS.items()
                if check(params(*candidate), it, limits)
            ]  # fmt: skip
            accepted = compiled.outcome is Outcome.OK
            assert accepted == (not refused), (kind, candidate, refused, compiled.message)


@pytest.mark.parametrize(
    ("kind", "limits", "fitting"),
    [("channel", GB10, 1456), ("tensor", GB10, 1456)],
)
def test_how_much_of_the_stock_grid_fits(kind: str, limits: Limits, fitting: int) -> None:
    fits = CONSTRAINTS["fits_shared_memory"]
    grid = itertools.product(*STOCK, GROUPS)
    assert sum(fits(params(*c[:5]), shape(kind), limits) is None for c in grid) == fitting


@pytest.mark.parametrize(
    ("kind", "arch", "candidate", "expected"),
    [
        ("channel", 121, (64, 64, 128, 4, 3), 2 * 128 * 128),
        ("bf16", 121, (64, 64, 128, 4, 3), 2 * 2 * 128 * 128),
        ("int8", 121, (64, 64, 128, 4, 3), 2 * 128 * 128),
        ("block", 121, (64, 64, 256, 4, 3), 2 * 128 * 128),  # BLOCK_SIZE_K clamped
        ("block", 121, (64, 128, 128, 4, 3), 2 * 192 * 128 + 4 * 128),  # scales
        ("block", 121, (64, 128, 128, 8, 3), 2 * 192 * 128),
        ("channel", 90, (64, 64, 128, 4, 3), 3 * 128 * 128),  # wgmma
        ("channel", 90, (16, 64, 128, 4, 3), 3 * 80 * 128),  # swapped operands
        ("channel", 90, (16, 32, 128, 4, 3), 2 * 48 * 128),
        ("int8", 90, (16, 64, 128, 4, 3), 2 * 80 * 128),  # never swapped
        ("channel", 90, (64, 64, 128, 2, 3), 2 * 128 * 128),  # no warp group
        ("channel", 121, (64, 64, 128, 4, 1), 128 * 128),
    ],
)
def test_shared_memory_of(kind: str, arch: int, candidate: tuple[int, ...], expected: int) -> None:
    assert shared_memory_bytes(params(*candidate), shape(kind), arch) == expected


def test_without_swap_ab_small_tiles_take_one_buffer_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feasibility, "has_swap_ab", lambda: False)
    assert shared_memory_bytes(params(16, 64, 128, 4, 3), shape("channel"), 90) == 2 * 80 * 128


@pytest.mark.parametrize(
    ("name", "kind", "changed", "reason"),
    [
        ("powers_of_two", "channel", {"BLOCK_SIZE_N": 48}, "BLOCK_SIZE_N=48 is not a power"),
        ("launchable", "channel", {"num_warps": 64}, "over 1024 threads"),
        ("launchable", "channel", {"num_stages": 0}, "num_stages=0 is below 1"),
        ("block_k_deep_enough", "channel", {"BLOCK_SIZE_K": 16}, "BLOCK_SIZE_K=16 is below 32"),
        ("block_k_deep_enough", "bf16", {"BLOCK_SIZE_K": 8}, "BLOCK_SIZE_K=8 is below 16"),
        ("block_k_not_clamped", "block", {"BLOCK_SIZE_K": 256}, "repeats 128"),
        ("fits_shared_memory", "channel", {"num_stages": 14}, "the device has 101376 B"),
    ],
)
def test_each_constraint_says_why(
    name: str, kind: str, changed: dict[str, int], reason: str
) -> None:
    fine = params(64, 64, 128, 4, 3)
    assert CONSTRAINTS[name](fine, shape(kind), GB10) is None
    assert reason in (CONSTRAINTS[name]({**fine, **changed}, shape(kind), GB10) or "")
