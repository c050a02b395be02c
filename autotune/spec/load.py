"""What is done with a server that serves: outputs to compare, warm-up, repeats, counters."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autotune.core import Outcome, digest
from autotune.spec.client import Load, run_load
from autotune.spec.counters import DraftCounters
from autotune.spec.metrics import ServerMetrics, server_metrics
from autotune.spec.prompts import Prompt
from autotune.spec.scenario import SpecScenario
from autotune.spec.server import Server
from autotune.spec.timing import LoadResult

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
    """What is sent. ``request_timeout_s`` is the wall time that a request may take."""

    prompts: tuple[Prompt, ...]
    request_timeout_s: float = 600.0


class UnservedError(Exception):
    """A server came up but its setting has no value; ``outcome`` and ``details`` say more."""

    def __init__(
        self, outcome: Outcome, message: str, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.outcome, self.details = outcome, details or {}


@dataclass(frozen=True)
class Served:
    """µs per output token of every repeat, and JSON values for the store."""

    samples: tuple[float, ...]
    details: dict[str, Any]


@dataclass
class _Level:
    """The repeats at one concurrency and what the server counted during them."""

    concurrency: int
    results: list[LoadResult] = field(default_factory=list)
    counted: ServerMetrics | None = None

    @property
    def tok_s(self) -> list[float]:
        return [result.summary().tok_s for result in self.results]

    def as_json(self) -> dict[str, Any]:
        """Rates in tokens per second, times in ms; ``tok_s`` is the mean over the repeats."""
        pooled = LoadResult(
            tuple(record for result in self.results for record in result.records),
            self.concurrency,
            sum(result.duration_s for result in self.results),
            sum(result.client_cpu_s for result in self.results),
        )
        summary = pooled.summary()
        found = summary.as_json() | {
            "tok_s": statistics.fmean(self.tok_s),
            "tok_s_std": statistics.pstdev(self.tok_s),
            "repeats": self.tok_s,
            "client_cpu_s": pooled.client_cpu_s,
        }
        if self.counted is not None:
            found["preemptions"] = self.counted.preemptions
            found |= acceptance(self.counted.drafts, summary.output_tokens - summary.completed)
        return found


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


def measure_server(server: Server, scenario: SpecScenario, options: LoadOptions) -> Served:
    """Warm up and load the server at every concurrency of the scenario.

    Raises:
        UnservedError: it died, hung, refused requests, or accepts none of what is drafted.
    """
    base = Load(
        server.url,
        server.model,
        options.prompts,
        requests=1,
        concurrency=1,
        max_tokens=scenario.max_tokens,
        ignore_eos=scenario.ignore_eos,
        chat=scenario.chat,
        timeout_s=options.request_timeout_s,
    )
    outputs = _outputs(server, base)
    levels = {c: _level(server, base, scenario, c) for c in scenario.concurrency}
    rates = [level.tok_s for level in levels.values()]
    samples = tuple(
        scenario.microseconds(dict(zip(levels, repeat, strict=True)))
        for repeat in zip(*rates, strict=True)
    )
    reading = server_metrics(server.url)
    details = {
        "levels": {str(c): level.as_json() for c, level in levels.items()},
        "outputs": outputs,
        "memory_bytes": server.memory_bytes(),
        "kv_cache_tokens": reading.kv_cache_tokens if reading else None,
    }
    return Served(samples, details)


def _outputs(server: Server, base: Load) -> list[str]:
    """Digests of the greedy outputs, one for each of the first prompts."""
    asked = min(OUTPUTS, len(base.prompts))
    load = replace(base, requests=asked, max_tokens=OUTPUT_TOKENS, ignore_eos=False)
    return [digest(record.text) for record in _run(server, load).records]


def _level(server: Server, base: Load, scenario: SpecScenario, concurrency: int) -> _Level:
    """The warm-up and the repeats at one concurrency."""
    load = replace(base, concurrency=concurrency, requests=concurrency)
    rate = 0.0
    for warmup in range(WARMUPS):
        before, rate = rate, _run(server, load, f"warm-{concurrency}-{warmup}").summary().tok_s
        if abs(rate - before) < STEADY * rate:
            break
    level = _Level(concurrency)
    requests = scenario.waves * concurrency
    earlier = server_metrics(server.url)
    for repeat in range(scenario.repeats):
        prompts = _turned(base.prompts, repeat * requests)
        timed = replace(load, requests=requests, prompts=prompts)
        level.results.append(_run(server, timed, f"{concurrency}-{repeat}"))
        level.counted = _since(earlier, server_metrics(server.url))
        if repeat == 0:
            _check_accepted(level)
    return level


def _since(earlier: ServerMetrics | None, now: ServerMetrics | None) -> ServerMetrics | None:
    """What was counted in between; None where the counters cannot be read or belong together."""
    if earlier is None or now is None:
        return None
    try:
        return now.since(earlier)
    except ValueError:
        return None


def _turned(prompts: Sequence[Prompt], by: int) -> tuple[Prompt, ...]:
    """Every repeat goes on where the one before ended, the same for every candidate."""
    start = by % len(prompts)
    return (*prompts[start:], *prompts[:start])


def _run(server: Server, load: Load, salt: str = "outputs") -> LoadResult:
    """A load of which every request is answered.

    Raises:
        UnservedError: one was not.
    """
    result = run_load(replace(load, cache_salt=salt))
    errors = result.errors()
    if errors:
        stalled = any("no full answer within" in error for error in errors)
        failure = server.failure(stalled=stalled)
        if failure is not None:
            raise UnservedError(failure.outcome, failure.line, {"failure": failure.kind.value})
        raise UnservedError(Outcome.RUNTIME_ERROR, f"a request failed: {errors[0]}")
    if not result.summary().output_tokens:
        raise UnservedError(Outcome.WRONG_RESULT, "the server generated no token")
    return result


def _check_accepted(level: _Level) -> None:
    """Whether drafting can pay at all.

    Raises:
        UnservedError: next to nothing of it is accepted.
    """
    drafts = level.counted.drafts if level.counted is not None else None
    if drafts is None or drafts.reached is None or drafts.drafts < _LEAST_DRAFTS:
        return
    if drafts.reached[0] < NOTHING_ACCEPTED:
        raise UnservedError(
            Outcome.CONSTRAINT,
            f"position 0 accepted {drafts.reached[0]:.1%} of {drafts.drafts} drafts: the drafter "
            "does not fit this target; stopped early",
            {"nothing_accepted": True, "reached": list(drafts.reached)},
        )
