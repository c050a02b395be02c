"""Memory that a server needs against what is free now: a start that cannot succeed is not tried.

What is needed is a lower bound (weights and KV cache; no activations, graphs or workspaces), so a
refusal is certain and a pass is not a promise; ``fit.py`` reads the flags. Sources:
vLLM 0.32 ``v1/worker/utils.py`` (``request_memory``), ``v1/worker/cpu_worker.py``,
``v1/core/kv_cache_utils.py`` (``_check_enough_kv_cache_memory``) and ``v1/kv_cache_interface.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from autotune.core import BadInputError
from autotune.machine.guard import RESERVE
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.machine.resident import residents, who_holds
from autotune.serving.memory.attention import AttentionLayer, attention_layers
from autotune.serving.memory.weights import weight_bytes
from autotune.serving.pair.checkpoint import Checkpoint
from autotune.serving.pair.methods import GEMMA4_ASSISTANTS
from autotune.serving.pair.pairing import Pair
from autotune.util.finding import Finding, note, refuse, warn

_BYTES_PER_VALUE = {
    "float16": 2.0,
    "bfloat16": 2.0,
    "nvfp4": 0.5625,
    "nvfp4_4over6": 0.5625,
    "int4_per_token_head": 0.5,
    "int8_per_token_head": 1.0,
    "fp8_per_token_head": 1.0,
}
USUAL_SHARE = 0.92
"""VLLM's own ``--gpu-memory-utilization``."""
UNIFIED_SHARE = 0.8
"""Of unified memory, where none is asked for, and the most that raises no warning: above it a GB10
was seen to not start (0.87), to die under load (0.98), and to need a power cycle (vLLM #46307)."""
FIXED_SHARE = 0.5
"""Of unified memory, where none is asked for and the KV cache has a size of its own."""
ENGINE = int(5.6 * 2**30)
"""Bytes that an engine was seen to take on a GB10 beside weights and KV cache."""
CPU_ENGINE = 2 * 2**30
"""Bytes that a server of vLLM 0.32 with a tiny model was seen to hold on a CPU, all processes."""

_SERVER_ITSELF = 800 * 2**20
"""Bytes that a CPU server's two processes hold before vLLM asks what is free.

Each has about 505 MiB of memory of its own once vLLM 0.32 is imported (x86-64, ``RssAnon``).
"""


@dataclass(frozen=True)
class Serving:
    """The server's flags that decide its memory. Lengths in tokens, sizes in bytes.

    ``kv_cache_bytes`` is ``--kv-cache-memory-bytes``; ``batched_tokens`` how many tokens one step
    computes at most; ``block_size`` tokens per KV block (vLLM's default is 16 on a GPU and 128 on a
    CPU); ``shards`` over how many devices weights and cache are spread.

    Raises:
        BadInputError: a value that cannot be.
    """

    max_model_len: int
    concurrency: int = 1
    kv_cache_dtype: str = "auto"
    utilization: float = USUAL_SHARE
    kv_cache_bytes: int | None = None
    batched_tokens: int = 2048
    block_size: int = 16
    shards: int = 1

    def __post_init__(self) -> None:
        sizes = (self.max_model_len, self.concurrency, self.batched_tokens, self.block_size)
        if min(*sizes, self.shards) < 1 or not 0 < self.utilization <= 1:
            raise BadInputError(f"lengths and counts start at 1, utilization is in (0, 1]: {self}")


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes on one device, at least: the weights, and KV cache for ``requests`` requests.

    ``kv_reserve`` is the block that vLLM keeps back for itself.
    """

    target: int
    drafter: int
    kv_request: int
    kv_reserve: int = 0
    requests: int = 1

    @property
    def weights(self) -> int:
        """Of target and drafter."""
        return self.target + self.drafter

    @property
    def kv_one(self) -> int:
        """KV cache with which one request of full length is served."""
        return self.kv_request + self.kv_reserve

    @property
    def kv_all(self) -> int:
        """KV cache with which all requests are served at once."""
        return self.requests * self.kv_request + self.kv_reserve


def bytes_per_value(kv_cache_dtype: str, model: Checkpoint) -> float:
    """Bytes of one number in the KV cache; 2 for ``auto`` without a scheme, and unknown types."""
    if kv_cache_dtype == "auto":
        scheme = _kv_scheme(model)
        return 1.0 if scheme and "8" in scheme else 2.0
    if kv_cache_dtype in _BYTES_PER_VALUE:
        return _BYTES_PER_VALUE[kv_cache_dtype]
    return 1.0 if kv_cache_dtype.startswith("fp8") else 2.0


def _kv_scheme(model: Checkpoint) -> str | None:
    """The KV cache's quantisation that a checkpoint asks for, which ``auto`` follows."""
    raw = model.config.get("quantization_config")
    if not isinstance(raw, dict):
        return None
    found = raw.get("kv_cache_scheme") or raw.get("kv_cache_quant_algo")
    if isinstance(found, dict):
        return f"{found.get('type')}{found.get('num_bits')}"
    return str(found) if found else None


