"""The arithmetic of shared memory against real compiles, and what the constraints refuse."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import Candidate
from autotune.kernels.compile import kernel_source
from autotune.kernels.compile.job import kernel_info, specialise
from autotune.kernels.compile.worker import launch_arguments
from autotune.kernels.moe import constraints as feasibility
from autotune.kernels.moe.constraints import (
    CONSTRAINTS,
    accumulators_fit,
    distinct,
    row_blocks_most,
    shared_memory_bytes,
)
from autotune.kernels.moe.shape import MoeShape
from tests.support.compiles import (
    STOCK,
    Case,
    compiled,
    extremes,
    few,
    job,
    params,
    recorded,
    sample,
    shape,
    size,
)

GROUPS = (1, 16, 32, 64)


@dataclass(frozen=True)
class Limits:
    arch: int
    shared_memory_per_block: int


GB10 = Limits(121, 101376)


def accepted(case: Case) -> bool:
    """Whether no constraint refuses the candidate of a device with room for anything."""
    limits = Limits(case.arch, 10**9)
    it = shape(case.kind)
    return not any(check(params(*case.candidate), it, limits) for check in CONSTRAINTS.values())


def test_predicted_shared_memory_is_what_the_compiler_took() -> None:
    """Of the table that ``make compile-tables`` remakes; a test below compiles some of it again."""
    table = recorded(kernel_info())["shared_bytes"]
    assert len(sample()) >= 200
    wrong = [
        (case.key, predicted, table[case.key])
        for case in sample()
        if (predicted := shared_memory_bytes(params(*case.candidate), shape(case.kind), case.arch))
        != table[case.key]
    ]
    assert wrong == []


def test_the_extremes_that_the_compiler_accepts_and_refuses() -> None:
    """What the ``wide`` space may hold: the constraints say no exactly where Triton does."""
    table = recorded(kernel_info())["shared_bytes"]
    told = {case.key: accepted(case) for case in extremes()}
    assert told == {key: table[key] is not None for key in told}
    assert {True, False} == set(told.values())


FEW = 15, 4
"""Of 282 and 56: compiled again by `make test`; `make nightly` compiles them all."""


@pytest.mark.compile
@pytest.mark.parametrize(
    ("usual", "extreme"),
    [FEW, pytest.param(None, None, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])],
    ids=["few", "all"],
)
def test_the_table_is_what_the_installed_compiler_takes(
    usual: int | None, extreme: int | None
) -> None:
    kernel = kernel_info()
    table = recorded(kernel)["shared_bytes"]
    cases = few(sample(), usual, seed=1) + few(extremes(), extreme, seed=2)
    workers = 1 if usual else os.cpu_count() or 1
    sizes = map(size, compiled(cases, kernel, workers))
    found = dict(zip((case.key for case in cases), sizes, strict=True))
    assert found == {key: table[key] for key in found}
    assert len(found) == len(cases) >= sum(FEW)
    assert None in found.values()


def test_few_of_the_cases_are_of_every_kind_on_every_architecture() -> None:
    assert len({(case.kind, case.arch) for case in few(sample(), FEW[0], seed=1)}) == 15


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
        ("channel", 100, (64, 64, 128, 4, 3), 3 * 128 * 128 + 16),  # tcgen05
        ("block", 100, (128, 256, 64, 8, 3), 3 * 384 * 64 + 16 + 4 * 256),
        ("bf16", 110, (64, 64, 128, 2, 3), 2 * 2 * 128 * 128),
        ("int8", 103, (64, 256, 64, 8, 1), 320 * 64 + 8),
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


# ---------------------------------------------------------------------------- registers


@pytest.mark.parametrize(
    ("block_m", "block_n", "warps", "sums"),
    [
        (64, 64, 4, 32),
        (128, 128, 4, 128),
        (128, 256, 8, 128),
        (256, 256, 8, 256),
        (128, 256, 4, 256),
        (256, 128, 4, 256),
        (256, 256, 4, 512),
        (64, 128, 1, 256),
        (64, 64, 1, 128),
        (16, 256, 1, 128),
        (256, 256, 32, 64),
    ],
)
def test_sums_that_fit_into_registers(block_m: int, block_n: int, warps: int, sums: int) -> None:
    """A thread has 255; tensor memory needs none of them."""
    for stages, arch in itertools.product((2, 5), (90, 121, 120, 89)):
        limits = Limits(arch, 10**9)
        said = accumulators_fit(params(block_m, block_n, 64, warps, stages), GEMMA, limits)
        assert (said is None) == (sums < 256), (arch, said)
        assert said is None or said.startswith(f"{sums} sums per thread do not fit into 255")
    for arch in (100, 103, 110):
        tile = params(block_m, block_n, 64, warps, 3)
        assert accumulators_fit(tile, GEMMA, Limits(arch, 10**9)) is None


# -------------------------------------------------------------------------- launch grid


GEMMA = shape("channel")
FEW_EXPERTS = replace(GEMMA, experts=8, global_experts=8, topk=2)  # as Mixtral
PARALLEL = replace(GEMMA, experts=32)  # a quarter of the experts on this rank: never naive
ALONE = replace(GEMMA, experts=1, global_experts=1, topk=1)
SHAPES = (GEMMA, FEW_EXPERTS, PARALLEL, ALONE)
MS = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 63, 64, 96, 127, 128, 255, 256, 512, 1024, 4096)


class GridOnly:
    """In place of the kernel: keeps the number of programs of each launch."""

    def __init__(self) -> None:
        self.programs: list[int] = []

    def __getitem__(self, grid: Any) -> Any:
        def launch(*_: Any, **options: Any) -> None:
            self.programs.append(grid(options)[0])

        return launch


@pytest.mark.parametrize("it", SHAPES, ids=["gemma", "few", "parallel", "alone"])
def test_row_blocks_are_those_of_the_launch(it: MoeShape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the grid of vLLM's own launcher, for both GEMMs."""
    module, kernel = kernel_source.load_kernel(kernel_info().path), GridOnly()
    monkeypatch.setitem(module.__dict__, "fused_moe_kernel", kernel)
    for m, block_m, gemm in itertools.product(MS, (16, 32, 64, 128, 256), (1, 2)):
        one = replace(
            job("channel", 121, (block_m, 64, 64, 4, 2), gemm),
            shape=it,
            specialisation=specialise(it, m),
        )
        arguments = launch_arguments(one, m=m)
        module.invoke_fused_moe_triton_kernel(**arguments)
        columns = -(-arguments["B"].shape[1] // 64)
        expected = kernel.programs.pop() / columns
        assert row_blocks_most(it, m, block_m) == expected, (m, block_m, gemm)


@given(
    it=st.sampled_from(SHAPES),
    m=st.integers(1, 5000),
    block_m=st.sampled_from([16, 32, 64, 128, 256]),
    data=st.data(),
)
def test_row_blocks_are_enough_for_any_routing(
    it: MoeShape, m: int, block_m: int, data: st.DataObject
) -> None:
    """Each expert's tokens take whole tiles; as few experts as possible to as many."""
    used = data.draw(st.integers(it.topk, min(it.global_experts, m * it.topk)))
    spread = [m * it.topk // used + (n < m * it.topk % used) for n in range(used)]
    most = row_blocks_most(it, m, block_m)
    assert sum(-(-tokens // block_m) for tokens in spread) <= most
    assert most <= m * it.topk


def grouped(block_m: int, group: int, stages: int = 3) -> Candidate:
    return Candidate.of({**params(block_m, 64, 64, 4, stages), "GROUP_SIZE_M": group})


GRID = [
    grouped(block_m, group, stages)
    for block_m in STOCK[0]
    for stages in STOCK[4]
    for group in (1, 4, 16, 32, 64, 256)
]


def other_parameters(candidate: Candidate) -> Candidate:
    return Candidate.of({n: v for n, v in candidate.params.items() if n != "GROUP_SIZE_M"})


@given(
    it=st.sampled_from(SHAPES),
    m=st.integers(1, 5000),
    candidates=st.lists(st.sampled_from(GRID), unique=True, max_size=40),
)
def test_only_copies_are_left_out(it: MoeShape, m: int, candidates: list[Candidate]) -> None:
    kept = distinct(candidates, it, m)
    assert kept == [c for c in candidates if c in set(kept)], "the order stays"

    def whole(candidate: Candidate) -> bool:
        blocks = row_blocks_most(it, m, candidate.int("BLOCK_SIZE_M"))
        return candidate.int("GROUP_SIZE_M") >= blocks

    for candidate in set(candidates) - set(kept):
        alike = [c for c in kept if whole(c) and other_parameters(c) == other_parameters(candidate)]
        assert whole(candidate)
        assert len(alike) == 1
        assert alike[0].int("GROUP_SIZE_M") < candidate.int("GROUP_SIZE_M")
    covering = [other_parameters(c) for c in kept if whole(c)]
    assert len(covering) == len(set(covering)), "exactly one of the copies stays"


def test_which_copies_are_left_out() -> None:
    """One token of Gemma: 8 row tiles, whatever the tile."""
    groups = [64, 1, 8, 16, 7, 32]
    kept = distinct([grouped(16, g) for g in groups], GEMMA, 1)
    assert [c.int("GROUP_SIZE_M") for c in kept] == [1, 8, 7]


@pytest.mark.parametrize("it", SHAPES, ids=["gemma", "few", "parallel", "alone"])
def test_at_a_large_batch_every_group_differs(it: MoeShape) -> None:
    m = 256 * 256 + 1
    assert distinct(GRID, it, m) == GRID


def test_nothing_to_compare() -> None:
    assert distinct([], GEMMA, 1) == []
