"""Confirmation: what is compared, what is chosen, what of it is used again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import (
    Basis,
    Candidate,
    Group,
    HoldsNothing,
    Job,
    Measurement,
    Outcome,
    Phase,
    Trial,
    Workload,
    digest,
)
from autotune.kernels.config_file import look_up
from autotune.kernels.decide.confirm import (
    LEAST_LOSS,
    Confirmed,
    check_between,
    confirm,
    midpoints,
    select_stored,
    side_by_side,
)
from autotune.kernels.measure.measurer import ROUNDS
from autotune.kernels.moe.shape import MoeWorkload
from autotune.tune import Progress
from tests import fake_kernel
from tests.kernels.test_gpu import SHAPE, candidate, measurer
from tests.support.no_parts import NoParts

DEFAULT, FAST, FASTER, SLOW = (candidate(stages=stages) for stages in (2, 3, 4, 5))
WRONG, CRASHES = candidate(stages=6), candidate(stages=7)
TIMES = {DEFAULT: 100.0, FAST: 90.0, FASTER: 80.0, SLOW: 120.0, WRONG: 1.0}
BAD = {WRONG: Outcome.WRONG_RESULT, CRASHES: Outcome.CRASH}


class Log(NoParts):
    """Keeps what is appended, as the store does."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def load(self, workload: Workload, phase: Phase) -> list[Trial]:
        return [t for t in self.trials if (t.workload_key, t.phase) == (workload.key, phase)]

    def append(self, workload: Workload, trial: Trial) -> None:
        assert trial.workload_key == workload.key
        places = [t.sequence for t in self.load(workload, trial.phase)]
        assert trial.sequence == len(places), "a place is taken or left out"
        self.trials.append(trial)


class Killed(BaseException):
    """Stands for the end of the process."""


class MortalLog(Log):
    """The process ends before the append that follows ``after`` ones."""

    def __init__(self, trials: Sequence[Trial], after: int) -> None:
        super().__init__()
        self.trials, self.left = list(trials), after

    def append(self, workload: Workload, trial: Trial) -> None:
        if not self.left:
            raise Killed
        self.left -= 1
        super().append(workload, trial)


class StandIn(HoldsNothing):
    """A measurer of groups whose times are a table; each comparison has a clock of its own."""

    def __init__(
        self,
        times: dict[Candidate, float] | None = None,
        bad: Mapping[Candidate, Outcome] = BAD,
    ) -> None:
        self.times, self.bad = TIMES if times is None else times, bad
        self.groups: list[tuple[int, tuple[Candidate, ...], int, bool]] = []

    def compare(
        self, groups: Iterable[Group], *, check: bool
    ) -> Iterator[dict[Candidate, Measurement]]:
        for group in groups:
            workload, candidates, seed = group.workload, group.candidates, group.seed
            assert isinstance(workload, MoeWorkload)
            self.groups.append((workload.m, tuple(candidates), seed, check))
            clock = 1.0 + len(self.groups)
            key = digest([workload.key, seed, [c.key for c in candidates], check])
            found = {c: self.one(c, clock, key, seed, check) for c in reversed(candidates)}
            yield found  # the failed ones come first in the real one: no order is promised

    def one(self, it: Candidate, clock: float, key: str, seed: int, check: bool) -> Measurement:
        if it in self.bad and self.bad[it] is not Outcome.WRONG_RESULT:
            named = {"compared": key, "seed": seed}
            return Measurement(self.bad[it], Basis.MEASURED, message="alone", details=named)
        details = {"compared": key, "seed": seed, "error": 0.004 if check else None}
        samples = tuple(self.times[it] * clock * (1 + 0.001 * turn) for turn in range(ROUNDS))
        if it in self.bad:
            return Measurement(self.bad[it], Basis.MEASURED, samples=samples, details=details)
        return Measurement(Outcome.OK, Basis.MEASURED, samples[4], samples, details=details)

    basis = Basis.MEASURED

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        raise AssertionError("a confirmation compares")


def nothing(_: Progress) -> None:
    pass


