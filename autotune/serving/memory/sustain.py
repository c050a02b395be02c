"""As many requests as wanted, each as long as the context: what the KV cache must hold at once."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from autotune.core import Outcome, digest
from autotune.serving.measure.client import Load
from autotune.serving.measure.load import LoadOptions, Served, UnservedError, check_answered
from autotune.serving.measure.wire import Wire

WAVES = 2
_TOKENS = range(10, 210)
"""Ids of prompts whose text does not matter; every tokenizer has these."""


@dataclass(frozen=True)
class FullLoad:
    """A load that fills the context; a :class:`autotune.core.Workload`.

    Attributes:
        target: the model served.
        drafter: as given.
        concurrency: requests at once.
        context: tokens of a request, its output included; None is the server's own limit.
        max_tokens: output tokens of a request.
    """

    target: str
    drafter: str
    concurrency: int
    context: int | None
    max_tokens: int

    @cached_property
    def key(self) -> str:
        """Identity used in the database."""
        return digest({"full_load": self.as_json()})

    @property
    def label(self) -> str:
        """Such as ``8 × 4096 tokens``."""
        return f"{self.concurrency} × {self.context or 'all'} tokens"

    def as_json(self) -> dict[str, Any]:
        """Everything that defines the load, as JSON values."""
        return asdict(self)


def measure_sustained(wire: Wire, load: FullLoad, options: LoadOptions) -> Served:
    """Send the load and see what the KV cache makes of it.

    The sample is µs per output token; details are ``context`` (tokens), ``preemptions``,
    ``kv_cache_tokens``, ``peak_kv_usage`` (0 to 1) and ``peak_waiting`` (requests).

    Raises:
        UnservedError: it died, hung or refused requests.
    """
    server = wire.server
    context = load.context or server.context
    if context is None or context <= load.max_tokens:
        raise UnservedError(
            Outcome.CONSTRAINT, f"a context of {context} tokens has no room for {load.max_tokens}"
        )
    length = context - load.max_tokens
    ids = [_TOKENS[i * 7 % len(_TOKENS)] for i in range(length)]
    requests = Load(
        server.url,
        server.model,
        options.prompts,
        requests=WAVES * load.concurrency,
        concurrency=load.concurrency,
        max_tokens=load.max_tokens,
        chat=False,
        timeout_s=options.request_timeout_s,
        cache_salt=secrets.token_hex(8),
        extra={"prompt": ids},
        headers=server.headers,
    )
    before = wire.metrics()
    result, peak = wire.watched(requests)
    check_answered(server, result)
    after = wire.metrics()
    details: Mapping[str, Any] = {
        "context": context,
        "preemptions": after.preemptions - before.preemptions if before and after else None,
        "kv_cache_tokens": after.kv_cache_tokens if after else None,
        "peak_kv_usage": peak.kv_cache_usage,
        "peak_waiting": peak.waiting,
        "memory_bytes": server.memory_bytes(),
    }
    us = 1e6 / max(result.summary().tok_s, 1e-9)
    return Served(us, (us,), dict(details))
