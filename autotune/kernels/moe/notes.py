"""What a person should know before a layer is tuned: other layers, other names, other vLLMs."""

from __future__ import annotations

import re

from autotune.core import BadInputError
from autotune.engine.hub import Config
from autotune.engine.quantization import Weights
from autotune.kernels.moe.backend import Where, activation_of, backend_of
from autotune.kernels.moe.from_model import load_config, shape_of
from autotune.kernels.moe.layers import ExpertLayers, chosen, expert_layers
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.request import MoeRequest
from autotune.machine.devices import Device

READS = ("--moe-backend", "triton")
"""Flags of ``vllm serve`` with which it reads a file that it would not read otherwise."""
_REFINES = (0, 32)
"""The vLLM that first refines blocks (fused_moe/oracle/fp8.py)."""


def notes_on(
    config: Config, request: MoeRequest, shape: MoeShape, device: Device
) -> tuple[str, ...]:
    """The other files that vLLM will ask for when it serves this model, one line each.

    Args:
        config: of the model.
        request: what is tuned.
        shape: of the layers that are tuned.
        device: where.
    """
    name = shape.config_file_name(device.vllm_name)
    if request.dtype != "auto":
        return unread(Weights(request.dtype, shape.scheme.value), shape, request, device, config)
    groups = expert_layers(config)
    tuned = chosen(groups, request.layer)
    lines = list(unread(tuned.weights, shape, request, device, config))
    for group in groups:
        if group == tuned:
            continue
        said = _other(group, config, request, name, device)
        if said:
            lines.append(said)
    return tuple(lines)


def unread(
    weights: Weights, shape: MoeShape, request: MoeRequest, device: Device, config: Config
) -> tuple[str, ...]:
    """One line where nothing would read the file that is tuned; none where vLLM does."""
    where = Where(device.arch, ep=request.ep, activation=activation_of(config))
    backend = backend_of(weights, shape.block_shape, where)
    if backend.reads:
        return ()
    return (
        f"on {device.title} vLLM runs these layers in {backend.name}, which reads no such file "
        f"({backend.why}): serve with {' '.join(READS)} to use it",
    )


def _other(
    group: ExpertLayers, config: Config, request: MoeRequest, tuned: str, device: Device
) -> str | None:
    try:
        shape = shape_of(group, tp=request.tp, ep=request.ep, config=config)
    except BadInputError as error:
        return f"{group.where}: no file can be made: {error}"
    name = shape.config_file_name(device.vllm_name)
    if name == tuned:
        return None
    command = group.command(device, request.model, request.tp, request.ep)
    return f"{group.where} asks for a file of its own, {name}: {command}"


def check_refined(request: MoeRequest, shape: MoeShape, vllm: str) -> None:
    """Refuse a block that only a newer vLLM makes.

    Args:
        request: what is tuned.
        shape: its shape, with the block that vLLM refines the checkpoint's to.
        vllm: the version that is installed.

    Raises:
        BadInputError: the installed vLLM asks for no such file.
    """
    block = shape.block_shape
    if block is None or block == (128, 128) or _version(vllm) >= _REFINES:
        return
    own = _own_block(request)
    if block != own:
        raise BadInputError(
            f"intermediate size {shape.intermediate} on this rank is not divisible by the "
            f"quantisation block {own[0]}; vLLM refines it to {block[0]} since 0.32, and {vllm} is "
            "installed: use a smaller --tp, or --ep"
        )


def _own_block(request: MoeRequest) -> tuple[int, int]:
    if request.model is None:
        return (128, 128)
    weights = chosen(expert_layers(load_config(request.model)), request.layer).weights
    return weights.block or (128, 128)


def _version(text: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (999, 0)
