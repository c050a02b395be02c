"""How large a model's weights are: of its files, else by counting the matrices of its layers."""

from __future__ import annotations

from autotune.engine.hub import Config
from autotune.serving.memory.attention import AttentionLayer, attention_layers
from autotune.serving.pair.checkpoint import Checkpoint

_BITS = {"fp8": 8.0, "mxfp4": 4.25, "modelopt_fp4": 4.5, "nvfp4": 4.5, "bitsandbytes": 4.5}
"""Per weight with its scales (NVFP4: 8 bits for 16 weights; MXFP4: 8 for 32)."""


def weight_bytes(model: Checkpoint) -> int:
    """Bytes of a model's weights as they are loaded.

    The size of its files where it is known. Otherwise counted: embeddings in the model's own type,
    all other matrices as quantised, norms and biases left out; within a few percent for the usual
    architectures, too little for layers that are not known here (vision, linear attention).

    Raises:
        BadInputError: sizes in the configuration that are missing or not whole numbers.
    """
    if model.weight_bytes is not None:
        return model.weight_bytes
    whole = _whole_bytes(model)
    bits = _bits(model)
    return round(_embeddings(model) * whole + _layers(model) * (bits / 8 if bits else whole))


def _whole_bytes(model: Checkpoint) -> int:
    kind = model.config.get("dtype") or model.config.get("torch_dtype") or model.text.get("dtype")
    return 4 if kind == "float32" else 2


def _bits(model: Checkpoint) -> float | None:
    """Bits of a quantised weight, the least where the configuration does not tell."""
    method = (model.quantisation or "").lower()
    if not method:
        return None
    raw: Config = model.config.get("quantization_config") or model.text["quantization_config"]
    groups = raw.get("config_groups")
    group: object = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    weights = group.get("weights") if isinstance(group, dict) else None
    stated = (weights or {}).get("num_bits") or raw.get("bits") or raw.get("w_bit")
    if isinstance(stated, int) and 0 < stated <= 32:
        return float(stated)
    if method == "modelopt":
        return 4.5 if "FP4" in str(raw.get("quant_algo")).upper() else 8.0
    return _BITS.get(method, 4.0)


def _embeddings(model: Checkpoint) -> int:
    vocabulary, hidden = model.size("vocab_size") or 0, model.size("hidden_size") or 0
    tied = model.text.get("tie_word_embeddings", model.config.get("tie_word_embeddings", True))
    per_layer = (model.size("vocab_size_per_layer_input") or 0) * (
        model.size("hidden_size_per_layer_input") or 0
    )
    layers = model.size("num_hidden_layers") or 0
    return vocabulary * hidden * (1 if tied else 2) + per_layer * layers


def _layers(model: Checkpoint) -> int:
    hidden, backbone = model.size("hidden_size") or 0, model.size("backbone_hidden_size") or 0
    layers = attention_layers(model)
    attention = sum(_attention(model, layer) for layer in layers)
    return (
        attention + sum(_mlp(model, index) for index in range(len(layers))) + 3 * hidden * backbone
    )


def _attention(model: Checkpoint, layer: AttentionLayer) -> int:
    hidden, queries = model.size("hidden_size") or 0, model.size("num_attention_heads") or 1
    latent = model.size("kv_lora_rank")
    if latent:
        return _latent_attention(model, hidden, queries, latent)
    asking = 2 * hidden * queries * layer.head_dim
    if not layer.values_per_token:
        return asking
    one_for_both = bool(model.text.get("attention_k_eq_v")) and layer.kind == "full_attention"
    return asking + (1 if one_for_both else 2) * hidden * layer.kv_heads * layer.head_dim


def _latent_attention(model: Checkpoint, hidden: int, queries: int, latent: int) -> int:
    """DeepSeek's: keys and values come from one latent vector, queries perhaps too."""
    rotary, plain = model.size("qk_rope_head_dim") or 0, model.size("qk_nope_head_dim") or 0
    value, rank = model.size("v_head_dim") or 0, model.size("q_lora_rank")
    asking = queries * (rotary + plain)
    asked = rank * (hidden + asking) if rank else hidden * asking
    kept = hidden * (latent + rotary) + latent * queries * (plain + value)
    return asked + kept + queries * value * hidden


def _mlp(model: Checkpoint, index: int) -> int:
    """Gate, up and down: of the dense part, of the experts, or (Gemma 4) of both."""
    hidden, width = model.size("hidden_size") or 0, model.size("intermediate_size") or 0
    experts = model.experts
    dense_only = index < (model.size("first_k_dense_replace") or 0)
    if not experts or dense_only:
        return 3 * hidden * width
    narrow = model.size("moe_intermediate_size") or width
    shared = (model.size("n_shared_experts") or 0) * narrow
    shared += model.size("shared_expert_intermediate_size") or 0
    dense = width if model.model_type.startswith("gemma4") else 0
    return 3 * hidden * (experts * narrow + shared + dense) + hidden * experts
