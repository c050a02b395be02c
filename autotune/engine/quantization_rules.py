"""vLLM's methods of quantisation, one rule each: which weights has a layer of this name?

Source: vLLM 0.32 ``model_executor/layers/quantization``: ``get_quant_method`` and, for routed
experts, ``get_moe_method`` of each method; the file is named at each rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

from autotune.core import BadInputError
from autotune.engine.hub import architecture_of
from autotune.engine.quantization import WHOLE, Layer, Quantisation, Weights
from autotune.engine.quantization_names import (
    block_of,
    equal_or_pattern,
    expression_of,
    is_listed,
    names_in,
    table_in,
)

_PROJECTIONS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))


# --- fp8 (fp8.py, and models/deepseek_v4*/quant_config.py for its experts)


def _fp8(quantisation: Quantisation, layer: Layer) -> Weights:
    raw, model = quantisation.raw, quantisation.model
    listed = names_in(raw.get("ignored_layers"), "ignored_layers") or names_in(
        raw.get("modules_to_not_convert"), "modules_to_not_convert"
    )
    if is_listed(layer, listed, by_suffix="BailingMoeV3" in architecture_of(model)):
        return WHOLE
    if layer.experts and raw.get("store_dtype") == "mxfp4":
        return Weights("mxfp4", "group", method="fp8 with store_dtype mxfp4")
    if layer.experts and _is_deepseek_v4(model):
        four = _deepseek_v4_experts(raw, model)
        if four is not None:
            return four
    block = block_of(raw.get("weight_block_size"))
    static = raw.get("activation_scheme") == "static"
    return Weights("fp8_w8a8", "block" if block else "tensor", block, static, "fp8")


def _is_deepseek_v4(model: Mapping[str, Any]) -> bool:
    kind = str(model.get("model_type", ""))
    return kind.startswith("deepseek_v4") or architecture_of(model).startswith("DeepseekV4")


def _deepseek_v4_experts(raw: Mapping[str, Any], model: Mapping[str, Any]) -> Weights | None:
    """FP4 unless ``expert_dtype`` says fp8; V4.1 writes that into ``quantization_config``."""
    kind = model.get("expert_dtype", raw.get("expert_dtype", "fp4"))
    if kind == "fp8":
        return None
    if kind != "fp4":
        raise BadInputError(f"config.json: expert_dtype {kind!r}: vLLM reads fp4 and fp8")
    if str(raw.get("moe_quant_algo") or "").upper() == "NVFP4":
        return Weights("nvfp4", "group", method="moe_quant_algo NVFP4")
    said = "expert_dtype fp4" if "expert_dtype" in {**raw, **model} else "no expert_dtype"
    return Weights("mxfp4", "group", method=f"fp8 with {said}")


# --- compressed-tensors (compressed_tensors.py, compressed_tensors_moe.py, utils.py)


def _compressed_tensors(quantisation: Quantisation, layer: Layer) -> Weights:
    raw = quantisation.raw
    ignored = names_in(raw.get("ignore"), "ignore")
    if any(equal_or_pattern(name, entry) for name in _leaves(layer) for entry in ignored):
        return WHOLE
    groups = table_in(raw.get("config_groups"), "config_groups")
    group = _group(groups, layer)
    if not groups:
        raise BadInputError("config.json: quantization_config.config_groups: no weights described")
    if group is None:
        return WHOLE
    weights = table_in(group.get("weights"), "config_groups: weights")
    if not weights:
        raise BadInputError("config.json: quantization_config.config_groups: no weights described")
    inputs = group.get("input_activations") or None
    given = table_in(inputs, "config_groups: input_activations") if inputs else None
    return _compressed(weights, given, str(group.get("format") or raw.get("format") or ""))


def _leaves(layer: Layer) -> Iterator[str]:
    """The names that vLLM asks for: of the first expert's projections, or the layer's own."""
    for name in layer.names:
        if not layer.experts:
            yield name
            continue
        yield name
        for triple in _PROJECTIONS:
            yield from (f"{name}.0.{projection}" for projection in triple)


def _group(groups: Mapping[str, Any], layer: Layer) -> Mapping[str, Any] | None:
    """A target that names the layer, else its class; ``Linear`` stands for routed experts too."""
    targets: dict[str, Mapping[str, Any]] = {}
    for entry in groups.values():
        group = table_in(entry, "config_groups")
        for target in names_in(group.get("targets", ["Linear"]), "config_groups: targets"):
            targets[target] = group
    own = {t: g for t, g in targets.items() if not t.endswith("Attention")}
    for name in _leaves(layer):
        found = next((g for t, g in own.items() if equal_or_pattern(name, t)), None)
        if found is not None:
            return found
    kinds = ("routedexperts", "fusedmoe") if layer.experts else ("linear",)
    for target, group in own.items():
        word = target.lower()
        if any(word in kind for kind in kinds) or target == "Linear":
            return group
    return None


def _compressed(weights: Mapping[str, Any], inputs: Mapping[str, Any] | None, form: str) -> Weights:
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    strategy = _strategy(weights)
    method = f"compressed-tensors, {bits}-bit {kind}"
    group = weights.get("group_size")
    if kind == "float" and bits == 4:
        name = "mxfp4" if strategy == "group" and group == 32 else "nvfp4"
        alone = name == "nvfp4" and inputs is None
        return Weights("nvfp4_w4a16" if alone else name, "group", method=method)
    if kind == "float" and bits == 8 and strategy == "group" and group == 32:
        return Weights("mxfp8", "group", method=method)
    if inputs is None and strategy in {"channel", "group"} and kind == "int":
        return Weights(f"int{bits}_w{bits}a16", "group", method=method)
    if inputs is None or bits != 8 or kind != inputs.get("type", kind):
        sizes = "16" if inputs is None else str(inputs.get("num_bits", 8))
        return Weights(f"{kind}_w{bits}a{sizes}", "group", method=f"{method} ({form})")
    if kind == "int":
        return Weights("int8_w8a8", "channel", method=method)
    if strategy not in {"tensor", "channel", "block"}:
        raise BadInputError(f"config.json: quantization_config: unknown strategy {strategy!r}")
    block = block_of(weights.get("block_structure")) if strategy == "block" else None
    if strategy == "block" and block is None:
        raise BadInputError("config.json: quantization_config: block size None is not [n, k]")
    return Weights("fp8_w8a8", strategy, block, not inputs.get("dynamic", False), method)


def _strategy(weights: Mapping[str, Any]) -> str:
    """The strategy, and where it is left out what compressed-tensors infers."""
    stated = weights.get("strategy")
    if stated is not None:
        return str(stated)
    group = weights.get("group_size")
    if weights.get("block_structure") is not None:
        return "block"
    if not isinstance(group, int):
        return "tensor"
    return "group" if group > 0 else "channel"


# --- ModelOpt (modelopt.py)

_MODELOPT = {
    "FP8": Weights("fp8_w8a8", "tensor", static=True, method="modelopt FP8"),
    "FP8_PB_WO": Weights("fp8_w8a8", "block", (128, 128), method="modelopt FP8_PB_WO"),
    "NVFP4": Weights("nvfp4", "group", method="modelopt NVFP4"),
    "W4A16_NVFP4": Weights("nvfp4_w4a16", "group", method="modelopt W4A16_NVFP4"),
    "MXFP8": Weights("mxfp8", "group", method="modelopt MXFP8"),
}

_ONE_FP8_METHOD = ("FP8", "FP8_PB_WO", "FP8_PER_CHANNEL_PER_TOKEN")


def _modelopt(quantisation: Quantisation, layer: Layer) -> Weights:
    raw = quantisation.raw
    algorithm = str(raw.get("quant_algo") or _of_method(quantisation.method)).upper()
    excluded = names_in(raw.get("ignore"), "ignore") or names_in(
        raw.get("exclude_modules"), "exclude_modules"
    )
    if _excluded(layer, excluded):
        return WHOLE
    if algorithm in {"MIXED_PRECISION", "MIXED"}:
        return _mixed(table_in(raw.get("quantized_layers"), "quantized_layers"), layer)
    if layer.experts and "FP8" in algorithm and algorithm in _ONE_FP8_METHOD:
        # Whatever the linear layers are: one class serves the experts, per tensor.
        return replace(_MODELOPT["FP8"], method=f"modelopt {algorithm}")
    return _algorithm(algorithm, raw, layer)


def _of_method(method: str) -> str:
    return {
        "modelopt_fp4": "NVFP4",
        "nvfp4": "NVFP4",
        "modelopt_mxfp8": "MXFP8",
        "mxfp8": "MXFP8",
        "modelopt_mixed": "MIXED_PRECISION",
        "fp8_pb_wo": "FP8_PB_WO",
    }.get(method, "FP8")


def _algorithm(algorithm: str, raw: Mapping[str, Any], layer: Layer) -> Weights:
    alias = {"FP8_BLOCK_SCALES": "FP8_PB_WO"}.get(algorithm, algorithm)
    found = _MODELOPT.get(alias, Weights("unknown", method=f"modelopt {algorithm}"))
    if algorithm in {"FP8_PB_WO", "FP8_BLOCK_SCALES"} and layer.experts:
        size = raw.get("group_size")
        if isinstance(size, int) and size > 0:
            return Weights("fp8_w8a8", "block", (size, size), method=found.method)
    return found


def _excluded(layer: Layer, excluded: list[str]) -> bool:
    """``is_layer_excluded``: by exact name, by a part of the name, by wildcards."""
    if is_listed(layer, excluded):
        return True
    return any(
        entry and (entry in name or fnmatch(name, entry))
        for name in layer.names
        for entry in excluded
    )


def _mixed(layers: Mapping[str, Any], layer: Layer) -> Weights:
    """The entry of the layer or of something inside it; else of the same part of another layer.

    The last is ours, where a list names the experts of one layer only: an example, which means
    the others too. Where it names those of several, a layer without an entry is left whole.
    """
    if not layers:
        raise BadInputError("config.json: quantization_config: MIXED_PRECISION names no layer")
    exact: dict[str, Any] = dict(layers)
    numbered = {re.sub(r"\.experts\..*", "", key) for key in layers if "experts" in key}
    single = len({key for key in numbered if "shared" not in key}) == 1 or not layer.experts
    alike = {re.sub(r"\d+", "#", name): entry for name, entry in layers.items()} if single else {}
    for table, names in (
        (exact, list(layer.names)),
        (alike, [re.sub(r"\d+", "#", name) for name in layer.names]),
    ):
        for name in names:
            parents = [name, name.removesuffix("experts")] if layer.experts else [name]
            for parent in parents:
                inside = parent if parent.endswith(".") else f"{parent}."
                for key, entry in table.items():
                    if (key == parent or key.startswith(inside)) and not _of_shared(key, layer):
                        info = table_in(entry, "quantized_layers")
                        return _algorithm(str(info.get("quant_algo", "")).upper(), info, layer)
    return WHOLE


def _of_shared(key: str, layer: Layer) -> bool:
    return layer.experts and ("shared" in key or key.endswith(".gate"))


# --- GPTQ and AWQ (auto_gptq.py, utils/gptq_utils.py, auto_awq.py, moe_wna16.py)


def _gptq(quantisation: Quantisation, layer: Layer) -> Weights:
    raw = quantisation.raw
    bits = _bits(raw)
    for pattern, change in table_in(raw.get("dynamic"), "dynamic").items():
        negative = pattern.startswith("-:")
        expression = expression_of(pattern.removeprefix("-:").removeprefix("+:"))
        if not any(expression.match(name) for name in layer.names):
            continue
        if negative:
            return WHOLE
        bits = _bits({**raw, **table_in(change, "dynamic")})
        break
    return _integer(bits, quantisation.method)


def _awq(quantisation: Quantisation, layer: Layer) -> Weights:
    raw = quantisation.raw
    listed = names_in(raw.get("modules_to_not_convert"), "modules_to_not_convert")
    if any(entry in name for entry in listed for name in layer.names):
        return WHOLE
    return _integer(_bits(raw), quantisation.method)


def _bits(raw: Mapping[str, Any]) -> int:
    value = next((raw[n] for n in ("bits", "w_bit", "num_bits") if n in raw), 4)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInputError(f"config.json: quantization_config: bits {value!r} is no whole number")
    return value


def _integer(bits: int, method: str) -> Weights:
    return WHOLE if bits >= 16 else Weights(f"int{bits}_w{bits}a16", "group", method=method)


# --- AutoRound (inc/inc.py, inc/config_parser.py)


def _auto_round(quantisation: Quantisation, layer: Layer) -> Weights:
    raw = quantisation.raw
    bits = _auto_round_bits(raw, layer)
    if bits >= 16:
        return WHOLE
    kind = str(raw.get("data_type", "int"))
    if "mx_fp" in kind:
        return Weights("mxfp8" if bits == 8 else "mxfp4", "group", method="auto-round")
    if kind in {"fp", "fp8"} and bits == 8:
        block = raw.get("group_size")
        if isinstance(block, list):
            return Weights("fp8_w8a8", "block", block_of(block), method="auto-round")
    return _integer(bits, "auto-round")


def _auto_round_bits(raw: Mapping[str, Any], layer: Layer) -> int:
    extra = table_in(raw.get("extra_config"), "extra_config")
    default = _bits(raw)
    blocks = raw.get("block_name_to_quantize") or raw.get("to_quant_block_names")
    chosen = blocks.split(",") if isinstance(blocks, str) else names_in(blocks, "block_name…")
    if chosen and not any(name.startswith(b) for b in chosen for name in layer.names):
        default = 16
    for name in layer.names:
        for key, change in extra.items():
            exact = key in {name, f"model.{name}"} or name.endswith(f".{key}")
            special = not set(key).isdisjoint("*+?^$()[]{}|\\")
            if exact or (special and expression_of(key).search(name)):
                own = table_in(change, "extra_config")
                return _bits(own) if "bits" in own else default
    return default


# --- Quark (quark/quark.py, quark/quark_moe.py)


def _quark(quantisation: Quantisation, layer: Layer) -> Weights:
    raw = quantisation.raw
    excluded = names_in(raw.get("exclude"), "exclude")
    for name in layer.names:
        inside = (e.startswith(f"{name}.") for e in excluded if layer.experts)
        if any(equal_or_pattern(name, entry) for entry in excluded) or any(inside):
            return WHOLE
    described: Any = raw.get("global_quant_config")
    for pattern, entry in table_in(raw.get("layer_quant_config"), "layer_quant_config").items():
        if any(fnmatch(leaf, pattern) for leaf in _leaves(layer)):
            described = entry
            break
    group = table_in(described, "global_quant_config")
    weight, inputs = group.get("weight"), group.get("input_tensors")
    if isinstance(weight, list) and len(weight) == 1:
        weight = weight[0]
    if isinstance(weight, list):
        return Weights("nvfp4", "group", method="quark, several scales")
    return _quark_weights(table_in(weight, "weight"), inputs)


def _quark_weights(weight: Mapping[str, Any], inputs: object) -> Weights:
    kind, scheme = str(weight.get("dtype", "")), str(weight.get("qscheme", ""))
    method = f"quark {kind} {scheme}".strip()
    if kind.startswith("fp8") and scheme in {"per_tensor", "per_channel", "per_block"}:
        scaling = scheme.removeprefix("per_")
        block = block_of(weight.get("block_size")) if scaling == "block" else None
        static = isinstance(inputs, dict) and not inputs.get("is_dynamic")
        return Weights("fp8_w8a8", scaling, block, static, method)
    if kind == "int8" and inputs:
        return Weights("int8_w8a8", "channel", method=method)
    if kind in {"int4", "uint4"}:
        return Weights("int4_w4a16", "group", method=method)
    if kind in {"fp4", "mxfp4"}:
        return Weights("mxfp4", "group", method=method)
    return Weights("unknown", method=method)


# --- methods with one answer for all routed experts


def _always(weights: Weights) -> Callable[[Quantisation, Layer], Weights]:
    """One answer for routed experts; plain linear layers are left whole."""

    def rule(quantisation: Quantisation, layer: Layer) -> Weights:
        del quantisation
        return weights if layer.experts else WHOLE

    return rule


def _linear_only(quantisation: Quantisation, layer: Layer) -> Weights:
    """Methods that leave routed experts as they are (torchao.py, fbgemm_fp8.py, fp_quant.py)."""
    return WHOLE if layer.experts else Weights("unknown", method=quantisation.method)


RULES: Mapping[str, Callable[[Quantisation, Layer], Weights]] = {
    **dict.fromkeys(("fp8", "deepseek_v4_fp8"), _fp8),
    "compressed-tensors": _compressed_tensors,
    **dict.fromkeys(
        (
            *("modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"),
            *("nvfp4", "mxfp8", "fp8_pb_wo"),
        ),
        _modelopt,
    ),
    **dict.fromkeys(("gptq", "auto_gptq", "gptq_marlin"), _gptq),
    **dict.fromkeys(("awq", "auto_awq", "awq_marlin", "moe_wna16"), _awq),
    **dict.fromkeys(("auto-round", "inc"), _auto_round),
    "quark": _quark,
    **dict.fromkeys(("mxfp4", "gpt_oss_mxfp4"), _always(Weights("mxfp4", "group", method="mxfp4"))),
    "experts_int8": _always(Weights("int8_w8a16", "channel", method="experts_int8")),
    **dict.fromkeys(("torchao", "fbgemm_fp8", "fp_quant"), _linear_only),
}


def weights_of(quantisation: Quantisation | None, layer: Layer) -> Weights:
    """What vLLM will make of a layer's weights.

    Raises:
        BadInputError: a configuration that cannot be understood, or that vLLM refuses.
    """
    if quantisation is None:
        return WHOLE
    rule = RULES.get(quantisation.method)
    if rule is None:
        return Weights("unknown", method=quantisation.method)
    return rule(quantisation, layer)
