"""What several servers that are up at once on one device take of its memory.

Each is given its KV cache in bytes (``--kv-cache-memory-bytes``, from vLLM 0.10.2 on): then vLLM
does not measure what is free, which another server that starts meanwhile would spoil, and
``--gpu-memory-utilization`` no longer decides the cache's size. vLLM still wants that share free
when it starts (``request_memory`` in ``v1/worker/utils.py``), so that it is set to next to nothing.
Neither changes a kernel or a graph (both are ignored in ``CacheConfig.compute_hash``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autotune.engine.arguments import whole_value
from autotune.machine.guard import RESERVE
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving.measure.prompts import Prompt
from autotune.serving.memory.fit import boot_bytes, serving_of
from autotune.serving.memory.model import memory_need
from autotune.serving.pair.pairing import Pair
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.server import ServeSettings

KV_BYTES = "--kv-cache-memory-bytes"
_SHARE = "0.01"
_SLACK = 1.5
"""What is needed is a lower bound: of Gemma 4 vLLM 0.33 takes 1.3 times as much for a request."""
_STEP = 1 << 28
_STARTING = 4 * 2**30
"""Bytes more for each server where host and GPU share memory and several start, and compile, at
once: not measured, taken generously, for a machine that runs out hangs."""
_TEMPLATE = 256
"""Tokens that a chat template adds at most, taken generously."""


@dataclass(frozen=True)
class Load:
    """Requests at once, and the tokens of the longest with what it generates, at most."""

    concurrency: int
    tokens: int

    @classmethod
    def of(cls, prompts: Sequence[Prompt], scenario: SpecScenario) -> Load:
        """A token is a byte at least; requests of a given length have no more."""
        longest = max(len(prompt.text.encode()) for prompt in prompts)
        tokens = max(scenario.context, default=longest + _TEMPLATE + scenario.max_tokens)
        return cls(scenario.concurrency[-1], tokens)


def alongside(settings: ServeSettings, kv_bytes: int) -> ServeSettings:
    """The settings of a server that others are up beside; the last of a flag counts."""
    args = ("--gpu-memory-utilization", _SHARE, KV_BYTES, str(kv_bytes))
    return replace(settings, extra_args=(*settings.extra_args, *args))


def cache_bytes(pair: Pair, settings: ServeSettings, load: Load, kind: MemoryKind) -> int | None:
    """Bytes of KV cache with which a server serves the load without preemption, and starts.

    What the settings give themselves; else for one request of the full length, which vLLM asks for
    at its start, and for all requests of the load. None where the length is not known.

    Raises:
        BadInputError: a size in a configuration, or a flag, that cannot be.
    """
    args = settings.extra_args
    given = whole_value(args, KV_BYTES)
    if given is not None:
        return given
    length = whole_value(args, "--max-model-len") or pair.target.size("max_position_embeddings")
    if length is None:
        return None
    serving = serving_of(settings, length, load.concurrency, kind)
    short = replace(serving, max_model_len=min(length, load.tokens))
    needed = max(memory_need(pair, serving).kv_one, memory_need(pair, short).kv_all)
    return math.ceil(_SLACK * needed / _STEP) * _STEP


def how_many_fit(
    pair: Pair, servers: Sequence[ServeSettings], kv_bytes: int, memory: MemoryReading
) -> int:
    """Count how many of the servers, from the first on, fit into what is free.

    Args:
        pair: the models; the drafter counts where the settings speculate.
        servers: without what :func:`alongside` adds.
        kv_bytes: of each server's cache.
        memory: what was free before any of them started.

    Raises:
        BadInputError: a size in a configuration, or a flag, that cannot be.
    """
    unified = memory.kind is MemoryKind.UNIFIED
    left = memory.free - (RESERVE if unified else 0)
    for number, settings in enumerate(servers):
        left -= boot_bytes(pair, memory, alongside(settings, kv_bytes))
        left -= _STARTING if unified else 0
        if left < 0:
            return number
    return len(servers)
