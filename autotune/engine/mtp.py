"""The MTP layers that a checkpoint brings for its own speculation: how many, and with experts?

Source: vLLM 0.32 ``vllm/config/speculative.py`` (``hf_config_override``) and ``models/*_mtp.py``.
"""

from __future__ import annotations

from typing import Any

from autotune.core import BadInputError
from autotune.engine.hub import Config, architecture_of, text_config

_NEXT_N = "num_nextn_predict_layers"
_COUNTED_BY: dict[str, str] = {
    **dict.fromkeys(
        [
            "dots3_note",
            "deepseek_v3",
            "deepseek_v32",
            "glm_moe_dsa",
            "deepseek_mtp",
            "deepseek_v4",
            "kimi_k3",
            "pangu_ultra_moe",
            "pangu_ultra_moe_mtp",
            "ernie4_5_moe",
            "ernie_mtp",
            "nemotron_h",
            "nemotron_h_mtp",
            "nemotron_h_puzzle",
            "qwen3_next",
            "qwen3_next_mtp",
            "bailing_hybrid",
            "bailing_hybrid_mtp",
            "bailing_hybrid_v3_mtp",
            "exaone_moe",
            "exaone_moe_mtp",
            "exaone4_5",
            "exaone4_5_mtp",
            "longcat_flash",
            "step3p5",
            "step3p7",
            "hy_v3",
            "hy_v4",
            "inkling_mm_model",
            "inkling_model",
            "glm5_next",
        ],
        _NEXT_N,
    ),
    **dict.fromkeys(
        [
            "qwen3_5",
            "qwen3_5_moe",
            "qwen3_5_text",
            "qwen3_5_moe_text",
            "qwen4_exp",
            "qwen4_exp_text",
            "qwen4_exp_mtp",
            "intern_s2_preview",
            "interns2_mobius",
        ],
        "mtp_num_hidden_layers",
    ),
    **dict.fromkeys(("minimax_m3_vl", "minimax_m3_mtp"), "num_mtp_modules"),
}
"""``model_type`` of models with MTP layers of their own, and the key that counts them."""

_BY_ARCHITECTURE = frozenset(
    {
        "MiMoForCausalLM",
        "MiMoV2ForCausalLM",
        "MiMoV2OmniForCausalLM",
        "MiMoV2FlashForCausalLM",
        "Glm4MoeForCausalLM",
        "Glm4MoeLiteForCausalLM",
        "GlmOcrForConditionalGeneration",
        "BailingMoeV2_5ForCausalLM",
        "BailingMoeV3ForCausalLM",
        "BailingMoeV3VLForConditionalGeneration",
        "Step3p5ForCausalLM",
        "Step3p7ForConditionalGeneration",
        "MiniMaxM3SparseForConditionalGeneration",
    }
)
_ONE_LAYER_USED = frozenset(
    {"MiMoV2ForCausalLM", "MiMoV2OmniForCausalLM", "MiMoV2FlashForCausalLM"}
)
"""A constant in vLLM's ``models/mimo_v2_mtp.py``, whatever the checkpoint says."""

_ONE_WITHOUT_COUNT = frozenset(
    {
        *("deepseek_v3", "deepseek_v32", "dots3_note", "hy_v4"),
        *("qwen3_next", "qwen3_next_mtp", "qwen3_5", "qwen3_5_moe", "qwen3_5_text"),
        *("qwen3_5_moe_text", "intern_s2_preview", "interns2_mobius"),
        *("exaone_moe", "exaone_moe_mtp", "exaone4_5", "exaone4_5_mtp"),
        *("longcat_flash", "minimax_m3_vl", "minimax_m3_mtp", "nemotron_h_mtp"),
        *("step3p5", "step3p7"),
    }
)
"""``model_type`` of models that have one MTP layer where the configuration counts none.

Sources: the defaults of the configuration classes of transformers and vLLM; ``getattr(config, …,
1)`` in vLLM's ``models/*_mtp.py`` and ``speculative.py``.
"""
_ONE_WITHOUT_COUNT_BY_ARCHITECTURE = frozenset(
    {
        *("Glm4MoeForCausalLM", "Step3p5ForCausalLM", "Step3p7ForConditionalGeneration"),
        "MiniMaxM3SparseForConditionalGeneration",
    }
)
COUNT_DIVIDES = frozenset({"step3p5", "step3p7"})
"""Models whose class in vLLM counts 0 MTP layers where the file is silent, and divides by it."""
_DENSE = ("mimo", "longcat_flash", "ernie4_5", "exaone", "step3p", "glm_ocr")
"""Families whose MTP layers have no routed experts."""

_PROMOTED = frozenset({"NemotronH_Super_Omni_Reasoning_V3", "NemotronH_Omni_Reasoning_V3"})


def has_mtp_layers(config: Config) -> bool:
    """Whether vLLM knows MTP layers inside models of this kind."""
    return _type(config) in _COUNTED_BY or architecture_of(config) in _BY_ARCHITECTURE


def mtp_layers(config: Config, ref: str = "") -> int:
    """The number of MTP layers that vLLM finds in a checkpoint (its ``n_predict``).

    Args:
        config: the content of ``config.json``.
        ref: the model's name for messages.

    Raises:
        BadInputError: the count is not a whole number.
    """
    if not has_mtp_layers(config):
        return 0
    if architecture_of(config) in _ONE_LAYER_USED:
        return 1
    stated = stated_mtp_layers(config, ref)
    if stated is not None:
        return stated
    one = _type(config) in _ONE_WITHOUT_COUNT
    return 1 if one or architecture_of(config) in _ONE_WITHOUT_COUNT_BY_ARCHITECTURE else 0


def stated_mtp_layers(config: Config, ref: str = "") -> int | None:
    """The number of MTP layers as a configuration counts them; None where it does not.

    Raises:
        BadInputError: the count is not a whole number.
    """
    key = _COUNTED_BY.get(_type(config), _NEXT_N)
    keys = (key, _NEXT_N) if _type(config).startswith("qwen4") else (key,)
    nested = config.get("mtp_config")
    holders: list[Any] = [text_config(config), config, nested]
    known = (h.get(k) for k in keys for h in holders if isinstance(h, dict))
    value = next((found for found in known if found is not None), None)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        where = f"{ref}: config.json" if ref else "config.json"
        raise BadInputError(f"{where}: {key}: expected a whole number, found {value!r}")
    return value


def mtp_has_experts(config: Config) -> bool:
    """Whether the MTP layers of a mixture-of-experts model have routed experts themselves."""
    return not _type(config).startswith(_DENSE) and not architecture_of(config).startswith("MiMo")


def _type(config: Config) -> str:
    """``model_type``; of the language model where vLLM takes that."""
    holder = text_config(config) if architecture_of(config) in _PROMOTED else config
    return str(holder.get("model_type", "?"))
