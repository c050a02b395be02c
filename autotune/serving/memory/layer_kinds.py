"""What kind of attention each layer has: the many ways in which a configuration says it.

Sources: the configuration classes of transformers 5 and of vLLM 0.32 (``transformers_utils/
configs``), and vLLM 0.32 ``config/model.py`` (``get_num_layers_by_block_type``). A layer whose kind
nothing tells in a model with recurrent parts counts as keeping no KV cache, so that a need computed
from it stays a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from autotune.core import BadInputError
from autotune.serving.pair.checkpoint import Checkpoint

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
UNKNOWN = "unknown"

_MOST_LAYERS = 10_000
_LISTS = ("layer_types", "layers_block_type")
_SYMBOLS = {"*": FULL, "M": "mamba", "-": "mlp", "E": "moe"}
"""Letters of NemotronH's ``hybrid_override_pattern`` (vLLM ``models/nemotron_h.py``)."""

_INTERVAL = ("qwen3_next", "qwen3_5", "qwen4_exp")
"""Families whose class lets every fourth layer attend where the file tells nothing."""
_RECURRENT = ("mamba_", "linear_", "ssm_", "conv_", "gdn_", "kda_", "lightning_")
_ALSO_ATTENDING = ("hybrid", "attention", "parallel")
_ALL_ATTEND = frozenset({"falcon_h1"})
_PLAIN_BEYOND_WINDOW = ("qwen2", "qwen3")


def attends(kind: str) -> bool:
    """Whether a layer of this kind keeps keys and values of the tokens that it has seen."""
    if any(word in kind for word in ("linear", "lightning", "delta", "mamba")):
        return False
    return "attention" in kind or kind in _ALSO_ATTENDING


def layer_count(model: Checkpoint) -> int:
    """The number of layers of the language model.

    Raises:
        BadInputError: neither a number nor a list of layers is given, or too many are.
    """
    count = model.size("num_hidden_layers")
    if count is None:
        count = next((n for n in (_length(model, name) for name in _COUNTING) if n), None)
    if count is None:
        count = model.size("num_layers") or model.size("n_layer") or model.size("n_layers")
    if count is None:
        raise BadInputError(f"{model.ref}: config.json: num_hidden_layers is missing")
    if count > _MOST_LAYERS:
        raise BadInputError(f"{model.ref}: config.json: num_hidden_layers: {count} is too many")
    return count


_COUNTING = (*_LISTS, "hybrid_override_pattern", "block_configs")


def _length(model: Checkpoint, name: str) -> int | None:
    value = model.text.get(name)
    return len(value) if isinstance(value, list | str) else None


def layer_kinds(model: Checkpoint, count: int) -> list[str]:
    """One word per layer, such as ``full_attention``, ``sliding_attention`` or ``mamba``.

    Raises:
        BadInputError: sizes that are not whole numbers.
    """
    for rule in _RULES:
        found = rule(model, count)
        if found is not None:
            return found
    return _slides_or_not(model, count)


def _listed(model: Checkpoint, count: int) -> list[str] | None:
    """The kinds by name; a list that is shorter than the model repeats its last entry."""
    for name in _LISTS:
        given = model.text.get(name)
        if isinstance(given, list) and given:
            return [str(given[min(index, len(given) - 1)]) for index in range(count)]
    return None


def _pattern(model: Checkpoint, count: int) -> list[str] | None:
    pattern = model.text.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or not pattern:
        return None
    kinds = [_SYMBOLS.get(letter, UNKNOWN) for letter in pattern[:count]]
    return kinds + [UNKNOWN] * (count - len(kinds))


def _blocks(model: Checkpoint, count: int) -> list[str] | None:
    """``block_configs``: of NemotronH Puzzle by name, of Nemotron-NAS by an attention left out."""
    blocks = model.text.get("block_configs")
    if not isinstance(blocks, list) or not blocks:
        return None
    kinds = [_block(block) if isinstance(block, dict) else UNKNOWN for block in blocks[:count]]
    return kinds + [UNKNOWN] * (count - len(kinds))


def _block(block: dict[str, Any]) -> str:
    attention = block.get("attention")
    if isinstance(attention, dict):
        left_out = attention.get("no_op") or attention.get("replace_with_linear")
        return LINEAR if left_out else FULL
    return str(block.get("block_type", UNKNOWN))


