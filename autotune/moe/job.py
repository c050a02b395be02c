"""The job behind ``autotune moe``: a plan that is checked first, then the loop over every M."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autotune.core import (
    Candidate,
    Measurer,
    Outcome,
    Phase,
    Proposer,
    Selection,
    Trial,
    digest,
)
from autotune.environment import environment
from autotune.moe.compile import compile_pool
from autotune.moe.config_file import look_up, shipped
from autotune.moe.confirm import (
    Between,
    OnProgress,
    check_between,
    confirm,
    held_out,
    select_stored,
)
from autotune.moe.defaults import default_rows
from autotune.moe.gpu import GpuMeasurer, GpuOptions, compiler_in
from autotune.moe.measurer import PredictingMeasurer, estimated_resources, tile_of
from autotune.moe.plan import FINALISTS, Plan
from autotune.moe.predict import predict
from autotune.moe.shape import MoeWorkload
from autotune.propose import OptunaProposer, OrderedProposer
from autotune.runlog import StoredLog, recorded
from autotune.selection import select
from autotune.stopwatch import Stopwatch, TimedLog, TimedProposer
from autotune.store import Store
from autotune.tune import Limits, Search, TrialLog, measure_all, search_all

PRIOR_SEEDS = 24
"""Candidates that the cost model puts first before compiling, proposed before the sampler."""


@dataclass(frozen=True)
class MeasuredFacts:
    """What only a measured job knows.

    Attributes:
        facts: versions, GPU and ceilings as the measuring process saw them.
        spent: where the time went, in seconds, and the memory of the measuring processes, in MiB.
        between: the file between its keys.
    """

    facts: dict[str, Any]
    spent: dict[str, Any]
    between: list[Between]


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
    measured: MeasuredFacts | None = None

    @property
    def fp16_fallback(self) -> bool:
        """Whether a chosen kernel puts fp8 operands through fp16 tensor-core instructions."""
        trials = [s.winner for s in self.selections.values()]
        return any(t.measurement.details.get("fp16_fallback") for t in trials)


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

    return sorted(plan.feasible_at(m), key=lambda c: (predicted(c), c.key))


def run(plan: Plan, store: Store, on_progress: OnProgress) -> Result:
    """Search every M of the plan; all that is learnt goes to the store.

    Raises:
        NoFeasibleCandidateError: if at some M nothing works.
        BadInputError: if another process tunes this study, or it was made for something else.
        MissingEnvironmentError: if what the work needs is not there.
    """
    began = time.monotonic()
    study = store.study(plan.study, "moe", plan.identity())
    with store.lock_study(plan.study):
        record = store.search(study, plan.setup())
        with recorded(store, record, plan.command) as log:
            # Keys tuned by earlier commands stay in the file: fewer keys are a worse file.
            ms = [w.spec["m"] for w in store.workloads(record)]
            earlier = _earlier(plan, store.trials(record), ms)
            if plan.measured:
                found = _measured(plan, earlier, log, on_progress)
            else:
                found = _predicted(plan, earlier, store, log, on_progress)
            trials = store.trials(record)
    counts = {o.value: sum(t.measurement.outcome is o for t in trials) for o in Outcome}
    seconds = time.monotonic() - began
    return Result(
        plan=plan,
        setup=plan.setup(),
        environment=environment(),
        selections=found.selections,
        counts={name: n for name, n in counts.items() if n},
        trials=len(trials),
        fresh=log.appended,
        compiled=found.compiled,
        cached=found.cached,
        seconds=seconds,
        out_of_budget=found.out_of_budget,
        measured=found.measured,
    )


@dataclass(frozen=True)
class _Found:
    selections: dict[int, Selection]
    out_of_budget: tuple[int, ...]
    compiled: int
    cached: int
    measured: MeasuredFacts | None = None


def _predicted(
    plan: Plan,
    earlier: Mapping[int, Selection],
    store: Store,
    log: StoredLog,
    on_progress: OnProgress,
) -> _Found:
    with compile_pool(plan.workers, plan.kernel) as pool:
        cache = _CountingCache(store)
        measurer = PredictingMeasurer(plan.device, plan.kernel, cache, pool)
        defaults = default_rows(pool, plan.kernel, plan.shape, plan.ms)
        baselines = _baselines(plan, defaults, measurer, log, on_progress)
        searches = _searches(plan, defaults, measurer, log, on_progress)
    selections = {
        m: select(s.workload, baselines.get(m), s.trials, plan.min_gain)
        for m, s in searches.items()
    }
    late = tuple(m for m, s in searches.items() if s.out_of_time)
    return _Found({**earlier, **selections}, late, len(cache.stored), len(cache.found))


def _measured(
    plan: Plan, earlier: Mapping[int, Selection], log: StoredLog, on_progress: OnProgress
) -> _Found:
    watch = Stopwatch()
    timed = TimedLog(log, watch)
    options = GpuOptions(
        gpus=tuple(gpu.index for gpu in plan.gpus),
        arch=plan.device.arch,
        l2_bytes=plan.device.l2_bytes,
        routing=plan.routing,
        seed=plan.seed,
        memory_limit_mib=plan.memory_limit_mib,
    )
    with (
        compile_pool(plan.workers, plan.kernel) as pool,
        GpuMeasurer(plan.shape, options, compiler_in(pool, plan.kernel)) as measurer,
    ):
        with watch.running("start"):
            keys = {*earlier, *plan.ms}
            asked = tuple(keys | set(held_out(list(keys))))
            defaults = default_rows(pool, plan.kernel, plan.shape, asked)
            _baselines(plan, defaults, measurer, timed, on_progress)
            facts = measurer.facts()
        measurer.prepare_comparisons()
        with watch.running("search"):
            searches = _searches(plan, defaults, measurer, timed, on_progress, watch)
        finalists = {m: _finalists(search, defaults[m]) for m, search in searches.items()}
        with watch.running("confirm"):
            selections = confirm(
                plan.shape,
                finalists,
                measurer,
                timed,
                min_gain=plan.min_gain,
                seed=plan.seed,
                on_progress=on_progress,
            )
        with watch.running("between"):
            checked = check_between(
                plan.shape,
                {**earlier, **selections},
                defaults,
                measurer,
                timed,
                seed=plan.seed,
                on_progress=on_progress,
            )
    spent = {f"{name}_s": seconds for name, seconds in watch.seconds.items()}
    late = tuple(m for m, s in searches.items() if s.out_of_time)
    measured = MeasuredFacts(facts, spent | asdict(measurer.spent), checked.between)
    return _Found(checked.selections, late, 0, 0, measured)


def _earlier(plan: Plan, trials: Sequence[Trial], ms: Sequence[int]) -> dict[int, Selection]:
    """Selections for the keys of this search that this command did not ask for."""
    selections = {}
    for m in set(ms) - set(plan.ms):
        workload = MoeWorkload(plan.shape, m)
        own = [t for t in trials if t.workload_key == workload.key]
        phases = {phase: [t for t in own if t.phase is phase] for phase in Phase}
        baseline = next(iter(phases[Phase.BASELINE]), None)
        if not any(t.measurement.outcome is Outcome.OK for t in phases[Phase.SEARCH]):
            continue  # a key between the others, or one that was not searched yet
        if not plan.measured:
            searched = phases[Phase.SEARCH]
            selections[m] = select(workload, baseline, searched, plan.min_gain)
        elif baseline is not None:
            confirmed = phases[Phase.CONFIRM]
            chosen = select_stored(workload, baseline.candidate, confirmed, plan.min_gain)
            if chosen is not None:
                selections[m] = chosen
    return selections


def _baselines(
    plan: Plan,
    defaults: Mapping[int, Candidate],
    measurer: Measurer,
    log: TrialLog,
    on_progress: OnProgress,
) -> dict[int, Trial]:
    """VLLM's default at every M."""
    jobs = [(defaults[m], MoeWorkload(plan.shape, m)) for m in plan.ms]
    baselines = {}
    for m, progress in zip(plan.ms, measure_all(jobs, Phase.BASELINE, measurer, log), strict=True):
        baselines[m] = progress.trial
        on_progress(progress)
    return baselines