def confirmed(
    finalists: Mapping[int, Sequence[Candidate]], standing: StandIn, log: Log, seed: int = 7
) -> dict[int, Candidate]:
    found = chosen(finalists, standing, log, seed)
    return {m: selection.winner.candidate for m, selection in found.selections.items()}


def chosen(
    finalists: Mapping[int, Sequence[Candidate]], standing: StandIn, log: Log, seed: int = 7
) -> Confirmed:
    return confirm(SHAPE, finalists, standing, log, min_gain=0.01, seed=seed, on_progress=nothing)


# ---------------------------------------------------------------------------- held out


@pytest.mark.parametrize(
    ("batch_sizes", "expected"),
    [
        ((1,), (2,)),
        ((8,), (16,)),
        ((1, 2), (4,)),
        ((1, 3), (2, 6)),
        ((1, 4), (3, 8)),
        ((64, 8, 1), (5, 36, 128)),
        ((1, 2, 4, 8, 16, 24, 32), (3, 6, 12, 20, 28, 64)),
    ],
)
def test_held_out_of(batch_sizes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert midpoints(batch_sizes) == expected


@given(st.sets(st.integers(1, 5000), min_size=1, max_size=20))
def test_held_out_are_between_and_one_above(batch_sizes: set[int]) -> None:
    found, ordered = midpoints(list(batch_sizes)), sorted(batch_sizes)
    assert list(found) == sorted(set(found))
    assert not batch_sizes & set(found), "a key is not held out"
    assert found[-1] == 2 * ordered[-1]
    for a, b in pairwise(ordered):
        inside = [m for m in found if a < m < b]
        assert len(inside) == (b - a > 1)
        assert all(abs((m - a) - (b - m)) <= 1 for m in inside), "as far from both as can be"


# ----------------------------------------------------------------------------- confirm


def test_the_best_of_each_batch_size_wins() -> None:
    standing, log = StandIn(), Log()
    finalists = {1: [DEFAULT, SLOW, FAST, FASTER], 64: [DEFAULT, SLOW]}
    assert confirmed(finalists, standing, log) == {1: FASTER, 64: DEFAULT}
    assert [(m, group, check) for m, group, _, check in standing.groups] == [
        (1, (DEFAULT, SLOW, FAST, FASTER), True),
        (64, (DEFAULT, SLOW), True),
    ]
    assert {seed for *_, seed, _ in standing.groups} == {1_000_007}
    assert {t.phase for t in log.trials} == {Phase.CONFIRM}
    assert len(log.trials) == 6


def test_a_wrong_finalist_is_not_chosen_however_fast() -> None:
    assert confirmed({8: [DEFAULT, WRONG, FAST]}, StandIn(), Log()) == {8: FAST}
    assert confirmed({8: [DEFAULT, WRONG]}, StandIn(), Log()) == {8: DEFAULT}


def test_where_the_default_fails_for_good_another_is_taken() -> None:
    assert confirmed({8: [WRONG, SLOW, FAST]}, StandIn(), Log()) == {8: FAST}


@pytest.mark.parametrize("finalists", [[CRASHES, FAST], [WRONG, CRASHES]])
def test_a_batch_size_that_cannot_be_decided_says_why_and_leaves_the_others(
    finalists: list[Candidate],
) -> None:
    """The default crashes, for the moment or not; or nothing works at all."""
    found = chosen({1: [DEFAULT, FAST], 8: finalists, 64: [DEFAULT, FASTER]}, StandIn(), Log())
    assert set(found.selections) == {1, 64}
    assert found.failed.keys() == {8}
    assert found.failed[8].startswith("M=8: vLLM's default fails beside the finalists (")


@pytest.mark.parametrize(
    "bad",
    [
        {DEFAULT: Outcome.CRASH},
        {DEFAULT: Outcome.OUT_OF_MEMORY, FAST: Outcome.OUT_OF_MEMORY},
        {DEFAULT: Outcome.WRONG_RESULT, FAST: Outcome.RUNTIME_ERROR},
    ],
)
def test_a_comparison_that_decided_nothing_is_made_again(bad: dict[Candidate, Outcome]) -> None:
    log, finalists = Log(), {8: [DEFAULT, FAST]}
    assert confirmed(finalists, StandIn(bad=bad), log) == {}
    again = StandIn()
    assert confirmed(finalists, again, log) == {8: FAST}
    assert len(again.groups) == 1
    assert len({t.measurement.details["compared"] for t in log.trials}) == 2
    once_more = StandIn()
    assert confirmed(finalists, once_more, log) == {8: FAST}
    assert once_more.groups == []


def test_a_comparison_that_is_made_again_and_killed_does_not_mix_with_the_first() -> None:
    """The finalist's samples of the first and the default's of the second are not side by side."""
    log, finalists = Log(), {8: [SLOW, DEFAULT]}
    confirmed(finalists, StandIn(bad={SLOW: Outcome.CRASH}), log)
    dying = MortalLog(log.trials, 1)
    with pytest.raises(Killed):  # the stand-in gives the last first
        confirmed({8: [SLOW, DEFAULT]}, StandIn(), dying)
    log.trials = dying.trials
    again = StandIn()
    assert confirmed(finalists, again, log) == {8: DEFAULT}
    assert len(again.groups) == 1


# ------------------------------------------------------------------- places that get free


def test_the_next_best_takes_the_place_of_one_that_fails() -> None:
    log, standing = Log(), StandIn()
    others = [candidate(stages=stages) for stages in (8, 9)]
    standing.times = TIMES | dict.fromkeys(others, 110.0)
    finalists = {8: [DEFAULT, WRONG, CRASHES, SLOW, others[0], FASTER, FAST, others[1]]}
    assert confirmed(finalists, standing, log) == {8: FASTER}
    assert [group for _, group, *_ in standing.groups] == [
        (DEFAULT, WRONG, CRASHES, SLOW, others[0]),
        (DEFAULT, SLOW, others[0], FASTER, FAST),
    ]
    again = StandIn(standing.times)
    assert confirmed(finalists, again, log) == {8: FASTER}
    assert again.groups == []


@pytest.mark.parametrize(
    "finalists",
    [
        [DEFAULT, SLOW, FAST, candidate(stages=8), candidate(stages=9), FASTER],
        [DEFAULT, WRONG, SLOW],
        [CRASHES, WRONG, SLOW, candidate(stages=8), candidate(stages=9), FASTER],
    ],
    ids=["none failed", "nobody left", "no default"],
)
def test_no_place_is_filled_again(finalists: list[Candidate]) -> None:
    standing = StandIn(TIMES | {candidate(stages=s): 110.0 for s in (8, 9)})
    chosen({8: finalists}, standing, Log())
    assert len(standing.groups) == 1


def test_a_stored_comparison_is_used_again() -> None:
    log, told = Log(), list[Progress]()
    finalists = {1: [DEFAULT, FAST], 64: [DEFAULT, FASTER]}
    first = confirmed(finalists, StandIn(), log)
    again, before = StandIn(), list(log.trials)
    found = confirm(SHAPE, finalists, again, log, min_gain=0.01, seed=7, on_progress=told.append)
    assert {m: s.winner.candidate for m, s in found.selections.items()} == first
    assert again.groups == []
    assert log.trials == before
    assert [p.reused for p in told] == [True] * 4
    assert [p.trial.candidate for p in told] == [DEFAULT, FAST, DEFAULT, FASTER]
    assert all(p.trial in before for p in told)


def test_another_seed_or_finalist_is_compared_anew_and_alone() -> None:
    log = Log()
    confirmed({1: [DEFAULT, FAST], 64: [DEFAULT, FAST]}, StandIn(), log)
    more = StandIn()
    assert confirmed({1: [DEFAULT, FAST], 64: [DEFAULT, FASTER]}, more, log) == {
        1: FAST,
        64: FASTER,
    }
    assert [(m, group) for m, group, *_ in more.groups] == [(64, (DEFAULT, FASTER))]
    other = StandIn()
    confirmed({1: [DEFAULT, FAST]}, other, log, seed=8)
    assert len(other.groups) == 1
    assert [t.sequence for t in log.load(MoeWorkload(SHAPE, 1), Phase.CONFIRM)] == [0, 1, 2, 3]


@pytest.mark.parametrize("after", range(5))
def test_killed_while_it_is_stored(after: int) -> None:
    """A comparison that was cut off is measured again as a whole."""
    finalists = {1: [DEFAULT, FAST], 64: [DEFAULT, FASTER]}
    dying = MortalLog([], after)
    if after < 4:
        with pytest.raises(Killed):
            confirmed(finalists, StandIn(), dying)
    else:
        confirmed(finalists, StandIn(), dying)
    log, again = Log(), StandIn()
    log.trials = list(dying.trials)
    assert confirmed(finalists, again, log) == {1: FAST, 64: FASTER}
    assert len(again.groups) == 2 - after // 2
    assert log.trials[:after] == dying.trials


def compared_with(trials: Sequence[Trial]) -> set[str]:
    return {t.measurement.details["compared"] for t in trials}


def test_only_what_was_measured_side_by_side_is_compared() -> None:
    """Two overlapping comparisons: the clocks were different, so that ratios would lie."""
    log, workload = Log(), MoeWorkload(SHAPE, 8)
    for group in ([DEFAULT, FAST], [DEFAULT, FASTER], [DEFAULT, FAST, FASTER]):
        measured = StandIn()
        measured.groups = [(0, (), 0, False)] * len(log.trials)  # another clock
        found = side_by_side({workload: group}, measured, log, 7, nothing, check=True)
        assert len(compared_with(found[workload])) == 1


def test_the_order_is_that_of_the_candidates() -> None:
    log, workload = Log(), MoeWorkload(SHAPE, 8)
    group = [DEFAULT, SLOW, WRONG, FAST]
    for _ in range(2):
        found = side_by_side({workload: group}, StandIn(), log, 7, nothing, check=True)
        assert [t.candidate for t in found[workload]] == group


def test_a_finalist_that_failed_is_not_measured_by_every_command() -> None:
    log, again = Log(), StandIn()
    finalists: dict[int, Sequence[Candidate]] = {8: [DEFAULT, CRASHES, FAST]}
    confirmed(finalists, StandIn(), log)
    confirmed(finalists, again, log)
    assert again.groups == []


# ----------------------------------------------------------------- stored, not asked for


def test_the_latest_stored_comparison_counts() -> None:
    log, workload = Log(), MoeWorkload(SHAPE, 8)
    assert select_stored(workload, DEFAULT, [], 0.01) is None
    confirmed({8: [DEFAULT, FAST]}, StandIn(), log)
    confirmed({8: [DEFAULT, SLOW, FASTER]}, StandIn(), log)
    found = select_stored(workload, DEFAULT, log.trials, 0.01)
    assert found is not None
    assert found.winner.candidate == FASTER
    assert found.speedup == pytest.approx(1.25)
    assert found.incumbent is not None
    assert found.incumbent.candidate == DEFAULT


def test_a_comparison_that_decides_nothing_hides_no_earlier_one() -> None:
    log, workload = Log(), MoeWorkload(SHAPE, 8)
    confirmed({8: [DEFAULT, FAST]}, StandIn(), log)
    found = chosen({8: [DEFAULT, FASTER]}, StandIn(bad={DEFAULT: Outcome.TIMEOUT}), log)
    assert found.selections[8].winner.candidate == FAST
    stored = select_stored(workload, DEFAULT, log.trials, 0.01)
    assert stored is not None
    assert stored.winner.candidate == FAST


def test_outputs_that_were_not_checked_decide_no_key() -> None:
    """As between the keys of another command."""
    log, workload = Log(), MoeWorkload(SHAPE, 8)
    confirmed({8: [DEFAULT, FAST]}, StandIn(), log)
    side_by_side({workload: [DEFAULT, FASTER]}, StandIn(), log, 2_000_000, nothing, check=False)
    found = select_stored(workload, DEFAULT, log.trials, 0.01)
    assert found is not None
    assert found.winner.candidate == FAST


def test_what_only_failed_is_no_comparison() -> None:
    trial = Trial(CRASHES, "w", Phase.CONFIRM, 0, Measurement(Outcome.CRASH, Basis.MEASURED))
    assert select_stored(MoeWorkload(SHAPE, 8), DEFAULT, [trial], 0.01) is None


def test_a_stored_comparison_that_was_cut_off_is_not_mixed_with_its_repetition() -> None:
    """The same group has the same key; only the later trials of it are whole."""
    dying = MortalLog([], 1)
    with pytest.raises(Killed):
        confirmed({8: [DEFAULT, SLOW]}, StandIn(dict.fromkeys(TIMES, 300.0)), dying)
    log = Log()
    log.trials = list(dying.trials)
    assert log.trials[0].candidate == SLOW
    confirmed({8: [DEFAULT, SLOW]}, StandIn(dict.fromkeys(TIMES, 100.0)), log)
    found = select_stored(MoeWorkload(SHAPE, 8), SLOW, log.trials, 0.01)
    assert found is not None
    assert found.kept_incumbent, "both took 100 µs side by side"


# ----------------------------------------------------------------------------- between


def between(
    chosen: dict[int, Candidate],
    times: dict[Candidate, float],
    log: Log | None = None,
    defaults: Candidate = DEFAULT,
) -> tuple[dict[int, Candidate], dict[int, tuple[float, bool]], StandIn]:
    """Check a file whose rows are ``chosen``: its rows after, and what was seen."""
    standing = StandIn(TIMES | times)
    # All of them work at the keys.
    slow_default = StandIn(dict.fromkeys(chosen.values(), 1.0) | {defaults: 1e9}, bad={})
    first = confirm(
        SHAPE,
        {m: [defaults, row] for m, row in chosen.items()},
        slow_default,
        Log(),
        min_gain=0.01,
        seed=0,
        on_progress=nothing,
    ).selections
    assert {m: s.winner.candidate for m, s in first.items()} == chosen
    needed = {*chosen, *midpoints(list(chosen))}
    found = check_between(
        SHAPE,
        first,
        dict.fromkeys(needed, defaults),
        standing,
        Log() if log is None else log,
        seed=0,
        on_progress=nothing,
    )
    seen = {b.m: (round(b.ratio, 6), b.pinned) for b in found.between}
    rows = {m: s.winner.candidate for m, s in found.selections.items()}
    assert list(rows) == sorted(rows)
    for b in found.between:
        assert b.key == look_up({key: key for key in chosen}, b.m)
        assert b.low <= b.ratio <= b.high
    for m in set(rows) - set(chosen):
        assert found.selections[m].kept_incumbent
        assert found.selections[m].winner.workload_key == MoeWorkload(SHAPE, m).key
    return rows, seen, standing


def test_where_the_file_loses_the_default_becomes_a_key() -> None:
    rows, seen, standing = between({1: FAST, 64: SLOW}, {})
    # 33 is nearer to 64; 128 is above both.
    assert rows == {1: FAST, 33: DEFAULT, 64: SLOW, 128: DEFAULT}
    assert seen == {
        33: (round(100 / 120, 6), True),
        128: (round(100 / 120, 6), True),
    }
    assert [group for _, group, *_ in standing.groups] == [(DEFAULT, SLOW)] * 2
    assert {(seed, check) for *_, seed, check in standing.groups} == {(2_000_000, False)}


def test_where_the_file_wins_nothing_changes() -> None:
    rows, seen, _ = between({1: FAST, 64: FASTER}, {})
    assert rows == {1: FAST, 64: FASTER}
    assert seen == {33: (1.25, False), 128: (1.25, False)}


def test_vllm_takes_the_first_of_two_keys_as_near() -> None:
    _, _, standing = between({1: FAST, 3: FASTER}, {})
    assert [(m, row) for m, (_, row), *_ in standing.groups] == [(2, FAST), (6, FASTER)]


@pytest.mark.parametrize(("loss", "pinned"), [(0.5, False), (0.99, False), (1.01, True)])
def test_a_loss_below_a_percent_needs_no_key(loss: float, pinned: bool) -> None:
    us = 100 / (1 - loss * LEAST_LOSS)
    rows, seen, _ = between({8: SLOW}, {SLOW: us})
    assert seen[16][1] == pinned
    assert set(rows) == ({8, 16} if pinned else {8})


def test_rows_that_are_the_default_are_not_measured() -> None:
    rows, seen, standing = between({1: DEFAULT, 64: FAST}, {})
    assert seen[33] == (round(100 / 90, 6), False)
    assert rows == {1: DEFAULT, 64: FAST}
    rows, seen, standing = between({8: DEFAULT}, {})
    assert seen == {16: (1.0, False)}
    assert standing.groups == []
    assert rows == {8: DEFAULT}


@pytest.mark.parametrize("row", [CRASHES, WRONG])
def test_a_row_that_fails_between_the_keys_is_replaced(row: Candidate) -> None:
    """It worked at its own key."""
    log, standing = Log(), StandIn()
    worked = Trial(row, "w", Phase.CONFIRM, 0, Measurement(Outcome.OK, Basis.MEASURED, 1.0))
    default = replace(worked, candidate=DEFAULT)
    from autotune.core import Selection

    found = check_between(
        SHAPE,
        {8: Selection(worked, default, 2.0, kept_incumbent=False)},
        {8: DEFAULT, 16: DEFAULT},
        standing,
        log,
        seed=0,
        on_progress=nothing,
    )
    assert found.selections[16].winner.candidate == DEFAULT
    assert [(b.m, b.ratio, b.pinned) for b in found.between] == [(16, 0.0, True)]


def test_where_the_default_fails_between_the_keys_the_file_stays() -> None:
    rows, seen, _ = between({8: SLOW}, {}, defaults=CRASHES)
    assert (rows, seen) == ({8: SLOW}, {})


def test_a_checked_file_is_not_checked_again() -> None:
    log = Log()
    first = between({1: FAST, 64: SLOW}, {}, log)
    again = between({1: FAST, 64: SLOW}, {}, log)
    assert again[:2] == first[:2]
    assert again[2].groups == []
    assert len(log.trials) == 4


def test_between_and_confirmation_do_not_mix() -> None:
    """A key of one command may lie between the keys of the next: its outputs were not checked."""
    log = Log()
    between({8: FAST}, {}, log)
    standing = StandIn()
    confirmed({16: [DEFAULT, FAST]}, standing, log, seed=0)
    assert [(m, check) for m, _, _, check in standing.groups] == [(16, True)]


# ------------------------------------------------------- in the real measuring processes


def test_in_real_processes_the_right_and_the_fastest_win() -> None:
    """The fake kernel is fastest at 128 columns; the default of this test has 256."""
    default, fast = candidate(columns=256), candidate()
    wrong = candidate(fake_kernel.WRONG, stages=1)
    crashing = candidate(fake_kernel.SEGFAULTS, stages=1)
    log = Log()
    with measurer() as opened:
        found = confirm(
            SHAPE,
            {8: [default, wrong, crashing, fast], 64: [fast, default]},
            opened,
            log,
            min_gain=0.01,
            seed=0,
            on_progress=nothing,
        ).selections
        assert found[8].winner.candidate == fast
        assert found[64].kept_incumbent
        outcomes = {t.candidate: t.measurement.outcome for t in log.trials[:4]}
        assert outcomes == {
            default: Outcome.OK,
            wrong: Outcome.WRONG_RESULT,
            crashing: Outcome.CRASH,
            fast: Outcome.OK,
        }
        # At 36 both keys are as near; two stages are 2.5 % faster there than the row of 8.
        checked = check_between(
            SHAPE,
            found,
            {8: default, 64: fast, 36: candidate(stages=2), 128: candidate(stages=9)},
            opened,
            log,
            seed=0,
            on_progress=nothing,
        )
    assert [(b.m, b.key, b.pinned) for b in checked.between] == [(36, 8, True), (128, 64, False)]
    assert set(checked.selections) == {8, 36, 64}
    assert checked.selections[36].winner.candidate == candidate(stages=2)
