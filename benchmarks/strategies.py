"""Search strategies side by side on the landscape recorded on an H200, replayed without a GPU.

    python benchmarks/strategies.py benchmarks/results/strategies-h200.json

Regret: the measured time of the best candidate found, over the best of the whole landscape, minus
one. Every search runs as in ``autotune moe``: eight at a time, keys side by side, neighbours
sharing their best in the end. What has no seed runs once; GP, which needs scipy, three times.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import optuna

from autotune.core import Candidate, Phase, Proposer, Trial, Workload, digest
from autotune.kernels.compile.job import KernelInfo
from autotune.kernels.moe import constraints as feasibility
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.plan import Plan
from autotune.kernels.propose import PRIOR_SEEDS, rank
from autotune.machine.devices import get_device
from autotune.machine.environment import environment
from autotune.measure.replay import Landscape
from autotune.propose import proposers as propose
from autotune.propose.proposers import OptunaProposer, OrderedProposer
from autotune.space.space import load_space
from autotune.tune import Limits, Search, search_all

LANDSCAPE = Path(__file__).parent / "results/landscape-h200-e128-n704-channel.csv.gz"
SHAPE = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)
SEEDS = {"model order": 1, "gp, no model": 3}
GP_MOST = 24
"""Trials up to which GP is run: its time grows with their cube."""
STRATEGIES = ("model + tpe", "model order", "tpe, no model", "random, no model", "gp, no model")


class Forgetful:
    """A log for searches that are not kept."""

    def load(self, workload: Workload, phase: Phase) -> list[Trial]:
        del workload, phase
        return []

    def append(self, workload: Workload, trial: Trial) -> None:
        """Forget it."""

    def load_parts(self, workload: Workload, candidate: Candidate) -> dict[str, Any]:
        del workload, candidate
        return {}

    def append_part(
        self, workload: Workload, candidate: Candidate, name: str, value: Mapping[str, Any]
    ) -> None:
        """Forget it."""


def without_swap_ab() -> AbstractContextManager[object]:
    """The landscape is of vLLM 0.24, whose kernel never swaps operands."""
    return patch.object(feasibility, "has_swap_ab", lambda: False)


def recorded(landscape: Landscape) -> dict[int, dict[Candidate, float]]:
    """Times in µs by M and candidate."""
    table: dict[int, dict[Candidate, float]] = {}
    for (label, candidate), measurement in landscape.table.items():
        if measurement.value is not None:
            table.setdefault(int(label.removeprefix("M=")), {})[candidate] = measurement.value
    return table


def plan(batch_sizes: tuple[int, ...]) -> Plan:
    return Plan(
        study="strategies",
        device=get_device("h200"),
        model="gemma-4-26b-a4b",
        shape=SHAPE,
        batch_sizes=batch_sizes,
        space=load_space("stock", "moe"),
        effort="standard",
        budget_s=None,
        sampler="tpe",
        seed=0,
        min_gain=0.01,
        workers=1,
        kernel=KernelInfo(Path("configs"), "", "0.24.0", "3.6.0"),
        command="",
    )


def ranked(table: dict[int, dict[Candidate, float]]) -> dict[int, list[Candidate]]:
    """Feasible, recorded candidates of each M, best predicted first."""
    with without_swap_ab():
        made = plan(tuple(table))
        return {m: [c for c in rank(made, m) if c in times] for m, times in table.items()}


def regrets(
    strategy: str,
    seed: int,
    trials: int,
    landscape: Landscape,
    order: dict[int, list[Candidate]],
    best: dict[int, float],
) -> dict[int, float]:
    """Regret of one search of every M."""
    sampler = {"gp": "gp", "random": "random"}.get(strategy.split(",", maxsplit=1)[0], "tpe")
    searches = {}
    for m, candidates in sorted(order.items()):
        workload = MoeWorkload(SHAPE, m)
        proposer: Proposer = OrderedProposer(candidates)
        if strategy != "model order":
            proposer = OptunaProposer(
                load_space("stock", "moe"),
                candidates,
                sampler=sampler,
                seed=int(digest([seed, workload.key]), 16) % 2**32,
                first=candidates[:PRIOR_SEEDS] if strategy.startswith("model") else (),
            )
        searches[m] = Search(workload, proposer, Limits(trials))
    list(search_all(list(searches.values()), landscape, Forgetful()))
    found = {
        m: min(t.measurement.value for t in search.trials if t.measurement.value is not None)
        for m, search in searches.items()
    }
    return {m: value / best[m] - 1 for m, value in found.items()}


def main() -> None:
    propose.SAMPLERS["gp"] = lambda seed: optuna.samplers.GPSampler(seed=seed)
    landscape = Landscape.read(LANDSCAPE)
    table = recorded(landscape)
    order = ranked(table)
    best = {m: min(times.values()) for m, times in table.items()}
    rows = []
    for effort, trials in (("quick", 24), ("standard", 64)):
        for strategy in STRATEGIES:
            if strategy.startswith("gp") and (trials > GP_MOST or find_spec("scipy") is None):
                continue
            begin = time.monotonic()
            seeds = range(SEEDS.get(strategy, 20))
            found = [regrets(strategy, s, trials, landscape, order, best) for s in seeds]
            median = {m: statistics.median(f[m] for f in found) for m in sorted(table)}
            worst = {m: max(f[m] for f in found) for m in sorted(table)}
            rows.append(
                {
                    "effort": effort,
                    "trials": trials,
                    "strategy": strategy,
                    "seeds": len(seeds),
                    "median": median,
                    "worst": worst,
                    "seconds_per_search_of_all_keys": (time.monotonic() - begin) / len(seeds),
                }
            )
            shown = "  ".join(f"{median[m]:.1%}/{worst[m]:.1%}" for m in median)
            print(f"{effort:9s}{strategy:18s}{shown}", flush=True)
    result = {
        "command": "python benchmarks/strategies.py",
        "landscape": LANDSCAPE.name,
        "candidates": {m: len(c) for m, c in sorted(order.items())},
        "feasible_and_recorded_best_us": best,
        "rows": rows,
        "environment": environment(),
    }
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
