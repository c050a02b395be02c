"""The attention layers of a model and what each keeps per token, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.serving.memory.layer_kinds import attends, layer_count, layer_kinds
from autotune.serving.pair.checkpoint import Checkpoint

_WITHOUT_ATTENTION = frozenset({"medusa", "mlp_speculator"})
"""Drafters that are heads on the target's hidden states."""


@dataclass(frozen=True)
class AttentionLayer:
    """What a layer keeps in the KV cache.

    ``values_per_token`` counts numbers of keys and values together; 0 where the layer keeps none
    (linear attention, or a layer that reads another's). ``window`` in tokens; None is everything.
    """

    kind: str
    kv_heads: int
    head_dim: int
    values_per_token: int
    window: int | None = None


def attention_layers(model: Checkpoint) -> tuple[AttentionLayer, ...]:
    """One entry per layer of the language model, in order.

    Sources: the configuration classes of transformers 5 (``layer_types``, ``per_layer_config``,
    ``num_kv_shared_layers``); vLLM 0.32 ``v1/kv_cache_interface.py`` (``AttentionSpec``: keys and
    values of every KV head, also where Gemma 4 computes them from one projection;
    ``MLAAttentionSpec``: one latent vector).

    Raises:
        BadInputError: sizes that are missing, or that are not whole numbers.
    """
    if model.model_type in _WITHOUT_ATTENTION:
        return ()
    count = layer_count(model)
    shared = model.size("num_kv_shared_layers") or 0
    kinds = layer_kinds(model, count)
    return tuple(
        _layer(model, index, kinds[index], shared=index >= count - shared) for index in range(count)
    )


def _layer(model: Checkpoint, index: int, kind: str, *, shared: bool) -> AttentionLayer:
    heads, dim = _heads(model, index, kind)
    values = 2 * heads * dim
    latent = model.size("kv_lora_rank")
    if latent:
        values = latent + (model.size("qk_rope_head_dim") or 0)
    if model.model_type.startswith("deepseek_v4"):
        values = _compressed(model, index, dim)
    if shared or not attends(kind):
        values = 0
    window = {
        "sliding_attention": model.size("sliding_window"),
        "chunked_attention": model.size("attention_chunk_size"),
    }.get(kind)
    return AttentionLayer(kind, heads, dim, values, window)


def _compressed(model: Checkpoint, index: int, dim: int) -> int:
    """DeepSeek V4 keeps one latent vector for 4 or for 128 tokens, else a window (left out)."""
    ratios = model.text.get("compress_ratios")
    ratio = ratios[index] if isinstance(ratios, list) and index < len(ratios) else None
    return dim // ratio if isinstance(ratio, int) and ratio > 1 else 0


def _heads(model: Checkpoint, index: int, kind: str) -> tuple[int, int]:
    """(KV heads, size of a head) of a layer, with what is its own."""
    queries = model.size("num_attention_heads") or 1
    heads = model.size("num_key_value_heads") or queries
    dim = model.size("head_dim") or (model.size("hidden_size") or 0) // queries
    if kind == "sliding_attention":  # MiMo-V2
        heads = model.size("swa_num_key_value_heads") or heads
        dim = model.size("swa_head_dim") or dim
    own = _own(model, index)
    if own:
        return own.get("num_key_value_heads", heads), own.get("head_dim", dim)
    if kind == "full_attention" and model.size("global_head_dim"):
        dim = model.size("global_head_dim") or dim
        if model.text.get("attention_k_eq_v", True):
            heads = model.size("num_global_key_value_heads") or heads
    return heads, dim


def _own(model: Checkpoint, index: int) -> Mapping[str, int]:
    """The layer's entry in ``per_layer_config``, as transformers 5.19 writes Gemma 4's."""
    table: Any = model.text.get("per_layer_config")
    entry = table.get(str(index)) if isinstance(table, dict) else None
    if not isinstance(entry, dict):
        return {}
    return {name: value for name, value in entry.items() if isinstance(value, int) and value > 0}
