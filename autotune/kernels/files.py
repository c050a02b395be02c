"""Every tuned file that vLLM will look for when it serves a model: its name, reader and place.

Sources: vLLM 0.32 ``fused_moe.py`` (``get_config_file_name``, ``get_moe_configs``),
``fp8_utils.py`` (``get_w8a8_block_fp8_configs``), ``mamba_ssm.py`` (``get_ssm_configs``) and
``lora/ops/triton_ops/utils.py`` (``get_lora_op_configs``).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autotune.engine.hub import Config, text_config
from autotune.engine.quantization import Layer, quantisation_of
from autotune.engine.quantization_rules import weights_of
from autotune.engine.variables import FOLDER
from autotune.kernels.moe.backend import Where, activation_of, backend_of
from autotune.kernels.moe.from_model import load_config, shape_of
from autotune.kernels.moe.layers import ExpertLayers, NoExpertsError, expert_layers
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import VARIANTS
from autotune.machine.devices import Device
from autotune.machine.environment import exported
from autotune.util import edge

_MAMBA_SIZES = (
    ("mamba_head_dim", "ssm_state_size"),
    ("mamba_d_head", "mamba_d_state"),
    ("mamba_headdim", "mamba_d_state"),
)


@dataclass(frozen=True)
class TunedFile:
    """One file that vLLM looks for, or would if another backend ran the layer.

    Attributes:
        family: a name of :data:`FAMILIES`.
        where: which layers, for people.
        name: of the file; None where no file exists for such weights.
        backend: what runs the layers there.
        reads: whether that backend reads the file.
        why: the rule.
        found: where the file lies; None where it does not.
        triton: the Triton that it was made with, if it says so.
        command: what makes it; None where this tuner cannot.
    """

    family: str
    where: str
    name: str | None
    backend: str
    reads: bool
    why: str
    found: str | None = None
    triton: str | None = None
    command: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Service:
    """How a model is served.

    Attributes:
        model: a preset, a folder or a hub id.
        device: where.
        tp: tensor-parallel size.
        ep: expert-parallel size.
        drafter: a drafter's model, likewise.
        lora: whether adapters are served.
        moe_backend: ``--moe-backend`` of vLLM.
        flashinfer: whether FlashInfer is installed there.
        deep_gemm: whether DeepGEMM is installed there and runs on the GPU.
    """

    model: str
    device: Device
    tp: int = 1
    ep: int = 1
    drafter: str | None = None
    lora: bool = False
    moe_backend: str | None = None
    flashinfer: bool = True
    deep_gemm: bool = False


def files_for(service: Service) -> list[TunedFile]:
    """Every file that vLLM will look for, the model's first.

    Raises:
        BadInputError: a configuration that is not understood, or sizes that do not divide.
        MissingEnvironmentError: a hub id, and the hub cannot be reached.
    """
    found = list(files_of(load_config(service.model, "MODEL"), service))
    if service.drafter is not None:
        drafter = load_config(service.drafter, "--drafter")
        found += [
            replace(file, where=f"drafter: {file.where}")
            for file in _of_model(drafter, service, service.drafter)
        ]
    if service.lora:
        found += _lora(service.device)
    return [_looked_up(file) for file in found]


def files_of(config: Config, service: Service) -> Iterator[TunedFile]:
    """The files of the model itself, not looked up.

    Raises:
        BadInputError: a configuration that is not understood, or sizes that do not divide.
    """
    yield from _of_model(config, service, service.model)


def _of_model(config: Config, service: Service, ref: str) -> Iterator[TunedFile]:
    for family in FAMILIES.values():
        if family.of_model is not None:
            yield from family.of_model(config, service, ref)


def _experts(group: ExpertLayers, config: Config, service: Service, ref: str) -> TunedFile:
    where = Where(
        service.device.arch,
        ep=service.ep,
        activation=activation_of(config),
        flashinfer=service.flashinfer,
        deep_gemm=service.deep_gemm,
        lora=service.lora,
        forced=service.moe_backend,
    )
    said = f"routed experts of {group.where}, {group.weights.name}"
    sizes = replace(group, weights=replace(group.weights, name="bf16", scaling="none", block=None))
    servable = group.weights.name in VARIANTS
    shape = shape_of(group if servable else sizes, tp=service.tp, ep=service.ep, config=config)
    backend = backend_of(group.weights, shape.block_shape, where)
    name = _moe_name(group, shape, service.device)
    return TunedFile(
        family="moe",
        where=said,
        name=name,
        backend=backend.name,
        reads=backend.reads and name is not None,
        why=backend.why,
        command=group.command(service.device, ref, service.tp, service.ep) if servable else None,
    )


def _moe_name(group: ExpertLayers, shape: MoeShape, device: Device) -> str | None:
    """The file's name; None for weights whose kernels have no files."""
    own = group.weights.name
    if own in {"int8_w8a16", "int4_w4a16"}:
        return replace(shape, dtype=own).config_file_name(device.vllm_name)
    return shape.config_file_name(device.vllm_name) if own in VARIANTS else None


def _moe(config: Config, service: Service, ref: str) -> Iterator[TunedFile]:
    """Layers of routed experts."""
    groups: list[ExpertLayers] = []
    with suppress(NoExpertsError):
        groups = expert_layers(config)
    for group in groups:
        yield _experts(group, config, service, ref)


