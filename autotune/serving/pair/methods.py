"""vLLM's methods of speculation: which needs a model, and which one vLLM makes of a drafter.

Source: vLLM 0.32 ``vllm/config/speculative.py`` (``SpeculativeMethod``, ``hf_config_override``,
``SpeculativeConfig.__post_init__``).
"""

from __future__ import annotations

from autotune.core import BadInputError
from autotune.serving.pair.checkpoint import Checkpoint

ALONE = frozenset({"ngram", "ngram_gpu", "suffix", "mtp", "dspark"})
"""Methods that need no drafter's folder: they look text up, or the target brings the drafter."""

WITH_MODEL = frozenset({"draft_model", "eagle", "eagle3", "medusa", "mlp_speculator", "dflash"})
"""Methods that need a model."""

TRAINED = frozenset({"mtp", "eagle", "eagle3", "medusa", "mlp_speculator", "dflash", "dspark"})
"""Methods whose drafter was trained on one target's hidden states, and fits no other."""

METHODS = ALONE | WITH_MODEL

NO_DRAFTER = "none"
"""Stands for a drafter where nothing is drafted: other flags are tuned."""

GEMMA4_ASSISTANTS = frozenset({"gemma4_assistant", "gemma4_unified_assistant"})
GEMMA4_TARGETS = frozenset({"gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"})

_NEXT_N = "num_nextn_predict_layers"
_OWN_HEADS_BY_TYPE: dict[str, str] = {
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

_OWN_HEADS_BY_ARCHITECTURE = frozenset(
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
_LAYER_PER_TOKEN = frozenset({"step3p5", "step3p7", "inkling_mm_model", "inkling_model"})
"""Models whose MTP layers differ by position, so that vLLM does not warn of reuse."""

_PROMOTED = frozenset({"NemotronH_Super_Omni_Reasoning_V3", "NemotronH_Omni_Reasoning_V3"})

SPECULATORS = {
    "eagle3": "eagle3",
    "peagle": "eagle3",
    "dflash": "dflash",
    "dflash2": "dflash",
    "dspark": "dspark",
}
"""``speculators_model_type`` and the method that vLLM makes of it.

Source: vLLM 0.32 ``transformers_utils/configs/speculators``.
"""
_EAGLE3_LAYERS = frozenset({"llama", "qwen3"})

_DSPARK = frozenset({"Qwen3DSparkModel", "Qwen3OmniDSparkModel", "Gemma4DSparkModel"})
_IN_THE_NAME = {"eagle-": "eagle", "eagle3": "eagle3", "dflash": "dflash", "dspark": "dspark"}


def has_own_heads(model: Checkpoint) -> bool:
    """Whether vLLM knows MTP layers inside models of this kind."""
    return _type(model) in _OWN_HEADS_BY_TYPE or model.architecture in _OWN_HEADS_BY_ARCHITECTURE


def own_heads(model: Checkpoint) -> int:
    """The number of MTP layers that the checkpoint says it brings (vLLM's ``n_predict``).

    Raises:
        BadInputError: the count is not a whole number.
    """
    if not has_own_heads(model):
        return 0
    if model.architecture in _ONE_LAYER_USED:
        return 1
    stated = stated_heads(model)
    if stated is not None:
        return stated
    one = _type(model) in _ONE_WITHOUT_COUNT
    return 1 if one or model.architecture in _ONE_WITHOUT_COUNT_BY_ARCHITECTURE else 0


def stated_heads(model: Checkpoint) -> int | None:
    """The number of MTP layers as the configuration counts them; None where it does not.

    Raises:
        BadInputError: the count is not a whole number.
    """
    nested = model.config.get("mtp_config")
    key = _OWN_HEADS_BY_TYPE.get(_type(model), _NEXT_N)
    found = model.size(key)
    if found is None and isinstance(nested, dict):
        found = Checkpoint(model.ref, nested).size(key)
    return found


def _type(model: Checkpoint) -> str:
    """``model_type``; of the language model where vLLM takes that (``hf_config_override``)."""
    if model.architecture in _PROMOTED:
        return str(model.text.get("model_type", "?"))
    return model.model_type


def reuses_one_layer(model: Checkpoint) -> bool:
    """Whether a gamma above the number of MTP layers runs the same layer again and again."""
    return model.model_type not in GEMMA4_ASSISTANTS | _LAYER_PER_TOKEN


def by_name(ref: str) -> tuple[str, str] | None:
    """(method, word) where a drafter's path or id alone makes vLLM choose a method."""
    for word, method in _IN_THE_NAME.items():
        if word in ref.lower():
            return method, word
    return None


def _by_format(drafter: Checkpoint) -> str | None:
    """The method of a drafter in the speculators format; None of any other."""
    kind = drafter.config.get("speculators_model_type")
    if kind is None:
        return None
    if not isinstance(kind, str) or kind not in SPECULATORS:
        raise BadInputError(
            f"{drafter.ref}: config.json: speculators_model_type {kind!r} is none that vLLM reads "
            f"({', '.join(SPECULATORS)})"
        )
    layer = drafter.text.get("model_type", "llama")
    if SPECULATORS[kind] == "eagle3" and layer not in _EAGLE3_LAYERS:
        raise BadInputError(
            f"{drafter.ref}: config.json: transformer_layer_config.model_type {layer!r}: vLLM "
            f"builds {kind} of {' or '.join(sorted(_EAGLE3_LAYERS))} layers only"
        )
    return SPECULATORS[kind]


def _by_config(drafter: Checkpoint) -> str | None:
    if drafter.architecture == "MuseGlimmerAssistantModel":
        return "dflash"
    if drafter.architecture in _DSPARK:
        return "dspark"
    if drafter.model_type in {"medusa", "mlp_speculator"}:
        return drafter.model_type
    if drafter.model_type in {"nemotron_h", "nemotron_h_puzzle"} and not own_heads(drafter):
        return None
    if drafter.model_type in GEMMA4_ASSISTANTS or has_own_heads(drafter):
        return "mtp"
    return None


def resolve_method(drafter: Checkpoint, asked: str | None = None) -> str:
    """The method that vLLM uses for a drafter's model, which may not be the one asked for.

    Args:
        drafter: the model.
        asked: ``method`` of the speculative configuration; None lets vLLM choose.

    Raises:
        BadInputError: no such method, or vLLM does not find it in this model.
    """
    if asked is not None and asked not in METHODS:
        raise BadInputError(f"method {asked}: not one of {', '.join(sorted(METHODS))}")
    if asked in {"eagle", "eagle3", "dflash", "dspark"}:
        return str(asked)
    named = by_name(drafter.ref)
    found = _by_format(drafter) or (named[0] if named else _by_config(drafter))
    if found:
        return found
    if asked in {None, "draft_model", "medusa"}:
        return asked or "draft_model"
    raise BadInputError(
        f"method {asked}: vLLM does not find it in {drafter.ref} ({drafter.model_type}); "
        "draft_model would run it as an ordinary model"
    )
