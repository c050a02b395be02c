"""How ``autotune moe`` scales over GPUs and cores, and ``autotune spec`` over GPUs: a simulation.

    python -m benchmarks.scale > benchmarks/results/scale.json

Trials that were measured on an H200 (kernels) and an H100 (servers) are replayed with the times
that they took. The search loop, the controls and the queue are the project's own; a clock that only
the simulation moves stands for GPUs, compilers, and the driver's share of each trial. Nothing here
is measured on more GPUs than one: the numbers are simulated.
"""

from __future__ import annotations

import gzip
import heapq
import itertools
import json
import sqlite3
import sys
import tempfile
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.cluster.crew import ClusterPool, Lost, Queue, Setting, Task
from autotune.core import Basis, Candidate, HoldsNothing, Job, Measurement, Outcome, Phase, Trial
from autotune.measure.pool import TaskResult, TaskStatus
from autotune.propose.proposers import OrderedProposer
from autotune.tune import Limits, Search, search_all

RESULTS = Path(__file__).parent / "results"
GPUS = (1, 2, 8, 64)
RPC_S = 0.003
"""For a task to an actor and back, on a local network; an assumption."""


@dataclass(frozen=True)
class _Workload:
    key: str

    @property
    def label(self) -> str:
        return self.key

    def as_json(self) -> dict[str, Any]:
        return {"key": self.key}


def trials_of(study: str) -> list[tuple[str, str, dict[str, Any], str, float]]:
    """Workload, phase, candidate, outcome and seconds of every trial, in the order stored."""
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        file.write(gzip.decompress((RESULTS / study / "trials.db.gz").read_bytes()))
        file.flush()
        rows = sqlite3.connect(file.name).execute(
            "select w.label, t.phase, t.candidate, m.outcome, m.seconds from trials t "
            "join measurements m on m.trial_id = t.id join workloads w on w.id = t.workload_id "
            "order by t.id"
        )
        return [(w, p, json.loads(c), o, s) for w, p, c, o, s in rows]


class Clock:
    """The clock of a simulation, with compilers and the driver, which are busy until some time."""

    def __init__(self, cores: int, compile_s: float) -> None:
        self.now = 0.0
        self.cores = cores
        self._cores = [0.0] * cores
        self._compile_s = compile_s

    def compiled(self) -> float:
        """When kernels that are asked for now are there."""
        done = max(heapq.heappop(self._cores), self.now) + self._compile_s
        heapq.heappush(self._cores, done)
        return done


class Crew:
    """Seats on a simulated clock; a :class:`autotune.cluster.crew.Crew`."""

    def __init__(self, gpus: int, clock: Clock) -> None:
        self._clock = clock
        self._free = {f"gpu{n}": 0.0 for n in range(gpus)}
        self._load = dict.fromkeys(self._free, 0)
        self._under_way: list[tuple[float, int, str, Task]] = []
        self._count = itertools.count()
        self.busy = 0.0

    @property
    def seats(self) -> dict[str, int]:
        return dict(self._load)

    def begin(self, seat: str, task: Task) -> None:
        compiled, seconds = task.item
        start = max(self._free[seat], compiled, self._clock.now + RPC_S / 2)
        self._free[seat] = start + seconds + RPC_S / 2
        self.busy += seconds
        self._load[seat] += 1
        heapq.heappush(self._under_way, (self._free[seat], next(self._count), seat, task))

    def wait(self, _: float) -> list[tuple[Task, TaskResult[Any] | Lost]]:
        end, _, seat, task = heapq.heappop(self._under_way)
        self._clock.now = max(self._clock.now, end)
        self._load[seat] -= 1
        return [(task, TaskResult(TaskStatus.OK, task.item[1]))]

    def clear(self, setting: Setting) -> None:
        """Nothing runs."""


