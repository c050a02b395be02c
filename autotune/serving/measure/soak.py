"""A soak: one server under a steady load for minutes, looked at window by window.

What breaks late is not seen in a load of seconds: acceptance that falls to nothing, answers without
text, answers that repeat themselves, a server that slows down or grows.
"""

from __future__ import annotations

import math
import secrets
import statistics
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, cast

from autotune.core import Job, Outcome, Part, digest
from autotune.serving.measure.cell import of_lengths
from autotune.serving.measure.client import Load
from autotune.serving.measure.counters import DraftCounters
from autotune.serving.measure.load import (
    LoadOptions,
    Served,
    UnservedError,
    check_answered,
    since,
    turned,
    warm_up,
)
from autotune.serving.measure.prompts import Prompt
from autotune.serving.measure.timing import LoadResult
from autotune.serving.measure.wire import Wire
from autotune.serving.scenario import SpecScenario

WINDOWS = 24
"""A soak has about so many windows; it can be judged from a few of them on."""
LONGEST_S = 30.0
"""Of a window: what is under way when the command is killed."""
_GRAM = 3
_WORDS = 16
"""Words from which an answer can be told to repeat itself."""
_DISTINCT = 0.2
"""Share of distinct runs of three words below which it does."""


@dataclass(frozen=True)
class SoakLoad:
    """A load that goes on for ``seconds``; a :class:`autotune.core.Workload`.

    The other values are those of the scenario (``serving/scenario.py``).
    """

    target: str
    drafter: str
    prompts_key: str
    concurrency: int
    max_tokens: int
    ignore_eos: bool
    chat: bool
    seconds: int
    context: tuple[int, ...] = ()

    @classmethod
    def of(cls, scenario: SpecScenario, seconds: int) -> SoakLoad:
        """The scenario's load at its highest concurrency."""
        return cls(
            scenario.target,
            scenario.drafter,
            scenario.prompts_key,
            scenario.concurrency[-1],
            scenario.max_tokens,
            scenario.ignore_eos,
            scenario.chat,
            seconds,
            scenario.context,
        )

    @cached_property
    def key(self) -> str:
        """Identity used in the database."""
        return digest({"soak": self.as_json()})

    @property
    def label(self) -> str:
        """Such as ``soak of 600 s at c=8``."""
        return f"soak of {self.seconds} s at c={self.concurrency}"

    def as_json(self) -> dict[str, Any]:
        """Everything that defines the load, as JSON values."""
        found = asdict(self)
        context = found.pop("context")
        return found | ({"context": list(context)} if context else {})


def measure_soak(wire: Wire, job: Job, options: LoadOptions) -> Generator[Part, None, Served]:
    """Load a server until it has been under load for so long; prompts go round.

    What breaks late depends on how long a server has run: after a kill a new one begins at nothing.
    The windows of the servers before it stay in the database.

    Args:
        wire: to the server.
        job: the load, and the windows of earlier servers.
        options: prompts and time limits.

    Yields:
        Every window the moment it ends.

    Raises:
        UnservedError: it died, hung or refused requests; its details have the windows until then.
    """
    soak = cast("SoakLoad", job.workload)
    server = 1 + max((int(part["server"]) for part in job.parts.values()), default=0)
    load = _load(wire, soak, options)
    windows: list[dict[str, Any]] = []
    sent, age, rate = 0, 0.0, 0.0
    try:
        load = replace(load, prompts=_prompts(wire, load, soak))
        warm_up(wire, load)
        while age < soak.seconds:
            requests = max(soak.concurrency, math.ceil(rate * _window_s(soak)))
            window = replace(
                load,
                requests=requests,
                prompts=turned(load.prompts, sent),
                cache_salt=f"{len(windows)}-{load.cache_salt}",
            )
            earlier, result = wire.metrics(), wire.load(window)
            check_answered(wire.server, result)
            counted = since(earlier, wire.metrics())
            sent, age = sent + requests, age + result.duration_s
            rate = requests / max(result.duration_s, 1e-9)
            windows.append(
                {
                    "server": server,
                    "age_s": age,
                    "memory_bytes": wire.server.memory_bytes(),
                    **_seen(result),
                    **_accepted(None if counted is None else counted.drafts),
                }
            )
            yield Part(job.candidate, soak, f"server {server} window {len(windows)}", windows[-1])
        us = tuple(1e6 / one["tok_s"] for one in windows if one["tok_s"])
        if not us:
            raise UnservedError(Outcome.WRONG_RESULT, "the server generated no token")
    except UnservedError as error:
        error.details |= {"windows": windows}
        raise
    return Served(statistics.median(us), us, {"windows": windows})


def _load(wire: Wire, soak: SoakLoad, options: LoadOptions) -> Load:
    return Load(
        wire.server.url,
        wire.server.model,
        options.prompts,
        requests=soak.concurrency,
        concurrency=soak.concurrency,
        max_tokens=soak.max_tokens,
        ignore_eos=soak.ignore_eos,
        chat=soak.chat,
        timeout_s=options.request_timeout_s,
        headers=wire.server.headers,
        cache_salt=secrets.token_hex(8),
    )


def _prompts(wire: Wire, load: Load, soak: SoakLoad) -> tuple[Prompt, ...]:
    """The prompts; where requests have lengths, all prompts in each, in turn."""
    if not soak.context:
        return tuple(load.prompts)
    longer = of_lengths(wire, load, tuple(load.prompts), soak.context, soak.max_tokens)
    return tuple(prompt for turn in zip(*longer.values(), strict=True) for prompt in turn)


def _window_s(soak: SoakLoad) -> float:
    return min(LONGEST_S, soak.seconds / WINDOWS)


def _seen(result: LoadResult) -> dict[str, Any]:
    """What the answers of a window are like."""
    records = result.records
    return {
        "duration_s": result.duration_s,
        "requests": len(records),
        "tok_s": result.summary().tok_s,
        "empty": sum(not record.text.strip() for record in records),
        "repeating": sum(repeats_itself(record.text) for record in records),
    }


def _accepted(drafts: DraftCounters | None) -> dict[str, Any]:
    """Acceptance by position; nothing where nothing was drafted."""
    if drafts is None or drafts.reached is None:
        return {}
    return {"drafts": drafts.drafts, "reached": list(drafts.reached)}


def repeats_itself(text: str) -> bool:
    """Tell whether an answer goes round in a few words."""
    words = text.split()
    runs = list(zip(*(words[i:] for i in range(_GRAM)), strict=False))
    return len(words) >= _WORDS and len(set(runs)) < _DISTINCT * len(runs)
