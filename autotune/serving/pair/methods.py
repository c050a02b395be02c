"""vLLM's methods of speculation: which needs a model, and which one vLLM makes of a drafter.

Source: vLLM 0.32 ``vllm/config/speculative.py`` (``SpeculativeMethod``, ``hf_config_override``,
``SpeculativeConfig.__post_init__``).
"""

from __future__ import annotations

from autotune.core import BadInputError
from autotune.engine.mtp import has_mtp_layers, mtp_layers, stated_mtp_layers
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

_LAYER_PER_TOKEN = frozenset({"step3p5", "step3p7", "inkling_mm_model", "inkling_model"})
"""Models whose MTP layers differ by position, so that vLLM does not warn of reuse."""

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
    return has_mtp_layers(model.config)


def own_heads(model: Checkpoint) -> int:
    """The number of MTP layers that vLLM finds in the checkpoint (its ``n_predict``).

    Raises:
        BadInputError: the count is not a whole number.
    """
    return mtp_layers(model.config, model.ref)


def stated_heads(model: Checkpoint) -> int | None:
    """The number of MTP layers as the configuration counts them; None where it does not.

    Raises:
        BadInputError: the count is not a whole number.
    """
    return stated_mtp_layers(model.config, model.ref)


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


def resolve_method(drafter: Checkpoint) -> str:
    """The method that vLLM chooses for a drafter's model.

    Raises:
        BadInputError: a format that vLLM does not read.
    """
    named = by_name(drafter.ref)
    found = _by_format(drafter) or (named[0] if named else _by_config(drafter))
    return found or "draft_model"
