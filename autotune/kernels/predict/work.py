"""What a call of ``fused_experts`` has to compute and to move, whatever the candidate.

Sizes in bytes; a routing of tokens is taken in expectation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from autotune.kernels.moe.routing import Routing as ExpertRouting
from autotune.kernels.moe.shape import MoeWorkload, is_naive


@dataclass(frozen=True)
class Routing:
    """What uniform routing makes of M tokens, in expectation."""

    active_experts: float
    row_blocks: float
    """Tiles of BLOCK_SIZE_M rows that hold at least one token."""
    naive: bool = False
    """One tile per (token, expert) pair, unsorted."""


@lru_cache(maxsize=4096)
def expected_routing(m: int, topk: int, experts: int, local: int, block_m: int) -> Routing:
    """Active experts and row tiles when ``m`` tokens pick ``topk`` of ``experts`` uniformly.

    Tokens per expert follow Bin(m, topk/experts); a row tile is ceil(tokens / block_m).

    Args:
        m: tokens.
        topk: experts per token.
        experts: experts that the router chooses from.
        local: of these, the experts held here (fewer under expert parallelism).
        block_m: rows per tile.
    """
    p = topk / experts
    if p >= 1.0:
        return Routing(local, local * math.ceil(m / block_m))
    k = np.arange(1, m + 1)
    steps = np.log((m - k + 1) / k) + math.log(p / (1 - p))
    log_pmf = m * math.log1p(-p) + np.concatenate(([0.0], np.cumsum(steps)))
    pmf = np.exp(log_pmf)
    blocks = float(np.dot(pmf, np.ceil(np.arange(m + 1) / block_m)))
    return Routing(local * (1 - (1 - p) ** m), local * blocks)


def routing(workload: MoeWorkload, block_m: int) -> Routing:
    """Expected routing of a workload, with one tile per pair on the naive path."""
    shape = workload.shape
    expected = expected_routing(
        workload.m, shape.topk, shape.global_experts, shape.experts, block_m
    )
    if is_naive(shape, workload.m):
        return Routing(expected.active_experts, workload.m * shape.topk, naive=True)
    return expected


@dataclass(frozen=True)
class Gemm:
    """One of the two GEMMs in numbers: columns, contraction, bytes per element and per output."""

    columns: int
    contraction: int
    element: float
    rows_read: float
    pairs: float
    scaled_by_block: bool
    """Whether the products of each K step are scaled before they are added up."""


def gemms_of(workload: MoeWorkload) -> tuple[Gemm, Gemm]:
    """Put the two GEMMs of a call in numbers, in expectation."""
    shape = workload.shape
    pairs = workload.m * shape.topk * shape.experts / shape.global_experts
    weight, up = float(shape.variant.element), shape.columns
    scaled = shape.block_shape is not None
    return (
        Gemm(up, shape.hidden, weight, workload.m, pairs, scaled),
        Gemm(shape.hidden, shape.intermediate, weight, pairs, pairs, scaled),
    )


@dataclass(frozen=True)
class Work:
    """What a call cannot do without: ``flops``, and ``bytes`` with each weight in use read once."""

    flops: float
    bytes: float


def least_work(workload: MoeWorkload, routed: ExpertRouting | None = None) -> Work:
    """The least that the two GEMMs of a call compute and move, in expectation.

    Args:
        workload: shape and M.
        routed: how often each expert is chosen, uniformly by default; under expert parallelism a
            rank has its share.
    """
    shape = workload.shape
    routed = routed or ExpertRouting()
    chosen = routed.active_experts(workload.m, shape.topk, shape.global_experts)
    active = chosen * shape.experts / shape.global_experts
    gemms = gemms_of(workload)
    return Work(
        flops=sum(2 * g.pairs * g.columns * g.contraction for g in gemms),
        bytes=sum(
            active * g.columns * g.contraction * g.element
            + g.rows_read * g.contraction * g.element
            + g.pairs * g.columns * 2
            for g in gemms
        ),
    )
