"""What meets the baseline again in fresh boots: fast enough, and saying what the target says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from autotune.core import Candidate, Outcome, Trial
from autotune.serving.decide.pareto import ends_and_knee, point_of
from autotune.serving.decide.quality import Compared, compared, without_speculation
from autotune.serving.forecast.forecast import level_rates
from autotune.serving.plan import Plan

_NEAR = 1.03
"""A trial this much slower than the baseline may still be its equal, and is measured again."""


class Contenders:
    """Hands out settings that may be recommended, the best first, each once.

    One at a time, because a setting whose outputs can be compared with nothing yet costs a boot:
    the same parameters without speculation. Those are booted as they are needed, no more.
    """

    def __init__(
        self,
        plan: Plan,
        trials: Sequence[Trial],
        baseline: Trial,
        boot: Callable[[Candidate], Trial],
        spread: float = 0.0,
    ) -> None:
        """Take the trials of the search.

        Args:
            plan: what was asked.
            trials: of the search, the baseline among them.
            baseline: no speculation.
            boot: measures a setting whose outputs others are compared with.
            spread: by what share the places differ on which the trials were measured.
        """
        self._near_by = _NEAR * (1 + spread)
        self._plan, self._trials, self._baseline, self._boot = plan, trials, baseline, boot
        self._known = {t.candidate: t for t in trials}
        self._given: set[Candidate] = set()
        self._out: set[Candidate] = set()
        self.references: list[Trial] = []
        """What was booted for its outputs alone."""
        self._next = iter(self)

    def take(self, n: int) -> list[Candidate]:
        """The best ``n`` that were not given out yet; fewer where there are no more."""
        found = (next(self._next, None) for _ in range(n))
        return [candidate for candidate in found if candidate is not None]

    def instead_of(self, candidate: Candidate) -> Candidate | None:
        """The next best, now that ``candidate`` cannot be recommended after all."""
        self._out.add(candidate)
        return next(self._next, None)

    def __iter__(self) -> Iterator[Candidate]:
        """All that may be recommended; what is out by then no longer counts for a Pareto front."""
        while (trial := self._best()) is not None:
            self._given.add(trial.candidate)
            self._boot_reference(trial.candidate)
            if self.passes(trial.candidate):
                yield trial.candidate
            else:
                self._out.add(trial.candidate)

    def reference(self, candidate: Candidate) -> Trial | None:
        """What the outputs of ``candidate`` are compared with; None where it was not booted."""
        return self._known.get(self._plain(candidate))

    def compared(self) -> dict[Candidate, Compared]:
        """The outputs of every setting that can be compared with those without speculation."""
        if self._plan.recipe.synthetic:
            return {}  # what is said follows the rates given, not the target
        return {
            t.candidate: compared(t, reference)
            for t in self._trials
            if (reference := self.reference(t.candidate)) is not None
            and t.measurement.outcome is Outcome.OK
        }

    def passes(self, candidate: Candidate) -> bool:
        """Whether a setting may be recommended: its outputs are right, or noise by request."""
        if self._plan.recipe.synthetic or candidate == self._baseline.candidate:
            return True
        trial, reference = self._known[candidate], self.reference(candidate)
        if reference is None or trial.measurement.outcome is not Outcome.OK:
            return False
        found = compared(trial, reference)
        return found.known and not found.against

    def _plain(self, candidate: Candidate) -> Candidate:
        return without_speculation(candidate, self._baseline.candidate)

    def _boot_reference(self, candidate: Candidate) -> None:
        if self._plan.recipe.synthetic or self.reference(candidate) is not None:
            return
        trial = self._boot(self._plain(candidate))
        self._known[trial.candidate] = trial
        self.references.append(trial)

    def _best(self) -> Trial | None:
        able = [t for t in self._trials if t.candidate not in self._out]
        found = self._contend(able)
        return next((t for t in found if t.candidate not in self._given), None)

    def _contend(self, trials: Sequence[Trial]) -> list[Trial]:
        """Near the baseline or ahead, best first; of a Pareto front its knee and ends."""
        if self._plan.scenario.objective != "pareto":
            return self._near(trials)
        known = {t.candidate: t for t in trials if t.measurement.outcome is Outcome.OK}
        points = (point_of(t.candidate, level_rates(t)) for t in known.values())
        chosen = ends_and_knee([point for point in points if point is not None])
        home = self._baseline.candidate
        return [known[p.candidate] for p in chosen if p.candidate != home]

    def _near(self, trials: Sequence[Trial]) -> list[Trial]:
        """What is faster than the baseline or about its equal, best first."""
        before = self._baseline.measurement
        missed = before.details.get("slo_missed")
        limit = float("inf") if missed else (before.value or 0.0) * self._near_by
        near = [
            t
            for t in trials
            if t.candidate != self._baseline.candidate
            and t.measurement.value is not None
            and t.measurement.value < limit
        ]
        return sorted(near, key=lambda t: (t.measurement.value or 0.0, t.candidate.key))
