"""What is asked of a server that serves, and what its answers come to at each concurrency."""

from __future__ import annotations

import secrets
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autotune.core import Outcome, digest
from autotune.machine.clocks import extremes
from autotune.serving.gate.texts import texts_details
from autotune.serving.measure.client import Load
from autotune.serving.measure.counters import DraftCounters
from autotune.serving.measure.metrics import ServerMetrics
from autotune.serving.measure.prompts import Prompt
from autotune.serving.measure.repeats import Repeat, drafts_of
from autotune.serving.measure.stopping import LEAST_REPEATS, Rules, cannot_win, slo_missed
from autotune.serving.measure.timing import LoadResult
from autotune.serving.measure.wire import Wire
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.server import Server

WARMUPS = 4
"""Loads at most before the timed ones of a concurrency."""
STEADY = 0.1
"""Warm when two loads in a row differ by less than this share."""
OUTPUTS = 20
"""Prompts of which the outputs are compared with and without speculation, at most."""
OUTPUT_TOKENS = 10
"""Tokens of each compared, as in vLLM's own MTP test (tests/v1/e2e/spec_decode): longer greedy
outputs part over rounding even where nothing is wrong."""
NOTHING_ACCEPTED = 0.02
"""Acceptance at position 0 below which the drafter does not fit; drafting then only costs."""
_LEAST_DRAFTS = 20


@dataclass(frozen=True)
class LoadOptions:
    """What is sent.

    Attributes:
        prompts: of all loads.
        request_timeout_s: wall time that a request may take.
        check_tokens: of each text that the gate on outputs judges (``gate/``); 0 for none.
        clocks: whether the GPU of this machine serves, so that its clocks are read in the loads.
    """

    prompts: tuple[Prompt, ...]
    request_timeout_s: float = 600.0
    check_tokens: int = 0
    clocks: bool = False


