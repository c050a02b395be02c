"""What every proposer and every measurer promises (the protocols of ``autotune.core``).

Subclass a contract in a test module, give what it asks for, and its tests run on your class.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import pytest

from autotune.core import (
    AutotuneError,
    Candidate,
    Job,
    Measurement,
    Measurer,
    Outcome,
    Part,
    Phase,
    Proposer,
    Trial,
    Workload,
)

Verdict = Callable[[Candidate], Measurement]


def run(
    proposer: Proposer,
    verdict: Verdict,
    batches: int,
    size: int = 8,
    told: Sequence[Trial] = (),
) -> tuple[list[Trial], list[list[Candidate]]]:
    """Ask, measure and tell ``batches`` times: the trials told, and the batches asked."""
    trials, asked = list(told), []
    for _ in range(batches):
        batch = proposer.ask(size)
        asked.append(batch)
        for candidate in batch:
            trials.append(Trial(candidate, "w", Phase.SEARCH, len(trials), verdict(candidate)))
            proposer.tell(trials[-1])
    return trials, asked


class ProposerContract(ABC):
    """For :class:`autotune.core.Proposer`."""

    batches = 8
    """How many batches to follow; enough that the proposer has left its first phase."""

    @abstractmethod
    def make(self, seed: int) -> Proposer:
        """A new proposer."""

    @abstractmethod
    def make_small(self, seed: int) -> tuple[Proposer, list[Candidate]]:
        """A proposer over few candidates, and these."""

    @abstractmethod
    def feasible(self) -> frozenset[Candidate]:
        """What may be proposed by :meth:`make`."""

    @abstractmethod
    def verdict(self, candidate: Candidate) -> Measurement:
        """A landscape in which some candidates fail."""

    def test_proposes_only_what_is_feasible_and_nothing_twice(self) -> None:
        trials, asked = run(self.make(1), self.verdict, self.batches)
        proposed = [trial.candidate for trial in trials]
        assert [len(batch) for batch in asked] == [8] * self.batches
        assert len(set(proposed)) == len(proposed)
        assert set(proposed) <= self.feasible()
        assert {t.measurement.outcome is Outcome.OK for t in trials} == {True, False}

    @pytest.mark.parametrize("size", [1, 5, 8])
    def test_ends_with_nothing_when_all_are_tried(self, size: int) -> None:
        proposer, candidates = self.make_small(1)
        needed = -(-len(candidates) // size)
        trials, asked = run(proposer, self.verdict, needed + 2, size)
        assert sorted(t.candidate.items for t in trials) == sorted(c.items for c in candidates)
        assert asked[needed:] == [[], []]

    def test_the_seed_decides(self) -> None:
        runs = [run(self.make(7), self.verdict, self.batches)[1] for _ in range(2)]
        assert runs[0] == runs[1]

    @pytest.mark.parametrize("batches", range(9))
    def test_goes_on_after_a_restart_as_if_undisturbed(self, batches: int) -> None:
        undisturbed = self.make(3)
        trials, _ = run(undisturbed, self.verdict, batches)
        restarted = self.make(3)
        for trial in trials:
            restarted.tell(trial)
        expected = run(undisturbed, self.verdict, 2, told=trials)
        assert run(restarted, self.verdict, 2, told=trials) == expected

    @pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.OK])
    def test_goes_on_after_a_restart_when_all_has_failed(self, outcome: Outcome) -> None:
        def fail(candidate: Candidate) -> Measurement:
            return Measurement(outcome, self.verdict(candidate).basis)

        undisturbed, restarted = self.make(3), self.make(3)
        trials, _ = run(undisturbed, fail, 3)
        for trial in trials:
            restarted.tell(trial)
        batch = restarted.ask(8)
        assert batch == undisturbed.ask(8)
        assert len(batch) == 8

    @pytest.mark.parametrize("batches", [0, 1, 5])
    def test_a_short_batch_is_the_head_of_a_long_one(self, batches: int) -> None:
        """So that a search which ended in a short batch can be continued by a larger effort."""
        proposers = [self.make(5), self.make(5)]
        for proposer in proposers:
            run(proposer, self.verdict, batches)
        assert proposers[0].ask(3) == proposers[1].ask(8)[:3]

    @pytest.mark.parametrize("batches", [0, 1, 5])
    def test_hints_change_the_order_alone(self, batches: int) -> None:
        """Nothing infeasible, unknown or known comes of them, and nothing twice."""
        proposer, feasible = self.make(4), sorted(self.feasible(), key=lambda c: c.key)
        trials, _ = run(proposer, self.verdict, batches)
        known = [t.candidate for t in trials]
        elsewhere = Candidate.of({"of another": "space"})
        hints = [elsewhere, *feasible[:3], *known[:2], *feasible[:1]]
        batch = proposer.ask(8, hints)
        assert len(set(batch)) == len(batch) == 8
        assert set(batch) <= self.feasible() - set(known)

    def test_the_same_hints_give_the_same_proposals(self) -> None:
        """Also to a proposer that was started again."""
        hints = sorted(self.feasible(), key=lambda c: c.key)[:5]
        undisturbed, restarted = self.make(3), self.make(3)
        trials, _ = run(undisturbed, self.verdict, 3)
        for trial in trials:
            restarted.tell(trial)
        assert restarted.ask(8, hints) == undisturbed.ask(8, hints)

    def test_hints_keep_nothing_from_being_tried(self) -> None:
        proposer, candidates = self.make_small(1)
        found: list[Candidate] = []
        while batch := proposer.ask(5, candidates[-2:]):
            for candidate in batch:
                trial = Trial(candidate, "w", Phase.SEARCH, len(found), self.verdict(candidate))
                found.append(candidate)
                proposer.tell(trial)
        assert sorted(c.items for c in found) == sorted(c.items for c in candidates)

    def test_what_is_told_is_not_proposed(self) -> None:
        proposer, candidates = self.make_small(1)
        for sequence, candidate in enumerate(candidates[:-1]):
            measurement = self.verdict(candidate)
            proposer.tell(Trial(candidate, "w", Phase.SEARCH, sequence, measurement))
        assert proposer.ask(8) == [candidates[-1]]


def whole(events: Iterable[Measurement | Part]) -> list[Measurement]:
    """The measurements alone."""
    return [one for one in events if isinstance(one, Measurement)]


class MeasurerContract(ABC):
    """For :class:`autotune.core.Measurer`."""

    @abstractmethod
    def measurer(self) -> Measurer:
        """The measurer."""

    @abstractmethod
    def workload(self) -> Workload:
        """Something to measure on."""

    @abstractmethod
    def expected(self) -> dict[Candidate, Measurement]:
        """At least three candidates, with different results; one fails."""

    @abstractmethod
    def unmeasurable(self) -> Candidate | None:
        """A candidate for which nothing can be measured at all, if the measurer knows of such."""

    def jobs(self, candidates: Iterable[Candidate]) -> list[Job]:
        return [Job(candidate, self.workload()) for candidate in candidates]

    def measured(self, measurer: Measurer, candidates: Iterable[Candidate]) -> list[Measurement]:
        return whole(measurer.measure(self.jobs(candidates)))

    @pytest.fixture
    def opened(self) -> Iterator[Measurer]:
        with self.measurer() as measurer:
            yield measurer

    def test_keeps_the_order_it_is_given(self, opened: Measurer) -> None:
        expected = self.expected()
        for order in (list(expected), list(expected)[::-1]):
            found = self.measured(opened, order)
            assert [(m.outcome, m.value) for m in found] == [
                (expected[c].outcome, expected[c].value) for c in order
            ]

    def test_says_what_its_values_are(self, opened: Measurer) -> None:
        found = self.measured(opened, self.expected())
        assert {m.basis for m in found} == {opened.basis}
        assert {m.basis for m in self.expected().values()} == {opened.basis}

    def test_a_candidate_that_fails_is_an_outcome(self, opened: Measurer) -> None:
        found = self.measured(opened, self.expected())
        failed = [m for m in found if m.outcome is not Outcome.OK]
        assert failed
        assert all(m.value is None for m in failed)
        assert all(m.value is not None and m.value > 0 for m in found if m not in failed)

    def test_yields_each_as_soon_as_it_is_known(self, opened: Measurer) -> None:
        """The first is there although a later one ends the measuring."""
        impossible = self.unmeasurable()
        if impossible is None:
            pytest.skip("nothing is impossible for this measurer")
        first = next(iter(self.expected()))
        results = opened.measure(self.jobs([first, impossible]))
        known = next(one for one in results if isinstance(one, Measurement))
        assert known.outcome is self.expected()[first].outcome
        with pytest.raises(AutotuneError):
            list(results)

    def test_goes_on_where_the_jobs_had_run_dry(self, opened: Measurer) -> None:
        """Iterating over the jobs may end and have more later, as the loop's feed does."""
        expected = self.expected()
        halves = (list(expected)[:1], list(expected)[1:])
        found = [m for half in halves for m in self.measured(opened, half)]
        assert [m.outcome for m in found] == [m.outcome for m in expected.values()]

    def test_nothing_to_measure(self, opened: Measurer) -> None:
        assert list(opened.measure([])) == []

    def test_it_can_be_sent_elsewhere_before_it_is_entered(self) -> None:
        expected = self.expected()
        with pickle.loads(pickle.dumps(self.measurer())) as sent:
            found = self.measured(sent, expected)
        assert [m.outcome for m in found] == [m.outcome for m in expected.values()]

    def test_the_expectation_can_tell(self) -> None:
        values = [m.value for m in self.expected().values()]
        assert len(values) >= 3
        assert all(a != b for a, b in pairwise(values))
