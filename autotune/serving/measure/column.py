"""Measures every gamma of one running server: what else is set stays, the dial is turned.

The loads are interleaved: every round goes through all gammas, forwards and backwards in turn, so
that a device that slows down slows all of them. A gamma leaves when it can win nowhere any more.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from autotune.core import Job, Outcome, Part
from autotune.serving.dial.dial import Dial
from autotune.serving.dial.trust import check_counted
from autotune.serving.measure.client import Load
from autotune.serving.measure.counters import DraftCounters
from autotune.serving.measure.load import (
    Level,
    LoadOptions,
    Served,
    UnservedError,
    base_load,
    check,
    outputs_of,
    partial,
    served,
    since,
    timed,
    warm_up,
)
from autotune.serving.measure.repeats import Repeat, kept, part
from autotune.serving.measure.stopping import LEAST_REPEATS, Bar, Rules
from autotune.serving.measure.wire import Wire
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import SpecScenario


@dataclass
class _Cell:
    """One gamma: its job, what it said, and the repeats so far."""

    job: Job
    outputs: list[str] = field(default_factory=list)
    levels: dict[int, Level] = field(default_factory=dict)
    stopped: UnservedError | None = None

    @property
    def gamma(self) -> int:
        return self.job.candidate.int(GAMMA)


def measure_column(
    wire: Wire, jobs: Sequence[Job], dial: Dial, options: LoadOptions
) -> Generator[Part, None, list[Served | UnservedError]]:
    """Load one server at every gamma and concurrency, in rounds.

    Args:
        wire: to the server that the dial turns.
        jobs: the same scenario for candidates that differ in gamma alone.
        dial: of that server.
        options: prompts and time limits.

    Yields:
        Every repeat the moment it ends.

    Returns:
        By job, what was measured, or why it was stopped.

    Raises:
        UnservedError: the server died, hung or refuses requests: nothing more of any gamma.
        DialUnfitError: the server does not draft what the dial says.
    """
    scenario = cast("SpecScenario", jobs[0].workload)
    base = base_load(wire, scenario, options)
    cells = [_Cell(job, levels={c: Level(c) for c in scenario.concurrency}) for job in jobs]
    for cell in cells:
        dial.turn(cell.gamma)
        cell.outputs = outputs_of(wire, base)
        _warm(wire, base, cell, scenario)
    for number in range(scenario.repeats):
        for cell in cells if number % 2 == 0 else cells[::-1]:
            if cell.stopped is not None:
                continue
            dial.turn(cell.gamma)
            try:
                yield from _round(wire, base, cell, number)
            except UnservedError as error:
                if error.outcome not in {Outcome.CANNOT_WIN, Outcome.SLO_MISSED}:
                    raise
                cell.stopped = error
        _leave(scenario, cells)
    return [_result(wire, scenario, cell) for cell in cells]


def _load(base: Load, scenario: SpecScenario, concurrency: int) -> Load:
    return replace(base, concurrency=concurrency, requests=scenario.waves * concurrency)


def _warm(wire: Wire, base: Load, cell: _Cell, scenario: SpecScenario) -> None:
    """Each concurrency of which a repeat is still to be made."""
    for c in scenario.concurrency:
        if any(kept(cell.job, c, number) is None for number in range(scenario.repeats)):
            warm_up(wire, _load(base, scenario, c), f"warm-{cell.gamma}")


def _round(wire: Wire, base: Load, cell: _Cell, number: int) -> Generator[Part, None, None]:
    """One repeat at every concurrency, less those that the job brings."""
    scenario = cast("SpecScenario", cell.job.workload)
    for c, level in cell.levels.items():
        repeat = kept(cell.job, c, number)
        level.reused += repeat is not None
        if repeat is None:
            earlier = wire.metrics()
            load = _load(base, scenario, c)
            result = timed(wire, load, number, f"{cell.gamma}-{c}-{number}")
            counted = since(earlier, wire.metrics())
            repeat = Repeat.of(result, counted)
            drafts = None if repeat.drafts is None else _own(repeat.drafts, cell.gamma)
            repeat = replace(repeat, drafts=drafts)
            yield part(cell.job, c, number, repeat)
        level.repeats.append(repeat)
        check(scenario, cell.levels, level, cell.job.rules or Rules())


def _own(drafts: DraftCounters, gamma: int) -> DraftCounters | None:
    """The counters of ``gamma`` positions; the server counts those of the largest gamma.

    Raises:
        DialUnfitError: more was drafted than the dial says.
    """
    check_counted(drafts, gamma)
    if gamma == 0:
        return None
    return replace(drafts, accepted_by_position=drafts.accepted_by_position[:gamma])


def _leave(scenario: SpecScenario, cells: Sequence[_Cell]) -> None:
    """Stop what can win nowhere any more; the ends stay, from which the rest is forecast."""
    going = [cell for cell in cells if cell.stopped is None]
    rounds = min(
        (len(level.repeats) for cell in going for level in cell.levels.values()), default=0
    )
    if scenario.objective == "pareto" or rounds < min(LEAST_REPEATS, scenario.repeats):
        return
    ends = {0, max(cell.gamma for cell in cells)}
    bar = _bar(scenario, going)
    for cell in going:
        if cell.gamma in ends:
            continue
        try:
            for level in cell.levels.values():
                check(scenario, cell.levels, level, Rules(bar=bar))
        except UnservedError as error:
            cell.stopped = error


def _bar(scenario: SpecScenario, cells: Sequence[_Cell]) -> Bar:
    rates: list[Mapping[int, float]] = [
        {c: float(level.as_json()["tok_s"]) for c, level in cell.levels.items()} for cell in cells
    ]
    best = {c: max(one[c] for one in rates) for c in scenario.concurrency}
    return Bar(min(scenario.microseconds(one) for one in rates), best)


def _result(wire: Wire, scenario: SpecScenario, cell: _Cell) -> Served | UnservedError:
    if cell.stopped is not None:
        cell.stopped.details |= partial(cell.levels, cell.outputs)
        return cell.stopped
    return served(wire, scenario, cell.levels, cell.outputs)
