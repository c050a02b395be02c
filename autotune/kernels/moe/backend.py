"""Which of vLLM's backends runs a layer of routed experts, and whether it reads the tuned file.

Rules read off vLLM 0.32's oracles (``fused_moe/oracle/*.py``: the order of backends, and each
one's ``is_supported_config``), and held to them by ``tests/kernels/test_backend.py``, which asks
vLLM's own code as on each GPU. A backend may still fall back to Triton for single shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.core import BadInputError
from autotune.engine.hub import Config, text_config
from autotune.engine.quantization import Weights
from autotune.kernels.moe.variants import VARIANTS

TRITON = "TRITON"
_READERS = frozenset({TRITON, "BATCHED_TRITON"})
_FLAG: Mapping[str, str] = {
    "triton": TRITON,
    "deep_gemm": "DEEPGEMM",
    "cutlass": "VLLM_CUTLASS",
    "flashinfer_trtllm": "FLASHINFER_TRTLLM",
    "flashinfer_cutlass": "FLASHINFER_CUTLASS",
    "flashinfer_cutedsl": "FLASHINFER_CUTEDSL",
    "marlin": "MARLIN",
    "humming": "HUMMING",
    "batched_triton": "BATCHED_TRITON",
    "emulation": "EMULATION",
    "b12x": "B12X",
    "flashinfer_b12x": "FLASHINFER_B12X",
}
_ASKED_OF_TRITON = frozenset({*VARIANTS, "int8_w8a16", "int4_w4a16"})
"""Weights for which vLLM's Triton kernels look for a file; the 4-bit floats never do."""


@dataclass(frozen=True)
class Backend:
    """What runs a layer: vLLM's name for it, whether it reads a tuned file, and why it is it."""

    name: str
    reads: bool
    why: str


@dataclass(frozen=True)
class Where:
    """Where and how a layer is served.

    Attributes:
        arch: compute capability as Triton writes it, such as 121.
        ep: expert-parallel size.
        activation: vLLM's name for the experts' activation.
        flashinfer: whether FlashInfer is installed, as vLLM's CUDA wheels require.
        deep_gemm: whether DeepGEMM is installed and runs on this GPU.
        lora: whether adapters are served.
        forced: ``--moe-backend``; None or ``auto`` lets vLLM choose.
    """

    arch: int
    ep: int = 1
    activation: str = "silu"
    flashinfer: bool = True
    deep_gemm: bool = False
    lora: bool = False
    forced: str | None = None


def activation_of(config: Config) -> str:
    """The activation of the routed experts, in vLLM's words."""
    text = text_config(config)
    kind = str(text.get("model_type") or config.get("model_type") or "")
    if kind.startswith("gpt_oss"):
        return "swigluoai"
    if kind.startswith("minimax_m3"):
        return "swigluoai_uninterleave"
    if kind.startswith(("gemma4", "diffusion_gemma")):
        return "gelu_tanh"
    if kind.startswith("nemotron_h"):
        return f"{text.get('mlp_hidden_act', 'relu2')}_no_mul"
    named: Any = text.get("hidden_act") or text.get("hidden_activation") or "silu"
    return {"gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu2_no_mul"}.get(str(named), str(named))


def backend_of(weights: Weights, block: tuple[int, int] | None, where: Where) -> Backend:
    """What runs the layer.

    Args:
        weights: of the experts.
        block: of block scaling, as vLLM refines it; None without.
        where: where it is served.

    Raises:
        BadInputError: no such ``--moe-backend``.
    """
    if where.forced and where.forced != "auto":
        if where.forced not in _FLAG:
            raise BadInputError(
                f"--moe-backend {where.forced}: not one of auto, {', '.join(_FLAG)}"
            )
        name, why = _FLAG[where.forced], f"--moe-backend {where.forced}"
    else:
        name, why = _RULES.get(weights.name, _unknown)(weights, block, where)
    return Backend(name, name in _READERS and weights.name in _ASKED_OF_TRITON, why)


def _is_hopper(where: Where) -> bool:
    return where.arch == 90


def _is_datacentre_blackwell(where: Where) -> bool:
    return 100 <= where.arch < 110


def _flashinfer(where: Where) -> str:
    """FlashInfer's kernel where it is there: TRTLLM's on sm_10x where it has the activation."""
    return "FLASHINFER_TRTLLM" if _trtllm(where) else "FLASHINFER_CUTLASS"


def _trtllm(where: Where) -> bool:
    return _is_datacentre_blackwell(where) and where.activation in {"silu", "relu2_no_mul"}


_Answer = tuple[str, str]


def _bf16(weights: Weights, block: tuple[int, int] | None, where: Where) -> _Answer:
    del weights, block
    if where.arch < 90 or _is_hopper(where):
        return TRITON, f"on sm_{where.arch} vLLM takes Triton for unquantised experts"
    if where.lora:
        return TRITON, "with LoRA adapters vLLM takes Triton for unquantised experts"
    if where.activation.startswith("swigluoai"):
        return TRITON, "vLLM takes Triton before FlashInfer for this activation"
    if not where.flashinfer:
        return TRITON, "FlashInfer is not installed"
    return _flashinfer(where), f"on sm_{where.arch} FlashInfer comes before Triton"