def kv_bytes_per_token(model: Checkpoint) -> float:
    """Bytes that one more token takes while every sliding window still has room, in ``auto``.

    Raises:
        BadInputError: sizes in the configuration that are missing or not whole numbers.
    """
    values = sum(layer.values_per_token for layer in attention_layers(model))
    return values * bytes_per_value("auto", model)


def kv_bytes_per_request(model: Checkpoint, tokens: int, serving: Serving) -> int:
    """Bytes of whole KV blocks that vLLM reserves for a request of ``tokens`` tokens.

    A sliding layer holds its window and what is being computed, and one block more because a window
    need not begin where a block does (``SlidingWindowSpec.max_admission_blocks_per_request``).

    Raises:
        BadInputError: sizes in the configuration that are missing or not whole numbers.
    """
    size = bytes_per_value(serving.kv_cache_dtype, model) * serving.block_size
    blocks = sum(
        layer.values_per_token * _blocks(layer, tokens, serving)
        for layer in attention_layers(model)
    )
    return math.ceil(blocks * size)


def kv_reserve(model: Checkpoint, serving: Serving) -> int:
    """Bytes of the one block that the pool never gives out (``_pool_bytes_per_block``).

    A block spans the layers of a group, and where layers differ in kind, a group is no smaller than
    the rarest kind.

    Raises:
        BadInputError: sizes in the configuration that are missing or not whole numbers.
    """
    kinds: dict[tuple[str, int | None], int] = {}
    for layer in attention_layers(model):
        key = (layer.kind, layer.window)
        kinds[key] = kinds.get(key, 0) + layer.values_per_token
    least = min((values for values in kinds.values() if values), default=0)
    size = bytes_per_value(serving.kv_cache_dtype, model) * serving.block_size
    return math.floor(least * size)


