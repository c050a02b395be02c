"""From a model's ``config.json`` to the MoE shape on one rank.

Covers the architectures of vLLM's own tuner (benchmarks/kernels/benchmark_moe.py,
``get_model_params``) and those that spell the same things with the same words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.engine.hub import Config, HubUnreachableError, hub_file, text_config
from autotune.export.files import at_home
from autotune.kernels.moe.shape import DTYPES, MoeShape, Scheme
from autotune.util.resources import data_root
from autotune.util.yamlfile import load_yaml

_EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
_TOPK = (
    "num_experts_per_tok",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "num_experts_per_token",
)
# ``intermediate_size`` last: where both are given it is the dense layers' width.
_WIDTH = (
    "moe_intermediate_size",
    "expert_intermediate_size",
    "expert_ffn_hidden_size",
    "ffn_hidden_size",
    "intermediate_size",
)
# NemotronH with latent experts feeds them a narrower vector than the hidden state.
_HIDDEN = ("moe_latent_size", "hidden_size", "d_model", "n_embd")
_ROUTED_EXPERTS = re.compile(r"(?<!shared_)experts")
_UNGATED = {"NemotronHForCausalLM"}


class _Preset(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str
    source: str
    config: dict[str, Any]


def model_names() -> list[str]:
    """The presets that come with the project."""
    return sorted(path.stem for path in (data_root() / "search_spaces" / "models").glob("*.yaml"))


def load_config(ref: str) -> dict[str, Any]:
    """Read a model's configuration.

    Args:
        ref: a preset, a folder with ``config.json``, a path to one, or a hub id ``org/name``.

    Raises:
        BadInputError: not found, or not a JSON object.
        MissingEnvironmentError: a hub id, and the hub cannot be reached.
    """
    if ref in model_names():
        path = data_root() / "search_spaces" / "models" / f"{ref}.yaml"
        return load_yaml(path, _Preset).config
    path = Path(at_home(ref))
    try:
        if path.is_dir():
            path /= "config.json"
        if not path.is_file():
            path = _from_hub(ref)
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise BadInputError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def _from_hub(ref: str) -> Path:
    known = ", ".join(model_names())
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", ref) or ref.startswith((".", "/")):
        raise BadInputError(
            f"--model {ref}: no such folder or config.json; presets: {known}; or a hub id org/name"
        )
    try:
        path = hub_file(ref, "config.json", "--model")
    except HubUnreachableError as error:
        raise MissingEnvironmentError(
            f"--model {ref}: the hub cannot be reached ({error}); download its "
            "config.json and give the folder"
        ) from None
    if path is None:
        raise BadInputError(f"--model {ref}: the repository has no config.json")
    return path


def _first(config: Config, names: Sequence[str]) -> int | None:
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value:  # Hunyuan lists one value per layer
            value = value[0]
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise BadInputError(f"config.json: {name}: expected a whole number, found {value!r}")
        return value
    return None


def _name(config: Config) -> str:
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0])
    return str(config.get("model_type", "the model"))


def shape_from_config(
    config: Config, *, dtype: str = "auto", tp: int = 1, ep: int = 1, scheme: str | None = None
) -> MoeShape:
    """The MoE shape of a model on one rank.

    Tensor parallelism divides N. Expert parallelism divides E and leaves N whole, whatever ``tp``
    is: the ranks are the same ones (vLLM fused_moe/layer.py, benchmark_moe.py).

    Args:
        config: the content of ``config.json``.
        dtype: a key of :data:`~autotune.kernels.moe.shape.DTYPES`, or ``auto``: the checkpoint's.
        tp: tensor-parallel size.
        ep: expert-parallel size.
        scheme: overrides the scaling scheme of the checkpoint.

    Raises:
        BadInputError: no experts, a value missing, a size that does not divide, or a quantisation
            that this kernel's configuration file does not serve.
    """
    text = text_config(config)
    # DBRX keeps its MoE values in ffn_config.
    moe: dict[str, Any] = (
        {**text, **text["ffn_config"]} if isinstance(text.get("ffn_config"), dict) else {**text}
    )
    experts = _first(moe, _EXPERTS)
    if not experts or experts < 2:
        raise BadInputError(
            f"{_name(config)} has no experts (looked for {', '.join(_EXPERTS)}); only "
            "mixture-of-experts models use the fused-MoE kernel"
        )
    found = {
        "topk": _first(moe, _TOPK),
        "intermediate": _first(moe, _WIDTH),
        "hidden": _first(moe, _HIDDEN),
    }
    for (field, value), names in zip(found.items(), (_TOPK, _WIDTH, _HIDDEN), strict=True):
        if value is None:
            raise BadInputError(
                f"config.json of {_name(config)}: {field}: none of {', '.join(names)}"
            )
    shape = explicit_shape(
        experts=experts,
        intermediate=found["intermediate"],
        hidden=found["hidden"],
        topk=found["topk"],
        dtype="bf16",
    )
    if _name(config) in _UNGATED or text.get("mlp_hidden_act") == "relu2":
        shape = replace(shape, gated=False)
    weights, scaling, block = _quantisation(config, text, dtype)
    if scheme is not None:
        scaling, block = _scheme(scheme, block)
        _check_scheme(scaling, weights)
    shape = _sharded(shape, tp, ep)
    return replace(
        shape,
        dtype=DTYPES[weights][0],
        weight_dtype=DTYPES[weights][1],
        scheme=scaling,
        block_shape=block,
    )


def _scheme(scheme: str, block: tuple[int, int] | None) -> tuple[Scheme, tuple[int, int] | None]:
    try:
        scaling = Scheme(scheme)
    except ValueError:
        raise BadInputError(
            f"--scheme {scheme}: not one of {', '.join(s.value for s in Scheme)}"
        ) from None
    return scaling, (block or (128, 128)) if scaling is Scheme.BLOCK else None


def _check_scheme(scaling: Scheme, dtype: str) -> None:
    if (dtype == "bf16") != (scaling is Scheme.NONE) or (
        dtype == "int8_w8a8" and scaling is not Scheme.CHANNEL
    ):
        raise BadInputError(f"--scheme {scaling.value} does not go with --dtype {dtype}")


def _sharded(shape: MoeShape, tp: int, ep: int) -> MoeShape:
    for flag, parts, what, size in (
        ("--tp", tp if ep == 1 else 1, "intermediate size", shape.intermediate),
        ("--ep", ep, "experts", shape.experts),
    ):
        if parts < 1:
            raise BadInputError(f"{flag} must be at least 1, not {parts}")
        if size % parts:
            fitting = [n for n in range(1, min(size, 64) + 1) if size % n == 0]
            raise BadInputError(
                f"{flag} {parts} does not divide the {what} {size}; these do: "
                + ", ".join(map(str, fitting))
            )
    if ep > 1:
        return replace(shape, experts=shape.experts // ep)
    return replace(shape, intermediate=shape.intermediate // tp)


_Quantisation = tuple[str, Scheme, tuple[int, int] | None]


def _quantisation(config: Config, text: Config, dtype: str) -> _Quantisation:
    """(``--dtype`` name, scheme, block) of the checkpoint, or what ``--dtype`` makes of it."""
    if dtype not in {"auto", *DTYPES}:
        raise BadInputError(f"--dtype {dtype}: not one of auto, {', '.join(DTYPES)}")
    raw = config.get("quantization_config") or text.get("quantization_config") or {}
    if not isinstance(raw, dict):
        raise BadInputError(f"config.json: quantization_config: expected an object, found {raw!r}")
    if dtype == "auto":
        return _checkpoint(raw)
    try:
        own = _checkpoint(raw)
    except BadInputError:
        own = ("bf16", Scheme.NONE, None)
    if own[0] == dtype:
        return own
    # Quantised while loading: vLLM's online fp8 is per tensor, int8 is per channel.
    online = {"fp8_w8a8": Scheme.TENSOR, "int8_w8a8": Scheme.CHANNEL, "bf16": Scheme.NONE}
    return dtype, online[dtype], None


def _checkpoint(raw: Config) -> _Quantisation:
    method = str(raw.get("quant_method") or raw.get("quant_algo") or "").lower()
    if not raw:
        return "bf16", Scheme.NONE, None
    if method == "fp8":
        block = raw.get("weight_block_size")
        return _float8(Scheme.BLOCK if block else Scheme.TENSOR, block)
    if method == "compressed-tensors":
        return _compressed_tensors(raw)
    if method.startswith("modelopt") or method == "fp8_pb_wo":
        algorithm = str(raw.get("quant_algo", "FP8")).upper()
        if algorithm == "FP8":
            return _float8(Scheme.TENSOR, None)
        method = f"{method} {algorithm}"
    raise BadInputError(
        f"quantization {method!r} is not served by this kernel's configuration file (fp8_w8a8, "
        "int8_w8a8 and bf16 are); --dtype says what vLLM will run instead"
    )


def _float8(scheme: Scheme, block: Any) -> _Quantisation:
    if scheme is not Scheme.BLOCK:
        return "fp8_w8a8", scheme, None
    if not (
        isinstance(block, list)
        and len(block) == 2
        and all(isinstance(b, int) and b > 0 for b in block)
    ):
        raise BadInputError(f"config.json: quantization_config: block size {block!r} is not [n, k]")
    return "fp8_w8a8", scheme, (block[0], block[1])


def _group_of_experts(groups: Config) -> Any:
    """The group that quantises the experts: it names them, or all Linear layers; else the first."""
    for word in ("expert", "Linear"):
        for group in groups.values():
            targets = group.get("targets") if isinstance(group, dict) else None
            if isinstance(targets, list) and any(word in str(target) for target in targets):
                return group
    return next(iter(groups.values()), None)


def _compressed_tensors(raw: Config) -> _Quantisation:
    """Source: compressed-tensors' ``QuantizationScheme`` (weights, input_activations)."""
    groups = raw.get("config_groups")
    group = _group_of_experts(groups) if isinstance(groups, dict) else None
    ignored = raw.get("ignore")
    if isinstance(ignored, list) and any(_ROUTED_EXPERTS.search(str(n)) for n in ignored):
        return "bf16", Scheme.NONE, None  # the experts themselves are left unquantised
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise BadInputError("config.json: quantization_config.config_groups: no weights described")
    kind, bits = weights.get("type"), weights.get("num_bits")
    activations = group.get("input_activations") if isinstance(group, dict) else None
    if not isinstance(activations, dict) or bits != 8 or kind not in {"float", "int"}:
        raise BadInputError(
            f"quantization compressed-tensors with {bits}-bit {kind} weights is not served by "
            "this kernel's configuration file; --dtype says what vLLM will run instead"
        )
    if kind == "int":
        return "int8_w8a8", Scheme.CHANNEL, None
    strategy = str(weights.get("strategy", "tensor"))
    if strategy not in {"tensor", "channel", "block"}:
        raise BadInputError(f"config.json: quantization_config: unknown strategy {strategy!r}")
    return _float8(Scheme(strategy), weights.get("block_structure"))


