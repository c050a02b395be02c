"""A small physical cost model of one ``fused_experts`` call. Every number here is PREDICTED.

docs/explanation/cost-model.md derives the formulas and says how far to trust them. Times are in µs,
sizes in bytes, rates per clock and SM unless a name says otherwise. The constants below are
published figures, or assumed; the five of which it says so were read off one landscape measured on
an H200.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from autotune.core import BadInputError
from autotune.kernels.moe.shape import MoeWorkload, is_naive
from autotune.kernels.predict.work import Gemm, Routing, gemms_of, routing
from autotune.machine.devices import Device

MODEL_VERSION = "7"
"""Raised whenever a prediction can change: old predictions are then not mixed with new ones."""

MEMORY_LATENCY_CYCLES = 1000
"""A global load while the memory is busy. Idle it takes 480-680 on Hopper (arXiv 2402.13499, tab.
IV); 1000 was read off the H200 landscape, on which 800 to 1200 rank alike."""
DEPENDENT_LOADS = 3
"""What a block waits for one after the other before its first product: the number of padded rows,
its token ids and expert, its first tiles (vLLM's ``fused_moe_kernel``)."""
L2_BYTES_PER_SM_CLOCK = 32
"""L2 to SM. Assumed half of the 64 B/clk port: A100 and H100 sustain 30-45 (arXiv 2402.13499)."""
SHARED_BYTES_PER_SM_CLOCK = 128
"""32 banks of 4 bytes (CUDA C++ programming guide, compute capabilities)."""
MMA_LATENCY_CYCLES = 33
"""One dependent mma.sync or wgmma step; 32-34 on Ampere to Hopper (arXiv 2402.13499, tab. VII)."""
STEP_CYCLES = 60
"""Assumed: barrier, ldmatrix latency and loop control of one K step that nothing hides."""
WARP_INSTRUCTIONS_PER_SM_CLOCK = 4
"""One per sub-partition (CUDA C++ programming guide, compute capabilities)."""
CONVERSIONS_PER_SM_CLOCK = 64
"""Type conversions from 8-bit types (same guide, throughput table); one gives two fp16 here."""
COPY_BYTES = 16
"""What one thread copies with one cp.async; also where the row is padding and zeros are written."""
INSTRUCTIONS_PER_COPY = 8
"""Assumed: 64-bit pointer, mask and predicate of one cp.async. 0 to 12 rank the landscape alike."""
SHORT_ROW_BYTES = 128
"""A line of the L2."""
SHORT_ROW_BANDWIDTH = 0.7
"""Share of the memory bandwidth that weights read in shorter pieces of rows reach (BLOCK_SIZE_K 64
of one byte). Read off the H200 landscape."""
ROW_MERGE = 1 / 3
"""How far the further pieces of a weight row that are in flight (num_stages - 2 of them) share its
opened DRAM row: the bytes read per opening grow with (num_stages - 1) to this power. 0.3 to 0.5
order the published GB10 winners alike."""
NARROW_TILE = 32
"""Columns from which on a tile pays ``memory_width_cost`` per doubling: fewer, longer blocks leave
the memory idle as they end. On every landscape and run of an H100 and an H200 without block scales
times grow so from 32 columns to 256, whatever the rows of the tile."""
SCALED_NARROW_TILE = 64
"""The same under block scales, where only wgmma keeps up with the memory, and ``SMALL_ROWS``."""
SMALL_ROWS = 32
"""Rows of a tile up to which it mostly streams weights."""
SCATTER = 0.005
"""Weight traffic costs so much more per doubling of a group of row tiles beyond those of one
expert: neighbouring blocks then read other experts' memory. Read off the H200 landscape, on which,
as among the published GB10 winners, nothing of it is seen on the naive path."""
LOCKSTEP_WAVES = 2
"""Waves after which blocks that started together still end together in one case of e. Chosen by
the landscapes of an H100 and an H200, on which 1 to 4 rank alike."""
SCALED_STEP_CYCLES = 200
"""Block scales under wgmma: each K step waits for its products and moves its scales to their
layout. Read off the H200's landscapes with block scales, as is the next."""
SCALED_ISSUE_CYCLES = 200
"""Of that, what four warps issue."""
OVERLAP = 2.5
"""How well an SM's units work at once: 1 adds up their times, infinity takes the longest. Read off
the H200 landscape, on which 2 to 4 rank alike."""
LAUNCH_US = 3.0
"""Start and drain of one small kernel inside a CUDA graph. Read off the H200 landscape at M=1."""

MMA_K_BYTES = 32
"""All mma shapes used here contract 32 bytes of K: k32 of fp8 and int8, k16 of bf16."""
WGMMA_ROWS = 64
"""Rows of one wgmma, issued by a group of four warps."""


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
class GemmPrediction:
    """Predicted time of one GEMM and what it is made of (µs)."""

    us: float
    limit: str
    """The largest term."""
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


def _dram_bytes(gemm: Gemm, route: Routing, tile: Tile, res: Resources, device: Device) -> float:
    """Weights of the active experts once, activations read, bf16 output written.

    An expert whose weights overflow half of L2 is read again for every group of row tiles. Weights
    that are read in an unfavourable order, or in short pieces, count as so many more bytes.
    """
    weights = gemm.columns * gemm.contraction * gemm.element
    blocks_per_expert = max(1.0, route.row_blocks / max(route.active_experts, 1e-9))
    rereads = 1.0
    if weights > device.l2_bytes / 2:
        rereads = max(1.0, blocks_per_expert / tile.group_m)
    order = 1.0
    if not route.naive:
        order += SCATTER * math.log2(max(1.0, tile.group_m / blocks_per_expert))
    order *= _row_factor(gemm, tile, device)
    order *= 1 + device.memory_width_cost * math.log2(_width(gemm, route, tile, res))
    activations = gemm.rows_read * gemm.contraction * gemm.element
    read = route.active_experts * weights * rereads * order + activations
    return read + gemm.pairs * gemm.columns * 2


def _width(gemm: Gemm, route: Routing, tile: Tile, res: Resources) -> float:
    """How many times as wide a tile is as one that pays nothing for its width."""
    if not gemm.scaled_by_block:
        return max(1.0, tile.block_n / NARROW_TILE)
    streams = route.naive or tile.block_m <= SMALL_ROWS
    if not streams or not _is_asynchronous(res.mma):
        return 1.0
    return max(1.0, tile.block_n / SCALED_NARROW_TILE)


def _row_factor(gemm: Gemm, tile: Tile, device: Device) -> float:
    """How many bytes the bus is busy for each byte of the weights.

    A block reads each of its BLOCK_SIZE_N weight rows in pieces of BLOCK_SIZE_K. Where the device
    says what opening a row of its DRAM costs, that is paid once per piece, less where more pieces
    of the row are in flight; and once for all that a block has in flight.
    """
    piece = tile.block_k * gemm.element
    half_lines = 1 / SHORT_ROW_BANDWIDTH if piece < SHORT_ROW_BYTES else 1.0
    ahead = max(1, tile.num_stages - 1)
    opened = min(piece * math.pow(ahead, ROW_MERGE), gemm.contraction * gemm.element)
    flight = piece * ahead * tile.block_n
    opening = device.memory_row_bytes / opened + device.memory_flight_bytes / flight
    return half_lines * (1 + opening)


def _tensor_rate(mma: str, device: Device) -> float:
    rate = device.tensor_flops_per_sm_per_clock.get(mma)
    if rate is None:
        raise BadInputError(
            f"device {device.name}: tensor_flops_per_sm_per_clock has no {mma}, which the compiled "
            "kernel uses; add it to the device's file"
        )
    return rate


def _is_asynchronous(mma: str) -> bool:
    """Whether products are wgmma or tcgen05, which read their operands from shared memory."""
    return mma.startswith("utc") or mma[1:].startswith("gmma")


def _products(gemm: Gemm, tile: Tile, res: Resources, device: Device) -> tuple[float, float, int]:
    """Of one K step: cycles of the tensor cores, shared-memory bytes read, 8-bit conversions."""
    chunk = tile.block_k * gemm.element
    rate = _tensor_rate(res.mma, device)
    if _is_asynchronous(res.mma):
        # With its operands swapped, a tile of few rows is computed transposed.
        rows, columns = tile.block_m, tile.block_n
        if rows < WGMMA_ROWS <= columns:
            rows, columns = columns, rows
        instructions = math.ceil(rows / WGMMA_ROWS)
        across = max(1.0, tile.num_warps / 4 / instructions)
        read = chunk * (rows * across + columns * instructions)
        return 2 * rows * columns * tile.block_k / rate, read, 0
    # mma.sync: every warp loads, and where it must converts, the fragments of its rows and columns,
    # at least one mma's; warps beyond the tile repeat the work of others.
    warps_m, warps_n = warps_per_tile(tile)
    rows, columns = max(16, tile.block_m // warps_m), max(8, tile.block_n // warps_n)
    cycles = 2 * tile.num_warps * rows * columns * tile.block_k / rate
    fragments = tile.num_warps * (rows + columns) * tile.block_k
    half_rate = gemm.element < 2 and res.mma.startswith("hmma")
    return cycles, fragments * gemm.element, fragments // 2 if half_rate else 0


def _cta_cycles(
    gemm: Gemm, rows: float, tile: Tile, res: Resources, device: Device
) -> dict[str, float]:
    """Cycles that one block needs of each unit of its SM, and of its own dependency chain.

    Padding rows are not loaded, but zeros are written for them, and multiplied.
    """
    steps = math.ceil(gemm.contraction / tile.block_k)
    chunk = tile.block_k * gemm.element
    written = (tile.block_m + tile.block_n) * chunk
    products, read, conversions = _products(gemm, tile, res, device)
    shared = (written + read) / SHARED_BYTES_PER_SM_CLOCK
    issued = written / COPY_BYTES / 32 * INSTRUCTIONS_PER_COPY
    if gemm.scaled_by_block:  # the product of both scales, and what adds it to the accumulator
        issued += 2 * tile.block_m * tile.block_n / 32
    instructions = issued / WARP_INSTRUCTIONS_PER_SM_CLOCK + conversions / CONVERSIONS_PER_SM_CLOCK
    # Spilled registers are stored and loaded in every step, and overflow the L1.
    spilled = 2 * res.spill_bytes * 32 * tile.num_warps / L2_BYTES_PER_SM_CLOCK
    # What one block does in turn; only other blocks of the SM fill the gaps. Each of the four
    # sub-partitions of an SM has a tensor core and a scheduler: fewer warps leave some idle.
    idle = max(1.0, 4 / tile.num_warps)
    multiply = max(products * idle, MMA_LATENCY_CYCLES * chunk / MMA_K_BYTES)
    if _is_asynchronous(res.mma):
        compute = max(multiply, instructions * idle)
    else:
        compute = multiply + instructions * idle
    busy = STEP_CYCLES + shared + compute + spilled
    if gemm.scaled_by_block and _is_asynchronous(res.mma):
        busy += SCALED_STEP_CYCLES
        instructions += SCALED_ISSUE_CYCLES * tile.num_warps / 4
    # A load is issued when the products of num_stages - 1 steps before are done (by the last one's
    # where num_stages is 2), and is waited for: see docs/explanation/cost-model.md.
    step = max(busy, (MEMORY_LATENCY_CYCLES + busy - multiply) / max(1, tile.num_stages - 1))
    if tile.num_stages == 1:  # not pipelined: nothing is loaded while anything is computed
        step = MEMORY_LATENCY_CYCLES + busy + 2 * shared
    stored = tile.block_m * tile.block_n * 2 / L2_BYTES_PER_SM_CLOCK
    return {
        "l2": steps * ((tile.block_n + rows) * chunk / L2_BYTES_PER_SM_CLOCK + spilled),
        "tensor cores": steps * products,
        "shared memory": steps * shared,
        "instructions": steps * instructions,
        "latency": DEPENDENT_LOADS * MEMORY_LATENCY_CYCLES + steps * step + stored,
    }


def in_waves(terms: dict[str, float], waves: float) -> float:
    """µs of a GEMM whose blocks run in so many waves; ``latency`` is the time of one block.

    A wave takes what its share of the work needs of memory and units, and a block's own time:
    partly overlapped. A last wave of few blocks leaves the memory idle but lasts as long as a
    block. Blocks fall out of step from wave to wave: then only half a wave is left at the end.
    """
    shared = math.fsum(us**OVERLAP for name, us in terms.items() if name != "latency")
    block = terms["latency"] ** OVERLAP

    def wave(share: float) -> float:
        return float((shared * (share / waves) ** OVERLAP + block) ** (1 / OVERLAP))

    begun = math.floor(waves)
    rest = waves - begun
    in_step = begun * wave(1) + (wave(rest) if rest > 0 else 0)
    if waves <= 1:
        return in_step
    drifted = waves * wave(1) + wave(0.5) - wave(1) / 2
    together = math.exp(-waves / LOCKSTEP_WAVES)
    return together * in_step + (1 - together) * drifted


def predict_gemm(
    gemm: Gemm, route: Routing, tile: Tile, res: Resources, device: Device
) -> GemmPrediction:
    """Predicted time of one GEMM: what memory and the units of an SM need, partly overlapped."""
    ctas = route.row_blocks * math.ceil(gemm.columns / tile.block_n)
    rows = min(tile.block_m, gemm.pairs / max(route.row_blocks, 1e-9))
    slots = ctas_per_sm(res, tile, device)
    waves = ctas / (slots * device.sm_count)
    cycles = _cta_cycles(gemm, rows, tile, res, device)
    per_sm = max(1.0, ctas / device.sm_count)
    terms = {"bytes": _dram_bytes(gemm, route, tile, res, device) / (device.read_gbs * 1e3)}
    for name, value in cycles.items():
        terms[name] = value / device.boost_clock_mhz * (1 if name == "latency" else per_sm)
    us = in_waves(terms, waves)
    terms["latency"] *= max(1.0, waves)
    return GemmPrediction(
        us=us,
        limit=max(terms, key=lambda name: terms[name]),
        terms=terms,
        ctas=ctas,
        ctas_per_sm=slots,
        waves=waves,
    )


def other_kernels_us(workload: MoeWorkload, device: Device) -> float:
    """Quantise, align, activate, quantise, sum: launches and the bytes they move.

    Source: vLLM fused_moe.py, ``fused_experts_impl``. Independent of the candidate.
    """
    shape, m = workload.shape, workload.m
    quantised = shape.variant.quantised
    launches = 2 + (2 if quantised else 0) + (0 if is_naive(shape, m) else 2) + 2
    pairs = m * shape.topk
    up = shape.columns
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
        for gemm, res in zip(gemms_of(workload), compiled, strict=True)
    )
    other = other_kernels_us(workload, device)
    return Prediction(first.us + second.us + other, (first, second), other)
