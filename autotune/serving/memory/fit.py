"""Whether the memory that is free now holds a server, by the flags that it is started with."""

from __future__ import annotations

import math
from dataclasses import replace

from autotune.core import BadInputError
from autotune.engine.arguments import argument_value, is_given, whole_value
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving.memory.model import (
    CPU_ENGINE,
    ENGINE,
    USUAL_SHARE,
    Serving,
    check_memory,
    memory_need,
)
from autotune.serving.memory.weights import weight_bytes
from autotune.serving.pair.pairing import Pair
from autotune.serving.recipe import KV_DTYPE, UTILIZATION, flag_of
from autotune.serving.server.server import ServeSettings
from autotune.util.finding import Finding, warn

_NUMBERS = (
    "--max-model-len",
    "--max-num-batched-tokens",
    "--kv-cache-memory-bytes",
    "--tensor-parallel-size",
    "--pipeline-parallel-size",
)
_LESSENING = (
    *("--quantization", "--load-format", "--hf-overrides", "--config"),
    *("--cpu-offload-gb", "--offload-group-size"),
    *("--data-parallel-size", "--prefill-context-parallel-size"),
    *("--language-model-only", "--limit-mm-per-prompt"),
)
"""With these a server may hold less than its checkpoint's files and configuration say."""
_PARTLY = {"--language-model-only", "--limit-mm-per-prompt", "--cpu-offload-gb"}
"""With these no less of unified memory is taken, or little less: a vision tower is not a model."""


def check_fit(
    pair: Pair, settings: ServeSettings, concurrency: int, memory: MemoryReading
) -> list[Finding]:
    """What speaks against a start of these settings; empty where the length is not known.

    A refusal is certain: where a flag may lessen the need by what is not known here, it is a
    warning.

    Args:
        pair: the models; the drafter counts where the settings speculate.
        settings: of the server.
        concurrency: requests at once.
        memory: what is free.

    Raises:
        BadInputError: a size in a configuration, or a flag, that cannot be.
    """
    args = settings.extra_args
    served = whole_value(args, "--max-model-len") or pair.target.size("max_position_embeddings")
    if served is None:
        return []
    loaded = pair if settings.speculative is not None else replace(pair, drafter=None)
    serving = serving_of(settings, served, concurrency, memory.kind)
    found = check_memory(memory_need(loaded, serving), memory, serving)
    unsure = [flag for flag in _NUMBERS if is_given(args, flag) and whole_value(args, flag) is None]
    lessening = [f for f in _LESSENING if f not in _PARTLY or memory.kind is not MemoryKind.UNIFIED]
    unsure += [flag for flag in lessening if is_given(args, flag)]
    return [_softened(f, unsure) if f.refuses and unsure else f for f in found]


def boot_bytes(
    pair: Pair, memory: MemoryReading, settings: ServeSettings, per_machine: int | None = None
) -> int:
    """Estimate the bytes that a server takes of the first device's memory, or of the host's.

    Its share of all; or, where ``--kv-cache-memory-bytes`` is given, that with the weights and what
    an engine was seen to take beside both.

    Args:
        pair: the models; the drafter counts where the settings speculate.
        memory: of which kind, and how much there is.
        settings: of the server.
        per_machine: GPUs of each machine of a cluster; None where all are on this one.

    Raises:
        BadInputError: a size in a configuration, or a flag, that cannot be.
    """
    fixed = whole_value(settings.extra_args, "--kv-cache-memory-bytes")
    if fixed is None:
        return math.ceil(memory.total * _utilization(settings, USUAL_SHARE))
    weights = weight_bytes(pair.target)
    if settings.speculative is not None and pair.drafter is not None:
        weights += weight_bytes(pair.drafter)
    shards = serving_of(settings, 1, 1, memory.kind).shards
    if memory.kind is MemoryKind.GPU:
        weights //= shards
    elif per_machine and shards > per_machine:  # the others' memory holds the rest
        weights = weights * per_machine // shards
    return weights + fixed + (CPU_ENGINE if memory.kind is MemoryKind.CPU else ENGINE)


def _softened(finding: Finding, unsure: list[str]) -> Finding:
    """A refusal as a warning, where the flags may undo it."""
    if finding.code in {"memory-free", "memory-host"} and "--config" not in unsure:
        return finding  # vLLM asks for the share before it loads anything
    message = f"{finding.message}; with {', '.join(unsure)} it may fit all the same"
    return warn(finding.code, message)


def serving_of(settings: ServeSettings, served: int, concurrency: int, kind: MemoryKind) -> Serving:
    """What the flags say of the memory of a server of ``served`` tokens.

    Raises:
        BadInputError: a flag that cannot be.
    """
    args, usual = settings.extra_args, Serving(served)
    dtype = settings.kv_cache_dtype or argument_value(args, flag_of(KV_DTYPE))
    shards = [whole_value(args, f"--{way}-parallel-size") or 1 for way in ("tensor", "pipeline")]
    return Serving(
        served,
        concurrency=concurrency,
        kv_cache_dtype=dtype or usual.kv_cache_dtype,
        utilization=_utilization(settings, usual.utilization),
        kv_cache_bytes=whole_value(args, "--kv-cache-memory-bytes"),
        batched_tokens=whole_value(args, "--max-num-batched-tokens") or usual.batched_tokens,
        block_size=128 if kind is MemoryKind.CPU else usual.block_size,
        shards=shards[0] * shards[1],
    )


def _utilization(settings: ServeSettings, usual: float) -> float:
    if settings.gpu_memory_utilization is not None:
        return settings.gpu_memory_utilization
    text = argument_value(settings.extra_args, flag_of(UTILIZATION))
    try:
        return usual if text is None else float(text)
    except ValueError:
        raise BadInputError(f"gpu-memory-utilization {text}: expected a share") from None