def _dense(config: Config, service: Service, ref: str) -> Iterator[TunedFile]:
    """Block-fp8 linear layers: one file per (N, K) on a rank, read by Triton's kernel alone."""
    del ref
    quantisation = quantisation_of(config)
    shapes: dict[tuple[int, int], list[str]] = {}
    for part, n, k in _linear_sizes(config, service.tp):
        names = [f"{base}.0.{part}" for base in ("model.layers", "model.language_model.layers")]
        weights = weights_of(quantisation, Layer(names, experts=False))
        if weights.name == "fp8_w8a8" and weights.block == (128, 128) and n > 0 and k > 0:
            shapes.setdefault((n, k), []).append(part.rpartition(".")[2])
    before = "CUTLASS, DeepGEMM or FlashInfer" if service.device.arch >= 90 else "Marlin"
    for (n, k), parts in shapes.items():
        yield TunedFile(
            family="dense",
            where=f"linear layers {', '.join(parts)}",
            name=(
                f"N={n},K={k},device_name={service.device.vllm_name},dtype=fp8_w8a8,"
                "block_shape=[128,128].json"
            ),
            backend=before,
            reads=False,
            why=f"Triton, which alone reads it, comes after {before}; look for «Selected» in the "
            f"server's log; never read from {FOLDER}",
        )


def _linear_sizes(config: Config, tp: int) -> Iterator[tuple[str, int, int]]:
    """(name, N, K) on a rank of the usual linear layers; latent attention is left out."""
    text = text_config(config)

    def size(name: str) -> int:
        value = text.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    kind = str(text.get("model_type") or config.get("model_type") or "")
    gated = text.get("attn_output_gate", kind.startswith(("qwen3_next", "qwen3_5")))
    if heads and not size("kv_lora_rank") and not kind.startswith("deepseek"):
        dim = size("head_dim") or hidden // heads
        keys = max((size("num_key_value_heads") or heads) // tp, 1)
        queries = heads // tp * (2 if gated else 1)
        yield "self_attn.q_proj", (queries + 2 * keys) * dim, hidden
        yield "self_attn.o_proj", hidden, heads // tp * dim
    experts = any(text.get(name) for name in ("num_experts", "n_routed_experts"))
    width = size("shared_expert_intermediate_size") if experts else size("intermediate_size")
    if experts and not width:
        width = size("n_shared_experts") * size("moe_intermediate_size")
    inner = "mlp.shared_expert" if experts else "mlp"
    if width:
        yield f"{inner}.gate_proj", 2 * width // tp, hidden
        yield f"{inner}.down_proj", hidden, width // tp


def _mamba(config: Config, service: Service, ref: str) -> Iterator[TunedFile]:
    """The state update of Mamba 2, whose file does not depend on the ranks."""
    del ref
    text, device = text_config(config), service.device
    for head, state in _MAMBA_SIZES:
        dim, size = text.get(head), text.get(state)
        if not isinstance(dim, int) or not isinstance(size, int):
            continue
        cache = "float32" if text.get("mamba_ssm_cache_dtype") == "float32" else "float16"
        yield TunedFile(
            family="mamba",
            where=f"Mamba layers, state in {cache}",
            name=(
                f"headdim={dim},dstate={size},device_name={device.vllm_name},"
                f"cache_dtype={cache}.json"
            ),
            backend="TRITON",
            reads=True,
            why="vLLM's Triton kernel selective_state_update; bfloat16 shares float16's file",
        )
        return


def _lora(device: Device) -> list[TunedFile]:
    """Tiles of the LoRA kernels: read from ``VLLM_TUNED_CONFIG_FOLDER`` alone, none is shipped."""
    gpu = re.sub(r"[ -]", "_", device.vllm_name)
    kinds = ["SHRINK", "EXPAND_TRUE", "EXPAND_FALSE"]
    kinds += [f"FUSED_MOE_LORA_{w}_{step}" for w in ("W13", "W2") for step in ("SHRINK", "EXPAND")]
    return [
        TunedFile(
            family="lora",
            where="LoRA adapters",
            name=f"{gpu}_{kind}.json",
            backend="TRITON",
            reads=exported(FOLDER) is not None,
            why=f"read only where {FOLDER} is set",
        )
        for kind in kinds
    ]


@dataclass(frozen=True)
class Family:
    """Kernels of vLLM that read files of one kind.

    Attributes:
        of_model: finds the files of a model, by its configuration and its name; None for those
            that do not depend on it.
        inside: the folder in vLLM's package; None where it ships none.
        from_folder: whether vLLM looks into ``VLLM_TUNED_CONFIG_FOLDER`` as well, and first.
    """

    of_model: Callable[[Config, Service, str], Iterator[TunedFile]] | None
    inside: str | None
    from_folder: bool = True


FAMILIES = {
    "moe": Family(_moe, "model_executor/layers/fused_moe/configs"),
    "dense": Family(_dense, "model_executor/layers/quantization/utils/configs", from_folder=False),
    "mamba": Family(_mamba, "model_executor/layers/mamba/ops/configs/selective_state_update"),
    "lora": Family(None, None),
}
"""By the name that a :class:`TunedFile` has; in the order in which files are listed."""


def _looked_up(file: TunedFile) -> TunedFile:
    """The file with its place: the user's folder first, as vLLM looks."""
    if file.name is None:
        return file
    for folder in _folders(file.family):
        path = folder / file.name
        if path.is_file():
            return replace(file, found=str(path), triton=_made_with(path), command=None)
    return file


def _folders(family: str) -> Iterator[Path]:
    known, own = FAMILIES[family], exported(FOLDER)
    if own and known.from_folder:
        yield Path(own)
    spec = importlib.util.find_spec("vllm") if known.inside else None
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place) / str(known.inside)


def _made_with(path: Path) -> str | None:
    try:
        content = edge.read_json(path)
    except (OSError, edge.EdgeError):
        return None
    version = content.get("triton_version") if isinstance(content, dict) else None
    return str(version) if version else None