def _searches(
    plan: Plan,
    defaults: Mapping[int, Candidate],
    measurer: Measurer,
    log: TrialLog,
    on_progress: OnProgress,
    watch: Stopwatch | None = None,
) -> dict[int, Search]:
    """Search every M, side by side."""
    deadline = math.inf if plan.budget_s is None else time.monotonic() + plan.budget_s
    searches = {}
    for m in plan.ms:
        proposer = _proposer(plan, m, defaults[m])
        if watch is not None:
            proposer = TimedProposer(proposer, watch)
        limits = Limits(plan.trials_per_m, deadline)
        searches[m] = Search(MoeWorkload(plan.shape, m), proposer, limits)
    for progress in search_all(list(searches.values()), measurer, log):
        on_progress(progress)
    return searches


def _proposer(plan: Plan, m: int, default: Candidate) -> Proposer:
    ranked = rank(plan, m)
    if plan.effort == "exhaustive":
        return OrderedProposer(ranked)
    return OptunaProposer(
        plan.space,
        plan.feasible_at(m),
        sampler=plan.sampler,
        seed=int(digest([plan.seed, MoeWorkload(plan.shape, m).key]), 16) % 2**32,
        first=first_candidates(plan, m, default, ranked),
    )


def _finalists(search: Search, default: Candidate) -> list[Candidate]:
    """The best of a search, which then meet the default side by side."""
    ok = [t for t in search.trials if t.measurement.value is not None]
    ok.sort(key=lambda t: (t.measurement.value or 0.0, t.sequence))
    return [default, *[t.candidate for t in ok if t.candidate != default][:FINALISTS]]
