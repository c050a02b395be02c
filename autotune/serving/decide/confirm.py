"""After the search: the best few and the baseline again, in fresh boots that take turns."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from autotune.core import (
    Candidate,
    Job,
    Measurement,
    Measurer,
    NoFeasibleCandidateError,
    Outcome,
    Phase,
    Selection,
    Trial,
)
from autotune.decide.selection import select_confirmed
from autotune.decide.stats import Ratio, paired_ratio
from autotune.serving.decide.quality import compared, without_speculation
from autotune.serving.measure.race import rules_of
from autotune.serving.measure.tasks import fallen, scores_of
from autotune.serving.scenario import Beside, SpecScenario
from autotune.tune import OnProgress, TrialLog, measure_all


@dataclass(frozen=True)
class Way:
    """How the servers of a confirmation ran.

    Attributes:
        beside: side by side; None one after the other.
        why: they did not run side by side; empty where they did, or nothing is known.
        left_out: finalists for which there was no memory, or which the dial showed to be slower.
        crowded: those of them that there was no memory for alone: nothing speaks against them.
    """

    beside: Beside | None = None
    why: str = ""
    left_out: tuple[Candidate, ...] = ()
    crowded: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Confirmed:
    """What the fresh boots say.

    Attributes:
        selection: the choice against the baseline.
        trials: by candidate, one for each round.
        ratios: speed over the baseline's, of every finalist that ran in all rounds.
        ties: finalists that the winner does not clearly beat.
        fell: settings that a task speaks against, and how.
        dropped: finalists that left after their first boot, because it failed or a task speaks
            against them; the next best took their place.
        broken: why a boot of the baseline failed, which leaves nothing to compare with; else empty.
        way: whether the servers were up at once.
    """

    selection: Selection
    trials: Mapping[Candidate, Sequence[Trial]]
    ratios: Mapping[Candidate, Ratio]
    ties: tuple[Candidate, ...]
    fell: Mapping[Candidate, Sequence[str]] = field(default_factory=dict)
    dropped: Mapping[Candidate, Trial] = field(default_factory=dict)
    broken: str = ""
    way: Way = field(default_factory=Way)

    @property
    def first_boots(self) -> dict[Candidate, Trial]:
        """The trial of the first round of everything booted, in which tasks are evaluated."""
        return {c: trials[0] for c, trials in self.trials.items()} | dict(self.dropped)


@dataclass(frozen=True)
class Contest:
    """Who meets the baseline again, who measures it, and what decides.

    Attributes:
        scenario: the load.
        baseline: the trial without speculation.
        finalists: what may be chosen, the best first.
        beside: compared too, and cannot be chosen.
        min_gain: least gain over the baseline, as a fraction.
        tolerance: by which scores of tasks may fall; None evaluates none.
        instead_of: the next best in place of a finalist that is out.
        measurer: boots.
        log: takes what is learnt.
        on_progress: told after every trial.
    """

    scenario: SpecScenario
    baseline: Trial
    finalists: Sequence[Candidate]
    beside: Sequence[Candidate]
    min_gain: float
    tolerance: float | None
    instead_of: Callable[[Candidate], Candidate | None]
    measurer: Measurer
    log: TrialLog
    on_progress: OnProgress

    @property
    def home(self) -> Candidate:
        """Return what the others are compared with."""
        return self.baseline.candidate

    def unchanged(self) -> Selection:
        """Keep the baseline."""
        return Selection(self.baseline, self.baseline, 1.0, kept_incumbent=True)

    def check_scores(self, first: Trial) -> None:
        """See that tasks could be evaluated without speculation, if they were to be.

        Raises:
            NoFeasibleCandidateError: they could not.
        """
        if self.tolerance is not None and not scores_of(first):
            why = first.measurement.details.get("tasks", {}).get("error", "no scores")
            raise NoFeasibleCandidateError(
                f"--quality: not known without speculation: {why}; --retry-failed tries again"
            )

    def said_against(self, first: Trial, trial: Trial) -> list[str]:
        """Say what tasks and outputs have against a setting that works; empty where nothing.

        Outputs are judged against a fresh boot of the same parameters alone: the baseline's.
        """
        if trial.measurement.outcome is not Outcome.OK:
            return []
        fell = [] if self.tolerance is None else fallen(first, trial, self.tolerance)
        plain = without_speculation(trial.candidate, self.home) == self.home
        differs = compared(trial, first).against if plain else ""
        return [*fell, *([differs] if differs else [])]


def confirm(contest: Contest, rounds: int) -> Confirmed:
    """Boot all in turn, ``rounds`` times, every other round backwards; then choose.

    Samples are paired by round and repeat, which have the same prompts. A finalist replaces the
    baseline if the 95 % interval of its speed-up lies above 1 and it is ahead in every round: pairs
    of one boot share that boot's luck, which the interval does not know of. What is ``beside`` is
    booted in the same turns. A finalist of which the score of a task falls by more than the
    tolerance cannot be chosen. One that is out after the first round is replaced by ``instead_of``
    it, as often as there are places.

    Raises:
        NoFeasibleCandidateError: tasks could not be evaluated without speculation.
    """
    home, beside = contest.home, contest.beside
    boots = _Boots(contest)
    boots.run(1, [home, *contest.finalists, *beside])
    kept, dropped = list(contest.finalists), dict[Candidate, Trial]()
    fell = dict[Candidate, list[str]]()
    if not boots.failure(home):
        kept, dropped, fell = _keep(boots, contest)
        for number in range(2, rounds + 1):
            turn = [home, *kept, *beside]
            boots.run(number, turn if number % 2 else turn[::-1])
    broken = boots.failure(home)
    if broken:
        return Confirmed(contest.unchanged(), boots.found, {}, (), fell, dropped, broken)
    together = {c: _together(contest.scenario, boots.found[c]) for c in (home, *kept)}
    return replace(chosen_of(contest, together, boots.found), fell=fell, dropped=dropped)


class _Boots:
    """Fresh boots so far, by candidate, one for each round."""

    def __init__(self, contest: Contest) -> None:
        self._contest = contest
        self.found: dict[Candidate, list[Trial]] = {}

    def run(self, number: int, turn: Sequence[Candidate]) -> None:
        """Boot the candidates of a round, in order."""
        contest = self._contest
        workload = contest.scenario.in_round(number)
        jobs = [Job(c, workload, rules_of(c, workload, contest.home)) for c in turn]
        given = (contest.measurer, contest.log, contest.on_progress)
        for trial in measure_all(jobs, Phase.CONFIRM, *given):
            self.found.setdefault(trial.candidate, []).append(trial)

    def failure(self, candidate: Candidate) -> str:
        """Why a boot of a candidate has no value; empty where all have one."""
        failed = _failed(self.found[candidate])
        return "" if failed is None else failed.measurement.message or failed.measurement.outcome


def _keep(
    boots: _Boots, contest: Contest
) -> tuple[list[Candidate], dict[Candidate, Trial], dict[Candidate, list[str]]]:
    """Who goes on after the first round, who does not, and what tasks say.

    Raises:
        NoFeasibleCandidateError: tasks could not be evaluated without speculation.
    """
    first = boots.found[contest.home][0]
    contest.check_scores(first)
    fell: dict[Candidate, list[str]] = {}

    def is_out(candidate: Candidate) -> bool:
        (trial,) = boots.found[candidate]
        if said := contest.said_against(first, trial):
            fell[candidate] = said
        return trial.measurement.outcome is not Outcome.OK or bool(said)

    for candidate in contest.beside:
        is_out(candidate)
    dropped: dict[Candidate, Trial] = {}
    kept: list[Candidate] = []
    queue = deque(contest.finalists)
    while queue:
        candidate = queue.popleft()
        if candidate not in boots.found:
            boots.run(1, [candidate])
        if not is_out(candidate):
            kept.append(candidate)
            continue
        (dropped[candidate],) = boots.found.pop(candidate)
        other = contest.instead_of(candidate) if len(dropped) <= len(contest.finalists) else None
        queue.extend([other] if other is not None else [])
    return kept, dropped, fell


def chosen_of(
    contest: Contest,
    together: Mapping[Candidate, Trial],
    found: Mapping[Candidate, Sequence[Trial]],
) -> Confirmed:
    """Choose among settings of which all rounds are there.

    Args:
        contest: what decides.
        together: all rounds of each as one trial.
        found: the rounds.
    """
    home, scenario = contest.home, contest.scenario
    before = together[home]
    stays = not any(t.measurement.details.get("slo_missed") for t in found[home])
    ok = {c: t for c, t in together.items() if t.measurement.outcome is Outcome.OK}
    ahead = [t for c, t in ok.items() if c != home and (not stays or _always_ahead(found, c, home))]
    selection = select_confirmed(scenario, before if stays else None, ahead, contest.min_gain)
    ratios = {c: _ratio(before, t) for c, t in ok.items() if c != home}
    winner = selection.winner
    rivals = [t for c, t in ok.items() if c not in {winner.candidate, home}]
    beaten = [t.candidate for t in rivals if _ratio(t, winner).low > 1]
    ties = tuple(t.candidate for t in rivals if t.candidate not in beaten)
    return Confirmed(selection, found, ratios, ties)


def _ratio(slower: Trial, faster: Trial) -> Ratio:
    return paired_ratio(slower.measurement.samples, faster.measurement.samples)


def _always_ahead(
    found: Mapping[Candidate, Sequence[Trial]], candidate: Candidate, baseline: Candidate
) -> bool:
    """Whether a candidate is faster than the baseline in every round."""
    return all(
        (mine.measurement.value or 0.0) < (theirs.measurement.value or 0.0)
        for mine, theirs in zip(found[candidate], found[baseline], strict=True)
    )


def _failed(trials: Sequence[Trial]) -> Trial | None:
    """The first without a value."""
    return next((t for t in trials if t.measurement.outcome is not Outcome.OK), None)


def _together(scenario: SpecScenario, trials: Sequence[Trial]) -> Trial:
    """All rounds of a candidate as one trial; the first failure is its outcome."""
    failed = _failed(trials)
    last = failed or trials[-1]
    if failed is not None:
        measurement = failed.measurement
    else:
        samples = tuple(sample for t in trials for sample in t.measurement.samples)
        measurement = Measurement(
            outcome=Outcome.OK,
            basis=last.measurement.basis,
            value=statistics.median(samples),
            samples=samples,
            details=last.measurement.details,
            seconds=sum(t.measurement.seconds for t in trials),
        )
    return Trial(last.candidate, scenario.key, Phase.CONFIRM, 0, measurement)


def repeats_by(trial: Trial, scenario: SpecScenario, objective: str, part: str = "") -> list[float]:
    """µs per output token of every repeat of a trial by an objective; empty for a failed one.

    ``part`` names a slice of the load; without it, all of it counts.
    """
    details = trial.measurement.details
    if trial.measurement.outcome is not Outcome.OK:
        return []
    levels = details["slices"][part] if part else details["levels"]
    rates = [levels[str(c)]["repeats"] for c in scenario.concurrency]
    return [
        scenario.microseconds(dict(zip(scenario.concurrency, repeat, strict=True)), objective)
        for repeat in zip(*rates, strict=True)
    ]