class UnservedError(Exception):
    """A server came up but its setting has no value; ``outcome`` and ``details`` say more."""

    def __init__(
        self, outcome: Outcome, message: str, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.outcome, self.details = outcome, details or {}


@dataclass(frozen=True)
class Served:
    """µs per output token, over all repeats and of each, and JSON values for the store."""

    value: float
    samples: tuple[float, ...]
    details: dict[str, Any]


@dataclass
class Level:
    """The repeats at one concurrency and what the server counted during them."""

    concurrency: int
    repeats: list[Repeat] = field(default_factory=list)
    missed: str | None = None
    """The SLO that is not met, where that does not end the measurement."""
    reused: int = 0
    """Repeats that an earlier run had finished."""
    slices: dict[str, Level] = field(default_factory=dict)
    """The same by slice of the load, where it has several."""

    @property
    def results(self) -> list[LoadResult]:
        """Return the loads."""
        return [repeat.result for repeat in self.repeats]

    @property
    def tok_s(self) -> list[float]:
        """Return the output tokens per second of every repeat."""
        return [result.summary().tok_s for result in self.results]

    @property
    def drafts(self) -> DraftCounters | None:
        """Of all repeats; None where one of them counted none."""
        return drafts_of(self.repeats)

    @property
    def preemptions(self) -> int | None:
        """Return those of all repeats; None where one of them counted none."""
        counted = [repeat.preemptions for repeat in self.repeats]
        return None if None in counted else sum(n for n in counted if n is not None)

    def as_json(self) -> dict[str, Any]:
        """Rates in tokens per second, times in ms; ``tok_s`` is the median over the repeats.

        vLLM compiles kernels at their first use, which costs a repeat a second here and there.
        """
        pooled = LoadResult(
            tuple(record for result in self.results for record in result.records),
            self.concurrency,
            sum(result.duration_s for result in self.results),
            sum(result.client_cpu_s for result in self.results),
        )
        summary = pooled.summary()
        found = summary.as_json() | {
            "tok_s": statistics.median(self.tok_s),
            "tok_s_std": statistics.pstdev(self.tok_s),
            "repeats": self.tok_s,
            "client_cpu_s": pooled.client_cpu_s,
        }
        if self.preemptions is not None:
            found["preemptions"] = self.preemptions
        if self.missed is not None:
            found["slo_missed"] = self.missed
        return found | acceptance(self.drafts, summary.output_tokens - summary.completed)


def acceptance(drafts: DraftCounters | None, generated: int) -> dict[str, Any]:
    """Acceptance as JSON values; empty without speculation, or where nothing was drafted.

    ``reached`` is per draft, ``per_step`` over all steps (see :class:`DraftCounters`).

    Args:
        drafts: what was counted.
        generated: output tokens without each request's first.
    """
    if drafts is None or drafts.reached is None:
        return {}
    try:
        per_step = drafts.per_step(generated)
    except ValueError:  # a step may accept more tokens than max_tokens let through
        per_step = drafts.reached
    return {
        "reached": list(drafts.reached),
        "per_step": list(per_step),
        "acceptance_length": drafts.acceptance_length,
    }


def base_load(wire: Wire, scenario: SpecScenario, options: LoadOptions) -> Load:
    """What all loads of a scenario share; they differ in concurrency, requests and salt."""
    server = wire.server
    return Load(
        server.url,
        server.model,
        options.prompts,
        requests=1,
        concurrency=1,
        max_tokens=scenario.max_tokens,
        ignore_eos=scenario.ignore_eos,
        chat=scenario.chat,
        timeout_s=options.request_timeout_s,
        headers=server.headers,
        cache_salt=secrets.token_hex(8),  # a server that runs on knows the prompts of earlier loads
    )


def partial(levels: Mapping[int, Level], outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Details of a measurement that was stopped."""
    begun = {c: level for c, level in levels.items() if level.repeats}
    found = {str(c): level.as_json() for c, level in begun.items()}
    return {"partial": found, **_by_slice(begun), **outputs, **_clocks(begun)}


def _clocks(levels: Mapping[int, Level]) -> dict[str, Any]:
    """The least and the most that was read of the GPU, as details; empty where nothing was."""
    repeats = [repeat for level in levels.values() for repeat in level.repeats]
    found = extremes(reading for repeat in repeats for reading in repeat.clocks)
    return {"clocks": found} if found else {}


def _by_slice(levels: Mapping[int, Level]) -> dict[str, Any]:
    """The levels of each slice of a load that has several, as details."""
    names = next((tuple(level.slices) for level in levels.values()), ())
    found = {
        name: {str(c): level.slices[name].as_json() for c, level in levels.items()}
        for name in names
    }
    return {"slices": found} if found else {}


def served(
    wire: Wire, scenario: SpecScenario, levels: Mapping[int, Level], outputs: Mapping[str, Any]
) -> Served:
    """Put together what all repeats at all concurrencies say."""
    rates = [level.tok_s for level in levels.values()]
    samples = tuple(
        scenario.microseconds(dict(zip(levels, repeat, strict=True)))
        for repeat in zip(*rates, strict=True)
    )
    middles = {c: statistics.median(level.tok_s) for c, level in levels.items()}
    reading = wire.metrics()
    details = {
        "levels": {str(c): level.as_json() for c, level in levels.items()},
        **_by_slice(levels),
        **outputs,
        **_clocks(levels),
        "memory_bytes": wire.server.memory_bytes(),
        "kv_cache_tokens": reading.kv_cache_tokens if reading else None,
        "slo_missed": [level.missed for level in levels.values() if level.missed],
        "repeats_of_earlier_runs": sum(level.reused for level in levels.values()),
    }
    return Served(scenario.microseconds(middles), samples, details)


def outputs_of(
    wire: Wire, base: Load, scenario: SpecScenario, options: LoadOptions
) -> dict[str, Any]:
    """What the server says, as details of its measurement.

    ``outputs`` are digests of the first ten tokens, one for each of the first prompts. ``texts``
    are what the gate judges (``gate/``), in the search and in the first round of fresh boots.
    """
    asked = min(OUTPUTS, len(base.prompts))
    load = replace(base, requests=asked, max_tokens=OUTPUT_TOKENS, ignore_eos=False)
    outputs = [digest(record.text) for record in answered(wire, load).records]
    tokens = options.check_tokens if scenario.round <= 1 else 0
    return {"outputs": outputs, **texts_details(wire, base, tokens, scenario.concurrency[-1])}


def timed(wire: Wire, load: Load, number: int, salt: str) -> LoadResult:
    """The load of repeat ``number``: its prompts are the same for every candidate."""
    prompts = turned(load.prompts, number * load.requests)
    return answered(wire, replace(load, prompts=prompts), salt)


def warm_up(wire: Wire, load: Load, name: str = "warm") -> None:
    """Until two loads in a row are about as fast.

    As many requests as the timed ones have: only where some begin while others go on are there
    batches of every size, and each may need a kernel that is compiled then.
    """
    rate = 0.0
    for warmup in range(WARMUPS):
        salt = f"{name}-{load.concurrency}-{warmup}"
        before, rate = rate, answered(wire, load, salt).summary().tok_s
        if abs(rate - before) < STEADY * rate:
            break


def check(scenario: SpecScenario, levels: Mapping[int, Level], level: Level, rules: Rules) -> None:
    """Whether the measurement is worth going on with, after one more repeat at ``level``.

    Raises:
        UnservedError: it is not.
    """
    if len(level.repeats) == 1:
        _check_accepted(level)
    records = [record for result in level.results for record in result.records]
    planned = scenario.loads * len(scenario.slices) * scenario.waves * level.concurrency
    missed = slo_missed(rules.slo, records, planned)
    if missed is not None:
        level.missed = f"{missed} at concurrency {level.concurrency}"
        if not rules.to_the_end:
            raise UnservedError(Outcome.SLO_MISSED, level.missed)
    if rules.bar is not None and len(level.repeats) >= min(LEAST_REPEATS, scenario.repeats):
        lost = cannot_win(scenario, {c: one.tok_s for c, one in levels.items()}, rules.bar)
        if lost is not None:
            raise UnservedError(Outcome.CANNOT_WIN, lost)


def since(earlier: ServerMetrics | None, now: ServerMetrics | None) -> ServerMetrics | None:
    """What was counted in between; None where the counters cannot be read or belong together."""
    if earlier is None or now is None:
        return None
    try:
        return now.since(earlier)
    except ValueError:
        return None


def turned(prompts: Sequence[Prompt], by: int) -> tuple[Prompt, ...]:
    """Every repeat goes on where the one before ended, the same for every candidate."""
    start = by % len(prompts)
    return (*prompts[start:], *prompts[:start])


def answered(wire: Wire, load: Load, salt: str = "outputs") -> LoadResult:
    """A load of which every request is answered.

    Raises:
        UnservedError: one was not.
    """
    result = wire.load(replace(load, cache_salt=f"{salt}-{load.cache_salt}"))
    check_answered(wire.server, result)
    if not result.summary().output_tokens:
        raise UnservedError(Outcome.WRONG_RESULT, "the server generated no token")
    return result


def check_answered(server: Server, result: LoadResult) -> None:
    """See that every request was answered.

    Raises:
        UnservedError: one was not, because the server died or hangs, or for the reason it gave.
    """
    errors = result.errors()
    if not errors:
        return
    failure = server.failure(stalled=any("no full answer within" in error for error in errors))
    if failure is not None:
        raise UnservedError(failure.outcome, failure.line, {"failure": failure.kind.value})
    raise UnservedError(Outcome.RUNTIME_ERROR, f"a request failed: {errors[0]}")


def _check_accepted(level: Level) -> None:
    """Whether drafting can pay at all.

    Raises:
        UnservedError: next to nothing of it is accepted.
    """
    drafts = level.drafts
    if drafts is None or drafts.reached is None or drafts.drafts < _LEAST_DRAFTS:
        return
    if drafts.reached[0] < NOTHING_ACCEPTED:
        raise UnservedError(
            Outcome.CONSTRAINT,
            f"position 0 accepted {drafts.reached[0]:.1%} of {drafts.drafts} drafts: the drafter "
            "does not fit this target; stopped early",
            {"nothing_accepted": True, "reached": list(drafts.reached)},
        )
