"""Proposers: what to try next.

Optuna runs in memory; our own tables are the truth (docs/adr/0001). Before every ``ask`` the
sampler is made anew with a seed derived from the number of trials told, so that what is proposed
depends on the seed and the history alone: a search that was killed and read back goes on exactly as
if it had not been.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import optuna

from autotune.core import BadInputError, Candidate, Outcome, Trial, digest
from autotune.space.space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

OPTUNA_VERSION: str = optuna.__version__
"""Another version may propose other candidates: part of what a search is stored under."""


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(
        seed=seed, multivariate=True, constant_liar=True, n_startup_trials=10, n_ei_candidates=24
    )


SAMPLERS: dict[str, Callable[[int], optuna.samplers.BaseSampler]] = {
    "tpe": _tpe,
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
"""Samplers by name; the standard is TPE (Bergstra et al. 2011), multivariate, constant liar.
GP's time grows with the cube of the trials."""


class OptunaProposer:
    """Ask/tell over the feasible points of a space; implements :class:`autotune.core.Proposer`.

    Parameters are given to Optuna as ordinal indices, because their values (powers of two, stages)
    are ordered. A proposal that is infeasible or known is replaced by the nearest feasible point
    not yet tried, so that the search never stalls and never repeats itself.
    """

    def __init__(
        self,
        space: Space,
        feasible: Sequence[Candidate],
        *,
        sampler: str = "tpe",
        seed: int = 0,
        first: Sequence[Candidate] = (),
    ) -> None:
        """Make a proposer.

        Args:
            space: gives the values of each parameter.
            feasible: the points that may be proposed.
            sampler: a key of :data:`SAMPLERS`.
            seed: seed of the search.
            first: candidates to propose before the sampler is asked, in this order; those that are
                not feasible are passed over.

        Raises:
            BadInputError: unknown sampler.
        """
        if sampler not in SAMPLERS:
            raise BadInputError(f"no sampler {sampler!r}; known: {', '.join(sorted(SAMPLERS))}")
        self._make_sampler = SAMPLERS[sampler]
        self._seed = seed
        self._space = space
        self._values = dict(space.parameters)
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1)
            for name, values in space.parameters
        }
        self._untried = {self._index(c): c for c in feasible}
        self._first = [c for c in dict.fromkeys(first) if c in space]
        self._told = 0
        self._running: dict[Candidate, optuna.trial.Trial] = {}
        self._study = optuna.create_study(sampler=self._make_sampler(seed))

    def _index(self, candidate: Candidate) -> tuple[int, ...]:
        return tuple(values.index(candidate[name]) for name, values in self._values.items())

    def ask(self, n: int, hints: Sequence[Candidate] = ()) -> list[Candidate]:
        """Up to ``n`` candidates not proposed or told before; empty when all are tried."""
        hinted = [c for c in dict.fromkeys(hints) if c in self._space]
        batch_seed = int(digest([self._seed, self._told]), 16) % 2**32
        self._study.sampler = self._make_sampler(batch_seed)
        batch: list[Candidate] = []
        while len(batch) < n and self._untried:
            candidate = self._next_of(hinted) or self._next_of(self._first) or self._sampled()
            if candidate not in self._running:
                self._enqueue(candidate)
            batch.append(candidate)
        return batch

    def _next_of(self, queue: list[Candidate]) -> Candidate | None:
        while queue:
            candidate = queue.pop(0)
            if self._untried.pop(self._index(candidate), None):
                return candidate
        return None

    def _sampled(self) -> Candidate:
        asked = self._study.ask(self._distributions)
        index = tuple(int(asked.params[name]) for name in self._values)
        if index in self._untried:
            candidate = self._untried.pop(index)
            self._running[candidate] = asked
            return candidate
        # TPE ignores failed trials, so this one leaves no trace in what is proposed later.
        self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        nearest = min(self._untried, key=lambda point: (math.dist(point, index), point))
        return self._untried.pop(nearest)

    def _enqueue(self, candidate: Candidate) -> None:
        params = dict(zip(self._values, self._index(candidate), strict=True))
        self._study.enqueue_trial(params)
        self._running[candidate] = self._study.ask(self._distributions)

    def tell(self, trial: Trial) -> None:
        """Take in a trial; one that was not asked here (read back, or a baseline) is added."""
        self._told += 1
        ok = trial.measurement.outcome is Outcome.OK
        # TPE ranks a pruned trial without intermediate values behind every completed one.
        state = optuna.trial.TrialState.COMPLETE if ok else optuna.trial.TrialState.PRUNED
        value = trial.measurement.value  # TPE only ranks values, so no scaling is needed
        asked = self._running.pop(trial.candidate, None)
        if asked is not None:
            self._study.tell(asked, value, state=state)
            return
        if not all(trial.candidate[n] in v for n, v in self._values.items()):
            return  # a baseline outside the space teaches the sampler nothing it could use
        index = self._index(trial.candidate)
        self._untried.pop(index, None)
        self._study.add_trial(
            optuna.trial.create_trial(
                params=dict(zip(self._values, index, strict=True)),
                distributions=self._distributions,
                value=value,
                state=state,
            )
        )


class OrderedProposer:
    """Proposes candidates in a given order: exhaustive passes, and cost-model order alone."""

    def __init__(self, ordered: Sequence[Candidate]) -> None:
        """Take the candidates in the order in which to propose them."""
        self._left = dict.fromkeys(ordered)

    def ask(
        self,
        n: int,
        hints: Sequence[Candidate] = (),  # noqa: ARG002 - the order is given
    ) -> list[Candidate]:
        """The next ``n`` that have not been told."""
        batch = list(self._left)[:n]
        for candidate in batch:
            del self._left[candidate]
        return batch

    def tell(self, trial: Trial) -> None:
        """Skip what is known already."""
        self._left.pop(trial.candidate, None)