def _chosen(model: Checkpoint, count: int) -> list[str] | None:
    """The attending layers by number: Bamba, LFM2 (from 0) and Kimi Linear (from 1)."""
    for name in ("attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids", "full_attn_layers"):
        chosen = model.text.get(name)
        if isinstance(chosen, list):
            return _where({i for i in chosen if isinstance(i, int)}, count)
    linear = model.text.get("linear_attn_config")
    if not isinstance(linear, dict):
        return None
    chosen = linear.get("full_attn_layers")
    if not isinstance(chosen, list):
        return [UNKNOWN] * count
    return _where({i - 1 for i in chosen if isinstance(i, int)}, count)


def _where(chosen: set[int], count: int) -> list[str]:
    return [FULL if index in chosen else LINEAR for index in range(count)]


def _marked(model: Checkpoint, count: int) -> list[str] | None:
    """One number a layer: MiniMax-01 (1 attends in full), MiMo-V2 (1 slides)."""
    for name, one, other in (
        ("attn_type_list", FULL, LINEAR),
        ("hybrid_layer_pattern", SLIDING, FULL),
    ):
        marks = model.text.get(name)
        if isinstance(marks, list) and marks:
            words = [one if mark == 1 else other for mark in marks[:count]]
            return words + [UNKNOWN] * (count - len(words))
    return None


def _periodic(model: Checkpoint, count: int) -> list[str] | None:
    """Every so many layers one attends: Jamba, Qwen3-Next and its kin, Bailing's hybrids."""
    kind = str(model.text.get("model_type", model.model_type))
    if kind == "jamba" or model.text.get("attn_layer_period") is not None:
        period, offset = model.size("attn_layer_period") or 8, model.size("attn_layer_offset")
        return _where(set(range(4 if offset is None else offset, count, period)), count)
    interval = model.size("full_attention_interval")
    if interval is None and kind.startswith(_INTERVAL):
        interval = 4
    if interval:
        return _where(set(range(interval - 1, count, interval)), count)
    group = model.size("layer_group_size")
    if not group:
        return None
    rest = count // group * group if "V3" in model.architecture else count
    return _where({*range(group - 1, count, group), *range(rest, count)}, count)


def _alternating(model: Checkpoint, count: int) -> list[str] | None:
    """Classes that alternate by themselves: gpt-oss, Gemma 2, MiniMax-01."""
    kind = str(model.text.get("model_type", model.model_type))
    pairs = {
        "gpt_oss": (SLIDING, FULL),
        "gemma2": (SLIDING, FULL),
        "minimax": (FULL, LINEAR),
    }
    pair = pairs.get(kind)
    return [pair[index % 2] for index in range(count)] if pair else None


def _recurrent(model: Checkpoint, count: int) -> list[str] | None:
    """A model with recurrent parts and no pattern that is known here."""
    kind = str(model.text.get("model_type", model.model_type))
    if kind in _ALL_ATTEND:
        return [FULL] * count
    if kind in {"mamba", "mamba2", "falcon_mamba"}:
        return ["mamba"] * count
    has = any(str(name).startswith(_RECURRENT) for name in model.text)
    return [UNKNOWN] * count if has else None


def _slides_or_not(model: Checkpoint, count: int) -> list[str]:
    window = model.text.get("sliding_window")
    if not isinstance(window, int) or not window:
        return [FULL] * count
    given = model.text.get("sliding_window_pattern")
    if isinstance(given, str):  # EXAONE 4 writes LLLG
        full = {i for i in range(count) if not given or given[i % len(given)] == "G"} | {count - 1}
        return [FULL if index in full else SLIDING for index in range(count)]
    pattern = model.size("sliding_window_pattern")
    if pattern:
        return [FULL if i % pattern == pattern - 1 else SLIDING for i in range(count)]
    plain = model.model_type.startswith(_PLAIN_BEYOND_WINDOW)
    if not model.text.get("use_sliding_window", not plain):
        return [FULL] * count
    first = (model.size("max_window_layers") or 0) if plain else 0
    return [SLIDING if index >= first else FULL for index in range(count)]


_RULES: Sequence[Callable[[Checkpoint, int], list[str] | None]] = (
    _listed,
    _pattern,
    _blocks,
    _chosen,
    _marked,
    _periodic,
    _alternating,
    _recurrent,
)
