"""What a GPU that grows slower half-way costs a search, with and without controls.

    python -m benchmarks.drift benchmarks/results/drift-h200.json --seeds 4

The landscape of an H200 is replayed by the search of ``autotune moe`` (standard effort, cost model
and TPE) on a device that is slowed down in the course of it, with 1 % of noise on every time. The
finalists of each batch size then meet side by side, as in a comparison, which drift does not fool:
the chosen row is the truly fastest of them. Regret: its time over the best of the landscape.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from autotune.core import Candidate, HoldsNothing, Job, Measurement, Measurer, digest
from autotune.kernels.config_file import FIELDS
from autotune.kernels.measure.control import Controlled
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.plan import FINALISTS
from autotune.kernels.propose import PRIOR_SEEDS
from autotune.kernels.request import EFFORTS
from autotune.machine.environment import environment
from autotune.measure.replay import Landscape
from autotune.propose.proposers import OptunaProposer
from autotune.space.space import load_space
from autotune.tune import Limits, Search, search_all
from benchmarks.prediction import DEFAULTS
from benchmarks.strategies import LANDSCAPE, SHAPE, Forgetful, ranked, recorded

NOISE = 0.01
SLOWED: dict[str, Callable[[float], float]] = {
    "undisturbed": lambda _: 1.0,
    "step of 25 % half-way": lambda share: 1.25 if share > 0.5 else 1.0,
    "25 % slower in the first half": lambda share: 1.25 if share < 0.5 else 1.0,
    "drift to 30 %": lambda share: 1 + 0.3 * share,
    "40 % slower for a fifth": lambda share: 1.4 if 0.4 < share < 0.6 else 1.0,
    "waves of 20 %": lambda share: 1.1 + 0.1 * math.sin(20 * share),
}
"""How many times as long everything takes, by the share of the search that is over."""


class Slowed(HoldsNothing):
    """A landscape on a device whose pace changes as the search goes on."""

    def __init__(self, landscape: Landscape, pace: Callable[[float], float], total: int) -> None:
        self._landscape, self._pace, self._total = landscape, pace, total
        self._done = 0
        self._noise = random.Random(0)

    @property
    def basis(self) -> Any:
        return self._landscape.basis

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        for found in self._landscape.measure(jobs):
            pace = self._pace(min(1.0, self._done / self._total))
            self._done += 1
            if found.value is None:
                yield found
            else:
                noise = math.exp(self._noise.gauss(0, NOISE))
                yield replace(found, value=found.value * pace * noise)


def default_at(m: int) -> Candidate:
    row = next(row for most, row in DEFAULTS.items() if m <= most)
    return Candidate.of(dict(zip(FIELDS, row, strict=True)))


def regrets(
    landscape: Landscape,
    order: Mapping[int, list[Candidate]],
    pace: Callable[[float], float],
    seed: int,
    *,
    under_control: bool,
) -> dict[int, float]:
    """The regret of the chosen row by M."""
    table, trials = recorded(landscape), EFFORTS["standard"] or 0
    device = Slowed(landscape, pace, trials * len(order))
    measurer: Measurer = device
    workloads = {m: MoeWorkload(SHAPE, m) for m in order}
    if under_control:
        defaults = {workloads[m].key: default_at(m) for m in order}
        times = {workloads[m].key: table[m][default_at(m)] for m in order}
        measurer = Controlled(device, defaults, times)
    searches = []
    for m, candidates in sorted(order.items()):
        proposer = OptunaProposer(
            load_space("stock", "moe"),
            candidates,
            seed=int(digest([seed, workloads[m].key]), 16) % 2**32,
            first=[default_at(m), *candidates[:PRIOR_SEEDS]],
        )
        searches.append(Search(workloads[m], proposer, Limits(trials)))
    list(search_all(searches, measurer, Forgetful()))
    chosen = {}
    for m, search in zip(sorted(order), searches, strict=True):
        ok = [t for t in search.trials if t.measurement.value is not None]
        ok.sort(key=lambda t: (t.measurement.value or 0.0, t.sequence))
        finalists = [default_at(m), *(t.candidate for t in ok[:FINALISTS])]
        chosen[m] = min(table[m][one] for one in finalists) / min(table[m].values()) - 1
    return chosen


def judged(
    landscape: Landscape, order: Mapping[int, list[Candidate]], seeds: int, *, under_control: bool
) -> dict[str, dict[str, float]]:
    """Median and worst regret by way of being slowed."""
    result = {}
    for name, pace in SLOWED.items():
        found = [
            value
            for seed in range(seeds)
            for value in regrets(landscape, order, pace, seed, under_control=under_control).values()
        ]
        result[name] = {"median": round(median(found), 4), "worst": round(max(found), 4)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    landscape = Landscape.read(LANDSCAPE)
    order = ranked(recorded(landscape))
    result = {
        "landscape": LANDSCAPE.name,
        "seeds": given.seeds,
        "regret": {
            "without controls": judged(landscape, order, given.seeds, under_control=False),
            "with controls": judged(landscape, order, given.seeds, under_control=True),
        },
        "command": "python -m benchmarks.drift benchmarks/results/drift-h200.json --seeds 4",
        "environment": environment(),
    }
    print(json.dumps(result["regret"], indent=1))
    if given.result:
        given.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
