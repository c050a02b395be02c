"""A whole job without a GPU or a compiler: the real loop, proposer, store and writer of files.

Only the measurer is made up (:mod:`tests.synthetic`); it takes a few milliseconds for each
candidate, so that a kill may come between any two steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import alembic.context  # noqa: F401 - Store.open would, in each of the processes

from autotune.core import Basis, HoldsNothing, Job, Measurement, Phase
from autotune.decide.selection import select
from autotune.export.files import write_whole
from autotune.propose.proposers import OptunaProposer
from autotune.store.run_log import recorded
from autotune.store.store import Store
from autotune.tune import Limits, Search, measure_all, search_all
from tests.support.stores import Size
from tests.synthetic import feasible, space, synthetic

WORKLOADS = (Size(1), Size(512))
DEFAULT = feasible()[300]
TRIALS = 20
"""Of each workload: two whole batches and a short one; ten come before the sampler has a model."""
MEASURING_S = 0.004


class SlowFormula(HoldsNothing):
    """The synthetic formula, for which one has to wait."""

    basis = Basis.SYNTHETIC

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        for job in jobs:
            assert isinstance(job.workload, Size)
            time.sleep(MEASURING_S)
            yield synthetic(job.candidate, job.workload)


def database(folder: Path) -> Path:
    return folder / "autotune.db"


def final_file(folder: Path) -> Path:
    return folder / "winners.json"


def run(folder: Path) -> None:
    """Tune all workloads and write the winners, or go on with what was interrupted."""
    with Store.open(f"sqlite:///{database(folder)}") as store, store.lock_study("s"):
        search = store.search(store.study("s", "moe", {}), {"seed": 1})
        with recorded(store, search, "synthetic") as log, SlowFormula() as measurer:
            jobs = [Job(DEFAULT, workload) for workload in WORKLOADS]
            baselines = measure_all(jobs, Phase.BASELINE, measurer, log, lambda _: None)
            searches = [
                Search(w, OptunaProposer(space(), feasible(), seed=1), Limits(TRIALS))
                for w in WORKLOADS
            ]
            for _ in search_all(searches, measurer, log):
                pass
        chosen = {
            each.workload.label: select(each.workload, baseline, each.trials, 0.01)
            for each, baseline in zip(searches, baselines, strict=True)
        }
    winners = {label: dict(one.winner.candidate.params) for label, one in chosen.items()}
    write_whole(final_file(folder), json.dumps(winners, indent=1).encode())
