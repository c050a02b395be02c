"""The job behind ``autotune spec``: baseline, probe, the rest that may win, fresh boots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from autotune.core import (
    BadInputError,
    Candidate,
    Job,
    Measurer,
    NoFeasibleCandidateError,
    Outcome,
    Phase,
    Selection,
    SideBySide,
    Trial,
)
from autotune.kind import Run, tune
from autotune.machine.environment import environment
from autotune.machine.memory import MemoryKind
from autotune.serving.cluster.control import Control, control
from autotune.serving.cluster.fleet import Fleet
from autotune.serving.decide.confirm import Confirmed, Contest
from autotune.serving.decide.contenders import Contenders
from autotune.serving.decide.quality import Compared
from autotune.serving.decide.schedule import Schedule, judge, offer
from autotune.serving.decide.side_by_side import confirm_either_way, room_beside_the_dial
from autotune.serving.decide.soak import Soak, judge_soak
from autotune.serving.forecast.ask import StudyProposer
from autotune.serving.forecast.forecast import Forecast, ForecastProposer
from autotune.serving.measure.boots import Boots, ComparingBoots, is_together, ran_short
from autotune.serving.measure.load import LoadOptions
from autotune.serving.measure.measurer import ServingMeasurer
from autotune.serving.measure.race import rules_of
from autotune.serving.measure.soak import SoakLoad
from autotune.serving.memory.fit import boot_bytes
from autotune.serving.memory.search import search_utilization
from autotune.serving.memory.utilization import Borders
from autotune.serving.plan import Plan
from autotune.serving.recipe import GAMMA, without_schedule
from autotune.serving.scenario import SpecScenario
from autotune.serving.stored import Apart, load_served
from autotune.store.records import LostBoot
from autotune.store.retry import TRANSIENT, ResumableLog
from autotune.store.store import Store
from autotune.tune import Limits, OnProgress, Progress, Search, TrialLog, measure_all, search_all

_UNLIMITED = 1_000_000


@dataclass(frozen=True)
class Result:
    """What a finished job hands to the exporters and to the terminal.

    Attributes:
        plan: what was asked.
        environment: versions, host and GPUs.
        baseline: the trial without speculation.
        trials: of the search, the baseline among them, in order.
        references: settings without speculation that were booted for their outputs alone.
        forecast: PREDICTED rates from the probe; None where it told nothing.
        left_out: settings not tried, and why.
        compared: greedy outputs with and without speculation.
        confirmed: what the fresh boots say; None where no setting came near the baseline.
        selection: the choice.
        schedule: gamma by batch size against the choice.
        borders: of the memory utilization, where a range was searched.
        boots: servers started for this study so far, under these versions and flags.
        boots_of_load: those of this load alone.
        apart: rounds of fresh boots that several commands made.
        fresh_boots: servers started by this command.
        out_of_time: whether the budget ended the search.
        seconds: wall time of this command.
        dialled: whether one boot measured every gamma.
        no_dial: why a dial that was tried could not be used; else empty.
        soak: what the choice does after minutes; None where that was not asked for.
        control: how far the places of a cluster differ.
    """

    plan: Plan
    environment: dict[str, Any]
    baseline: Trial
    trials: list[Trial]
    references: list[Trial]
    forecast: Forecast | None
    left_out: dict[Candidate, str]
    compared: dict[Candidate, Compared]
    confirmed: Confirmed | None
    selection: Selection
    schedule: Schedule
    borders: Borders | None
    boots: int
    boots_of_load: int
    apart: dict[int, Apart]
    fresh_boots: int
    out_of_time: bool
    seconds: float
    dialled: bool = False
    no_dial: str = ""
    soak: Soak | None = None
    control: Control = field(default_factory=Control)

    @property
    def identical(self) -> dict[Candidate, float | None]:
        """Share of identical greedy outputs with and without speculation."""
        return {candidate: found.identical for candidate, found in self.compared.items()}

    @property
    def failures(self) -> list[Trial]:
        """Trials without a value, fresh boots among them."""
        confirmed = () if self.confirmed is None else self.confirmed.trials.values()
        dropped = () if self.confirmed is None else self.confirmed.dropped.values()
        made = [*self.trials, *self.references, *chain(*confirmed), *dropped]
        return [t for t in made if t.measurement.outcome is not Outcome.OK]


def local_measurer(plan: Plan, logs: Path) -> ServingMeasurer:
    """Make the measurer that starts the plan's servers from this process.

    Args:
        plan: says how.
        logs: the folder for the servers' output.
    """
    per_machine = plan.nodes.per_node if plan.nodes is not None else None
    need = partial(boot_bytes, plan.pair, plan.memory, per_machine=per_machine)
    return ServingMeasurer(
        plan.launcher,
        plan.recipe.settings,
        LoadOptions(plan.prompts, plan.request_timeout_s, plan.check_tokens, clocks=True),
        logs,
        basis=plan.basis,
        start_timeout_s=plan.start_timeout_s,
        tasks=plan.tasks,
        unified=plan.memory.kind is MemoryKind.UNIFIED,
        need_of=None if plan.force else need,
        ahead=room_beside_the_dial(plan),
    )


def run(plan: Plan, store: Store, measurer: Measurer, on_progress: OnProgress) -> Result:
    """Measure what the plan asks for; all that is learnt goes to the store.

    Args:
        plan: what to do.
        store: takes the trials.
        measurer: such as :func:`local_measurer`; entered here.
        on_progress: told after every trial.

    Raises:
        NoFeasibleCandidateError: the baseline's server does not work, or no setting keeps its SLO.
        BadInputError: another process tunes this study, or it was made for something else.
        MissingEnvironmentError: vLLM is not there.
    """
    return tune(plan, store, measurer, on_progress, _steps)


def _steps(run: Run[Plan, Measurer]) -> Result:
    """From the utilization to the selection; see :func:`run`."""
    fresh: list[Trial] = []

    def told(progress: Progress) -> None:
        fresh.extend([] if progress.reused else [progress.trial])
        run.on_progress(progress)

    log = ResumableLog(run.log, retry_failed=run.plan.retry_failed)
    measurer = _boots_of(run, log)
    plan, borders = search_utilization(run.plan, measurer, log, told)
    deadline = float("inf") if plan.budget_s is None else run.began + plan.budget_s
    places = run.measurer if isinstance(run.measurer, Fleet) else None
    found = _tuned(plan, measurer, log, told, deadline, places)
    soak = _soaked(plan, found.selection.winner.candidate, measurer, log, told)
    boots = _boots(run.store.trials(run.record))
    served = load_served(run.store, plan.study, (plan.setup(), plan.scenario))
    left_out = {**plan.refused, **found.searched.proposer.left_out()}
    for trial in found.contenders.references:
        left_out.pop(trial.candidate, None)
    return Result(
        plan=plan,
        environment=environment(),
        baseline=found.searched.baseline,
        trials=[found.searched.baseline, *found.searched.search.trials],
        references=found.contenders.references,
        forecast=found.searched.proposer.forecast,
        left_out=left_out,
        compared=found.contenders.compared(),
        confirmed=found.confirmed,
        selection=found.selection,
        schedule=found.schedule,
        borders=borders,
        boots=boots,
        boots_of_load=served.boots,
        apart=served.apart(found.confirmed.trials if found.confirmed else ()),
        fresh_boots=_boots(fresh),
        out_of_time=found.searched.search.out_of_time,
        seconds=run.seconds,
        dialled=found.searched.dialled,
        no_dial=found.searched.no_dial,
        soak=soak,
        control=found.searched.control,
    )


def _soaked(
    plan: Plan, chosen: Candidate, measurer: Measurer, log: TrialLog, on_progress: OnProgress
) -> Soak | None:
    """Load the chosen setting for as long as was asked for."""
    if not plan.soak_s:
        return None
    job = Job(chosen, SoakLoad.of(plan.scenario, plan.soak_s))
    (trial,) = measure_all([job], Phase.CONFIRM, measurer, log, on_progress)
    return judge_soak(trial)


def _boots_of(run: Run[Plan, Measurer], log: ResumableLog) -> Measurer:
    """Keep from the measurer what hung this machine before, or ran it short of memory."""
    lost = list[LostBoot]()
    short: dict[Candidate, str] = {}
    unified = run.plan.memory.kind is MemoryKind.UNIFIED
    if unified and not run.plan.retry_failed:
        lost = run.store.boots().lost(run.record, is_together)
        short = ran_short(run.store.dated_trials(run.record))
    if isinstance(run.measurer, SideBySide):
        return ComparingBoots(run.measurer, log, lost, short, unified=unified)
    return Boots(run.measurer, log, lost, short, unified=unified)


def _boots(trials: Sequence[Trial]) -> int:
    """Count the servers that were started for these."""
    return sum(t.measurement.details.get("boots", 0) for t in trials)


@dataclass(frozen=True)
class _Searched:
    baseline: Trial
    search: Search
    proposer: ForecastProposer
    dialled: bool
    no_dial: str
    control: Control


@dataclass(frozen=True)
class _Found:
    searched: _Searched
    contenders: Contenders
    confirmed: Confirmed | None
    selection: Selection
    schedule: Schedule


def _tuned(
    plan: Plan,
    measurer: Measurer,
    log: TrialLog,
    on_progress: OnProgress,
    deadline: float,
    places: Fleet | None,
) -> _Found:
    scenario = plan.scenario
    searched = _search(plan, measurer, log, on_progress, deadline, places)
    baseline, search = searched.baseline, searched.search
    trials = [baseline, *(t for t in search.trials if t.candidate in plan.grid)]

    def boot(candidate: Candidate) -> Trial:
        job = Job(candidate, scenario, rules_of(candidate, scenario, plan.baseline))
        (trial,) = measure_all([job], Phase.CONFIRM, measurer, log, on_progress)
        return trial

    contenders = Contenders(plan, trials, baseline, boot, searched.control.spread)
    finalists = contenders.take(plan.finalists)
    schedule = _schedule(plan, trials, baseline, contenders, finalists)
    if not finalists and (missed := baseline.measurement.details.get("slo_missed")):
        raise NoFeasibleCandidateError(
            f"no setting keeps --slo; without speculation: {'; '.join(missed)}; raise the limits, "
            "or lower --concurrency"
        )
    if not finalists and schedule.candidate is None:
        kept = Selection(baseline, baseline, 1.0, kept_incumbent=True)
        return _Found(searched, contenders, None, kept, schedule)
    contest = Contest(
        scenario,
        baseline,
        finalists,
        [schedule.candidate] if schedule.candidate is not None else [],
        plan.min_gain,
        plan.tasks.tolerance if plan.tasks is not None else None,
        contenders.instead_of,
        measurer,
        log,
        on_progress,
    )
    dialled = {t.candidate: t for t in trials} if searched.dialled else {}
    confirmed = confirm_either_way(plan, contest, dialled)
    if schedule.candidate is not None:
        plain = contenders.reference(without_schedule(schedule.candidate))
        reference = None if plan.recipe.synthetic else plain or baseline
        schedule = judge(schedule, confirmed, reference, scenario, plan.min_gain)
    chosen = confirmed.selection
    return _Found(searched, contenders, confirmed, chosen, schedule)


def _search(
    plan: Plan,
    measurer: Measurer,
    log: TrialLog,
    on_progress: OnProgress,
    deadline: float,
    places: Fleet | None,
) -> _Searched:
    """Measure the baseline and what may beat it, by the dial where it can be used."""
    column = _column(plan, measurer, log, on_progress) if plan.dial else []
    dialled = bool(column) and column[0].measurement.outcome is Outcome.OK
    no_dial = column[0].measurement.message if column and not dialled else ""
    baseline = column[0] if dialled else _baseline(plan, measurer, log, on_progress)
    scenario = replace(plan.scenario, dial=dialled)
    differ = _control(scenario, baseline, measurer, log, on_progress, places)
    proposer = ForecastProposer(
        plan.grid,
        baseline,
        scenario,
        plan.growth(),
        columns=dialled,
        width=len(places.places) if places is not None else 1,
        spread=differ.spread,
    )
    study = StudyProposer(proposer, plan.grid, baseline, scenario, plan.sampler, plan.seed)
    search = Search(
        scenario,
        study,
        Limits(_UNLIMITED, deadline),
        lambda candidate: rules_of(candidate, scenario, plan.baseline, proposer),
    )
    for progress in search_all([search], measurer, log):
        if progress.trial not in column:  # which was told of already
            on_progress(progress)
    return _Searched(baseline, search, proposer, dialled, no_dial, differ)


def _control(
    scenario: SpecScenario,
    baseline: Trial,
    measurer: Measurer,
    log: TrialLog,
    on_progress: OnProgress,
    places: Fleet | None,
) -> Control:
    """Boot the baseline on every place of a cluster, on all of them at once."""

    def trials_of(jobs: Sequence[Job]) -> list[Trial]:
        return measure_all(jobs, Phase.BASELINE, measurer, log, on_progress)

    names = [place.name for place in places.places] if places is not None else []
    return control(names, baseline, scenario, trials_of)


def _column(plan: Plan, measurer: Measurer, log: TrialLog, on_progress: OnProgress) -> list[Trial]:
    """Measure every gamma of the baseline's server by the dial.

    Returns:
        The trials, gamma 0 first; it has no value where the dial cannot be used.
    """
    scenario, home = replace(plan.scenario, dial=True), plan.baseline
    jobs = [Job(c, scenario, rules_of(c, scenario, home)) for c in plan.column]

    def phase_of(job: Job) -> Phase:
        return Phase.BASELINE if job.candidate == home else Phase.SEARCH

    return measure_all(jobs, phase_of, measurer, log, on_progress)


def _schedule(
    plan: Plan,
    trials: Sequence[Trial],
    baseline: Trial,
    contenders: Contenders,
    finalists: Sequence[Candidate],
) -> Schedule:
    """The schedule to try beside the finalists, or why there is none."""
    if not plan.schedule:
        return Schedule("not asked for (--no-schedule)")
    fit = [t for t in trials if not t.candidate[GAMMA] or contenders.passes(t.candidate)]
    static = finalists[0] if finalists else baseline.candidate
    return offer(fit, static, plan.scenario, plan.recipe.server_args)


def _baseline(plan: Plan, measurer: Measurer, log: TrialLog, on_progress: OnProgress) -> Trial:
    """No speculation.

    Raises:
        NoFeasibleCandidateError: it does not work; then nothing can be compared with it.
        BadInputError: vLLM knows a flag or a value of it to be wrong.
    """
    rules = rules_of(plan.baseline, plan.scenario, plan.baseline)
    job = Job(plan.baseline, plan.scenario, rules)
    (trial,) = measure_all([job], Phase.BASELINE, measurer, log, on_progress)
    measurement = trial.measurement
    if measurement.outcome is not Outcome.OK:
        if measurement.outcome is Outcome.CONSTRAINT:
            raise BadInputError(
                f"vLLM refuses what the server without speculation is given: {measurement.message} "
                f"(log {measurement.details.get('log')})"
            )
        again = "; --retry-failed tries again" if measurement.outcome in TRANSIENT else ""
        raise NoFeasibleCandidateError(
            f"the server without speculation does not work: {measurement.message} "
            f"({measurement.outcome.value}, log {measurement.details.get('log')}){again}"
        )
    return trial
