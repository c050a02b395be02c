"""From a model's ``config.json`` to the MoE shape on one rank.

Covers the architectures of vLLM's own tuner (benchmarks/kernels/benchmark_moe.py,
``get_model_params``) and those that spell the same things with the same words.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.engine import hub
from autotune.engine.hub import Config, HubUnreachableError, hub_file, is_hub_id, text_config
from autotune.engine.quantization import APART, lacks_quantisation, with_quantisation
from autotune.export.files import expand_user
from autotune.kernels.moe.layers import ExpertLayers, chosen, expert_layers, type_of
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import VARIANTS, Scheme, variant_named
from autotune.util import edge
from autotune.util.resources import data_root
from autotune.util.yamlfile import load_yaml

FINEST_BLOCK = 32
"""VLLM refines a block of fp8 to this at the least."""


class _Preset(BaseModel):
    model_config = ConfigDict(extra="forbid")
    title: str
    source: str
    config: dict[str, Any]


def model_names() -> list[str]:
    """The presets that come with the project."""
    return sorted(path.stem for path in (data_root() / "search_spaces" / "models").glob("*.yaml"))


def is_on_hub(ref: str) -> bool:
    """Tell whether a model's configuration is neither a preset nor in a folder of this machine."""
    return ref not in model_names() and hub.is_on_hub(str(expand_user(ref)))


