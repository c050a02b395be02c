"""Measures servers that are up at once on one device: their loads take turns, round by round.

What changes with time (clocks, temperature, another program) changes for all of them, so that the
ratio of two in a round is free of it. One server at a time works; the others wait.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from autotune.core import Outcome, Part
from autotune.serving.measure.cell import Cell
from autotune.serving.measure.load import Served, UnservedError
from autotune.serving.measure.repeats import part_name

NOTHING_BESIDE = "what it is compared with failed"


def measure_beside(cells: Sequence[Cell]) -> Generator[Part, None, list[Served | UnservedError]]:
    """Load every server at every concurrency, in rounds; each round begins with another server.

    Rounds that earlier servers of the same settings finished count as they are. One that was cut
    off is made anew, with further prompts: what is compared in it must be of one time.

    Args:
        cells: of one scenario, asked for their outputs; the first is what the others are compared
            with.

    Yields:
        Every repeat the moment it ends.

    Returns:
        By cell, what was measured, or why it was stopped.
    """
    home, rounds = cells[0], _rounds(cells)
    for cell in cells:
        try:
            if cell.stopped is None:
                cell.warm(rounds)
        except UnservedError as error:
            cell.stopped = error
    for turn, number in enumerate(rounds):
        first = turn % len(cells)
        for concurrency in home.levels:
            for cell in (*cells[first:], *cells[:first]):
                if cell.stopped is None and home.stopped is None:
                    yield from _repeat(cell, concurrency, number)
    for cell in cells:
        if home.stopped is not None and cell.stopped is None:
            cell.stopped = UnservedError(Outcome.RUNTIME_ERROR, NOTHING_BESIDE)
    return [cell.result() for cell in cells]


def _repeat(cell: Cell, concurrency: int, number: int) -> Generator[Part, None, None]:
    try:
        yield from cell.repeat(concurrency, number)
    except UnservedError as error:
        cell.stopped = error


def _rounds(cells: Sequence[Cell]) -> list[int]:
    """The numbers of the rounds: those that all cells have, then such as none has begun."""
    wanted, names = cells[0].scenario.loads, [set(cell.job.parts) for cell in cells]

    def known(number: int) -> list[bool]:
        return [
            part_name(c, number, one.name) in stored
            for stored in names
            for c in cells[0].scenario.concurrency
            for one in cells[0].scenario.slices
        ]

    found, number = list[int](), 0
    while len(found) < wanted:
        stored = known(number)
        if all(stored) or not any(stored):
            found.append(number)
        number += 1
    return found
