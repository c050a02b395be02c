"""Which gamma is worth a boot: from the baseline and one probe to PREDICTED rates.

The arithmetic is in ``acceptance.py``. Every further trial corrects it, as far as its repeats agree
(``error_process.py``). What other parameters (KV dtype, …) change is such an error too.
A boot goes where the expected improvement (Jones, Schonlau and Welch 1998,
Journal of Global Optimization 13, equation 15) is largest, over the best of what the process makes
of the settings measured: a lucky boot alone is not to be beaten (Huang et al. 2006, ibid. 34, call
it the effective best solution).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from autotune.core import Candidate, Outcome, Trial
from autotune.decide.stats import geometric_mean
from autotune.serving.decide.pareto import Point, point_of
from autotune.serving.decide.quality import compared, without_speculation
from autotune.serving.forecast.acceptance import StepTimes, predict, step_seconds, tokens_per_step
from autotune.serving.forecast.error_process import ErrorProcess, Others, Seen
from autotune.serving.measure.levels import noise_of, rate_of, repeats_of
from autotune.serving.measure.stopping import Bar
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import SpecScenario

WORTH = 0.005
"""A boot is worth it while it is expected to shorten the time per token by this share."""


def others(candidate: Candidate) -> Others:
    """All parameters but gamma."""
    return tuple(item for item in candidate.items if item[0] != GAMMA)


def level_rates(trial: Trial) -> dict[int, float]:
    """Measured aggregate tokens per second at every concurrency; empty for a failed trial."""
    levels: Mapping[str, Any] = trial.measurement.details.get("levels", {})
    return {int(c): rate_of(level) for c, level in levels.items()}


def partial_rates(trial: Trial) -> dict[int, float]:
    """The fastest repeats, which it was stopped in spite of; empty if it was not stopped."""
    if trial.measurement.outcome is not Outcome.CANNOT_WIN:
        return {}
    levels: Mapping[str, Any] = trial.measurement.details.get("partial", {})
    return {int(c): max(repeats_of(level)) for c, level in levels.items()}


@dataclass(frozen=True)
class Forecast:
    """PREDICTED aggregate tokens per second, by gamma and concurrency."""

    probe_gamma: int
    tok_s: Mapping[int, Mapping[int, float]]

    def microseconds(self, gamma: int, scenario: SpecScenario) -> float:
        """PREDICTED µs per output token by the objective.

        Raises:
            KeyError: a gamma above the probe's.
        """
        return scenario.microseconds(self.tok_s[gamma])


def forecast(
    baseline: Trial, probe: Trial, growth: Callable[[int], float] = float
) -> Forecast | None:
    """Rates at every gamma up to the probe's; None where the probe does not tell its acceptance.

    Args:
        baseline: a trial at gamma 0.
        probe: a trial at the largest gamma, all else equal.
        growth: see :class:`autotune.serving.forecast.acceptance.StepTimes`.
    """
    gamma = probe.candidate.int(GAMMA)
    before, after = level_rates(baseline), level_rates(probe)
    table: dict[int, dict[int, float]] = {g: {} for g in range(gamma + 1)}
    for concurrency, rate in after.items():
        reached = _rates(probe, concurrency, gamma)
        if reached is None or not before.get(concurrency) or not rate:
            return None
        times = StepTimes(
            step_seconds(before[concurrency], concurrency, 1.0),
            step_seconds(rate, concurrency, tokens_per_step(reached)),
            gamma,
            concurrency,
            growth=growth,
        )
        for one in predict(reached, times):
            table[one.gamma][concurrency] = one.aggregate
    return Forecast(gamma, table) if after else None


def _rates(probe: Trial, concurrency: int, gamma: int) -> Sequence[float] | None:
    """Acceptance per step; nothing drafted at all is nothing accepted."""
    level = probe.measurement.details["levels"][str(concurrency)]
    rates: Sequence[float] | None = level.get("per_step")
    return rates if rates is not None and len(rates) == gamma else None


@dataclass(frozen=True)
class Guess:
    """A time per token that was not measured: µs, and the standard deviation of its logarithm."""

    us: float
    spread: float

    def improvement(self, best_us: float) -> float:
        """Expected improvement on the best time, as a share of it (of the logarithm, in fact)."""
        if best_us == math.inf:
            return math.inf
        gain = math.log(best_us / self.us)
        if not self.spread:
            return max(gain, 0.0)
        normal, z = NormalDist(), gain / self.spread
        return gain * normal.cdf(z) + self.spread * normal.pdf(z)


class ForecastProposer:
    """The probe first, then what is expected to improve most; :class:`autotune.core.Proposer`.

    One candidate at a time: every trial may rule others out. Where a dial turns gamma, its whole
    column at once, which costs no more. What is proposed is a function of the
    trials told alone.
    """

    def __init__(
        self,
        grid: Sequence[Candidate],
        baseline: Trial,
        scenario: SpecScenario,
        growth: Callable[[int], float] = float,
        *,
        columns: bool = False,
        width: int = 1,
        spread: float = 0.0,
    ) -> None:
        """Make a proposer.

        Args:
            grid: what may be proposed.
            baseline: gamma 0 and the first value of every other parameter.
            scenario: gives the objective.
            growth: see :class:`autotune.serving.forecast.acceptance.StepTimes`.
            columns: whether one server measures every gamma.
            width: servers that run at once.
            spread: by what share the places differ on which they run.
        """
        self.width, self._spread = width, spread
        self._baseline, self._scenario, self._growth = baseline, scenario, growth
        self.columns = columns
        self._untried = dict.fromkeys(c for c in grid if c != baseline.candidate)
        self._told: dict[Candidate, Trial] = {baseline.candidate: baseline}
        self._unfit = False
        self._learn()

    def _learn(self) -> None:
        """What follows from the trials told."""
        self.forecast = self._forecast()
        """From the probe; None while there is none."""
        seen = self._seen()
        self._errors = ErrorProcess(seen, others(self._baseline.candidate)) if seen else None
        told = [(self.predicted(t.candidate), t.measurement.value) for t in self._recommended()]
        self._likely_best = min((g.us if g else v or 0.0 for g, v in told), default=math.inf)
        """As :meth:`_best`, every measurement corrected as far as it is noise."""

    def _forecast(self) -> Forecast | None:
        """From the probe: the trial with the largest gamma beside the baseline."""
        home = others(self._baseline.candidate)
        ok = [t for t in self._told.values() if others(t.candidate) == home and _is_ok(t)]
        probe = max(ok, key=lambda t: t.candidate.int(GAMMA))
        if probe.candidate.int(GAMMA) == 0:
            return None
        return forecast(self._baseline, probe, self._growth)

    def ask(self, n: int, hints: Sequence[Candidate] = ()) -> list[Candidate]:
        """The next candidate or column, or none when nothing left can win; hints are not used.

        Where several servers run at once, as many. A column is not cut at ``n``: the rest of it
        would want another server.
        """
        del n, hints
        asked: list[Candidate] = []
        for number in range(self.width):
            chosen = self.choose(number)
            if chosen is None:
                break
            asked += self.take(chosen)
        return asked

    def choose(self, number: int = 0) -> Candidate | None:
        """The best to boot as number ``number`` of those at once; None when nothing can win."""
        return self.probe(number) or min(self._orders(number), default=(None,))[-1]

    def promising(self, number: int = 0) -> list[Candidate]:
        """All that may win, the most promising first."""
        return [order[-1] for order in sorted(self._orders(number))]

    def take(self, chosen: Candidate) -> list[Candidate]:
        """What is booted with it, which is not proposed again: its column where a dial turns."""
        column = [c for c in self._untried if others(c) == others(chosen)]
        taken = column if self.columns else [chosen]
        for candidate in taken:
            del self._untried[candidate]
        return taken

    def left(self) -> list[Candidate]:
        """All that was not proposed."""
        return list(self._untried)

    def tell(self, trial: Trial) -> None:
        """Take in what came of a candidate."""
        self._untried.pop(trial.candidate, None)
        self._told[trial.candidate] = trial
        self._unfit |= bool(trial.measurement.details.get("nothing_accepted"))
        self._learn()

    def left_out(self) -> dict[Candidate, str]:
        """What was not tried, and why."""
        return {candidate: self._reason(candidate) for candidate in self._untried}

    def _reason(self, candidate: Candidate) -> str:
        if self._unfit and candidate.int(GAMMA):
            return "nothing that this drafter drafts is accepted"
        if self._is_refused(others(candidate)):
            return "vLLM refuses its other parameters"
        guess = self.predicted(candidate)
        if self._is_above(candidate):
            return "a larger gamma than what boots, or than what still gains"
        if guess is None or self._is_worth_it(candidate, guess):
            return "not reached"
        return f"not worth a boot: predicted {guess.us:.1f} µs per token ± {guess.spread:.1%}"

    def predicted(self, candidate: Candidate) -> Guess | None:
        """What its time per token is taken to be; None where there is nothing to predict from."""
        found, gamma = self.forecast, candidate.int(GAMMA)
        if found is None or self._errors is None or gamma not in found.tok_s:
            return None
        error, spread = self._errors.at(others(candidate), gamma)
        return Guess(found.microseconds(gamma, self._scenario) * math.exp(error), spread)

    def _seen(self) -> list[Seen]:
        """The errors of the trials that tell something of their speed."""
        found, seen = self.forecast, []
        for trial in self._told.values():
            gamma = trial.candidate.int(GAMMA)
            rates = level_rates(trial) if _is_ok(trial) else partial_rates(trial)
            if found is None or gamma not in found.tok_s or not rates:
                continue
            deciding = set(self._scenario.deciding) & rates.keys() or rates.keys()
            error = math.log(geometric_mean([found.tok_s[gamma][c] / rates[c] for c in deciding]))
            noise = _noise(trial, deciding) if _is_ok(trial) else 0.0
            seen.append(Seen(others(trial.candidate), gamma, error, noise))
        return seen

    def probe(self, number: int = 0) -> Candidate | None:
        """The largest gamma beside the baseline; while none has booted, half of the least tried.

        A boot costs minutes, and what does not boot at 8 seldom does at 7. Where not even the
        least boots, the rest is tried from above.
        """
        if number or self._unfit or self.forecast is not None:
            return None
        home = others(self._baseline.candidate)
        left = [c for c in self._untried if others(c) == home and c.int(GAMMA)]
        tried = {c.int(GAMMA): _is_ok(t) for c, t in self._told.items() if others(c) == home}
        tried.pop(0, None)
        if any(tried.values()):
            return None
        half = min(tried, default=0) // 2
        below = [c for c in left if c.int(GAMMA) <= half]
        return max(below or left, key=lambda c: c.int(GAMMA), default=None)

    def _orders(self, number: int) -> list[tuple[float, float, str, Candidate]]:
        """What may win by the improvement expected; unknown parameters are always tried.

        While there is no forecast, the second and further servers try those only: the others wait
        for the probe.
        """
        new = number > 0 and self.forecast is None
        candidates: list[tuple[float, float, str, Candidate]] = []
        for candidate in self._untried:
            unfit = self._unfit and candidate.int(GAMMA)
            if unfit or self._is_refused(others(candidate)):
                continue
            if new and not self._is_new(others(candidate)):
                continue
            guess = self.predicted(candidate)
            if self._is_above(candidate) and candidate != self._next_above():
                continue
            if guess is None:  # nothing to go by: every one is tried, after what is known
                candidates.append((0.0, math.inf, candidate.key, candidate))
            elif self._is_worth_it(candidate, guess):
                order = (-guess.improvement(self._likely_best), guess.us, candidate.key)
                candidates.append((*order, candidate))
        return candidates

    def _is_above(self, candidate: Candidate) -> bool:
        """Whether it drafts more than the largest gamma that booted, all else equal."""
        found, home = self.forecast, others(self._baseline.candidate)
        above = found is not None and candidate.int(GAMMA) > found.probe_gamma
        return above and others(candidate) == home

    def _next_above(self) -> Candidate | None:
        """Half-way to the least gamma above that failed; None where more drafting gains nothing."""
        found = self.forecast
        if found is None or found.probe_gamma < 1:
            return None
        last, before = (found.microseconds(found.probe_gamma - k, self._scenario) for k in (0, 1))
        failed = [c.int(GAMMA) for c in self._told if self._is_above(c)]
        left = [c for c in self._untried if self._is_above(c)]
        left = [c for c in left if c.int(GAMMA) < min(failed, default=math.inf)]
        if last >= before or not left:
            return None
        return sorted(left, key=lambda c: c.int(GAMMA))[(len(left) - 1) // 2]

    def _best(self) -> float:
        """The least µs per token of what may be recommended; infinite where nothing may be."""
        values = (t.measurement.value or 0.0 for t in self._recommended())
        return min(values, default=math.inf)

    def _recommended(self) -> list[Trial]:
        return [t for t in self._told.values() if _is_ok(t) and self.may_be_recommended(t)]

    def bar(self) -> Bar:
        """What a measurement about to begin must beat."""
        rates: dict[int, float] = {}
        for trial in self._recommended():
            for concurrency, rate in level_rates(trial).items():
                rates[concurrency] = max(rate, rates.get(concurrency, 0.0))
        slower = 1 + self._spread  # it may have been measured on a faster place
        return Bar(self._best() * slower, {c: rate / slower for c, rate in rates.items()})

    def _is_worth_it(self, candidate: Candidate, guess: Guess) -> bool:
        """Whether a boot may pay; of parameters of which nothing is known it always may."""
        if self._is_new(others(candidate)):
            return True
        if self._scenario.objective == "pareto":
            return self._may_be_on_front(candidate, guess)
        return guess.improvement(self._likely_best) >= WORTH

    def _may_be_on_front(self, candidate: Candidate, guess: Guess) -> bool:
        """Whether nothing measured is as fast in both as it may be: two standard deviations."""
        found, gamma = self.forecast, candidate.int(GAMMA)
        if found is None:
            return True
        slower = guess.us / found.microseconds(gamma, self._scenario)
        factor = slower * math.exp(-2 * guess.spread)
        rates = {c: rate / factor for c, rate in found.tok_s[gamma].items()}
        hoped = point_of(candidate, rates)
        return hoped is None or not any(point.dominates(hoped) for point in self._points())

    def _points(self) -> list[Point]:
        """What was measured and may be recommended."""
        points = (point_of(t.candidate, level_rates(t)) for t in self._recommended())
        return [point for point in points if point is not None]

    def may_be_recommended(self, trial: Trial) -> bool:
        """Whether it keeps its SLO and says what is said without speculation, as far as known."""
        if trial.measurement.details.get("slo_missed"):
            return False
        reference = self._told.get(without_speculation(trial.candidate, self._baseline.candidate))
        return not compared(trial, reference).against

    def _is_refused(self, values: Others) -> bool:
        """Whether vLLM took none of the settings with these parameters, and called one invalid."""
        found = [t for t in self._told.values() if others(t.candidate) == values]
        invalid = any(t.measurement.outcome is Outcome.CONSTRAINT for t in found)
        return invalid and not any(_is_ok(t) for t in found)

    def _is_new(self, values: Others) -> bool:
        """Whether no trial, failed ones included, had these other parameters."""
        return all(others(t.candidate) != values for t in self._told.values())


def _is_ok(trial: Trial) -> bool:
    return trial.measurement.outcome is Outcome.OK


def _noise(trial: Trial, deciding: Collection[int]) -> float:
    """Standard deviation of the logarithm of a trial's rate over the concurrencies that decide."""
    levels: Mapping[str, Any] = trial.measurement.details["levels"]
    return math.hypot(*(noise_of(levels[str(c)]) for c in deciding)) / len(deciding)
