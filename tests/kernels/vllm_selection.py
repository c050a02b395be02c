"""Ask vLLM's own code, as on a given GPU, which backend runs a layer of routed experts.

Run as a program: it prints one JSON list. vLLM is told that it runs on an NVIDIA GPU of a given
compute capability with FlashInfer installed, as its CUDA wheels bring it; what only a compiled
extension knows (whether CUTLASS was built for an architecture) is answered as the wheels are built.
"""

from __future__ import annotations

import json
import os
import sys
import types
from typing import Any
from unittest.mock import MagicMock


def pretend(major: int, minor: int, *, flashinfer: bool, deep_gemm: bool) -> None:
    """Make vLLM believe in a GPU, before it imports anything that asks."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in ("vllm._C_stable_libtorch", "vllm._C"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["vllm.vllm_flash_attn"] = MagicMock()
    import vllm._custom_ops as ops
    import vllm.platforms as platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class Pretended(CudaPlatformBase):  # type: ignore[misc]
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return DeviceCapability(major, minor)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return f"NVIDIA {major}.{minor}"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return 96 << 30

        @classmethod
        def num_compute_units(cls, device_id: int = 0) -> int:
            return 48

    platforms._current_platform = Pretended()
    built: Any = ops
    built.cutlass_group_gemm_supported = lambda capability: 90 <= capability < 110
    built.cutlass_scaled_mm_supports_fp8 = lambda capability: True
    built.cutlass_scaled_mm_supports_block_fp8 = lambda capability: capability >= 90
    built.cutlass_scaled_mm_supports_fp4 = lambda capability: capability >= 100
    import vllm.utils.flashinfer as fi
    import vllm.utils.import_utils as found

    for name in dir(fi):
        if name.startswith("has_"):
            setattr(fi, name, lambda *_a, **_k: flashinfer)
    found_any: Any = found
    found_any.has_deep_gemm = lambda: deep_gemm
    found_any.has_triton_kernels = lambda: True


def config(**more: Any) -> Any:
    """A layer of routed experts on one rank."""
    import torch
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import (
        FusedMoEConfig,
        FusedMoEParallelConfig,
        RoutingMethodType,
    )

    ep = more.pop("ep", 1)
    parallel = FusedMoEParallelConfig(
        tp_size=1, pcp_size=1, dp_size=1, ep_size=ep, tp_rank=0, pcp_rank=0, dp_rank=0, ep_rank=0,
        sp_size=1, use_ep=ep > 1, all2all_backend="allgather_reducescatter", enable_eplb=False,
    )  # fmt: skip
    values: dict[str, Any] = {
        "num_experts": 128,
        "experts_per_token": 8,
        "hidden_dim": 2048,
        "intermediate_size": 768,
        "num_local_experts": 128 // ep,
        "num_logical_experts": 128,
        "activation": MoEActivation.SILU,
        "device": "cpu",
        "routing_method": RoutingMethodType.Renormalize,
        "moe_parallel_config": parallel,
        "in_dtype": torch.bfloat16,
    }
    return FusedMoEConfig(**(values | more))


def ask(scheme: str, ep: int, activation: str, width: int) -> str:
    """The backend that vLLM's oracle selects; or why none."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.oracle import (
        fp8,
        int8,
        int_wna16,
        mxfp4,
        mxfp8,
        nvfp4,
        unquantized,
    )
    from vllm.model_executor.layers.quantization.utils import quant_utils as keys

    with set_current_vllm_config(VllmConfig()):
        layer = config(ep=ep, activation=MoEActivation(activation), intermediate_size=width)
        fp8_keys = {
            "fp8 tensor static": (keys.kFp8StaticTensorSym, keys.kFp8StaticTensorSym, False),
            "fp8 tensor": (keys.kFp8StaticTensorSym, keys.kFp8DynamicTensorSym, False),
            "fp8 channel": (keys.kFp8StaticChannelSym, keys.kFp8DynamicTokenSym, True),
            "fp8 tensor compressed": (keys.kFp8StaticTensorSym, keys.kFp8Dynamic128Sym, True),
            "fp8 channel quark": (keys.kFp8StaticChannelSym, keys.kFp8DynamicTokenSym, False),
            "fp8 block": (keys.kFp8Static128BlockSym, keys.kFp8Dynamic128Sym, False),
            "fp8 block 64": (
                keys.create_fp8_quant_key(static=True, group_shape=keys.GroupShape(64, 64)),
                keys.kFp8Dynamic128Sym,
                False,
            ),
        }
        try:
            if scheme in fp8_keys:
                weight, act, cutlass = fp8_keys[scheme]
                found = fp8.select_fp8_moe_backend(layer, weight, act, allow_vllm_cutlass=cutlass)
            elif scheme == "bf16":
                found = unquantized.select_unquantized_moe_backend(layer)
            elif scheme == "int8":
                found = int8.select_int8_moe_backend(
                    layer, keys.kInt8StaticChannelSym, keys.kInt8DynamicTokenSym
                )
            elif scheme == "nvfp4":
                found = nvfp4.select_nvfp4_moe_backend(layer, keys.kNvfp4Static, keys.kNvfp4Dynamic)
            elif scheme == "nvfp4 alone":
                found = nvfp4.select_nvfp4_moe_backend(layer, keys.kNvfp4Static, None)
            elif scheme == "mxfp8":
                found = mxfp8.select_mxfp8_moe_backend(config=layer)
            elif scheme == "mxfp4":
                asked: Any = mxfp4
                asked._user_moe_activation_override = lambda: None
                found = mxfp4.select_mxfp4_moe_backend(layer)
            elif scheme == "int4":
                from compressed_tensors.quantization import (  # type: ignore[import-untyped]
                    QuantizationArgs,
                )

                form = QuantizationArgs(num_bits=4, group_size=128, strategy="group")
                found = int_wna16.select_wna16_moe_backend(
                    layer, keys.kInt4Static, form, False, False, allow_tile_padding=True
                )
            else:
                return f"? {scheme}"
        except (NotImplementedError, ValueError, AssertionError) as error:
            return f"none: {error}"
        return str(found[0].value)


def main() -> None:
    """Answer the questions on stdin."""
    asked = json.load(sys.stdin)
    pretend(*asked["capability"], flashinfer=asked["flashinfer"], deep_gemm=asked["deep_gemm"])
    sys.stdout.write(
        "ANSWERS" + json.dumps([ask(*question) for question in asked["questions"]]) + "\n"
    )


if __name__ == "__main__":
    main()
