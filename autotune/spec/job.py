"""The job behind ``autotune spec``: baseline, probe, the rest that may win, fresh boots."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.core import (
    Candidate,
    Measurer,
    NoFeasibleCandidateError,
    Outcome,
    Phase,
    Selection,
    Trial,
)
from autotune.environment import environment
from autotune.runlog import recorded
from autotune.spec.confirm import Confirmed, OnProgress, confirm
from autotune.spec.forecast import Forecast, ForecastProposer
from autotune.spec.load import LoadOptions
from autotune.spec.measurer import ServingMeasurer
from autotune.spec.plan import FINALISTS, Plan
from autotune.spec.quality import BAR, share_of, without_speculation
from autotune.store import Store
from autotune.tune import Limits, Search, TrialLog, measure_all, search_all

_NEAR = 1.03
"""A trial this much slower than the baseline may still be its equal, and is measured again."""
_UNLIMITED = 1_000_000


@dataclass(frozen=True)
class Result:
    """What a finished job hands to the exporters and to the terminal.

    Attributes:
        plan: what was asked.
        environment: versions, host and GPUs.
        baseline: the trial without speculation.
        trials: of the search, the baseline among them, in order.
        forecast: PREDICTED rates from the probe; None where it told nothing.
        left_out: settings not tried, and why.
        identical: share of identical greedy outputs with and without speculation.
        confirmed: what the fresh boots say; None where no setting came near the baseline.
        selection: the choice.
        boots: servers started for this study so far.
        fresh_boots: servers started by this command.
        out_of_time: whether the budget ended the search.
        seconds: wall time of this command.
    """

    plan: Plan
    environment: dict[str, Any]
    baseline: Trial
    trials: list[Trial]
    forecast: Forecast | None
    left_out: dict[Candidate, str]
    identical: dict[Candidate, float | None]
    confirmed: Confirmed | None
    selection: Selection
    boots: int
    fresh_boots: int
    out_of_time: bool
    seconds: float

    @property
    def failures(self) -> list[Trial]:
        """Trials without a value."""
        return [t for t in self.trials if t.measurement.outcome is not Outcome.OK]


def run(plan: Plan, store: Store, logs: Path, on_progress: OnProgress) -> Result:
    """Measure what the plan asks for; all that is learnt goes to the store.

    Args:
        plan: what to do.
        store: takes the trials.
        logs: the folder for the servers' output.
        on_progress: told after every trial.

    Raises:
        NoFeasibleCandidateError: the baseline's server does not work.
        BadInputError: another process tunes this study, or it was made for something else.
        MissingEnvironmentError: vLLM is not there.
    """
    began = time.monotonic()
    study = store.study(plan.study, "spec", plan.identity())
    with store.lock_study(plan.study):
        record = store.search(study, plan.setup())
        with recorded(store, record, plan.command) as log:
            measurer = ServingMeasurer(
                plan.launcher,
                plan.recipe.settings,
                LoadOptions(plan.prompts, plan.request_timeout_s),
                logs,
                basis=plan.basis,
                start_timeout_s=plan.start_timeout_s,
            )
            found = _tuned(plan, measurer, log, on_progress)
            boots = sum(t.measurement.details.get("boots", 0) for t in store.trials(record))
    return Result(
        plan=plan,
        environment=environment(),
        baseline=found.baseline,
        trials=[found.baseline, *found.search.trials],
        forecast=found.proposer.forecast,
        left_out=found.proposer.left_out(),
        identical=found.identical,
        confirmed=found.confirmed,
        selection=found.selection,
        boots=boots,
        fresh_boots=measurer.boots,
        out_of_time=found.search.out_of_time,
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True)
class _Found:
    baseline: Trial
    search: Search
    proposer: ForecastProposer
    identical: dict[Candidate, float | None]
    confirmed: Confirmed | None
    selection: Selection


def _tuned(plan: Plan, measurer: Measurer, log: TrialLog, on_progress: OnProgress) -> _Found:
    scenario = plan.scenario
    baseline = _baseline(plan, measurer, log, on_progress)
    bar = 0.0 if plan.recipe.synthetic else BAR
    proposer = ForecastProposer(plan.grid, baseline, scenario, plan.growth(), bar)
    deadline = float("inf") if plan.budget_s is None else time.monotonic() + plan.budget_s
    search = Search(scenario, proposer, Limits(_UNLIMITED, deadline))
    for progress in search_all([search], measurer, log):
        on_progress(progress)
    trials = [baseline, *(t for t in search.trials if t.candidate in plan.grid)]
    near = _near(trials, baseline)
    identical = _quality(plan, near, trials, measurer, log, on_progress)
    finalists = [t.candidate for t in near if _passes(plan, t.candidate, identical)][:FINALISTS]
    if not finalists:
        kept = Selection(scenario.key, baseline, baseline, 1.0, kept_incumbent=True)
        return _Found(baseline, search, proposer, identical, None, kept)
    confirmed = confirm(
        scenario,
        baseline.candidate,
        finalists,
        plan.confirm_rounds,
        measurer,
        log,
        min_gain=plan.min_gain,
        on_progress=on_progress,
    )
    return _Found(baseline, search, proposer, identical, confirmed, confirmed.selection)


def _baseline(plan: Plan, measurer: Measurer, log: TrialLog, on_progress: OnProgress) -> Trial:
    """No speculation.

    Raises:
        NoFeasibleCandidateError: it does not work; then nothing can be compared with it.
    """
    (progress,) = measure_all([(plan.baseline, plan.scenario)], Phase.BASELINE, measurer, log)
    on_progress(progress)
    measurement = progress.trial.measurement
    if measurement.outcome is not Outcome.OK:
        again = "; --study NAME tries again" if progress.reused else ""
        raise NoFeasibleCandidateError(
            f"the server without speculation does not work: {measurement.message} "
            f"({measurement.outcome.value}, log {measurement.details.get('log')}){again}"
        )
    return progress.trial


def _near(trials: Sequence[Trial], baseline: Trial) -> list[Trial]:
    """What is faster than the baseline or about its equal, best first."""
    limit = (baseline.measurement.value or 0.0) * _NEAR
    near = [
        t
        for t in trials
        if t.candidate != baseline.candidate
        and t.measurement.value is not None
        and t.measurement.value < limit
    ]
    return sorted(near, key=lambda t: (t.measurement.value or 0.0, t.candidate.key))


def _quality(
    plan: Plan,
    near: Sequence[Trial],
    trials: Sequence[Trial],
    measurer: Measurer,
    log: TrialLog,
    on_progress: OnProgress,
) -> dict[Candidate, float | None]:
    """Share of identical outputs of every measured setting that could be compared.

    The reference has the same other parameters; where it was not booted, it is for what may win.
    """
    if plan.recipe.synthetic:
        return {}  # what is said follows the rates given, not the target
    known = {t.candidate: t for t in trials}
    wanted = [without_speculation(t.candidate) for t in near[:FINALISTS]]
    jobs = [(c, plan.scenario) for c in dict.fromkeys(wanted) if c not in known]
    for progress in measure_all(jobs, Phase.CONFIRM, measurer, log):
        known[progress.trial.candidate] = progress.trial
        on_progress(progress)
    return {
        t.candidate: share_of(t, reference)
        for t in trials
        if (reference := known.get(without_speculation(t.candidate))) is not None
        and t.measurement.outcome is Outcome.OK
    }


def _passes(plan: Plan, candidate: Candidate, identical: Mapping[Candidate, float | None]) -> bool:
    """Whether a setting may be recommended: identical enough, or the acceptance is synthetic."""
    share = identical.get(candidate)
    return bool(plan.recipe.synthetic) or (share is not None and share >= BAR)
