"""After the search: the best and the baseline on servers that are up at once, loads in turn.

Boots that followed each other were up to 47 % apart; two of one setting, side by side, 0.7 %
(docs/lab/h200.md). So where the memory holds the rivals together they are compared like that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from autotune.core import (
    BadInputError,
    Candidate,
    Group,
    MissingEnvironmentError,
    Outcome,
    Phase,
    SideBySide,
    Trial,
    digest,
)
from autotune.decide.stats import LEAST_PAIRS, paired_ratio
from autotune.machine.memory import MemoryKind
from autotune.serving.cluster.launcher import GroupLauncher
from autotune.serving.decide.confirm import Confirmed, Contest, Way, chosen_of, confirm
from autotune.serving.memory.together import Load, cache_bytes, how_many_fit
from autotune.serving.plan import AUTO, IN_TURN, SIDE_BY_SIDE, Plan
from autotune.serving.recipe import GAMMA, UTILIZATION
from autotune.serving.scenario import Beside
from autotune.tune import Progress, compared
from autotune.util.words import counted

_SHORT = {Outcome.OUT_OF_MEMORY, Outcome.HOST_MEMORY}


class NotTogetherError(Exception):
    """The servers cannot be up at once after all; the message says why."""


def confirm_either_way(
    plan: Plan, contest: Contest, dialled: Mapping[Candidate, Trial]
) -> Confirmed:
    """Compare side by side where that is wanted and there is room; else in turns.

    Args:
        plan: what was asked.
        contest: who meets the baseline again.
        dialled: trials of the dialled server; empty where each setting had a boot.

    Raises:
        NoFeasibleCandidateError: tasks could not be evaluated without speculation.
        MissingEnvironmentError: side by side was asked for, and there is no room.
    """
    way = Way(why="what measures here has one server up at a time")
    if isinstance(contest.measurer, SideBySide):
        way = way_of(plan, contest.finalists, contest.beside, dialled)
    if plan.confirm == SIDE_BY_SIDE and way.beside is None:
        raise MissingEnvironmentError(
            f"--confirm {SIDE_BY_SIDE}: {way.why}; what was measured is kept, and --confirm "
            f"{IN_TURN} goes on with one server after the other"
        )
    if way.beside is not None:
        try:
            room = partial(_room, plan)
            return confirm_side_by_side(contest, way, room, falls_back=plan.confirm == AUTO)
        except NotTogetherError as error:
            way = Way(why=f"tried, and given up: {error}")
    return replace(confirm(contest, plan.confirm_rounds), way=way)


def way_of(
    plan: Plan,
    finalists: Sequence[Candidate],
    beside: Sequence[Candidate],
    dialled: Mapping[Candidate, Trial],
) -> Way:
    """Say whether the rivals fit into the memory together, and which of them are compared.

    Where a dial compared all gammas on one server, what it showed to be slower than the best needs
    no server of its own, and where there is no room for the second best it goes without one.

    Args:
        plan: what was asked.
        finalists: the best first.
        beside: what is booted in any case.
        dialled: trials of the dialled server; empty where each setting had a boot.
    """
    if plan.confirm == IN_TURN:
        return Way(why=f"asked for (--confirm {IN_TURN})")
    if plan.confirm == AUTO and plan.memory.kind is MemoryKind.UNIFIED:
        # A machine that hangs here has begun a boot of every rival, the baseline's too.
        return Way(
            why="on memory that host and GPU share, a server too many freezes the machine; "
            f"--confirm {SIDE_BY_SIDE} asks for it"
        )
    if isinstance(plan.launcher, GroupLauncher):
        return Way(why="vLLM's Ray executor has each GPU for one server at a time")
    close = _close(finalists, dialled)
    order = [plan.baseline, *beside, *close]
    try:
        kv_bytes, fitting = _room(plan, order)
    except BadInputError as error:
        return Way(why=str(error))
    needed = len(order) if not dialled else 1 + len(beside) + bool(close)
    if fitting < needed:
        where = plan.memory.where
        return Way(why=f"{where} holds {counted(fitting, 'server')} at once, not {needed}")
    rivals = order[1:fitting]
    left_out = tuple(c for c in finalists if c not in rivals)
    rounds = max(LEAST_PAIRS, plan.confirm_rounds * plan.scenario.repeats)
    crowded = tuple(c for c in left_out if c in close)
    return Way(Beside("", rounds, kv_bytes), left_out=left_out, crowded=crowded)


def room_beside_the_dial(plan: Plan) -> tuple[Candidate, int] | None:
    """Size the KV caches with which the baseline's server can start while the dialled one does.

    What vLLM compiles for it is cached then when its turn comes, in the confirmation.

    Returns:
        The baseline, and bytes of each cache; None where it is not done: no dial, no confirmation
        side by side, no room for two, or a share of the memory that is compared.
    """
    if not plan.dial or plan.confirm == IN_TURN or plan.memory.kind is not MemoryKind.GPU:
        return None
    if plan.nodes is not None or UTILIZATION in dict(plan.space.parameters):
        return None
    most = max(plan.column, key=lambda candidate: candidate.int(GAMMA))
    try:
        kv_bytes, fitting = _room(plan, [most, plan.baseline])
    except BadInputError:
        return None
    return (plan.baseline, kv_bytes) if fitting == 2 else None


def _close(finalists: Sequence[Candidate], dialled: Mapping[Candidate, Trial]) -> list[Candidate]:
    """Leave out what the dial showed to be slower than the best finalist, in paired rounds."""
    samples = {c: t.measurement.samples for c, t in dialled.items()}
    best = finalists[0] if finalists else None
    if best not in samples:
        return list(finalists)

    def is_slower(other: Candidate) -> bool:
        ours, theirs = samples.get(other, ()), samples[best]
        return len(ours) == len(theirs) and paired_ratio(ours, theirs).low > 1

    return [best, *(c for c in finalists[1:] if not is_slower(c))]


def _room(plan: Plan, order: Sequence[Candidate]) -> tuple[int, int]:
    """Bytes of KV cache for each server, and how many of them fit at once.

    Raises:
        BadInputError: they cannot be given the same room, or how much they take is not known.
    """
    settings = [plan.recipe.settings(c) for c in order]
    load = Load.of(plan.prompts, plan.scenario)
    sizes = [cache_bytes(plan.pair, one, load, plan.memory.kind) for one in settings]
    if len({one.gpu_memory_utilization for one in settings}) > 1:
        raise BadInputError("what is compared differs in the memory that it is given")
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise BadInputError("the length that the server takes is not known (--max-model-len)")
    most = max(known)
    return most, len(order) if plan.force else how_many_fit(plan.pair, settings, most, plan.memory)


Room = Callable[[Sequence[Candidate]], tuple[int, int]]
"""Of settings: the bytes of KV cache that each is given, and how many of them fit at once."""


def confirm_side_by_side(contest: Contest, way: Way, room: Room, *, falls_back: bool) -> Confirmed:
    """Compare all on servers that are up at once; then choose, as in turns.

    A finalist that is out is replaced by one that was left out, or else by ``instead_of`` it, and
    all are compared again: only what has samples of one time can be paired.

    Args:
        contest: who, except what ``way`` leaves out.
        way: how much room and how many rounds there are.
        room: sizes the caches anew where one takes the place of another; raises BadInputError.
        falls_back: whether to give up where memory, or the baseline's server, speaks against it.

    Raises:
        NotTogetherError: it was given up.
        NoFeasibleCandidateError: tasks could not be evaluated without speculation.
    """
    home, fell, dropped = contest.home, dict[Candidate, list[str]](), dict[Candidate, Trial]()
    rivals = [c for c in contest.finalists if c not in way.left_out]
    waiting = deque(way.left_out)
    while True:
        way, found = _compared(contest, way, [home, *rivals, *contest.beside])
        first = found[home]
        if falls_back:
            _check_together(found, home)
        if first.measurement.outcome is not Outcome.OK:
            why = first.measurement.message or first.measurement.outcome.value
            trials = {c: [t] for c, t in found.items()}
            return Confirmed(contest.unchanged(), trials, {}, (), fell, dropped, why, way)
        contest.check_scores(first)
        fell |= {c: said for c, t in found.items() if (said := contest.said_against(first, t))}
        out = [c for c in rivals if found[c].measurement.outcome is not Outcome.OK or c in fell]
        dropped |= {c: found.pop(c) for c in out}
        rivals = [c for c in rivals if c not in out]
        places = len(dropped) <= len(contest.finalists)
        nexts = (waiting.popleft() if waiting else contest.instead_of(c) for c in out if places)
        able = [home, *contest.beside, *rivals]
        way, others = _with_room(way, room, able, filter(None, nexts))
        if not others:
            break
        rivals = rivals + others
    compared = {c: found[c] for c in (home, *rivals)}
    chosen = chosen_of(contest, compared, {c: [t] for c, t in found.items()})
    return replace(chosen, fell=fell, dropped=dropped, way=way)


def _with_room(
    way: Way, room: Room, able: Sequence[Candidate], others: Iterable[Candidate]
) -> tuple[Way, list[Candidate]]:
    """Choose those who fit beside the able, and size the caches for all of them."""
    beside, taken = way.beside, list[Candidate]()
    for other in others:
        try:
            needed, fitting = room([*able, *taken, other])
        except BadInputError:  # it cannot be given the same room
            continue
        if beside is not None and fitting > len(able) + len(taken):
            beside = replace(beside, kv_bytes=needed)
            taken.append(other)
    left_out = tuple(c for c in way.left_out if c not in taken)
    crowded = tuple(c for c in way.crowded if c not in taken)
    return replace(way, beside=beside, left_out=left_out, crowded=crowded), taken


def _compared(
    contest: Contest, way: Way, candidates: Sequence[Candidate]
) -> tuple[Way, dict[Candidate, Trial]]:
    """One group, from the store where it holds all of it.

    Raises:
        TypeError: a measurer that compares nothing, or no room for it.
    """
    if way.beside is None or not isinstance(contest.measurer, SideBySide):
        raise TypeError("nothing can be compared side by side")
    beside = replace(way.beside, rivals=digest(sorted(c.key for c in candidates)))
    workload = contest.scenario.side_by_side(beside)

    def stored() -> dict[Candidate, Trial]:
        return {t.candidate: t for t in contest.log.load(workload, Phase.CONFIRM)}

    reused = {*candidates} <= stored().keys()
    if not reused:
        groups = [Group(workload, tuple(candidates), 0)]
        (measured,) = compared(groups, contest.measurer, contest.log, check=True)
        for candidate in candidates:
            trial = Trial(candidate, workload.key, Phase.CONFIRM, 0, measured[candidate])
            contest.log.append(workload, trial)
    known = stored()
    found = {c: known[c] for c in candidates}
    for trial in found.values():
        contest.on_progress(Progress(workload, trial, reused))
    return replace(way, beside=beside), found


def _check_together(found: Mapping[Candidate, Trial], home: Candidate) -> None:
    """See that nothing failed for want of memory, and that there is something to compare with.

    Raises:
        NotTogetherError: it did; one after the other may work.
    """
    short = [t for t in found.values() if t.measurement.outcome in _SHORT]
    for trial in (*short, found[home]):
        if trial.measurement.outcome is not Outcome.OK:
            raise NotTogetherError(trial.measurement.message or trial.measurement.outcome.value)
