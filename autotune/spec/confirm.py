"""After the search: the best few and the baseline again, in fresh boots that take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autotune.core import Candidate, Measurement, Measurer, Outcome, Phase, Selection, Trial
from autotune.selection import select_confirmed
from autotune.spec.scenario import SpecScenario
from autotune.stats import Ratio, paired_ratio
from autotune.tune import Progress, TrialLog, measure_all

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Confirmed:
    """What the fresh boots say.

    Attributes:
        selection: the choice against the baseline.
        trials: by candidate, one for each round.
        ratios: speed over the baseline's, of every finalist that ran in all rounds.
        ties: finalists that the winner does not clearly beat.
    """

    selection: Selection
    trials: Mapping[Candidate, Sequence[Trial]]
    ratios: Mapping[Candidate, Ratio]
    ties: tuple[Candidate, ...]


def confirm(
    scenario: SpecScenario,
    baseline: Candidate,
    finalists: Sequence[Candidate],
    rounds: int,
    measurer: Measurer,
    log: TrialLog,
    *,
    min_gain: float,
    on_progress: OnProgress,
) -> Confirmed:
    """Boot all in turn, ``rounds`` times, every other round backwards; then choose.

    Samples are paired by round and repeat, which have the same prompts. A finalist replaces the
    baseline if the 95 % interval of its speed-up lies above 1 and it is ahead in every round: pairs
    of one boot share that boot's luck, which the interval does not know of.

    Raises:
        NoFeasibleCandidateError: if neither the baseline nor a finalist works.
    """
    order = [baseline, *finalists]
    found: dict[Candidate, list[Trial]] = {candidate: [] for candidate in order}
    for number in range(1, rounds + 1):
        workload = scenario.in_round(number)
        turn = order if number % 2 else order[::-1]
        jobs = [(candidate, workload) for candidate in turn]
        for progress in measure_all(jobs, Phase.CONFIRM, measurer, log):
            found[progress.trial.candidate].append(progress.trial)
            on_progress(progress)
    together = {candidate: _together(scenario, trials) for candidate, trials in found.items()}
    return _chosen(scenario, together, found, baseline, min_gain)


def _chosen(
    scenario: SpecScenario,
    together: Mapping[Candidate, Trial],
    found: Mapping[Candidate, Sequence[Trial]],
    baseline: Candidate,
    min_gain: float,
) -> Confirmed:
    before = together[baseline]
    works = before.measurement.outcome is Outcome.OK
    ok = {c: t for c, t in together.items() if t.measurement.outcome is Outcome.OK}
    ahead = [
        t
        for c, t in ok.items()
        if c != baseline and (not works or _always_ahead(found, c, baseline))
    ]
    selection = select_confirmed(scenario, before if works else None, ahead, min_gain)
    ratios = {}
    if works:
        ratios = {c: _ratio(before, t) for c, t in ok.items() if c != baseline}
    winner = selection.winner
    rivals = [t for c, t in ok.items() if c not in {winner.candidate, baseline}]
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


def _together(scenario: SpecScenario, trials: Sequence[Trial]) -> Trial:
    """All rounds of a candidate as one trial; the first failure is its outcome."""
    failed = next((t for t in trials if t.measurement.outcome is not Outcome.OK), None)
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
