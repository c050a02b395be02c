"""The job behind ``autotune moe``: a plan that is checked first, then the loop over every M."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from autotune.core import (
    Basis,
    Candidate,
    Outcome,
    Phase,
    Selection,
    Trial,
    Workload,
    digest,
)
from autotune.devices import Device
from autotune.environment import environment
from autotune.moe.compile import KernelInfo, compile_pool, specialise
from autotune.moe.config_file import look_up, shipped
from autotune.moe.defaults import default_rows
from autotune.moe.feasibility import CONSTRAINTS
from autotune.moe.measurer import PredictingMeasurer, estimated_resources, tile_of
from autotune.moe.predict import MODEL_VERSION, predict
from autotune.moe.shape import MoeShape, MoeWorkload
from autotune.propose import OPTUNA_VERSION, OptunaProposer, OrderedProposer
from autotune.records import RunRecord, RunStatus, SearchRecord
from autotune.selection import select
from autotune.space import Check, Space
from autotune.store import Store
from autotune.tune import Limits, Progress, measure_all, search

STANDARD_LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
"""The 18 keys of vLLM's own tuner (benchmarks/kernels/benchmark_moe.py)."""

EFFORTS: dict[str, int | None] = {"quick": 24, "standard": 64, "exhaustive": None}
"""Candidates searched per M; None is every feasible one."""

PRIOR_SEEDS = 12
"""Candidates that the cost model puts first before compiling, proposed before the sampler."""

SECONDS_PER_COMPILE = 0.8
"""For the estimate only: mean over the stock grid for sm_121, both GEMMs, one x86 core."""


@dataclass(frozen=True)
class Plan:
    """Everything that ``autotune moe`` has decided before it starts."""

    study: str
    device: Device
    model: str
    shape: MoeShape
    ms: tuple[int, ...]
    space: Space
    effort: str
    budget_s: float | None
    sampler: str
    seed: int
    min_gain: float
    workers: int
    kernel: KernelInfo
    command: str

    @cached_property
    def feasible(self) -> list[Candidate]:
        """The candidates that the device can run."""
        return self.space.feasible(checks(self.shape, self.device))

    @property
    def trials_per_m(self) -> int:
        """Candidates searched per M."""
        wanted = EFFORTS[self.effort]
        return len(self.feasible) if wanted is None else min(wanted, len(self.feasible))

    @property
    def expected_compiles(self) -> int:
        """Compilations from an empty cache if every M tried the same tiles: a rough upper estimate.

        GROUP_SIZE_M is not compiled, and M only by its specialisation.
        """
        tiles = len({_without_group(candidate) for candidate in self.feasible})
        specialisations = len({specialise(self.shape, m) for m in self.ms})
        return 2 * min(self.trials_per_m, tiles) * specialisations

    @property
    def estimated_seconds(self) -> float:
        """A rough estimate from an empty cache, or the budget where that is less."""
        estimate = self.expected_compiles * SECONDS_PER_COMPILE / self.workers
        return min(estimate, self.budget_s or math.inf)

    def identity(self) -> dict[str, Any]:
        """What a study is about: must not change between two commands."""
        return {"device": self.device.name, "shape": self.shape.as_json()}

    def setup(self) -> dict[str, Any]:
        """Under what trials can be compared and a search goes on: part of the search's key."""
        return {
            "basis": Basis.PREDICTED.value,
            "cost_model": MODEL_VERSION,
            "device": digest(self.device.model_dump(mode="json")),
            "kernel_sha256": self.kernel.sha256,
            "optuna": OPTUNA_VERSION,
            "sampler": "ordered" if self.effort == "exhaustive" else self.sampler,
            "seed": self.seed,
            "space": {"name": self.space.name, "digest": self.space.digest},
            "triton": self.kernel.triton_version,
            "vllm": self.kernel.vllm_version,
        }


