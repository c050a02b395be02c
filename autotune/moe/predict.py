"""A small physical cost model of one ``fused_experts`` call. Every number here is PREDICTED.

docs/prediction.md derives the formulas and says how far to trust them. Times are in µs, sizes in
bytes, rates per clock and SM unless a name says otherwise. Nothing is fitted: the constants below
are published micro-benchmark figures or stated assumptions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from autotune.core import BadInputError
from autotune.devices import Device
from autotune.moe.shape import MoeWorkload, is_naive

MODEL_VERSION = "3"
"""Raised whenever a prediction can change: old predictions are then not mixed with new ones."""

DRAM_LATENCY_CYCLES = 600
"""Global-load latency past L2; 480-680 on Hopper (arXiv 2402.13499, tab. IV), more under load."""
L2_BYTES_PER_SM_CLOCK = 32
"""L2 to SM. Assumed half of the 64 B/clk port: A100 and H100 sustain 30-45 (arXiv 2402.13499)."""
SHARED_BYTES_PER_SM_CLOCK = 128
"""32 banks of 4 bytes (CUDA C++ programming guide, compute capabilities)."""
MMA_LATENCY_CYCLES = 33
"""One dependent mma.sync or wgmma step; 32-34 on Ampere to Hopper (arXiv 2402.13499, tab. VII)."""
STEP_CYCLES = 60
"""Assumed: barrier, ldmatrix latency and address arithmetic of one K step that nothing hides."""
LAUNCH_US = 2.0
"""Assumed: start and drain of one small kernel inside a CUDA graph."""

WAVE_SHARE = 0.2
"""Share of a GEMM's time lost to the last partial wave from which on we call waves its limit."""
MMA_K_BYTES = 32
"""All mma shapes used here contract 32 bytes of K: k32 of fp8 and int8, k16 of bf16."""


@dataclass(frozen=True)
class Resources:
    """What one compiled GEMM takes of an SM (from the cubin, or estimated before compiling)."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    mma: str
    """Key of ``Device.tensor_flops_per_sm_per_clock``, such as ``qmma_fp8``."""


@dataclass(frozen=True)
class Tile:
    """A candidate's launch parameters; ``block_k`` after the launcher's clamp."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Routing:
    """What uniform routing makes of M tokens, in expectation."""

    active_experts: float
    row_blocks: float
    """Tiles of BLOCK_SIZE_M rows that hold at least one token."""


@dataclass(frozen=True)
class GemmPrediction:
    """Predicted time of one GEMM and what it is made of (µs)."""

    us: float
    limit: str
    """The largest term, or ``waves`` where the last partial wave costs more than WAVE_SHARE."""
    terms: dict[str, float]
    ctas: float
    ctas_per_sm: int
    waves: float


@dataclass(frozen=True)
class Prediction:
    """Predicted time of the whole call (µs): both GEMMs and the ``other`` kernels around them."""

    us: float
    gemms: tuple[GemmPrediction, GemmPrediction]
    other_us: float

    @property
    def limit(self) -> str:
        """What limits the GEMM that takes longer."""
        return max(self.gemms, key=lambda gemm: gemm.us).limit

    def as_json(self) -> dict[str, Any]:
        """For the database and for reports."""
        return {
            "limit": self.limit,
            "other_us": round(self.other_us, 3),
            "gemms": [
                {
                    "us": round(g.us, 3),
                    "limit": g.limit,
                    "ctas": round(g.ctas, 1),
                    "ctas_per_sm": g.ctas_per_sm,
                    "waves": round(g.waves, 3),
                    "terms_us": {name: round(value, 3) for name, value in g.terms.items()},
                }
                for g in self.gemms
            ],
        }


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
        return Routing(expected.active_experts, workload.m * shape.topk)
    return expected


def ctas_per_sm(resources: Resources, tile: Tile, device: Device) -> int:
    """Thread blocks that fit on one SM at once, by registers, shared memory, threads and slots."""
    per_warp = math.ceil(resources.registers * 32 / 256) * 256
    by_registers = device.registers_per_sm // (per_warp * tile.num_warps)
    taken = resources.shared_bytes + device.shared_memory_reserved_per_block
    by_shared = device.shared_memory_per_sm // taken
    by_threads = device.max_threads_per_sm // (32 * tile.num_warps)
    return max(1, min(by_registers, by_shared, by_threads, device.max_blocks_per_sm))