def _fp8(weights: Weights, block: tuple[int, int] | None, where: Where) -> _Answer:
    if where.arch < 89:
        return "MARLIN", f"sm_{where.arch} has no fp8 arithmetic"
    if weights.scaling == "block":
        return _fp8_block(block, where)
    if weights.scaling == "channel":
        # Quark does not allow it (quark_moe.py), compressed-tensors does.
        cutlass = 90 <= where.arch < 110 and not where.activation.endswith("_no_mul")
        cutlass = cutlass and not weights.method.startswith("quark")
        if cutlass:
            return (
                "VLLM_CUTLASS",
                f"vLLM has CUTLASS kernels for per-channel fp8 on sm_{where.arch}",
            )
        return TRITON, f"no other backend serves per-channel fp8 on sm_{where.arch}"
    return _fp8_tensor(weights, where)


def _fp8_tensor(weights: Weights, where: Where) -> _Answer:
    if weights.method.startswith("compressed-tensors") and not weights.static:
        return "MARLIN", "vLLM asks for activations by groups of 128, which Triton serves by block"
    if weights.static and where.flashinfer and where.arch >= 90:
        return _flashinfer(where), "activation scales are stored, which FlashInfer serves first"
    return TRITON, "no backend before Triton serves these scales"


def _fp8_block(block: tuple[int, int] | None, where: Where) -> _Answer:
    if block != (128, 128):
        return TRITON, "only Triton takes blocks other than 128 x 128"
    if _is_hopper(where):
        if where.ep == 1:
            return TRITON, "on Hopper vLLM prefers Triton for block fp8 under tensor parallelism"
        if where.flashinfer:
            return (
                "FLASHINFER_CUTLASS",
                "on Hopper vLLM prefers it for block fp8 with experts apart",
            )
    if where.flashinfer and _trtllm(where):
        return "FLASHINFER_TRTLLM", "FlashInfer comes first for block fp8"
    if where.deep_gemm and where.activation == "silu" and where.arch >= 90:
        return "DEEPGEMM", "DeepGEMM is installed and comes before Triton"
    return TRITON, "Triton, unless DeepGEMM is installed and runs on this GPU"


def _int8(weights: Weights, block: tuple[int, int] | None, where: Where) -> _Answer:
    del weights, block, where
    return TRITON, "the only backend for int8 activations on NVIDIA GPUs"


def _int_weights(weights: Weights, block: tuple[int, int] | None, where: Where) -> _Answer:
    del block, where
    if weights.method == "experts_int8":
        return TRITON, "vLLM quantises the experts itself and runs them in Triton"
    return "MARLIN", "Marlin comes before Triton; Triton only where Marlin does not fit"


def _fp4(weights: Weights, block: tuple[int, int] | None, where: Where) -> _Answer:
    del block
    why = "no backend for 4-bit floats reads a tuned file"
    if weights.name == "nvfp4":
        if where.arch < 100:
            return "MARLIN", why
        if not where.flashinfer:
            return "VLLM_CUTLASS", why
        if not _is_datacentre_blackwell(where):
            return "FLASHINFER_CUTLASS", why
        clamped = where.activation.startswith("swigluoai")  # TRTLLM's kernel has it not
        return ("FLASHINFER_CUTEDSL" if clamped else "FLASHINFER_TRTLLM"), why
    if where.arch >= 120 or where.arch < 90:
        return "MARLIN", why
    return "FLASHINFER, MARLIN or triton_kernels", why


def _fp4_alone(weights: Weights, block: tuple[int, int] | None, where: Where) -> _Answer:
    del weights, block, where
    return "MARLIN", "vLLM's only kernel for 4-bit floats whose activations stay 16 bits wide"


def _mxfp8(weights: Weights, block: tuple[int, int] | None, where: Where) -> _Answer:
    del weights, block
    why = "no backend for fp8 with scales of 32 reads a tuned file"
    return ("FLASHINFER_TRTLLM" if _trtllm(where) and where.flashinfer else "MARLIN"), why


def _unknown(weights: Weights, block: tuple[int, int] | None, where: Where) -> _Answer:
    del block, where
    return (
        "?",
        f"{weights.name} ({weights.method}) is not known here; no tuned file is known for it",
    )


_RULES = {
    "bf16": _bf16,
    "fp8_w8a8": _fp8,
    "int8_w8a8": _int8,
    "int8_w8a16": _int_weights,
    "int4_w4a16": _int_weights,
    "nvfp4": _fp4,
    "nvfp4_w4a16": _fp4_alone,
    "mxfp4": _fp4,
    "mxfp8": _mxfp8,
}