@dataclass(frozen=True)
class Result:
    """What a finished job hands to the exporters and to the terminal."""

    plan: Plan
    setup: dict[str, Any]
    environment: dict[str, Any]
    selections: dict[int, Selection]
    counts: dict[str, int]
    trials: int
    fresh: int
    """Trials made by this command; the others were in the database."""
    compiled: int
    cached: int
    seconds: float
    out_of_budget: tuple[int, ...]

    @property
    def fp16_fallback(self) -> bool:
        """Whether a chosen kernel puts fp8 operands through fp16 tensor-core instructions."""
        trials = [s.winner for s in self.selections.values()]
        return any(t.measurement.details.get("fp16_fallback") for t in trials)


def _without_group(candidate: Candidate) -> Candidate:
    return Candidate.of({n: v for n, v in candidate.params.items() if n != "GROUP_SIZE_M"})


def checks(shape: MoeShape, device: Device) -> dict[str, Check]:
    """The named constraints of the MoE half, bound to a shape and a device."""

    def bind(name: str) -> Check:
        return lambda candidate: CONSTRAINTS[name](candidate.ints, shape, device)

    return {name: bind(name) for name in CONSTRAINTS}


def default_study(device: Device, shape: MoeShape) -> str:
    """Such as ``moe-gb10-e128-n704-fp8_w8a8``."""
    dtype = shape.dtype or shape.weight_dtype
    block = "" if not shape.block_shape else "-b" + "x".join(map(str, shape.block_shape))
    return f"moe-{device.name}-e{shape.experts}-n{shape.intermediate}-{dtype}{block}"


class _Log:
    """The store as the loop sees it: one run of one search."""

    def __init__(self, store: Store, search_record: SearchRecord, run: RunRecord) -> None:
        self._store, self._search, self._run = store, search_record, run
        self._ids: dict[str, int] = {}
        self.appended = 0

    def load(self, workload: Workload, phase: Phase) -> list[Trial]:
        return self._store.trials(self._search, workload.key, phase)

    def append(self, workload: Workload, trial: Trial) -> None:
        if workload.key not in self._ids:
            self._ids[workload.key] = self._store.workload(self._search, workload).id
        self._store.add_trials(self._run, self._ids[workload.key], [trial])
        self.appended += 1


class _CountingCache:
    """Passes a cache through and counts what was found and what had to be compiled."""

    def __init__(self, store: Store) -> None:
        self._cache = store.cache()
        self.found: set[str] = set()
        self.stored: set[str] = set()

    def get(self, key: str) -> dict[str, Any] | None:
        value = self._cache.get(key)
        if value is not None and key not in self.stored:
            self.found.add(key)
        return value

    def put(self, key: str, value: Any) -> None:
        self._cache.put(key, value)
        self.stored.add(key)


def first_candidates(
    plan: Plan, m: int, default: Candidate, ranked: Sequence[Candidate]
) -> list[Candidate]:
    """What to try before the sampler: shipped rows for this shape, defaults, the prior's best."""
    configs = plan.kernel.path.parent / "configs"
    rows = [look_up(table, m) for _, table in shipped(configs, plan.shape)]
    return list(dict.fromkeys([default, *rows, *ranked[:PRIOR_SEEDS]]))


def rank(plan: Plan, m: int) -> list[Candidate]:
    """The feasible candidates by the cost model with estimated resources, best first."""
    workload = MoeWorkload(plan.shape, m)

    def predicted(candidate: Candidate) -> float:
        resources = estimated_resources(candidate, plan.shape, plan.device)
        tile = tile_of(candidate, plan.shape)
        return predict(workload, tile, (resources, resources), plan.device).us

    return sorted(plan.feasible, key=lambda c: (predicted(c), c.key))


@contextmanager
def _recorded(store: Store, search_record: SearchRecord, command: str) -> Iterator[RunRecord]:
    """A run in the store whose status says how it ended."""
    run = store.start_run(search_record, store.environment(environment()), command)
    status = RunStatus.FAILED
    try:
        yield run
        status = RunStatus.DONE
    except KeyboardInterrupt:
        status = RunStatus.INTERRUPTED
        raise
    finally:
        store.end_run(run, status)