class Replay(HoldsNothing):
    """Measures with the times that were recorded, on simulated GPUs."""

    basis = Basis.MEASURED

    def __init__(self, seconds: dict[tuple[str, Candidate], float], crew: Crew, clock: Clock):
        self._seconds, self._clock = seconds, clock
        self._pool = ClusterPool(Queue(crew, clock=lambda: clock.now), Setting("search", print))

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        def tasks() -> Iterator[tuple[float, float]]:
            ahead = deque[tuple[float, float]]()
            for job in jobs:  # compilers read four jobs each ahead, as the pool lets them
                ahead.append(
                    (self._clock.compiled(), self._seconds[job.workload.key, job.candidate])
                )
                if len(ahead) > 4 * self._clock.cores:
                    yield ahead.popleft()
            yield from ahead

        for result in self._pool.map_ordered(abs, tasks(), 1.0):
            yield Measurement(Outcome.OK, Basis.MEASURED, 1.0, seconds=result.value or 0.0)


class _Log:
    """Costs the driver what the database and the proposer cost it."""

    def __init__(self, clock: Clock, driver_s: float) -> None:
        self._clock, self._driver_s = clock, driver_s

    def load(self, *_: Any) -> list[Trial]:
        return []

    def append(self, *_: Any) -> None:
        self._clock.now += self._driver_s

    def load_parts(self, *_: Any) -> dict[str, Any]:
        return {}

    def append_part(self, *_: Any) -> None:
        raise AssertionError("kernels have no parts")


def search(study: str, gpus: int, cores: int, *, slower: float = 1.0) -> dict[str, float]:
    """Simulate the search of a study; wall seconds, and how busy the GPUs were.

    Args:
        study: recorded.
        gpus: how many.
        cores: that compile.
        slower: by how much a trial takes longer on the GPU than where it was recorded.
    """
    spent = json.loads((RESULTS / study / "provenance.json").read_text())["spent"]
    order, seconds = defaultdict[str, list[Candidate]](list), {}
    for workload, phase, params, _, took in trials_of(study):
        if phase == Phase.SEARCH:
            candidate = Candidate.of(params)
            order[workload].append(candidate)
            seconds[workload, candidate] = took * slower
    trials = len(seconds)
    clock = Clock(cores, spent["compile_cpu"] / trials)
    crew = Crew(gpus, clock)
    searches = [
        Search(_Workload(key), OrderedProposer(candidates), Limits(len(candidates)))
        for key, candidates in order.items()
    ]
    driver_s = (spent["propose_s"] + spent["store_s"]) / trials
    done = sum(1 for _ in search_all(searches, Replay(seconds, crew, clock), _Log(clock, driver_s)))
    assert done == trials
    return {"seconds": round(clock.now, 1), "gpu_busy": round(crew.busy / gpus / clock.now, 3)}


def boots(study: str, gpus: int) -> dict[str, float]:
    """Simulate the boots of a serving search that asks for all settings at once.

    The baseline comes first, then a control on every other GPU, then the settings, pulled; what is
    confirmed stays on one GPU, one boot after the other.
    """
    rows = trials_of(study)
    phases = {p: [s for _, phase, _, _, s in rows if phase == p] for p in Phase}
    settings = phases[Phase.SEARCH]
    free = [0.0] * gpus
    base = phases[Phase.BASELINE][0]
    free[0] = base
    for gpu in range(1, gpus):  # controls, while the first goes on
        free[gpu] = base + base
    heapq.heapify(free)
    for seconds in settings:
        heapq.heappush(free, heapq.heappop(free) + seconds)
    searched = max(free)
    return {
        "settings": len(settings),
        "search_seconds": round(searched, 1),
        "seconds": round(searched + sum(phases[Phase.CONFIRM]), 1),
    }


def main() -> None:
    """Print all of it as JSON."""
    kernels = {
        name: {str(gpus): search("h200-gemma4", gpus, cores(gpus), slower=slower) for gpus in GPUS}
        for name, cores, slower in (
            ("16 cores of the driver", lambda _: 16, 1.0),
            ("16 cores a GPU", lambda gpus: 16 * gpus, 1.0),
            ("64 cores a GPU", lambda gpus: 64 * gpus, 1.0),
            ("20 cores a GPU, GPU 6 times as slow", lambda gpus: 20 * gpus, 6.0),
            ("compiled before", lambda _: 10_000, 1.0),
        )
    }
    servers = {str(gpus): boots("h100-serving", gpus) for gpus in GPUS}
    json.dump({"kernels": kernels, "servers": servers}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
