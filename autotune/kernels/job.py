"""The job behind ``autotune moe``: a plan that is checked first, then the loop over every M."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from autotune.core import (
    Candidate,
    Job,
    Measurer,
    MissingEnvironmentError,
    NoFeasibleCandidateError,
    Outcome,
    Phase,
    Proposer,
    Selection,
    Trial,
)
from autotune.kernels.decide.confirm import (
    Between,
    Checked,
    check_between,
    confirm,
    midpoints,
    select_stored,
)
from autotune.kernels.measure.control import Controlled, slow_device, throttled
from autotune.kernels.measure.protocol import KernelMeasurer, KernelTimer
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.plan import FINALISTS, Plan
from autotune.kernels.predict.choose import select_predicted
from autotune.kernels.propose import OriginLog, origins_of, proposers
from autotune.kernels.stored import latest_baseline
from autotune.kind import Run, tune
from autotune.machine.environment import environment, others_on
from autotune.stopwatch import Stopwatch, TimedLog, TimedProposer
from autotune.store.retry import TRANSIENT, ResumableLog
from autotune.store.store import Store
from autotune.tune import Limits, OnProgress, Search, TrialLog, measure_all, search_all


@dataclass(frozen=True)
class MeasuredFacts:
    """What only a measured job knows.

    Attributes:
        facts: versions, GPU and ceilings as the measuring process saw them; what else used the GPU
            at the start (``others``); whether fp8 is multiplied as fp16 (``fp16_fallback``).
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
    failed: dict[int, str]
    """Batch sizes without a row, and why."""
    origins: Mapping[int, str] = field(default_factory=dict)
    """Where each row was proposed first: vLLM's default, a file, the cost model or the search."""
    measured: MeasuredFacts | None = None

    @property
    def fp16_fallback(self) -> bool:
        """Whether fp8 operands go through fp16 tensor-core instructions.

        Of a prediction: in a chosen kernel. Measured kernels were not taken apart: in a probe.
        """
        if self.measured is not None:
            return bool(self.measured.facts["fp16_fallback"])
        trials = [s.winner for s in self.selections.values()]
        return any(t.measurement.details.get("fp16_fallback") for t in trials)

    @property
    def noticed(self) -> list[str]:
        """What went on beside the numbers that a user must know of."""
        others = self.measured.facts["others"] if self.measured is not None else []
        said = [f"when measuring began, {one}: times may be too long" for one in others]
        if self.measured is not None:
            device = self.plan.device  # what a copy reaches on one without a file is not known
            known = 0.0 if device.from_driver else device.memory_bandwidth_gbs
            said += slow_device(self.measured.facts, known)
            said += throttled(self._last_clocks(), self.measured.facts.get("drift", {}))
        return said + [
            f"not in the file: {why}; --retry-failed tries again what failed for the moment"
            for why in self.failed.values()
        ]

    def _last_clocks(self) -> dict[int, Mapping[str, float]]:
        """By batch size what was read at the end of the comparison that decided it."""
        details = {m: s.winner.measurement.details for m, s in self.selections.items()}
        return {m: found["clocks"][-1] for m, found in details.items() if found.get("clocks")}


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


def run(plan: Plan, store: Store, measurer: KernelMeasurer, on_progress: OnProgress) -> Result:
    """Search every M of the plan; all that is learnt goes to the store.

    Args:
        plan: what to do.
        store: takes the trials.
        measurer: such as :func:`~autotune.kernels.measurers.local_measurer`, a
            :class:`~autotune.kernels.measure.protocol.KernelTimer` unless the plan is to predict;
            entered here.
        on_progress: told after every trial.

    Raises:
        NoFeasibleCandidateError: if nothing works at any M.
        BadInputError: if another process tunes this study, or it was made for something else.
        MissingEnvironmentError: if what the work needs is not there.
    """
    return tune(plan, store, measurer, on_progress, _tuned)


