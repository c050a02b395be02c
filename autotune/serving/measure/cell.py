"""What one setting is measured by on a server that serves: outputs, warm-up, repeats, counters.

A load may have several slices, kinds of prompts and lengths of requests: each repeat sends them one
after the other, and what it says of all of them together is the mix.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

from autotune.core import Job, Outcome, Part
from autotune.machine.clocks import Reading, reading_clocks
from autotune.serving.dial.trust import check_counted
from autotune.serving.measure.client import Load
from autotune.serving.measure.counters import DraftCounters
from autotune.serving.measure.load import (
    Level,
    LoadOptions,
    Served,
    UnservedError,
    answered,
    base_load,
    check,
    outputs_of,
    partial,
    served,
    since,
    timed,
    warm_up,
)
from autotune.serving.measure.prompts import Prompt, lengthened
from autotune.serving.measure.repeats import Repeat, kept, part
from autotune.serving.measure.stopping import Rules
from autotune.serving.measure.wire import Wire
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import Slice, SpecScenario

_TEMPLATE = 256
"""Tokens that a chat template adds at most, taken generously."""


@dataclass
class Cell:
    """What one job is measured by: the wire, what was said, and the repeats so far."""

    job: Job
    wire: Wire
    base: Load
    options: LoadOptions
    outputs: dict[str, Any] = field(default_factory=dict)
    levels: dict[int, Level] = field(default_factory=dict)
    prompts: dict[Slice, tuple[Prompt, ...]] = field(default_factory=dict)
    stopped: UnservedError | None = None

    @classmethod
    def of(cls, job: Job, wire: Wire, options: LoadOptions) -> Cell:
        """Make one of which nothing is measured yet."""
        scenario = cast("SpecScenario", job.workload)
        names = [one.name for one in scenario.slices] if scenario.is_mixed else []
        levels = {
            c: Level(c, slices={name: Level(c) for name in names}) for c in scenario.concurrency
        }
        return cls(job, wire, base_load(wire, scenario, options), options, levels=levels)

    @property
    def scenario(self) -> SpecScenario:
        """Return the load."""
        return cast("SpecScenario", self.job.workload)

    @property
    def gamma(self) -> int:
        """Return the drafted tokens; 0 where they are not known, of a server that runs already."""
        value = self.job.candidate.params.get(GAMMA, 0)
        return value if isinstance(value, int) else 0

    def load(self, concurrency: int) -> Load:
        """Return the load of one slice of a repeat, with all prompts as they are."""
        requests = self.scenario.waves * concurrency
        return replace(self.base, concurrency=concurrency, requests=requests)

    def ask(self) -> None:
        """Take the outputs to compare, and make the prompts of every slice."""
        self.outputs = outputs_of(self.wire, self.base, self.scenario, self.options)
        self.prompts = prompts_by_slice(self.wire, self.base, self.scenario)

    def ask_or_stop(self) -> None:
        """Do as :meth:`ask`; why it fails is kept."""
        try:
            self.ask()
        except UnservedError as error:
            self.stopped = error

    def warm(self, numbers: Iterable[int], levels: Iterable[int] | None = None) -> None:
        """Warm up at concurrencies of which one of these repeats is still to be made.

        Kinds of prompts differ in their words; what has kernels and graphs of its own is a length.
        """
        for c in self.levels if levels is None else levels:
            if all(self._kept(c, number) for number in numbers):
                continue
            for length in dict.fromkeys(one.context for one in self.prompts):
                same = [p for one, p in self.prompts.items() if one.context == length]
                turns = [prompt for turn in zip(*same, strict=False) for prompt in turn]
                load = replace(self.load(c), prompts=turns)
                warm_up(self.wire, load, _named(f"warm-{self.gamma}", length))

    def _kept(self, concurrency: int, number: int) -> bool:
        names = (one.name for one in self.scenario.slices)
        return all(kept(self.job, concurrency, number, name) is not None for name in names)

    def repeat(self, concurrency: int, number: int) -> Generator[Part, None, None]:
        """Measure a repeat, less what the job brings of it.

        Raises:
            UnservedError: it fails, or the rest is not worth its time.
            DialUnfitError: a dialled server drafts other than the dial says.
        """
        level, made = self.levels[concurrency], []
        level.reused += self._kept(concurrency, number)
        for one in self.scenario.slices:
            repeat = kept(self.job, concurrency, number, one.name)
            if repeat is None:
                repeat = self._measured(one, concurrency, number)
                yield part(self.job, concurrency, number, repeat, one.name)
            made.append(repeat)
        for own, repeat in zip(level.slices.values(), made, strict=False):
            own.repeats.append(repeat)
        level.repeats.append(Repeat.together(made))
        check(self.scenario, self.levels, level, self.job.rules or Rules())

    def _measured(self, one: Slice, concurrency: int, number: int) -> Repeat:
        load = replace(self.load(concurrency), prompts=self.prompts[one])
        earlier = self.wire.metrics()
        salt = _named(f"{self.gamma}-{concurrency}-{number}", one.name)
        with reading_clocks() if self.options.clocks else nullcontext(list[Reading]()) as clocks:
            result = timed(self.wire, load, number, salt)
        repeat = Repeat.of(result, since(earlier, self.wire.metrics()), clocks)
        if self.scenario.dial and repeat.drafts is not None:
            return replace(repeat, drafts=_own(repeat.drafts, self.gamma))
        return repeat

    def result(self) -> Served | UnservedError:
        """Put together what was measured, or why it was stopped."""
        if self.stopped is not None:
            self.stopped.details |= partial(self.levels, self.outputs)
            return self.stopped
        return served(self.wire, self.scenario, self.levels, self.outputs)


def measure_server(wire: Wire, job: Job, options: LoadOptions) -> Generator[Part, None, Served]:
    """Warm up and load the server at every concurrency of the scenario.

    Args:
        wire: to the server that serves the candidate.
        job: the scenario, the repeats that need not be made again, and the
            :class:`~autotune.serving.measure.stopping.Rules` that may stop it half-way.
        options: prompts and time limits.

    Yields:
        Every repeat the moment it ends.

    Raises:
        UnservedError: it died, hung, refused requests, accepts none of what is drafted, or was
            stopped; its details have the levels measured until then as ``partial``.
    """
    cell = Cell.of(job, wire, options)
    repeats = range(cell.scenario.repeats)
    try:
        cell.ask()
        for concurrency in cell.levels:
            cell.warm(repeats, [concurrency])
            for number in repeats:
                yield from cell.repeat(concurrency, number)
    except UnservedError as error:
        error.details |= partial(cell.levels, cell.outputs)
        raise
    return served(wire, cell.scenario, cell.levels, cell.outputs)


def measure_whole(wire: Wire, job: Job, options: LoadOptions) -> Served:
    """Do as :func:`measure_server` where nobody keeps the repeats."""
    measuring = measure_server(wire, job, options)
    while True:
        try:
            next(measuring)
        except StopIteration as end:
            return cast("Served", end.value)


def prompts_by_slice(
    wire: Wire, base: Load, scenario: SpecScenario
) -> dict[Slice, tuple[Prompt, ...]]:
    """The prompts of every slice; those of a given length have texts to read before the question.

    How many tokens a text has only the server knows: it is asked for two answers to each kind.

    Raises:
        UnservedError: it does not answer, or does not count tokens.
    """
    kinds = {
        kind: tuple(p for p in base.prompts if not scenario.kinds or p.kind == kind)
        for kind in scenario.kinds or ("",)
    }
    if not scenario.context:
        return {one: kinds[one.kind] for one in scenario.slices}
    found = {
        Slice(kind, context): longer
        for kind, prompts in kinds.items()
        for context, longer in of_lengths(
            wire, base, prompts, scenario.context, scenario.max_tokens
        ).items()
    }
    return {one: found[one] for one in scenario.slices}


def of_lengths(
    wire: Wire, base: Load, prompts: tuple[Prompt, ...], lengths: tuple[int, ...], max_tokens: int
) -> dict[int, tuple[Prompt, ...]]:
    """Give prompts texts to read, so that requests have so many tokens with their answers.

    Args:
        wire: to the server, which alone knows how many tokens a text has.
        base: model and limits of requests.
        prompts: of one kind.
        lengths: ascending.
        max_tokens: of an answer.

    Raises:
        UnservedError: it does not answer, or does not count tokens.
    """
    room = lengths[0] - max_tokens - _TEMPLATE
    filler = "\n\n".join(prompt.text for prompt in prompts)
    sample = filler.encode()[: max(room, 64)].decode(errors="ignore")
    short, long = _tokens(wire, base, (prompts[0], prompts[0].after(sample)))
    each = (long - short) / len(sample)
    if each <= 0:
        raise UnservedError(
            Outcome.CONSTRAINT, "--context: the server does not count the tokens of a prompt"
        )
    template = max(short - each * len(prompts[0].text), 0)
    return {
        length: lengthened(prompts, int((length - max_tokens - template) / each))
        for length in lengths
    }


def _tokens(wire: Wire, base: Load, prompts: tuple[Prompt, Prompt]) -> tuple[int, int]:
    load = replace(base, prompts=prompts, requests=2, concurrency=1, max_tokens=1)
    short, long = (record.prompt_tokens for record in answered(wire, load, "lengths").records)
    return short, long


def _named(salt: str, part: object) -> str:
    return f"{salt}-{part}" if part else salt


def _own(drafts: DraftCounters, gamma: int) -> DraftCounters | None:
    """The counters of ``gamma`` positions; the server counts those of the largest gamma.

    Raises:
        DialUnfitError: more was drafted than the dial says.
    """
    check_counted(drafts, gamma)
    if gamma == 0:
        return None
    return replace(drafts, accepted_by_position=drafts.accepted_by_position[:gamma])
