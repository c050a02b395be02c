"""This module estimates, roughly, the time and the space for compiled kernels of a plan."""

from __future__ import annotations

import math
import shutil
import tempfile

from autotune.core import Candidate, MissingEnvironmentError
from autotune.kernels.compile.job import specialise
from autotune.kernels.measure.measurer import ROUNDS
from autotune.kernels.measure.requests import calls_per_graph
from autotune.kernels.moe.constraints import without_group
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.plan import FINALISTS, Plan
from autotune.kernels.predict.cost_model import predict
from autotune.kernels.predict.measurer import estimated_resources, tile_of

SECONDS_PER_COMPILE = 1.3
"""What the defaults chose for sm_121, one x86 core (322 s for 316 kernels on two busy ones)."""
BYTES_PER_KERNEL = 300_000
"""In the folder that compile processes fill for the measuring one (docs/adr/0004)."""
MEASURED_START_S = 30.0
"""Read on one H200, most of it importing vLLM."""
SECONDS_PER_CANDIDATE = 0.02
"""Read on one H200: what measuring takes beside the calls, such as capturing a graph."""
SEARCH_REPLAYS = 4
"""Of a graph, for a candidate of the search: 6, or 3 where the first samples are too slow."""
_ROUND_REPLAYS = 4
_OTHER_TILES, _OTHER_LAUNCHES = 0.8, 1.6
"""What more batch sizes add to the candidates of one: tiles of a prediction (316 kernels on sm_121
where 192 were one M's), launches of a measurement (904 on the H200, where 384 were)."""


def compilations(plan: Plan) -> int:
    """Kernels to compile from an empty cache.

    M is compiled only by its specialisation, and batch sizes of one try candidates in common;
    GROUP_SIZE_M only for kernels that are launched.
    """
    distinct, others = len(plan.feasible), _OTHER_LAUNCHES
    if not plan.measured:
        distinct = len({without_group(candidate) for candidate in plan.feasible})
        others = _OTHER_TILES
    specialisations = len({specialise(plan.shape, m) for m in plan.batch_sizes})
    own = 1 + others * (1 - specialisations / len(plan.batch_sizes))
    return round(2 * min(own * plan.trials_per_m, distinct) * specialisations)


def seconds(plan: Plan) -> float:
    """Estimate seconds from an empty cache; a budget limits the search alone."""
    limit = plan.budget_s or math.inf
    compiling = compilations(plan) * SECONDS_PER_COMPILE / plan.workers
    if not plan.measured:
        return min(compiling, limit)
    searched, confirmed = plan.trials_per_m + 1, FINALISTS + 3  # three: the default, twice, a gap
    measuring = sum(searched * _one(plan, m, SEARCH_REPLAYS) for m in plan.batch_sizes)
    confirming = sum(confirmed * _one(plan, m, ROUNDS * _ROUND_REPLAYS) for m in plan.batch_sizes)
    # Kernels are compiled while the measuring processes start, and while others are measured.
    searching = max(compiling - MEASURED_START_S, measuring)
    return MEASURED_START_S + min(searching, limit) + confirming


def _one(plan: Plan, m: int, replays: int) -> float:
    """Seconds for one candidate at one M."""
    calls = replays * calls_per_graph(m) / len(plan.gpus)
    return SECONDS_PER_CANDIDATE / len(plan.gpus) + calls * call_us(plan, m) / 1e6


def call_us(plan: Plan, m: int) -> float:
    """Predicted, with a tile like those of vLLM's defaults, which fits on any device."""
    tile = {"BLOCK_SIZE_M": 16 if m <= 32 else 64, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128}
    plain = Candidate.of({**tile, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 3})
    resources = estimated_resources(plain, plan.shape, plan.device)
    workload = MoeWorkload(plan.shape, m)
    return predict(workload, tile_of(plain, plan.shape), (resources, resources), plan.device).us


def check_scratch(plan: Plan) -> None:
    """Look for space for the compiled kernels: those of a prediction go away one by one.

    Raises:
        MissingEnvironmentError: there is too little where temporary files go.
    """
    needed = BYTES_PER_KERNEL * (compilations(plan) if plan.measured else plan.workers)
    try:
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
    except OSError as error:
        reason = f"{error.strerror}; set TMPDIR to a folder with space"
        raise MissingEnvironmentError(reason) from None
    if free < needed:
        raise MissingEnvironmentError(
            f"{folder}: {free // 10**6} MB are free, and compiled kernels take about "
            f"{-(-needed // 10**6)} MB; free some, or set TMPDIR to a folder with space"
        )