def _blocks(layer: AttentionLayer, tokens: int, serving: Serving) -> int:
    if layer.window is None:
        return -(-tokens // serving.block_size)
    held = min(layer.window - 1 + serving.batched_tokens, tokens)
    return -(-held // serving.block_size) + 1


def memory_need(pair: Pair, serving: Serving) -> MemoryNeed:
    """What the pair needs on one device.

    MTP layers inside the target are among its weights; their KV cache is left out. The assistant of
    Gemma 4 reads the target's cache and has none.

    Raises:
        BadInputError: sizes in the configuration that are missing or not whole numbers.
    """
    keeping = [pair.target]
    if pair.drafter is not None and pair.drafter.model_type not in GEMMA4_ASSISTANTS:
        keeping.append(pair.drafter)
    one = sum(kv_bytes_per_request(model, serving.max_model_len, serving) for model in keeping)
    return MemoryNeed(
        target=weight_bytes(pair.target) // serving.shards,
        drafter=weight_bytes(pair.drafter) // serving.shards if pair.drafter else 0,
        kv_request=one // serving.shards,
        kv_reserve=kv_reserve(pair.target, serving) // serving.shards,
        requests=serving.concurrency,
    )


def check_memory(need: MemoryNeed, reading: MemoryReading, serving: Serving) -> list[Finding]:
    """Whether the start can succeed with what is free now; empty when nothing speaks against it."""
    return list(_check(need, reading, serving))


def _check(need: MemoryNeed, reading: MemoryReading, serving: Serving) -> Iterator[Finding]:
    budget = math.ceil(reading.total * serving.utilization)
    free_rule = serving.kv_cache_bytes is None or reading.kind is not MemoryKind.CPU
    fixed = serving.kv_cache_bytes
    if reading.kind is MemoryKind.UNIFIED:
        reserve = _check_reserve(need, reading, serving)
        if reserve is not None:
            yield reserve
            return
    own = _SERVER_ITSELF if reading.kind is MemoryKind.CPU else 0
    if free_rule and budget > reading.free - own:
        most = math.floor(100 * max(reading.free - own, 0) / reading.total) / 100
        itself = f", {_gib(own)} of which the server itself takes first" if own else ""
        yield refuse(
            "memory-free",
            f"--gpu-memory-utilization {serving.utilization:g} asks for {_gib(budget)} of "
            f"{reading.where}, and {_gib(reading.free)} of {_gib(reading.total)} are free{itself}: "
            f"at most {most:.2f}, or stop what uses the memory",
        )
        return
    available = budget if fixed is None else reading.free
    if need.weights + (fixed or 0) > available:
        what = "weights" if fixed is None else "weights and --kv-cache-memory-bytes"
        yield refuse(
            "memory-weights",
            f"{what} need {_gib(need.weights + (fixed or 0))}, and {_gib(available)} of "
            f"{reading.where} may be used: raise --gpu-memory-utilization, or take a smaller "
            "quantisation",
        )
        return
    yield from _check_cache(need, available - need.weights if fixed is None else fixed, serving)
    unified = reading.kind is MemoryKind.UNIFIED and fixed is None
    if unified and serving.utilization > UNIFIED_SHARE:
        yield warn(
            "memory-host",
            f"--gpu-memory-utilization {serving.utilization:g} of unified memory leaves "
            f"{_gib(reading.total - budget)} to the host: it may die under load",
        )


def _check_reserve(need: MemoryNeed, reading: MemoryReading, serving: Serving) -> Finding | None:
    """Refuse what leaves the host so little that the machine may hang; None where it does not."""
    fixed = serving.kv_cache_bytes
    budget = math.ceil(reading.total * serving.utilization)
    taken = budget if fixed is None else need.weights + fixed + ENGINE
    if taken + RESERVE <= reading.free:
        return None
    most = math.floor(100 * (reading.free - RESERVE) / reading.total) / 100
    flag = f"--gpu-memory-utilization {serving.utilization:g}"
    what = f"{flag} takes" if fixed is None else "weights, --kv-cache-memory-bytes and engine take"
    give = f"give at most {most:.2f}, or" if fixed is None and most > 0 else "give less, or"
    exact = " --server-arg '--kv-cache-memory-bytes SIZE' for an exact size, or"
    return refuse(
        "memory-host",
        f"{what} {_gib(taken)} of {reading.where}, and {_gib(reading.free)} of "
        f"{_gib(reading.total)} are available, of which {RESERVE // 2**30} GiB stay with the host, "
        f"which hangs without: {give}{exact if fixed is None else ''} stop what uses the memory: "
        f"{who_holds(residents())}",
    )


def _check_cache(need: MemoryNeed, room: int, serving: Serving) -> Iterator[Finding]:
    fitting = (room - need.kv_reserve) // need.kv_request if need.kv_request else 0
    if need.kv_one > room:
        yield refuse(
            "memory-context",
            f"one request of {serving.max_model_len} tokens needs {_gib(need.kv_one)} of KV cache, "
            f"and {_gib(room)} are left for it: lower --max-model-len",
        )
    elif need.kv_all > room:
        yield warn(
            "memory-concurrency",
            f"{serving.concurrency} requests of {serving.max_model_len} tokens need "
            f"{_gib(need.kv_all)} of KV cache, and {_gib(room)} are left for it: about {fitting} "
            "fit, the others wait or are preempted",
        )
    else:
        yield note(
            "memory",
            f"weights {_gib(need.weights)}, KV cache {_gib(need.kv_all)} of at most {_gib(room)}",
        )


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
