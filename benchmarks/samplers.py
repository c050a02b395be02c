"""What each sampler of ``autotune spec --sampler`` needs on recorded grids.

    python -m benchmarks.samplers benchmarks/results/samplers.json

Every recorded grid of servers is replayed with every sampler, a boot for each gamma (no dial), as
the search boots them: how many boots until what was booted holds a setting within 1 % of the grid's
best, and until the search ends. The baseline's boot counts. A setting's speed is the median of all
its repeats. ``random``, ``tpe`` and ``gp`` are told by the forecast what cannot win; ``grid`` is
not. ``forecast`` draws nothing.
"""

from __future__ import annotations

import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import optuna

from autotune.machine.environment import environment
from autotune.propose.names import GRID, MODEL, NAMED
from autotune.serving.forecast.ask import StudyProposer
from autotune.serving.forecast.forecast import ForecastProposer
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import STATIC_OBJECTIVES
from benchmarks.replay_grid import boots_of, growth_of, scenario_of, times_of, trials

RESULTS = Path(__file__).parent / "results"
GRIDS = {
    "cpu-serving/grid.json": (1, ""),
    "h100-serving/grid.json": (0, "128,8"),
    "h200-serving/uniform-gamma/grid.json": (0, "128,8"),
}
"""With the first boots of every setting to skip, and the target's experts, as docs/lab/ has it."""
SEEDS = {MODEL: 1, "gp": 3}
"""20 for the others: the forecast draws nothing, and GP takes seconds for every boot."""
NEAR = 0.01


def replayed(result: dict[str, Any], skip: int, experts: str, objective: str, sampler: str,
             seed: int) -> tuple[int | None, int, float]:  # fmt: skip
    """Boots until one was near the best, boots in all, and how far the best booted is behind."""
    scenario = scenario_of(result, objective)
    known = trials(result, scenario, boots_of(result, skip))
    times = times_of(known)
    grid = [trial.candidate for trial in known.values()]
    forecast = ForecastProposer(grid, known[0], scenario, growth_of(experts))
    proposer = StudyProposer(forecast, grid, known[0], scenario, sampler, seed)
    booted = [0]
    while asked := proposer.ask(1):
        booted.append(asked[0].int(GAMMA))
        proposer.tell(known[booted[-1]])
    best = min(times.values())
    near = [n for n, g in enumerate(booted, 1) if times[g] <= best * (1 + NEAR)]
    return near[0] if near else None, len(booted), min(times[g] for g in booted) / best - 1


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    rows = []
    for file, (skip, experts) in GRIDS.items():
        result = json.loads((RESULTS / file).read_text())
        for objective in STATIC_OBJECTIVES:
            for sampler in NAMED:
                seeds = SEEDS.get(sampler, 20)
                found = [
                    replayed(result, skip, experts, objective, sampler, s) for s in range(seeds)
                ]
                reached = [near for near, _, _ in found if near is not None]
                rows.append({
                    "grid": file, "objective": objective, "sampler": sampler, "seeds": seeds,
                    "settings": len(boots_of(result, skip)), "reached": len(reached),
                    "near_mean": statistics.fmean(reached) if reached else None,
                    "near_worst": max(reached, default=None),
                    "boots_mean": statistics.fmean(all_ for _, all_, _ in found),
                    "behind_worst": max(behind for _, _, behind in found),
                })  # fmt: skip
                print(rows[-1], flush=True)
    told = {"near": NEAR, "rules": [name for name in NAMED if name != GRID], "rows": rows}
    packages = environment()["packages"]
    command = f"python -m benchmarks.samplers {sys.argv[1]}"
    made = {"optuna": packages.get("optuna"), "command": command}
    Path(sys.argv[1]).write_text(json.dumps(made | told, indent=1) + "\n")


if __name__ == "__main__":
    main()
