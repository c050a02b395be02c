"""Measures every gamma of one running server: what else is set stays, the dial is turned.

The loads are interleaved: every round goes through all gammas, forwards and backwards in turn, so
that a device that slows down slows all of them. A gamma leaves when it can win nowhere any more.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from autotune.core import Job, Outcome, Part
from autotune.serving.dial.dial import Dial
from autotune.serving.dial.trust import check_counted
from autotune.serving.gate.judge import judged_details
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
class Cell:
    """What one job is measured by: the wire, what was said, and the repeats so far."""

    job: Job
    wire: Wire
    base: Load
    options: LoadOptions
    outputs: dict[str, Any] = field(default_factory=dict)
    levels: dict[int, Level] = field(default_factory=dict)
    stopped: UnservedError | None = None

    @classmethod
    def of(cls, job: Job, wire: Wire, options: LoadOptions) -> Cell:
        """Make one of which nothing is measured yet."""
        scenario = cast("SpecScenario", job.workload)
        levels = {c: Level(c) for c in scenario.concurrency}
        return cls(job, wire, base_load(wire, scenario, options), options, levels=levels)

    @property
    def scenario(self) -> SpecScenario:
        """Return the load."""
        return cast("SpecScenario", self.job.workload)

    @property
    def gamma(self) -> int:
        """Return the drafted tokens."""
        return self.job.candidate.int(GAMMA)

    def load(self, concurrency: int) -> Load:
        """Return the load of one repeat."""
        requests = self.scenario.waves * concurrency
        return replace(self.base, concurrency=concurrency, requests=requests)

    def ask(self) -> None:
        """Take the outputs to compare."""
        self.outputs = outputs_of(self.wire, self.base, self.scenario, self.options)

    def warm(self, numbers: Iterable[int]) -> None:
        """Warm up at every concurrency of which one of these repeats is still to be made."""
        for c in self.levels:
            if any(kept(self.job, c, number) is None for number in numbers):
                warm_up(self.wire, self.load(c), f"warm-{self.gamma}")

    def repeat(self, concurrency: int, number: int) -> Generator[Part, None, None]:
        """Measure a repeat, unless the job brings it.

        Raises:
            UnservedError: it fails, or the rest is not worth its time.
            DialUnfitError: a dialled server drafts other than the dial says.
        """
        level, repeat = self.levels[concurrency], kept(self.job, concurrency, number)
        level.reused += repeat is not None
        if repeat is None:
            earlier = self.wire.metrics()
            salt = f"{self.gamma}-{concurrency}-{number}"
            result = timed(self.wire, self.load(concurrency), number, salt)
            repeat = Repeat.of(result, since(earlier, self.wire.metrics()))
            if self.scenario.dial and repeat.drafts is not None:
                repeat = replace(repeat, drafts=_own(repeat.drafts, self.gamma))
            yield part(self.job, concurrency, number, repeat)
        level.repeats.append(repeat)
        check(self.scenario, self.levels, level, self.job.rules or Rules())

    def result(self) -> Served | UnservedError:
        """Put together what was measured, or why it was stopped."""
        if self.stopped is not None:
            self.stopped.details |= partial(self.levels, self.outputs)
            return self.stopped
        return served(self.wire, self.scenario, self.levels, self.outputs)


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


def _own(drafts: DraftCounters, gamma: int) -> DraftCounters | None:
    """The counters of ``gamma`` positions; the server counts those of the largest gamma.

    Raises:
        DialUnfitError: more was drafted than the dial says.
    """
    check_counted(drafts, gamma)
    if gamma == 0:
        return None
    return replace(drafts, accepted_by_position=drafts.accepted_by_position[:gamma])


def _leave(scenario: SpecScenario, cells: Sequence[Cell]) -> None:
    """Stop what can win nowhere any more; the ends stay, from which the rest is forecast."""
    going = [cell for cell in cells if cell.stopped is None]
    rounds = min(
        (len(level.repeats) for cell in going for level in cell.levels.values()), default=0
    )
    if scenario.objective == "pareto" or rounds < min(LEAST_REPEATS, scenario.repeats):
        return
    ends = {0, max(cell.gamma for cell in cells)}
    bar = _bar(scenario, [cell for cell in going if _is_right(cell, cells)])
    for cell in going:
        if cell.gamma in ends:
            continue
        try:
            for level in cell.levels.values():
                check(scenario, cell.levels, level, Rules(bar=bar))
        except UnservedError as error:
            cell.stopped = error


def _is_right(cell: Cell, cells: Sequence[Cell]) -> bool:
    """Whether a gamma says what the target says, as far as is known; another sets no bar."""
    plain = next((one for one in cells if one.gamma == 0), cell)
    judged = judged_details(cell.outputs, plain.outputs)
    return judged is None or judged.passes


def _bar(scenario: SpecScenario, cells: Sequence[Cell]) -> Bar:
    rates: list[Mapping[int, float]] = [
        {c: float(level.as_json()["tok_s"]) for c, level in cell.levels.items()} for cell in cells
    ]
    best = {c: max(one[c] for one in rates) for c in scenario.concurrency}
    return Bar(min(scenario.microseconds(one) for one in rates), best)