def load_config(ref: str, flag: str = "--model") -> dict[str, Any]:
    """Read a model's configuration.

    Args:
        ref: a preset, a folder with ``config.json``, a path to one, or a hub id ``org/name``.
        flag: what named it, for messages.

    Raises:
        BadInputError: not found, or not a JSON object.
        MissingEnvironmentError: a hub id, and the hub cannot be reached.
    """
    if ref in model_names():
        path = data_root() / "search_spaces" / "models" / f"{ref}.yaml"
        return load_yaml(path, _Preset).config
    path = Path(expand_user(ref))
    try:
        if path.is_dir():
            path /= "config.json"
        from_hub = not path.is_file()
        config = _read(_from_hub(ref, flag) if from_hub else path)
        if not lacks_quantisation(config):
            return config
        apart = _apart_on_hub(ref, flag) if from_hub else path.with_name(APART)
        found = apart is not None and apart.is_file()
        return with_quantisation(config, _read(apart)) if found and apart else config
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        config = edge.read_json(path)
    except edge.EdgeError as error:
        raise BadInputError(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise BadInputError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def _apart_on_hub(ref: str, flag: str) -> Path | None:
    """The file of older ModelOpt; None where the model or the hub's cache has none."""
    try:
        return hub_file(ref, APART, flag)
    except HubUnreachableError:
        return None


def _from_hub(ref: str, flag: str) -> Path:
    known = ", ".join(model_names())
    if not is_hub_id(ref):
        raise BadInputError(
            f"{flag} {ref}: no such folder or config.json; presets: {known}; or a hub id org/name"
        )
    try:
        path = hub_file(ref, "config.json", flag)
    except HubUnreachableError as error:
        raise MissingEnvironmentError(
            f"{flag} {ref}: the hub cannot be reached ({error}); download its "
            "config.json and give the folder"
        ) from None
    if path is None:
        raise BadInputError(f"{flag} {ref}: the repository has no config.json")
    return path


def shape_from_config(
    config: Config,
    *,
    dtype: str = "auto",
    tp: int = 1,
    ep: int = 1,
    scheme: str | None = None,
    layer: str | None = None,
) -> MoeShape:
    """The MoE shape of a model on one rank.

    Tensor parallelism divides N. Expert parallelism divides E and leaves N whole, whatever ``tp``
    is: the ranks are the same ones (vLLM fused_moe/layer.py, benchmark_moe.py).

    Args:
        config: the content of ``config.json``.
        dtype: a key of ``VARIANTS`` (``kernels/moe/variants.py``), or ``auto``: the checkpoint's.
        tp: tensor-parallel size.
        ep: expert-parallel size.
        scheme: overrides the scaling scheme of the checkpoint.
        layer: which layers, see :func:`~autotune.kernels.moe.layers.chosen`.

    Raises:
        BadInputError: no experts, a value missing, a size that does not divide, or a quantisation
            that this kernel's configuration file does not serve.
    """
    try:
        groups = expert_layers(config)
    except BadInputError:
        if dtype == "auto":
            raise
        # What the experts will be is given, so what the checkpoint says of it does not matter.
        groups = expert_layers(config, quantised=False)
    layers = chosen(groups, layer)
    return shape_of(layers, dtype=dtype, tp=tp, ep=ep, scheme=scheme, config=config)


def shape_of(
    layers: ExpertLayers,
    *,
    dtype: str = "auto",
    tp: int = 1,
    ep: int = 1,
    scheme: str | None = None,
    config: Config | None = None,
) -> MoeShape:
    """The shape of some layers on one rank; arguments as of :func:`shape_from_config`.

    Raises:
        BadInputError: a size that does not divide, or weights whose file this tuner cannot make.
    """
    shape = replace(
        explicit_shape(
            experts=layers.experts,
            intermediate=layers.intermediate,
            hidden=layers.hidden,
            topk=layers.topk,
            dtype="bf16",
        ),
        gated=layers.gated,
    )
    weights, scaling, block = _weights(layers, dtype)
    if scheme is not None:
        scaling, block = _scheme(scheme, block)
        _check_scheme(scaling, weights)
    shape = _sharded(shape, tp, ep)
    if ep == 1 and config is not None and type_of(config).startswith(("kimi_linear", "kimi_k3")):
        shape = _padded(shape, config, tp)
    refines = not layers.weights.method.startswith("compressed-tensors")
    block = block and refined_block(shape, block, tp if ep == 1 else 1, refines=refines)
    variant = VARIANTS[weights]
    return replace(
        shape,
        dtype=variant.selector,
        weight_dtype=variant.weights,
        scheme=scaling,
        block_shape=block,
    )


def _padded(shape: MoeShape, config: Config, tp: int) -> MoeShape:
    """Kimi K3 pads a rank's part to 256 columns (vLLM 0.32 ``models/kimi_k3/nvidia/model.py``)."""
    least = text_config(config).get("min_moe_intermediate_per_partition", 256)
    if tp == 1 or "kimi_k3" not in str(config.get("model_type")) or not isinstance(least, int):
        return shape
    return replace(shape, intermediate=max(shape.intermediate, least))


def refined_block(
    shape: MoeShape, block: tuple[int, int], tp: int, *, refines: bool = True
) -> tuple[int, int]:
    """The block that vLLM makes of one that does not divide the width on a rank.

    Since 0.32 it cuts blocks to the greatest common divisor with both widths, if that is at least
    32 (``fused_moe/oracle/fp8.py``, ``refine_fp8_moe_block_shape``), and looks for a file of that
    name. It does so for its own fp8 method, not for compressed-tensors.

    Raises:
        BadInputError: vLLM finds no such block either, or looks for none.
    """
    width = shape.intermediate
    if width % block[0] == 0 and (tp == 1 or width % block[1] == 0):
        return block
    fine = math.gcd(*block, width, shape.hidden)
    if not refines:
        raise BadInputError(
            f"intermediate size {width} on this rank is not divisible by the quantisation block "
            f"{block[0]}, and vLLM refines no blocks of compressed-tensors; use a smaller --tp, or "
            "--ep"
        )
    if fine < FINEST_BLOCK:
        raise BadInputError(
            f"intermediate size {width} on this rank is not divisible by the quantisation block "
            f"{block[0]}, and vLLM refines blocks to {FINEST_BLOCK} at the least; use a smaller "
            "--tp, or --ep"
        )
    return fine, fine


def _scheme(scheme: str, block: tuple[int, int] | None) -> tuple[Scheme, tuple[int, int] | None]:
    try:
        scaling = Scheme(scheme)
    except ValueError:
        raise BadInputError(
            f"--scheme {scheme}: not one of {', '.join(s.value for s in Scheme)}"
        ) from None
    return scaling, (block or (128, 128)) if scaling is Scheme.BLOCK else None


def _check_scheme(scaling: Scheme, dtype: str) -> None:
    if scaling not in VARIANTS[dtype].schemes:
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


def _weights(layers: ExpertLayers, dtype: str) -> _Quantisation:
    """(``--dtype`` name, scheme, block) of the checkpoint, or what ``--dtype`` makes of it."""
    online = None if dtype == "auto" else variant_named(dtype, "auto").online
    own = layers.weights
    if online is not None and dtype != own.name:
        return dtype, online, None
    if own.name not in VARIANTS:
        raise BadInputError(_not_served(layers))
    return own.name, Scheme(own.scaling), own.block


def _listed() -> str:
    *others, last = VARIANTS
    return f"{', '.join(others)} and {last}"


def _not_served(layers: ExpertLayers) -> str:
    own = layers.weights
    if own.name in {"int4_w4a16", "int8_w8a16"}:
        return (
            f"quantization {own.method!r} makes the routed experts of {layers.where} {own.name}: "
            f"vLLM has files …,dtype={own.name}.json for another kernel, and reads them only where "
            f"Marlin does not serve the layer; this tuner makes {_listed()} files"
        )
    kind = "" if own.name == "unknown" else f" ({own.name} in {layers.where})"
    return (
        f"quantization {own.method!r} of the routed experts{kind} is not served by this kernel's "
        f"configuration file ({_listed()} are): vLLM asks for none; --dtype says "
        "what vLLM will run instead"
    )


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
    variant = variant_named(dtype)
    scaling, block = _scheme(scheme or variant.schemes[0].value, None)
    _check_scheme(scaling, dtype)
    assert experts is not None and intermediate is not None  # noqa: S101, PT018 - checked above
    assert hidden is not None and topk is not None  # noqa: S101, PT018
    plain = MoeShape(
        experts=experts,
        intermediate=intermediate,
        hidden=hidden,
        topk=topk,
        dtype=variant.selector,
        weight_dtype=variant.weights,
        scheme=Scheme.NONE,
        block_shape=None,
        global_experts=experts,
    )
    shape = _sharded(plain, tp, ep)
    block = block and refined_block(shape, block, tp if ep == 1 else 1)
    return replace(shape, scheme=scaling, block_shape=block)
