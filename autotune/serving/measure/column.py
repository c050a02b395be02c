"""Measures every gamma of one running server: what else is set stays, the dial is turned.

The loads are interleaved: every round goes through all gammas, forwards and backwards in turn, so
that a device that slows down slows all of them. A gamma leaves when it can win nowhere any more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence

from autotune.core import Job, Outcome, Part
from autotune.serving.dial.dial import Dial
from autotune.serving.gate.judge import judged_details
from autotune.serving.measure.cell import Cell
from autotune.serving.measure.load import Level, LoadOptions, Served, UnservedError
from autotune.serving.measure.stopping import LEAST_REPEATS, Bar, cannot_win
from autotune.serving.measure.wire import Wire
from autotune.serving.scenario import SpecScenario

Take = Callable[[Cell], Mapping[int, Level]]


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
    cells = [Cell.of(job, wire, options) for job in jobs]
    scenario = cells[0].scenario
    for cell in cells:
        dial.turn(cell.gamma)
        cell.ask()
        cell.warm(range(scenario.repeats))
    for number in range(scenario.repeats):
        for cell in cells if number % 2 == 0 else cells[::-1]:
            if cell.stopped is not None:
                continue
            dial.turn(cell.gamma)
            try:
                for c in cell.levels:
                    yield from cell.repeat(c, number)
            except UnservedError as error:
                if error.outcome not in {Outcome.CANNOT_WIN, Outcome.SLO_MISSED}:
                    raise
                cell.stopped = error
        _leave(scenario, cells)
    return [cell.result() for cell in cells]


def _leave(scenario: SpecScenario, cells: Sequence[Cell]) -> None:
    """Stop what can win nowhere any more, neither in the mix nor in a slice of it.

    The ends stay, from which the rest is forecast.
    """
    going = [cell for cell in cells if cell.stopped is None]
    rounds = min(
        (len(level.repeats) for cell in going for level in cell.levels.values()), default=0
    )
    if scenario.objective == "pareto" or rounds < min(LEAST_REPEATS, scenario.repeats):
        return
    ends = {0, max(cell.gamma for cell in cells)}
    right = [cell for cell in going if _is_right(cell, cells)]
    views = [_whole, *(_slice(one.name) for one in scenario.slices if scenario.is_mixed)]
    bars = [(view, _bar(scenario, [view(cell) for cell in right])) for view in views]
    for cell in going:
        if cell.gamma in ends:
            continue
        lost = [
            cannot_win(scenario, {c: level.tok_s for c, level in view(cell).items()}, bar)
            for view, bar in bars
        ]
        if all(lost):
            cell.stopped = UnservedError(Outcome.CANNOT_WIN, str(lost[0]))


def _whole(cell: Cell) -> Mapping[int, Level]:
    return cell.levels


def _slice(name: str) -> Take:
    return lambda cell: {c: level.slices[name] for c, level in cell.levels.items()}


def _is_right(cell: Cell, cells: Sequence[Cell]) -> bool:
    """Whether a gamma says what the target says, as far as is known; another sets no bar."""
    plain = next((one for one in cells if one.gamma == 0), cell)
    judged = judged_details(cell.outputs, plain.outputs)
    return judged is None or judged.passes


def _bar(scenario: SpecScenario, measured: Sequence[Mapping[int, Level]]) -> Bar:
    rates: list[Mapping[int, float]] = [
        {c: float(level.as_json()["tok_s"]) for c, level in levels.items()} for levels in measured
    ]
    best = {c: max(one[c] for one in rates) for c in scenario.concurrency}
    return Bar(min(scenario.microseconds(one) for one in rates), best)
