"""How a checkpoint's weights are quantised, layer by layer, as vLLM decides it.

vLLM asks its quantisation method once for every layer, by the layer's name; so does this module,
for a sample name. Sources: vLLM 0.32 ``transformers_utils/config.py`` (``get_config``),
``model_arch_config_convertor.py``, ``model_loader/weight_utils.py`` (``get_quant_config``) for the
places where the configuration may stand, ``quantization_rules.py`` beside this for the methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.core import BadInputError
from autotune.engine.hub import Config, text_config

APART = "hf_quant_config.json"
"""The file in which older ModelOpt keeps what newer writes into ``config.json``."""


@dataclass(frozen=True)
class Weights:
    """What the weights of one layer are.

    Attributes:
        name: vLLM's word for the pair of types: ``bf16``, ``fp8_w8a8``, ``int8_w8a8``,
            ``int8_w8a16``, ``int4_w4a16``, ``nvfp4``, ``mxfp4``, ``mxfp8``, …
        scaling: ``none``, ``tensor``, ``channel``, ``block`` or ``group``.
        block: (n, k) of block scaling.
        static: whether the scales of activations are stored in the checkpoint.
        method: who quantised it, for people.
    """

    name: str
    scaling: str = "none"
    block: tuple[int, int] | None = None
    static: bool = False
    method: str = ""


WHOLE = Weights("bf16")
"""Weights that are left as they were trained."""


@dataclass(frozen=True)
class Layer:
    """One layer by the names that a checkpoint may give it.

    Attributes:
        names: such as ``model.layers.3.mlp.experts``; of routed experts without their number.
        experts: whether it is a layer of routed experts; else it is a plain linear layer.
    """

    names: Sequence[str]
    experts: bool = True


@dataclass(frozen=True)
class Quantisation:
    """The quantisation of a whole checkpoint.

    Attributes:
        method: vLLM's name for it, in lower case.
        raw: the configuration, with what ModelOpt nests brought to the top.
        model: the configuration of the model, which two methods look into.
    """

    method: str
    raw: Config
    model: Config = field(default_factory=dict)


def quantisation_of(config: Config) -> Quantisation | None:
    """Find the quantisation where vLLM looks for it; None of a model that is not quantised.

    That is ``quantization_config`` at the top, else in the language model, else
    ``compression_config``. A caller puts the content of :data:`APART` under the first of them.

    Raises:
        BadInputError: it is no object, or names no method.
    """
    raw = _where_it_stands(config)
    if not raw:
        return None
    nested = raw.get("quantization")
    producer = raw.get("producer")
    by_modelopt = isinstance(nested, dict) or (
        isinstance(producer, dict) and producer.get("name") == "modelopt"
    )
    if isinstance(nested, dict):
        raw = {**raw, **nested}
        raw.setdefault("ignore", nested.get("exclude_modules"))
    method = raw.get("quant_method")
    if method is None and (by_modelopt or raw.get("quant_algo") is not None):
        method = "modelopt"
    if method is None and isinstance(raw.get("config_groups"), dict):
        method = "compressed-tensors"
    if not isinstance(method, str) or not method:
        raise BadInputError("config.json: quantization_config names no quant_method")
    return Quantisation(method.lower().replace("_tensors", "-tensors"), raw, config)


def _where_it_stands(config: Config) -> dict[str, Any]:
    for holder, name in (
        (config, "quantization_config"),
        (text_config(config), "quantization_config"),
        (config, "compression_config"),
        (text_config(config), "compression_config"),
    ):
        raw = holder.get(name)
        if raw is None or raw == {}:
            continue
        if not isinstance(raw, dict):
            raise BadInputError(f"config.json: {name}: expected an object, found {raw!r}")
        return dict(raw)
    return {}


def lacks_quantisation(config: Config) -> bool:
    """Whether vLLM would look into :data:`APART` too.

    It does where the configuration tells nothing at its top, and where ModelOpt mixed several
    algorithms and did not say which layer has which.
    """
    raw = config.get("quantization_config")
    if raw is None:
        return True
    mixed = isinstance(raw, dict) and str(raw.get("quant_algo")).upper() == "MIXED_PRECISION"
    return mixed and "quantized_layers" not in raw


def with_quantisation(config: Config, apart: Config) -> dict[str, Any]:
    """A configuration with the content of :data:`APART` where vLLM puts it."""
    own = config.get("quantization_config") or {}
    producer = {"producer": {"name": "modelopt"}}
    return {**config, "quantization_config": {**producer, **own, **apart}}