def explicit_shape(
    *,
    experts: int | None,
    intermediate: int | None,
    hidden: int | None,
    topk: int | None,
    dtype: str = "fp8_w8a8",
    scheme: str | None = None,
    tp: int = 1,
    ep: int = 1,
) -> MoeShape:
    """A shape from ``--experts``, ``--intermediate``, ``--hidden`` and ``--topk``.

    fp8_w8a8 and int8_w8a8 are per channel unless ``scheme`` says otherwise.

    Raises:
        BadInputError: a value is missing or cannot be.
    """
    given = {"experts": experts, "intermediate": intermediate, "hidden": hidden, "topk": topk}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing:
        raise BadInputError(f"a shape needs all four sizes: {', '.join(missing)} not given")
    if dtype == "auto":
        dtype = "fp8_w8a8"
    if dtype not in DTYPES:
        raise BadInputError(f"--dtype {dtype}: not one of {', '.join(DTYPES)}")
    scaling, block = _scheme(scheme or ("none" if dtype == "bf16" else "channel"), None)
    _check_scheme(scaling, dtype)
    assert experts is not None and intermediate is not None  # noqa: S101, PT018 - checked above
    assert hidden is not None and topk is not None  # noqa: S101, PT018
    plain = MoeShape(
        experts=experts,
        intermediate=intermediate,
        hidden=hidden,
        topk=topk,
        dtype=DTYPES[dtype][0],
        weight_dtype=DTYPES[dtype][1],
        scheme=Scheme.NONE,
        block_shape=None,
        global_experts=experts,
    )
    return replace(_sharded(plain, tp, ep), scheme=scaling, block_shape=block)