def _tuned(run: Run[Plan, KernelMeasurer]) -> Result:
    """From the defaults to the selections; see :func:`run`."""
    plan, store, measurer = run.plan, run.store, run.measurer
    # Without the default nothing can be confirmed, and measuring it costs little.
    always = frozenset({Phase.BASELINE} if plan.measured else ())
    log = ResumableLog(run.log, retry_failed=plan.retry_failed, always=always)
    # Keys tuned by earlier commands stay in the file: fewer keys are a worse file.
    batch_sizes = [w.spec["m"] for w in store.workloads(run.record)]
    earlier = _earlier(plan, store.trials(run.record), batch_sizes)
    cache = _CountingCache(store)
    measurer.use(cache)
    if plan.measured:
        timer = cast("KernelTimer", measurer)
        _spare_the_host(plan, timer, log)
        found = _measured(plan, earlier, timer, log, run.on_progress)
    else:
        found = _predicted(plan, earlier, measurer, log, run.on_progress)
    if not found.selections:
        raise NoFeasibleCandidateError("; ".join(found.failed.values()))
    trials = store.trials(run.record)
    counts = {o.value: sum(t.measurement.outcome is o for t in trials) for o in Outcome}
    return Result(
        plan=plan,
        setup=plan.setup(),
        environment=environment(),
        selections=found.selections,
        counts={name: n for name, n in counts.items() if n},
        trials=len(trials),
        fresh=run.log.appended,
        compiled=len(cache.stored),
        cached=len(cache.found),
        seconds=run.seconds,
        out_of_budget=found.out_of_budget,
        failed=found.failed,
        origins=origins_of(plan.shape, found.selections, trials),
        measured=found.measured,
    )


@dataclass(frozen=True)
class _Found:
    selections: dict[int, Selection]
    failed: dict[int, str]
    out_of_budget: tuple[int, ...]
    measured: MeasuredFacts | None = None


def _predicted(
    plan: Plan,
    earlier: Mapping[int, Selection],
    measurer: KernelMeasurer,
    log: TrialLog,
    on_progress: OnProgress,
) -> _Found:
    defaults = measurer.defaults(plan.batch_sizes)
    chosen, origins = proposers(plan, defaults)
    baselines = _baselines(plan, defaults, measurer, log, on_progress)
    noted = OriginLog(log, origins)
    searches = _searches(plan, chosen, measurer, noted, on_progress)
    selections, failed = dict(earlier), dict[int, str]()
    for m, search in searches.items():
        trials = log.load(search.workload, Phase.SEARCH)  # of earlier commands with more effort too
        try:
            default = baselines.get(m)
            selections[m] = select_predicted(search.workload, default, trials, plan.min_gain)
        except NoFeasibleCandidateError as error:
            failed[m] = str(error)
    late = tuple(m for m, s in searches.items() if s.out_of_time)
    return _Found(selections, failed, late)


def _spare_the_host(plan: Plan, measurer: KernelTimer, log: TrialLog) -> None:
    """Keep from batch sizes at which an earlier command ran the host short of memory."""
    for m in plan.batch_sizes if plan.unified else ():
        trials = [t for phase in Phase for t in log.load(MoeWorkload(plan.shape, m), phase)]
        if any(t.measurement.outcome is Outcome.HOST_MEMORY for t in trials):
            measurer.spare(m)
            return


def _measured(
    plan: Plan,
    earlier: Mapping[int, Selection],
    measurer: KernelTimer,
    log: TrialLog,
    on_progress: OnProgress,
) -> _Found:
    watch = Stopwatch()
    timed = TimedLog(log, watch)
    others = others_on(plan.gpus)
    with watch.running("start"):
        keys = [*{*earlier, *plan.batch_sizes}]
        defaults = measurer.defaults([*{*keys, *midpoints(keys)}])
        # Ranking takes a second or two, in which the measuring processes are starting.
        chosen, origins = proposers(plan, defaults)
        baselines = _baselines(plan, defaults, measurer, timed, on_progress)
        _check_any_works(baselines)
        facts = measurer.facts() | {"others": others}
        facts |= _places(plan, defaults, baselines, measurer)
    measurer.prepare_comparisons()
    with watch.running("search"):
        timed_proposers = {m: TimedProposer(p, watch) for m, p in chosen.items()}
        noted = OriginLog(timed, origins)
        controlled = _controlled(plan, defaults, baselines, measurer)
        searches = _searches(plan, timed_proposers, controlled, noted, on_progress)
    facts["drift"] = controlled.drift.as_json()
    finalists = {
        m: _finalists(timed.load(search.workload, Phase.SEARCH), defaults[m])
        for m, search in searches.items()
    }
    with watch.running("confirm"):
        confirmed = confirm(
            plan.shape,
            finalists,
            measurer,
            timed,
            min_gain=plan.min_gain,
            seed=plan.seed,
            on_progress=on_progress,
        )
    with watch.running("between"):
        selections = {**earlier, **confirmed.selections}
        checked = _check_between(plan, selections, defaults, measurer, timed, on_progress)
    spent = {f"{name}_s": seconds for name, seconds in watch.seconds.items()}
    late = tuple(m for m, s in searches.items() if s.out_of_time)
    measured = MeasuredFacts(facts, spent | dict(measurer.spent), checked.between)
    failed = {m: why for m, why in confirmed.failed.items() if m not in checked.selections}
    return _Found(checked.selections, failed, late, measured)