def warps_per_tile(tile: Tile) -> tuple[int, int]:
    """How Triton lays the warps of a block over (rows, columns) for mma.sync.

    Source: Triton lib/Dialect/TritonGPU/Transforms/AcceleratedMatmul.cpp, ``warpsPerTileV2``.
    """
    rows = columns = 1
    while rows * columns < tile.num_warps:
        if tile.block_m / 16 / rows >= tile.block_n / 16 / columns and rows < tile.block_m // 16:
            rows *= 2
        else:
            columns *= 2
    return rows, columns


@dataclass(frozen=True)
class _Gemm:
    """One of the two GEMMs in numbers: columns, contraction, bytes per element and per output."""

    columns: int
    contraction: int
    element: float
    rows_read: float
    pairs: float


def _gemms(workload: MoeWorkload) -> tuple[_Gemm, _Gemm]:
    shape = workload.shape
    pairs = workload.m * shape.topk * shape.experts / shape.global_experts
    weight = {"fp8": 1.0, "int8": 1.0, "int4": 0.5}.get(shape.weight_dtype, 2.0)
    up = shape.intermediate * (2 if shape.gated else 1)
    return (
        _Gemm(up, shape.hidden, weight, workload.m, pairs),
        _Gemm(shape.hidden, shape.intermediate, weight, pairs, pairs),
    )


@dataclass(frozen=True)
class Work:
    """What a call cannot do without: ``flops``, and ``bytes`` with each weight in use read once."""

    flops: float
    bytes: float


def least_work(workload: MoeWorkload) -> Work:
    """The least that the two GEMMs of a call compute and move, routed uniformly."""
    active = routing(workload, block_m=1).active_experts
    gemms = _gemms(workload)
    return Work(
        flops=sum(2 * g.pairs * g.columns * g.contraction for g in gemms),
        bytes=sum(
            active * g.columns * g.contraction * g.element
            + g.rows_read * g.contraction * g.element
            + g.pairs * g.columns * 2
            for g in gemms
        ),
    )


def _dram_bytes(gemm: _Gemm, route: Routing, tile: Tile, device: Device) -> float:
    """Weights of the active experts once, activations read, bf16 output written.

    An expert whose weights overflow half of L2 is read again for every group of row tiles.
    """
    weights = gemm.columns * gemm.contraction * gemm.element
    blocks_per_expert = max(1.0, route.row_blocks / max(route.active_experts, 1e-9))
    rereads = 1.0
    if weights > device.l2_bytes / 2:
        rereads = max(1.0, blocks_per_expert / tile.group_m)
    activations = gemm.rows_read * gemm.contraction * gemm.element
    return route.active_experts * weights * rereads + activations + gemm.pairs * gemm.columns * 2


def _wave_us(
    active: float,
    per_cta: dict[str, float],
    dram_bytes: float,
    sm: tuple[int, float],
    device: Device,
) -> dict[str, float]:
    """One wave of ``active`` CTAs by each limit; ``sm``: slots per SM, bytes in flight per CTA."""
    slots, in_flight = sm
    us_per_cycle = 1 / device.boost_clock_mhz
    busiest = min(slots, math.ceil(active / device.sm_count))
    # Little's law: bandwidth is what is in flight over the latency, up to what the memory gives.
    latency_us = DRAM_LATENCY_CYCLES * us_per_cycle
    bandwidth = min(device.memory_bandwidth_gbs * 1e3, active * in_flight / latency_us)
    return {
        "bytes": dram_bytes / bandwidth,
        "l2": busiest * per_cta["l2"] * us_per_cycle,
        "tensor cores": busiest * per_cta["tensor"] * us_per_cycle,
        "shared memory": busiest * per_cta["shared"] * us_per_cycle,
        "latency": per_cta["latency"] * us_per_cycle,
    }


def _tensor_rate(mma: str, device: Device) -> float:
    rate = device.tensor_flops_per_sm_per_clock.get(mma)
    if rate is None:
        raise BadInputError(
            f"device {device.name}: tensor_flops_per_sm_per_clock has no {mma}, which the compiled "
            "kernel uses; add it to the device's file"
        )
    return rate