def run_prediction(plan: Plan, store: Store, on_progress: Callable[[Progress], None]) -> Result:
    """Search every M of the plan in the predicted mode; all that is learnt goes to the store.

    Raises:
        NoFeasibleCandidateError: if at some M nothing compiles.
        BadInputError: if another process tunes this study, or it was made for something else.
    """
    began = time.monotonic()
    study = store.study(plan.study, "moe", plan.identity())
    with store.lock_study(plan.study):
        record = store.search(study, plan.setup())
        with (
            _recorded(store, record, plan.command) as run,
            compile_pool(plan.workers, plan.kernel) as pool,
        ):
            cache = _CountingCache(store)
            measurer = PredictingMeasurer(plan.device, plan.kernel, cache, pool)
            defaults = default_rows(pool, plan.kernel, plan.shape, plan.ms)
            log = _Log(store, record, run)
            selections: dict[int, Selection] = {}
            stopped: list[int] = []
            for position, m in enumerate(plan.ms):
                left = len(plan.ms) - position
                limits = _limits(plan, began, left)
                selections[m] = _one_m(plan, m, defaults, measurer, log, limits, on_progress)
                if time.monotonic() >= limits.deadline:
                    stopped.append(m)
            trials = store.trials(record)
            # Keys tuned by earlier commands stay in the file: fewer keys are a worse file.
            selections |= _earlier(plan, trials, [w.spec["m"] for w in store.workloads(record)])
    counts = {o.value: sum(t.measurement.outcome is o for t in trials) for o in Outcome}
    fresh = log.appended
    return Result(
        plan=plan,
        setup=plan.setup(),
        environment=environment(),
        selections=selections,
        counts={name: n for name, n in counts.items() if n},
        trials=len(trials),
        fresh=fresh,
        compiled=len(cache.stored),
        cached=len(cache.found),
        seconds=time.monotonic() - began,
        out_of_budget=tuple(stopped),
    )


def _earlier(plan: Plan, trials: Sequence[Trial], ms: Sequence[int]) -> dict[int, Selection]:
    """Selections for the keys of this search that this command did not ask for."""
    selections = {}
    for m in set(ms) - set(plan.ms):
        workload = MoeWorkload(plan.shape, m)
        own = [t for t in trials if t.workload_key == workload.key]
        searched = [t for t in own if t.phase is Phase.SEARCH]
        baseline = next((t for t in own if t.phase is Phase.BASELINE), None)
        if any(t.measurement.outcome is Outcome.OK for t in searched):
            selections[m] = select(workload, baseline, searched, plan.min_gain)
    return selections


def _limits(plan: Plan, began: float, left: int) -> Limits:
    """An equal share of what is left of the budget for each M that is left."""
    limits = Limits(plan.trials_per_m)
    if plan.budget_s is None:
        return limits
    now = time.monotonic()
    return replace(limits, deadline=now + max(0.0, began + plan.budget_s - now) / left)


def _one_m(
    plan: Plan,
    m: int,
    defaults: dict[int, Candidate],
    measurer: PredictingMeasurer,
    log: _Log,
    limits: Limits,
    on_progress: Callable[[Progress], None],
) -> Selection:
    workload = MoeWorkload(plan.shape, m)
    incumbent: Trial | None = None
    for progress in measure_all([defaults[m]], workload, Phase.BASELINE, measurer, log):
        incumbent = progress.trial
        on_progress(progress)
    ranked = rank(plan, m)
    proposer: OptunaProposer | OrderedProposer
    if plan.effort == "exhaustive":
        proposer = OrderedProposer(ranked)
    else:
        proposer = OptunaProposer(
            plan.space,
            plan.feasible,
            sampler=plan.sampler,
            seed=int(digest([plan.seed, workload.key]), 16) % 2**32,
            first=first_candidates(plan, m, defaults[m], ranked),
        )
    trials = []
    for progress in search(workload, proposer, measurer, log, limits):
        trials.append(progress.trial)
        on_progress(progress)
    return select(workload, incumbent, trials, plan.min_gain)
