"""The search of ``autotune spec`` as an Optuna study, whatever sampler orders the boots.

Its trials are servers: a setting, or where a dial turns gamma, the other parameters, worth what the
best gamma is. The forecast is a sampler of it (:class:`autotune.propose.study.ModelSampler`). For
the others it gives the probe and says what cannot win, which is not booted: they order the rest.
``grid`` boots everything.
"""

from __future__ import annotations

from collections.abc import Sequence

from autotune.core import Candidate, Outcome, Scalar, Trial
from autotune.propose.names import GRID, MODEL
from autotune.propose.study import StudyInMemory, Told, maker
from autotune.serving.forecast.forecast import ForecastProposer, level_rates, partial_rates
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import SpecScenario


class StudyProposer:
    """Proposes servers by an Optuna sampler; implements :class:`autotune.core.Proposer`."""

    def __init__(
        self,
        forecast: ForecastProposer,
        grid: Sequence[Candidate],
        baseline: Trial,
        scenario: SpecScenario,
        sampler: str = MODEL,
        seed: int = 0,
    ) -> None:
        """Make a proposer.

        Args:
            forecast: which knows the baseline alone; it is told all that this one is.
            grid: what may be proposed.
            baseline: gamma 0 and the first value of every other parameter.
            scenario: gives the objective; ``pareto`` has two directions, one stream and all.
            sampler: one of :data:`autotune.propose.names.NAMED`, or MODULE:CLASS.
            seed: of the sampler.

        Raises:
            BadInputError: no such sampler.
        """
        self._forecast, self._scenario = forecast, scenario
        self._sampler, self._seed, self._number = sampler, seed, 0
        self._told = [baseline]
        points = [self._point(c) for c in dict.fromkeys([baseline.candidate, *grid])]
        names = [n for n, _ in points[0].items]
        self._space: dict[str, list[Scalar]] = {
            n: list(dict.fromkeys(p[n] for p in points)) for n in names
        }
        for name, values in self._space.items():
            if name == GAMMA:
                self._space[name] = sorted(values, key=float)
        self._make = maker(sampler, self._chosen, self._space)

    def _point(self, candidate: Candidate) -> Candidate:
        """What a server is of: with a dial, of every gamma."""
        if not self._forecast.columns:
            return candidate
        return Candidate.of({n: v for n, v in candidate.items if n != GAMMA})

    def _chosen(self) -> Candidate:
        chosen = self._forecast.choose(self._number)
        if chosen is None:
            raise RuntimeError("asked for with nothing left that may win")
        return self._point(chosen)

    def ask(self, n: int, hints: Sequence[Candidate] = ()) -> list[Candidate]:
        """The next setting or column of each server that runs at once; none where none can win.

        A column is not cut at ``n``: the rest of it would want another server. Hints are not used.
        """
        del n, hints
        forecast, directions = self._forecast, 1 + (self._scenario.objective == "pareto")
        study = StudyInMemory(
            self._space, self._seen(directions), self._make, self._seed, directions
        )
        asked: list[Candidate] = []
        for self._number in range(forecast.width):
            if self._sampler == GRID:
                chosen, rivals = None, forecast.left()
            else:
                chosen, rivals = forecast.probe(self._number), forecast.promising(self._number)
            rivals = [chosen] if chosen is not None else rivals
            if not rivals:
                break
            places = {self._point(c): c for c in reversed(rivals)}
            fixed = None if chosen is None or self._sampler == MODEL else self._point(chosen)
            asked += forecast.take(places[study.ask(list(places), fixed)])
        return asked

    def tell(self, trial: Trial) -> None:
        """Take in what came of a candidate."""
        self._told.append(trial)
        self._forecast.tell(trial)

    def _seen(self, directions: int) -> list[Told]:
        """One of each server: the best of its gammas that breaks no limit, if any."""
        servers: dict[Candidate, list[Told]] = {}
        for trial in self._told:
            one = self._told_of(trial, directions)
            if not self._is_of_space(one.point):  # of a wider search, or a narrower one
                continue
            servers.setdefault(one.point, []).append(one)
        return [min(ones, key=_rank) for ones in servers.values()]

    def _is_of_space(self, point: Candidate) -> bool:
        same = point.params.keys() == self._space.keys()
        return same and all(point[name] in values for name, values in self._space.items())

    def _told_of(self, trial: Trial, directions: int) -> Told:
        point = self._point(trial.candidate)
        if trial.measurement.outcome is not Outcome.OK:
            rates = partial_rates(trial)
            known = bool(rates) and set(self._scenario.deciding) <= rates.keys()
            least = self._scenario.microseconds(rates) if known else None
            return Told(point, None, partial=least)
        limits = {
            "slo": float(len(trial.measurement.details.get("slo_missed", ()))),
            "may not be recommended": float(not self._forecast.may_be_recommended(trial)),
        }
        names = ("single", "aggregate") if directions == 2 else (None,)
        rates = level_rates(trial)
        values = tuple(self._scenario.microseconds(rates, name) for name in names)
        return Told(point, values, limits)


def _rank(told: Told) -> tuple[bool, bool, float]:
    """What was measured and keeps its limits first, then by the product of its times."""
    product = 1.0
    for value in told.values or ():
        product *= value
    return told.values is None, any(c > 0 for c in told.constraints.values()), product