def _cta_cycles(
    gemm: _Gemm, rows: float, tile: Tile, res: Resources, device: Device
) -> dict[str, float]:
    """Cycles that one CTA needs of each unit of its SM, and of its own dependency chain."""
    steps = math.ceil(gemm.contraction / tile.block_k)
    chunk = tile.block_k * gemm.element
    flops = 2 * tile.block_m * tile.block_n * tile.block_k * steps
    rate = _tensor_rate(res.mma, device)
    # Each of the four sub-partitions of an SM has one tensor core: fewer warps leave some idle.
    rate *= min(1.0, tile.num_warps / 4)
    loaded = (tile.block_n + rows) * chunk
    if res.mma.startswith("utc") or res.mma[1:].startswith("gmma"):
        # wgmma and tcgen05 read their operands from shared memory, once.
        read = chunk * (tile.block_m + tile.block_n)
    else:  # mma.sync: every warp loads the fragments of its rows and columns
        warps_m, warps_n = warps_per_tile(tile)
        read = chunk * (tile.block_m * warps_n + tile.block_n * warps_m)
    spilled = 2 * res.spill_bytes * 32 * tile.num_warps
    # A block waits for its products before the next step; only other blocks of the SM overlap.
    products = flops / steps / rate
    chain = STEP_CYCLES + max(products, MMA_LATENCY_CYCLES * chunk / MMA_K_BYTES)
    step = max(chain, DRAM_LATENCY_CYCLES / max(1, tile.num_stages - 1))
    return {
        "tensor": flops / rate,
        "l2": steps * loaded / L2_BYTES_PER_SM_CLOCK,
        "shared": steps * (read + loaded + spilled) / SHARED_BYTES_PER_SM_CLOCK,
        "latency": DRAM_LATENCY_CYCLES + steps * step,
    }


def predict_gemm(
    gemm: _Gemm, route: Routing, tile: Tile, res: Resources, device: Device
) -> GemmPrediction:
    """Predicted time of one GEMM: full waves, the last partial wave, and filling the pipeline."""
    ctas = route.row_blocks * math.ceil(gemm.columns / tile.block_n)
    rows = min(tile.block_m, gemm.pairs / max(route.row_blocks, 1e-9))
    slots = ctas_per_sm(res, tile, device)
    capacity = slots * device.sm_count
    per_cta = _cta_cycles(gemm, rows, tile, res, device)
    in_flight = max(1, tile.num_stages - 1) * (tile.block_n + rows) * tile.block_k * gemm.element
    dram = _dram_bytes(gemm, route, tile, device)
    full = math.floor(ctas / capacity)
    rest = ctas - full * capacity
    terms = dict.fromkeys(("bytes", "l2", "tensor cores", "shared memory", "latency"), 0.0)
    total = 0.0
    for count, active in ((full, capacity), (1, rest)):
        if active <= 0 or count == 0:
            continue
        wave = _wave_us(active, per_cta, dram * active / ctas, (slots, in_flight), device)
        total += count * max(wave.values())
        for name, value in wave.items():
            terms[name] += count * value
    lost = 0.0
    if full:
        whole = _wave_us(capacity, per_cta, dram * capacity / ctas, (slots, in_flight), device)
        lost = total - max(whole.values()) * ctas / capacity
    limit = "waves" if lost > WAVE_SHARE * total else max(terms, key=lambda name: terms[name])
    steps = math.ceil(gemm.contraction / tile.block_k)
    fill = DRAM_LATENCY_CYCLES + per_cta["latency"] / steps
    return GemmPrediction(
        us=total + fill / device.boost_clock_mhz,
        limit=limit,
        terms=terms,
        ctas=ctas,
        ctas_per_sm=slots,
        waves=ctas / capacity,
    )


def other_kernels_us(workload: MoeWorkload, device: Device) -> float:
    """Quantise, align, activate, quantise, sum: launches and the bytes they move.

    Source: vLLM fused_moe.py, ``fused_experts_impl``. Independent of the candidate.
    """
    shape, m = workload.shape, workload.m
    quantised = shape.weight_dtype in {"fp8", "int8"}
    launches = 2 + (2 if quantised else 0) + (0 if is_naive(shape, m) else 2) + 2
    pairs = m * shape.topk
    up = shape.intermediate * (2 if shape.gated else 1)
    moved = (
        pairs * (up * 2 + shape.intermediate * 2) + pairs * shape.hidden * 2 + m * shape.hidden * 2
    )
    if quantised:
        moved += m * shape.hidden * 3 + pairs * shape.intermediate * 3
    return launches * LAUNCH_US + moved / (device.memory_bandwidth_gbs * 1e3)


def predict(
    workload: MoeWorkload, tile: Tile, compiled: tuple[Resources, Resources], device: Device
) -> Prediction:
    """Predict one ``fused_experts`` call.

    Args:
        workload: shape and M.
        tile: the candidate.
        compiled: resources of GEMM 1 (gate and up) and GEMM 2 (down).
        device: the device to predict for.
    """
    route = routing(workload, tile.block_m)
    first, second = (
        predict_gemm(gemm, route, tile, res, device)
        for gemm, res in zip(_gemms(workload), compiled, strict=True)
    )
    other = other_kernels_us(workload, device)
    return Prediction(first.us + second.us + other, (first, second), other)
