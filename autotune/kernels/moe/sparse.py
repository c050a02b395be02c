"""Which layers of a model hold routed experts, by the many keys that say so.

Source: the ``if`` before each ``…MoE(`` in vLLM 0.32's ``models/*.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_sparse(text: Mapping[str, Any], kind: str, number: int, count: int) -> bool:
    """Whether a layer holds routed experts; true where nothing tells.

    Args:
        text: the language model's configuration.
        kind: its ``model_type``.
        number: of the layer, from 0.
        count: layers of the model.
    """
    listed = _listed(text, number)
    if listed is not None:
        return listed
    dense = _whole(text, "first_k_dense_replace") or _whole(text, "num_dense_layers") or 0
    if number < dense:
        return False
    dense_ones = text.get("mlp_only_layers")
    if isinstance(dense_ones, list) and number in dense_ones:
        return False
    return _in_step(text, kind, number, count)


def names_sparse(text: Mapping[str, Any]) -> bool:
    """Whether a list or a pattern names the kind of each layer, so that none means none."""
    pattern = text.get("hybrid_override_pattern")
    return _listed(text, 0) is not None or (isinstance(pattern, str) and "M" in pattern)


def _listed(text: Mapping[str, Any], number: int) -> bool | None:
    """Where a list or a pattern names each layer."""
    words = text.get("mlp_layer_types")
    if isinstance(words, list) and words:
        return words[min(number, len(words) - 1)] in {"sparse", "moe"}
    blocks = text.get("block_configs")
    if isinstance(blocks, list) and any(isinstance(b, dict) and "block_type" in b for b in blocks):
        block = blocks[number] if number < len(blocks) else None
        return isinstance(block, dict) and block.get("block_type") == "moe"
    words = text.get("layers_block_type")
    if isinstance(words, list) and ("moe" in words or "mlp" in words):
        return number < len(words) and words[number] == "moe"
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str) and "E" in pattern:
        return number < len(pattern) and pattern[number] == "E"
    named = text.get("moe_layers_enum") or text.get("moe_layers")
    if isinstance(named, str):
        named = [int(part) for part in named.split(",") if part.strip().isdecimal()]
    if isinstance(named, list) and named:
        return number in named
    return None


def _in_step(text: Mapping[str, Any], kind: str, number: int, count: int) -> bool:
    """Where every so many layers hold experts."""
    often = text.get("moe_layer_freq")
    if isinstance(often, list) and often:
        return bool(often[min(number, len(often) - 1)])
    freq = _whole(text, "moe_layer_freq") or 1
    step = _whole(text, "decoder_sparse_step") or 1
    interleave = _whole(text, "interleave_moe_layer_step") or 1
    if number % freq or (number + 1) % step or (number + 1) % interleave:
        return False
    if "moe_layer_start_index" in text:
        first = _one(text, "moe_layer_start_index", 0)
        last = _one(text, "moe_layer_end_index", count - 1)
        interval = _whole(text, "moe_layer_interval") or 1
        return first <= number <= last and (number + 1) % interval == 0
    if kind == "jamba" or "expert_layer_period" in text:
        period = _whole(text, "expert_layer_period") or 2
        offset = _whole(text, "expert_layer_offset")
        return number % period == (1 if offset is None else offset)
    return True


def _whole(text: Mapping[str, Any], name: str) -> int | None:
    value = text.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _one(text: Mapping[str, Any], name: str, default: int) -> int:
    """A number, or the first of two (ERNIE 4.5 VL: text, vision); below 0 is the default."""
    value = text.get(name)
    if isinstance(value, list) and value:
        value = value[0]
    return value if isinstance(value, int) and value >= 0 else default
