"""Searches side by side: what neighbours tell each other, and that a kill changes nothing of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from autotune.core import (
    Basis,
    Candidate,
    HoldsNothing,
    Job,
    Measurement,
    Outcome,
    Phase,
    Proposer,
    Trial,
    Workload,
)
from autotune.propose.proposers import OptunaProposer, OrderedProposer
from autotune.stopwatch import Stopwatch, TimedLog, TimedProposer
from autotune.store.store import Store
from autotune.tune import BATCH, HINTS, LATE, Limits, Progress, Search, search_all
from tests.support.no_parts import NoParts
from tests.support.stores import Size
from tests.synthetic import feasible, space, synthetic

MS = (8, 64, 1024)
TRIALS = 5 * BATCH
FIRST_LATE = next(n for n in range(0, TRIALS, BATCH) if n >= LATE * TRIALS)


class Memory(NoParts):
    """A log that outlives what stands for a process."""

    def __init__(self) -> None:
        self.trials: dict[tuple[str, Phase], list[Trial]] = {}
        self.order: list[tuple[str, Candidate]] = []

    def load(self, workload: Workload, phase: Phase) -> list[Trial]:
        return list(self.trials.get((workload.key, phase), []))

    def append(self, workload: Workload, trial: Trial) -> None:
        self.trials.setdefault((workload.key, trial.phase), []).append(trial)
        self.order.append((workload.key, trial.candidate))


class Killed(BaseException):
    """Stands for the end of the process."""


class Ahead(HoldsNothing):
    """The formula, read ahead as compile processes do: ``ahead`` jobs are taken before a result."""

    def __init__(self, ahead: int = 1, after: int | None = None) -> None:
        self.ahead, self.after = ahead, after
        self.measured: list[tuple[str, Candidate]] = []

    @property
    def basis(self) -> Basis:
        return Basis.SYNTHETIC

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        source = iter(jobs)
        waiting: list[Job] = []
        while True:
            while len(waiting) < self.ahead and (job := next(source, None)) is not None:
                waiting.append(job)
            if not waiting:
                return
            if len(self.measured) == self.after:
                raise Killed
            job = waiting.pop(0)
            candidate, workload = job.candidate, job.workload
            assert isinstance(workload, Size)
            self.measured.append((workload.key, candidate))
            yield synthetic(candidate, workload)


class Listening:
    """Passes on to a proposer and keeps what it was asked with."""

    def __init__(self, proposer: Proposer) -> None:
        self.proposer = proposer
        self.asked: list[tuple[int, tuple[Candidate, ...], tuple[Candidate, ...]]] = []
        """Trials told before, hints, proposals."""
        self.told = 0

    def ask(self, n: int, hints: Sequence[Candidate] = ()) -> list[Candidate]:
        batch = self.proposer.ask(n, hints)
        self.asked.append((self.told, tuple(hints), tuple(batch)))
        return batch

    def tell(self, trial: Trial) -> None:
        self.told += 1
        self.proposer.tell(trial)


def tpe(m: int) -> Proposer:
    return OptunaProposer(space(), feasible(), seed=m, first=feasible()[m : m + 20])


def fixed(m: int) -> Proposer:
    return OrderedProposer(feasible()[m::7])


def searches(
    trials: int = TRIALS, kind: str = "fixed", batch_sizes: Sequence[int] = MS
) -> tuple[list[Search], list[Listening]]:
    listening = [Listening(tpe(m) if kind == "tpe" else fixed(m)) for m in batch_sizes]
    pairs = zip(batch_sizes, listening, strict=True)
    return [Search(Size(m), it, Limits(trials)) for m, it in pairs], listening


def command(
    log: Memory, measurer: Ahead, trials: int = TRIALS, kind: str = "tpe"
) -> tuple[list[Progress], list[Search], list[Listening]]:
    made, listening = searches(trials, kind)
    return list(search_all(made, measurer, log)), made, listening


def best(trials: Sequence[Trial], told: int) -> list[Candidate]:
    """By the value, then by the place: what a hint is made of."""
    ok = [(v, t.sequence, t) for t in trials[:told] if (v := t.measurement.value) is not None]
    return [t.candidate for _, _, t in sorted(ok, key=lambda each: each[:2])][:HINTS]


def test_the_best_of_neighbours_come_late_and_the_best_first() -> None:
    log = Memory()
    _, made, listening = command(log, Ahead(), kind="fixed")
    trials = [search.trials for search in made]
    for place, it in enumerate(listening):
        assert [told for told, _, _ in it.asked] == list(range(0, TRIALS, BATCH))
        for told, hints, _ in it.asked:
            if told < LATE * TRIALS:
                assert hints == ()
                continue
            beside = [trials[n] for n in (place - 1, place + 1) if 0 <= n < len(MS)]
            expected = [best(each, told - BATCH) for each in beside]
            assert all(len(each) == HINTS for each in expected)
            # The best of each neighbour, then the second of each.
            assert list(hints) == [each[rank] for rank in range(HINTS) for each in expected]
    assert FIRST_LATE < TRIALS, "or nothing was late"


def test_a_hint_is_tried_at_once() -> None:
    _, made, listening = command(Memory(), Ahead(), kind="tpe")
    new = 0
    for search, it in zip(made, listening, strict=True):
        tried = {t.candidate for t in search.trials[:FIRST_LATE]}
        told, hints, batch = it.asked[FIRST_LATE // BATCH]
        assert told == FIRST_LATE
        fresh = [c for c in dict.fromkeys(hints) if c not in tried]
        assert list(batch[: len(fresh)]) == fresh
        new += len(fresh)
    assert new > 0, "every hint was known: nothing was tested"


def test_one_alone_has_no_neighbours() -> None:
    made, listening = searches(batch_sizes=(64,))
    assert len(list(search_all(made, Ahead(), Memory()))) == TRIALS
    assert all(hints == () for _, hints, _ in listening[0].asked)


def test_failed_trials_are_no_hints() -> None:
    search = Search(Size(64), fixed(64), Limits(TRIALS))
    outcomes = [Outcome.CRASH, Outcome.OK, Outcome.TIMEOUT, Outcome.OK, Outcome.OK]
    values = [None, 7.0, None, 3.0, 3.0]
    for sequence, (outcome, us) in enumerate(zip(outcomes, values, strict=True)):
        measurement = Measurement(outcome, Basis.SYNTHETIC, us)
        candidate = feasible()[sequence]
        search.trials.append(Trial(candidate, "m64", Phase.SEARCH, sequence, measurement))
    assert search.best(5) == [feasible()[3], feasible()[4]], "a tie goes to the earlier"
    assert search.best(4) == [feasible()[3], feasible()[1]]
    assert search.best(2) == [feasible()[1]]
    assert search.best(1) == search.best(0) == search.best(-8) == []


@pytest.mark.parametrize("ahead", [1, 5, 24, 1000])
def test_batches_take_turns_whatever_is_read_ahead(ahead: int) -> None:
    log, calm = Memory(), Memory()
    told, _, _ = command(log, Ahead(ahead))
    command(calm, Ahead())
    assert log.order == calm.order
    assert log.trials == calm.trials
    assert [(p.workload.key, p.trial.candidate) for p in told] == log.order
    turns = [(key, len(list(batch))) for key, batch in groupby(key for key, _ in log.order)]
    assert turns == [(f"m{m}", BATCH) for _ in range(TRIALS // BATCH) for m in MS]
    for m in MS:
        trials = log.load(Size(m), Phase.SEARCH)
        assert [t.sequence for t in trials] == list(range(TRIALS))
        assert len({t.candidate for t in trials}) == TRIALS


def test_killed_anywhere_and_started_again() -> None:
    calm = Memory()
    _, whole, listening = command(calm, Ahead())
    proposals = [{told: batch for told, _, batch in it.asked} for it in listening]
    everything = len(MS) * TRIALS
    late = len(MS) * FIRST_LATE
    for after in (1, BATCH, BATCH + 3, 3 * BATCH, late - 1, late, late + 5, late + 21, 119):
        log, again = Memory(), Ahead(7)
        with pytest.raises(Killed):
            command(log, Ahead(7, after))
        assert log.order == calm.order[:after]
        told, made, heard = command(log, again)
        assert log.trials == calm.trials
        assert sorted_by_text(again.measured) == sorted_by_text(calm.order[after:])
        assert len(told) == everything
        assert sum(p.reused for p in told) == after
        assert [s.trials for s in made] == [s.trials for s in whole]
        for it, expected in zip(heard, proposals, strict=True):
            assert all(expected[n] == batch for n, _, batch in it.asked)


def sorted_by_text(measured: list[tuple[str, Candidate]]) -> list[tuple[str, Candidate]]:
    return sorted(measured, key=lambda one: (one[0], one[1].key))


def lived(lives: list[int], ahead: int) -> Iterator[tuple[Memory, list[Listening]]]:
    """A command killed after so many trials each time, then left alone; with cheap proposals."""
    log = Memory()
    for life in [*lives, None]:
        made, heard = searches(kind="fixed")
        try:
            list(search_all(made, Ahead(ahead, life), log))
        except Killed:
            assert life is not None
        yield log, heard


kills = st.lists(st.integers(0, 30), max_size=6)
FOLLOWS = "search_all begins with the first workload, not with the one whose turn it was"


@given(kills, st.integers(1, 30))
def test_killed_again_and_again_loses_and_doubles_nothing(lives: list[int], ahead: int) -> None:
    calm, sum_of_lives = Memory(), 0
    command(calm, Ahead(), kind="fixed")
    for (log, _), life in zip(lived(lives, ahead), [*lives, len(calm.order)], strict=True):
        sum_of_lives = min(len(calm.order), sum_of_lives + life)
        assert len(log.order) == len(set(log.order)) == sum_of_lives
        for m in MS:
            trials = log.load(Size(m), Phase.SEARCH)
            assert trials == calm.load(Size(m), Phase.SEARCH)[: len(trials)]


@given(kills, st.integers(1, 30))
@example([BATCH] * 6, 1)
def test_killed_again_and_again_keeps_the_order_and_the_hints(lives: list[int], ahead: int) -> None:
    calm = Memory()
    _, _, undisturbed = command(calm, Ahead(), kind="fixed")
    hints = [{told: h for told, h, _ in it.asked} for it in undisturbed]
    for log, heard in lived(lives, ahead):
        assert log.order == calm.order[: len(log.order)]
        for it, expected in zip(heard, hints, strict=True):
            assert all(expected[n] == h for n, h, _ in it.asked)


def test_killed_after_every_batch_proposes_the_same() -> None:
    """What is proposed late depends on the neighbours: they must be as far as undisturbed."""
    calm, log = Memory(), Memory()
    command(calm, Ahead())
    for _ in range(len(calm.order) // BATCH - 1):
        with pytest.raises(Killed):
            command(log, Ahead(after=BATCH))
    command(log, Ahead(after=BATCH))
    assert log.trials == calm.trials


def test_a_finished_command_measures_nothing() -> None:
    log = Memory()
    _, made, _ = command(log, Ahead())
    told, again, _ = command(log, Ahead(after=0))
    assert all(p.reused for p in told)
    assert [s.trials for s in again] == [s.trials for s in made]


def test_more_trials_later_go_on() -> None:
    log, calm = Memory(), Memory()
    command(log, Ahead(), trials=2 * BATCH)
    early = list(log.order)
    command(log, Ahead(after=len(MS) * 3 * BATCH))
    assert log.order[: len(early)] == early
    command(calm, Ahead())
    for m in MS:
        # Hints were given at another share of the trials: not the same, but nothing twice.
        trials = log.load(Size(m), Phase.SEARCH)
        assert len({t.candidate for t in trials}) == len(trials) == TRIALS


def test_a_smaller_effort_after_a_kill_in_a_late_batch_leaves_nothing_out() -> None:
    """Whole batches of what is stored, and what was measured of a batch, up to the effort."""
    log = Memory()
    with pytest.raises(Killed):
        command(log, Ahead(after=len(MS) * FIRST_LATE + 3))
    told, made, _ = command(log, Ahead(after=0), trials=FIRST_LATE)
    assert all(p.reused for p in told)
    assert [len(s.trials) for s in made] == [FIRST_LATE] * len(MS)


def test_a_larger_effort_after_a_kill_in_a_late_batch_leaves_nothing_out() -> None:
    """All that is stored is told in the end, or a winner may be lost."""
    log = Memory()
    with pytest.raises(Killed):
        command(log, Ahead(after=len(MS) * FIRST_LATE + 3))
    _, made, _ = command(log, Ahead(), trials=TRIALS + 2 * BATCH)
    for search in made:
        stored = {t.candidate for t in log.load(search.workload, Phase.SEARCH)}
        assert stored == {t.candidate for t in search.trials}


def test_a_neighbour_that_has_nothing_left_still_gives_hints() -> None:
    few = OrderedProposer(feasible()[:5])
    listening = Listening(fixed(64))
    made = [Search(Size(8), few, Limits(TRIALS)), Search(Size(64), listening, Limits(TRIALS))]
    told = list(search_all(made, Ahead(3), Memory()))
    assert len(told) == 5 + TRIALS
    last_hints = listening.asked[-1][1]
    assert list(last_hints) == best(made[0].trials, 5)


def test_a_deadline_ends_every_search_after_its_batch() -> None:
    log, calm, clock = Memory(), Memory(), iter(range(1000))
    made, _ = searches(kind="fixed")
    limits = Limits(TRIALS, deadline=4, clock=lambda: float(next(clock)))
    made = [Search(s.workload, fixed(m), limits) for s, m in zip(made, MS, strict=True)]
    list(search_all(made, Ahead(), log))
    assert [len(s.trials) for s in made] == [2 * BATCH, BATCH, BATCH]
    assert all(s.out_of_time for s in made)
    # With more time it goes on where each of them was.
    command(log, Ahead(), kind="fixed")
    command(calm, Ahead(), kind="fixed")
    assert log.trials == calm.trials


def test_the_stopwatch_passes_hints_on() -> None:
    watch, listening = Stopwatch(), Listening(fixed(8))
    timed = TimedProposer(listening, watch)
    hint = feasible()[3]
    batch = timed.ask(2, [hint])
    timed.tell(Trial(batch[0], "m8", Phase.SEARCH, 0, synthetic(batch[0], Size(8))))
    assert listening.asked == [(0, (hint,), tuple(batch))]
    assert listening.told == 1
    log, workload = Memory(), Size(8)
    inner = TimedLog(log, watch)
    trial = Trial(hint, workload.key, Phase.SEARCH, 0, synthetic(hint, workload))
    inner.append(workload, trial)
    assert inner.load(workload, Phase.SEARCH) == log.load(workload, Phase.SEARCH) == [trial]
    assert set(watch.seconds) == {"propose", "store"}
    assert all(seconds > 0 for seconds in watch.seconds.values())


def test_the_stopwatch_adds_up_and_counts_what_fails() -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.running("a"):
        raise KeyError
    once = watch.seconds["a"]
    with watch.running("a"):
        pass
    assert watch.seconds["a"] > once > 0


def test_with_a_real_store(tmp_path: Path) -> None:
    """Killed in a late batch, with every trial in the database."""
    calm = Memory()
    command(calm, Ahead())

    def life(after: int | None) -> None:
        with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
            record = store.search(store.study("s", "moe", {}), {"name": "a"})
            run = store.start_run(record, store.environment({}), "test")

            class Log(NoParts):
                def load(self, workload: Workload, phase: Phase) -> list[Trial]:
                    return store.trials(record, workload.key, phase)

                def append(self, workload: Workload, trial: Trial) -> None:
                    store.add_trials(run, store.workload(record, workload).id, [trial])

            made, _ = searches(kind="tpe")
            list(search_all(made, Ahead(5, after), Log()))
            for search in made:
                expected = calm.load(search.workload, Phase.SEARCH)
                assert store.trials(record, search.workload.key, Phase.SEARCH) == expected
                assert search.trials == expected

    for after in (len(MS) * FIRST_LATE + 11, 7):
        with pytest.raises(Killed):
            life(after)
    life(None)


class TestHintsOfProposers:
    def proposer(self) -> OptunaProposer:
        return OptunaProposer(space(), feasible()[:600], seed=3, first=feasible()[100:103])

    def test_hints_go_before_everything_in_their_order(self) -> None:
        hints = [feasible()[7], feasible()[5], feasible()[7], feasible()[101]]
        batch = self.proposer().ask(8, hints)
        expected = [feasible()[n] for n in (7, 5, 101, 100, 102)]
        assert batch[:5] == expected
        assert len(set(batch)) == 8

    def test_what_is_known_infeasible_or_elsewhere_is_passed_over(self) -> None:
        elsewhere = Candidate.of(dict(feasible()[0].params) | {"BLOCK_SIZE_M": 7})
        other_names = Candidate.of({"BLOCK": 1})
        proposer = self.proposer()
        known = feasible()[9]
        proposer.tell(Trial(known, "w", Phase.SEARCH, 0, synthetic(known, Size(64))))
        batch = proposer.ask(8, [elsewhere, other_names, known, feasible()[700], feasible()[8]])
        assert batch[0] == feasible()[8]
        assert batch[1:4] == list(feasible()[100:103])
        assert not {elsewhere, other_names, known, feasible()[700]} & set(batch)

    def test_hints_are_of_one_batch(self) -> None:
        """What did not fit is not remembered: the next batch has hints of its own."""
        proposer = self.proposer()
        hints = list(feasible()[200:212])
        batch = proposer.ask(8, hints)
        assert batch == hints[:8]
        for sequence, candidate in enumerate(batch):
            measured = synthetic(candidate, Size(64))
            proposer.tell(Trial(candidate, "w", Phase.SEARCH, sequence, measured))
        assert proposer.ask(3) == list(feasible()[100:103])

    def test_an_order_is_kept(self) -> None:
        proposer = OrderedProposer(feasible()[:10])
        assert proposer.ask(3, [feasible()[9]]) == list(feasible()[:3])
