"""When the rest of a measurement is not worth its time: an SLO missed, a race lost.

Pure. A service-level objective (SLO) is a limit on the 99th percentile of a latency, over all timed
requests at one concurrency, as in goodput of ``vllm bench serve`` (``--goodput``), which counts
single requests instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from autotune.core import BadInputError
from autotune.serving.measure.timing import RequestRecord
from autotune.serving.scenario import SpecScenario
from autotune.util.flags import typed

CLEAR = 0.1
"""A measurement goes on while its best possible rate, plus this share, beats another's."""
LEAST_REPEATS = 2
"""Repeats at a concurrency before it is judged; the first may be a straggler."""
PERCENTILE = 99


LATENCIES = ("ttft", "tpot", "e2e")
"""Time to the first token, per token after it, and to the last one."""


def parse_slo(text: str | None) -> tuple[tuple[str, float], ...]:
    """``ttft=500ms,tpot=0.05s`` to limits in ms by name, in the order of :data:`LATENCIES`.

    Raises:
        BadInputError: an unknown latency, no unit, not above 0, or given twice.
    """
    limits: dict[str, float] = {}
    said = f"--slo {typed(text or '')}"
    for part in text.split(",") if text is not None else ():
        name, _, value = (word.strip() for word in part.partition("="))
        found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)(ms|s)", value, re.ASCII)
        if name not in LATENCIES:
            known = ", ".join(LATENCIES)
            raise BadInputError(f"{said}: {typed(name) or 'nothing'} is not one of {known}")
        if found is None or not float(found[1]):
            raise BadInputError(f"{said}: expected a time with its unit, such as {name}=50ms")
        if name in limits:
            raise BadInputError(f"{said}: {name} is given twice")
        limits[name] = float(found[1]) * (1000 if found[2] == "s" else 1)
    return tuple((name, limits[name]) for name in LATENCIES if name in limits)


def slo_missed(
    slo: Mapping[str, float], records: Sequence[RequestRecord], planned: int
) -> str | None:
    """Which limit is missed whatever the requests still to come do; None while all may be met.

    Args:
        slo: limits in ms by name: ``ttft``, ``tpot``, ``e2e``.
        records: requests answered so far at one concurrency.
        planned: how many there will be in all.
    """
    for name, limit in slo.items():
        values = [v for record in records if (v := _latency_ms(record, name)) is not None]
        hoped = [*values, *[0.0] * (planned - len(records))]
        if hoped and float(np.percentile(hoped, PERCENTILE)) > limit:
            seen = float(np.percentile(values, PERCENTILE))
            return f"{name} p{PERCENTILE} {seen:.1f} ms is above {limit:g} ms"
    return None


def _latency_ms(record: RequestRecord, name: str) -> float | None:
    if name == "tpot":
        return None if record.tpot_s is None else 1e3 * record.tpot_s
    return 1e3 * (record.ttft_s if name == "ttft" else record.latency_s)


@dataclass(frozen=True)
class Bar:
    """What a measurement must beat.

    Attributes:
        us: least µs per output token measured so far, by the scenario's objective.
        tok_s: highest aggregate rate measured so far, by concurrency.
    """

    us: float
    tok_s: Mapping[int, float] = field(default_factory=dict)


def cannot_win(
    scenario: SpecScenario, rates: Mapping[int, Sequence[float]], bar: Bar
) -> str | None:
    """Why a setting cannot be the best any more; None while it may.

    Its best at a concurrency is its fastest repeat there; where none was run yet, a stream is taken
    to be as fast as at the concurrencies before, which it is not in the company of more. A setting
    goes on too while it may be the fastest at a concurrency to come, which a schedule may use.

    Args:
        scenario: the load, with the objective.
        rates: aggregate tokens per second of the repeats so far, by concurrency.
        bar: what it must beat.
    """
    hoped: dict[int, float] = {}
    stream = float("inf")
    for level in scenario.concurrency:
        measured = rates.get(level, ())
        hoped[level] = max(measured) if measured else stream * level
        stream = min(stream, hoped[level] / level)
    open_levels = [c for c in scenario.concurrency if len(rates.get(c, ())) < scenario.repeats]
    if not open_levels or stream == float("inf"):
        return None
    least = scenario.microseconds(hoped)
    fast_somewhere = any(hoped[c] * (1 + CLEAR) >= bar.tok_s.get(c, 0.0) for c in open_levels)
    if fast_somewhere or least * (1 - CLEAR) <= bar.us:
        return None
    return f"at best {least:.1f} µs per token, and another setting has {bar.us:.1f}"


@dataclass(frozen=True)
class Rules:
    """What may stop a measurement; nothing by default.

    Attributes:
        slo: limits in ms by name.
        bar: what must be beaten; None lets everything go on.
        to_the_end: whether a missed SLO is noted only: what others are compared with is needed.
    """

    slo: Mapping[str, float] = field(default_factory=dict)
    bar: Bar | None = None
    to_the_end: bool = False
