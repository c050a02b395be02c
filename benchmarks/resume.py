"""How long it takes to load 20,000 stored trials and to take a search up again from them.

Usage: python benchmarks/resume.py [RESULT.json]. Bound: under 5 s for load, tell and the first ask.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autotune.core import Basis, Measurement, Outcome, Phase, Trial
from autotune.kernels.moe.from_model import load_config, shape_from_config
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.request import STANDARD_LADDER
from autotune.machine.environment import environment
from autotune.propose.proposers import OptunaProposer
from autotune.space.space import load_space
from autotune.store.store import Store

TRIALS = 20_000
BOUND_S = 5.0


def main() -> None:
    space = load_space("stock", "moe")
    candidates = list(space.candidates())
    shape = shape_from_config(load_config("gemma-4-26b-a4b"))
    draw = random.Random(0)
    each = TRIALS // len(STANDARD_LADDER) + 1
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/autotune.db"
        workloads = [MoeWorkload(shape, m) for m in STANDARD_LADDER]
        with Store.open(url) as store:
            search = store.search(store.study("bench", "moe", {}), {"basis": "synthetic"})
            run = store.start_run(search, store.environment(environment()), "benchmark")
            for workload in workloads:
                record = store.workload(search, workload)
                trials = [
                    Trial(
                        candidate,
                        workload.key,
                        Phase.SEARCH,
                        sequence,
                        Measurement(
                            Outcome.OK,
                            Basis.SYNTHETIC,
                            draw.random() + 1,
                            (1.0,) * 20,
                            "",
                            {"a": 1},
                        ),
                    )
                    for sequence, candidate in enumerate(draw.sample(candidates, each))
                ]
                store.add_trials(run, record.id, trials)
        began = time.perf_counter()
        with Store.open(url) as store:
            search = store.search(store.study("bench", "moe", {}), {"basis": "synthetic"})
            loaded = {w.key: store.trials(search, w.key, Phase.SEARCH) for w in workloads}
        load_s = time.perf_counter() - began
        began = time.perf_counter()
        for workload in workloads:
            proposer = OptunaProposer(space, candidates)
            for trial in loaded[workload.key]:
                proposer.tell(trial)
            proposer.ask(8)
        resume_s = time.perf_counter() - began
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "trials": sum(map(len, loaded.values())),
        "load_s": round(load_s, 3),
        "tell_and_first_ask_of_18_workloads_s": round(resume_s, 3),
        "bound_s": BOUND_S,
        "within_bound": load_s + resume_s < BOUND_S,
        "command": "python benchmarks/resume.py",
        "commit": commit,
        "environment": environment(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")


if __name__ == "__main__":
    main()