def _places(
    plan: Plan,
    defaults: Mapping[int, Candidate],
    baselines: Mapping[int, Trial],
    measurer: KernelTimer,
) -> dict[str, Any]:
    """How far several GPUs differ: the control, at the largest batch size where it works."""
    works = [m for m, trial in baselines.items() if trial.measurement.outcome is Outcome.OK]
    if len(plan.gpus) < 2 or not works:
        return {}
    found = measurer.places(defaults[max(works)], MoeWorkload(plan.shape, max(works)))
    return {"places": found} if found else {}


def _check_any_works(baselines: Mapping[int, Trial]) -> None:
    """End at once where vLLM's default fails everywhere: so would hours of candidates.

    Raises:
        MissingEnvironmentError: with what the last one said.
    """
    failed = [t for t in baselines.values() if t.measurement.outcome in TRANSIENT]
    if len(failed) == len(baselines):
        raise MissingEnvironmentError(
            "vLLM's default fails at every batch size, so nothing can be measured here: "
            f"{failed[-1].measurement.message}"
        )


def _check_between(
    plan: Plan,
    selections: Mapping[int, Selection],
    defaults: Mapping[int, Candidate],
    measurer: KernelTimer,
    log: TrialLog,
    on_progress: OnProgress,
) -> Checked:
    """Check the file between its keys, which are others where a batch size failed."""
    if not selections:
        return Checked({}, [])
    unknown = [m for m in midpoints(list(selections)) if m not in defaults]
    more = measurer.defaults(unknown) if unknown else {}
    return check_between(
        plan.shape,
        selections,
        {**defaults, **more},
        measurer,
        log,
        seed=plan.seed,
        on_progress=on_progress,
    )


def _earlier(
    plan: Plan, trials: Sequence[Trial], batch_sizes: Sequence[int]
) -> dict[int, Selection]:
    """Selections for the keys of this search that this command did not ask for."""
    selections = {}
    for m in set(batch_sizes) - set(plan.batch_sizes):
        workload = MoeWorkload(plan.shape, m)
        own = [t for t in trials if t.workload_key == workload.key]
        baseline = latest_baseline(own)
        searched = [t for t in own if t.phase is Phase.SEARCH]
        if not any(t.measurement.outcome is Outcome.OK for t in searched):
            continue  # a key between the others, or one that was not searched yet
        if not plan.measured:
            selections[m] = select_predicted(workload, baseline, searched, plan.min_gain)
        elif baseline is not None:
            chosen = select_stored(workload, baseline.candidate, own, plan.min_gain)
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
    jobs = [Job(defaults[m], MoeWorkload(plan.shape, m)) for m in plan.batch_sizes]
    trials = measure_all(jobs, Phase.BASELINE, measurer, log, on_progress)
    return dict(zip(plan.batch_sizes, trials, strict=True))


def _searches(
    plan: Plan,
    proposers: Mapping[int, Proposer],
    measurer: Measurer,
    log: TrialLog,
    on_progress: OnProgress,
) -> dict[int, Search]:
    """Search every M, side by side."""
    deadline = math.inf if plan.budget_s is None else time.monotonic() + plan.budget_s
    limits = Limits(plan.trials_per_m, deadline)
    searches = {
        m: Search(MoeWorkload(plan.shape, m), proposer, limits) for m, proposer in proposers.items()
    }
    for progress in search_all(list(searches.values()), measurer, log):
        on_progress(progress)
    return searches


def _controlled(
    plan: Plan,
    defaults: Mapping[int, Candidate],
    baselines: Mapping[int, Trial],
    measurer: KernelTimer,
) -> Controlled:
    """Time the default again with every batch of a search; where it works, that is."""
    keys = {m: MoeWorkload(plan.shape, m).key for m in plan.batch_sizes}
    values = {keys[m]: trial.measurement.value for m, trial in baselines.items()}
    return Controlled(
        measurer,
        {keys[m]: defaults[m] for m in plan.batch_sizes},
        {key: value for key, value in values.items() if value is not None},
    )


def _finalists(searched: Sequence[Trial], default: Candidate) -> list[Candidate]:
    """The default and the best that were ever searched, with as many again in reserve."""
    ok = [t for t in searched if t.measurement.value is not None and t.candidate != default]
    ok.sort(key=lambda t: (t.measurement.value or 0.0, t.sequence))
    return [default, *[t.candidate for t in ok[: 2 * FINALISTS]]]
