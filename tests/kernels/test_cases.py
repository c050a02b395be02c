"""Checkpoints as people have them: which shape and which file vLLM asks for, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.core import BadInputError
from autotune.kernels.moe.from_model import load_config, shape_from_config
from autotune.kernels.moe.layers import ExpertLayers, expert_layers
from autotune.kernels.moe.notes import check_refined, notes_on
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.request import MoeRequest
from autotune.machine.devices import get_device

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 4,
}
QWEN = SIZES | {"model_type": "qwen3_next", "num_nextn_predict_layers": 1}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCK = FP8 | {"weight_block_size": [128, 128]}
WEIGHTS8 = {"type": "float", "num_bits": 8, "strategy": "channel"}
INPUTS8 = {"type": "float", "num_bits": 8, "strategy": "token", "dynamic": True}
WEIGHTS4 = {"type": "float", "num_bits": 4, "strategy": "group", "group_size": 32}


def quantised(base: dict[str, Any], **quantization: Any) -> dict[str, Any]:
    return base | {"quantization_config": quantization}


def compressed(ignore: list[str] | None = None, **groups: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": groups or {"group_0": group("Linear")},
        "ignore": ignore or [],
    }


def group(
    *targets: str, weights: dict[str, Any] = WEIGHTS8, inputs: dict[str, Any] | None = INPUTS8
) -> dict[str, Any]:
    return {"targets": list(targets), "weights": weights, "input_activations": inputs}


def weights(config: dict[str, Any], part: str = "layers") -> list[str]:
    return [f"{g.weights.name}/{g.weights.scaling}" for g in found(config, part)]


def found(config: dict[str, Any], part: str) -> list[ExpertLayers]:
    return [g for g in expert_layers(config) if g.part == part]


V4 = SIZES | {"model_type": "deepseek_v4", "architectures": ["DeepseekV4ForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # expert_dtype of DeepSeek V4 decides, and is fp4 where it is missing.
        (quantised(V4, **BLOCK), "mxfp4/group"),
        (quantised(V4 | {"expert_dtype": "fp4"}, **BLOCK), "mxfp4/group"),
        (quantised(V4 | {"expert_dtype": "fp8"}, **BLOCK), "fp8_w8a8/block"),
        (quantised(V4, **BLOCK, expert_dtype="fp8"), "fp8_w8a8/block"),
        (quantised(V4, **BLOCK, moe_quant_algo="NVFP4"), "nvfp4/group"),
        (quantised(SIZES | {"expert_dtype": "fp4"}, **BLOCK), "fp8_w8a8/block"),
        (quantised(SIZES, **FP8, store_dtype="mxfp4"), "mxfp4/group"),
        # fp8's lists: exact names, and of experts the beginning of an expert's own name.
        (
            quantised(
                SIZES,
                **FP8,
                modules_to_not_convert=[
                    f"model.layers.{i}.mlp.experts.0.up_proj" for i in range(4)
                ],
            ),
            "bf16/none",
        ),
        (quantised(SIZES, **FP8, ignored_layers=["mlp.experts"]), "fp8_w8a8/tensor"),
        (quantised(SIZES, **FP8, modules_to_not_convert=["lm_head"]), "fp8_w8a8/tensor"),
        # compressed-tensors: the experts' own group, not that of the shared experts.
        (
            quantised(
                SIZES,
                **compressed(
                    a=group("re:.*shared_expert.*"),
                    b=group("re:.*mlp.experts.*", weights=WEIGHTS4, inputs=None),
                ),
            ),
            "mxfp4/group",
        ),
        (quantised(SIZES, **compressed(a=group("re:.*self_attn.*"))), "bf16/none"),
        (quantised(SIZES, **compressed(a=group("RoutedExperts"))), "fp8_w8a8/channel"),
        (quantised(SIZES, **compressed(["re:.*mlp.experts.*"])), "bf16/none"),
        (quantised(SIZES, **compressed(["re:.*shared_experts.*"])), "fp8_w8a8/channel"),
        (
            quantised(
                SIZES,
                **compressed(
                    a=group(
                        "Linear",
                        weights={"num_bits": 4, "group_size": 128, "strategy": "group"},
                        inputs=None,
                    )
                ),
            ),
            "int4_w4a16/group",
        ),
        # ModelOpt: at the top, nested, in lower case, with wildcards.
        (quantised(SIZES, quant_method="modelopt", quant_algo="fp8"), "fp8_w8a8/tensor"),
        (quantised(SIZES, quantization={"quant_algo": "FP8"}), "fp8_w8a8/tensor"),
        (quantised(SIZES, quant_method="modelopt", quant_algo="FP8_PB_WO"), "fp8_w8a8/tensor"),
        (quantised(SIZES, quant_method="modelopt", quant_algo="NVFP4"), "nvfp4/group"),
        (
            quantised(SIZES, quant_method="modelopt", quant_algo="FP8", ignore=["*.mlp.experts*"]),
            "bf16/none",
        ),
        (
            quantised(SIZES, quant_method="modelopt", quant_algo="FP8", ignore=["lm_head", "mtp*"]),
            "fp8_w8a8/tensor",
        ),
        (
            quantised(
                SIZES,
                quant_algo="MIXED_PRECISION",
                quantized_layers={"model.layers.0.mlp.experts": {"quant_algo": "W4A16_NVFP4"}},
            ),
            "nvfp4_w4a16/group",
        ),
        (
            quantised(
                SIZES,
                quant_algo="MIXED_PRECISION",
                quantized_layers={
                    f"model.layers.{i}.mlp.{part}": {"quant_algo": algorithm}
                    for i in range(4)
                    for part, algorithm in (
                        ("shared_expert.up_proj", "NVFP4"),
                        ("experts.0.up_proj", "FP8"),
                    )
                },
            ),
            "fp8_w8a8/tensor",
        ),
        # Others.
        (
            quantised(SIZES, quant_method="gptq", bits=4, dynamic={"-:.*mlp.experts": {}}),
            "bf16/none",
        ),
        (
            quantised(SIZES, quant_method="gptq", bits=4, dynamic={"+:.*experts": {"bits": 8}}),
            "int8_w8a16/group",
        ),
        (
            quantised(SIZES, quant_method="awq", bits=4, modules_to_not_convert=["mlp.experts"]),
            "bf16/none",
        ),
        (quantised(SIZES, quant_method="auto-round", bits=4), "int4_w4a16/group"),
        (
            quantised(
                SIZES, quant_method="auto-round", bits=4, extra_config={".*experts.*": {"bits": 16}}
            ),
            "bf16/none",
        ),
        (
            quantised(
                SIZES, quant_method="auto-round", bits=8, data_type="fp", group_size=[128, 128]
            ),
            "fp8_w8a8/block",
        ),
        (
            quantised(
                SIZES,
                quant_method="quark",
                exclude=["re:.*experts.*"],
                global_quant_config={"weight": {"dtype": "fp4"}},
            ),
            "bf16/none",
        ),
        (
            quantised(
                SIZES,
                quant_method="quark",
                global_quant_config={
                    "weight": {"dtype": "fp8_e4m3", "qscheme": "per_channel"},
                    "input_tensors": {"is_dynamic": True},
                },
            ),
            "fp8_w8a8/channel",
        ),
        (
            quantised(
                SIZES,
                quant_method="quark",
                global_quant_config={"weight": {"dtype": "fp4"}},
                layer_quant_config={
                    "*experts*": {"weight": {"dtype": "int8"}, "input_tensors": {"dtype": "int8"}}
                },
            ),
            "int8_w8a8/channel",
        ),
        (
            quantised(SIZES, quant_method="mxfp4", modules_to_not_convert=["model.layers"]),
            "mxfp4/group",
        ),
        (quantised(SIZES, quant_method="experts_int8"), "int8_w8a16/channel"),
        (quantised(SIZES, quant_method="torchao"), "bf16/none"),
        (quantised(SIZES, quant_method="bitsandbytes"), "unknown/none"),
        # Where the configuration may stand.
        (SIZES | {"compression_config": compressed()}, "fp8_w8a8/channel"),
        ({"model_type": "m", "text_config": quantised(SIZES, **FP8)}, "fp8_w8a8/tensor"),
    ],
)
def test_the_weights_of_the_routed_experts(config: dict[str, Any], expected: str) -> None:
    assert weights(config) == [expected]


@pytest.mark.parametrize(
    ("apart", "expected"),
    [
        (
            {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}},
            "fp8_w8a8/tensor",
        ),
        ({"quantization": {"quant_algo": "NVFP4"}}, "nvfp4/group"),
        (
            {
                "producer": {"name": "modelopt"},
                "quantization": {
                    "quant_algo": "FP8",
                    "exclude_modules": ["model.layers.*.mlp.experts*"],
                },
            },
            "bf16/none",
        ),
    ],
)
def test_a_quantisation_that_stands_apart(
    apart: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(apart))
    for ref in (tmp_path, tmp_path / "config.json"):
        assert weights(load_config(str(ref))) == [expected]
    (tmp_path / "config.json").write_text(json.dumps(quantised(SIZES, **BLOCK)))
    assert weights(load_config(str(tmp_path))) == ["fp8_w8a8/block"]  # vLLM reads it alone


LEAVES = ["mtp.layers.0.mlp.experts.1.up_proj", "model.layers.4.mlp.experts.0.gate_proj"]


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("method", ["compressed-tensors", "fp8", "modelopt"])
def test_an_mtp_layer_that_is_left_whole(leaf: str, method: str) -> None:
    """One expert is listed: the layers that do the work keep their file, the MTP layer has own."""
    listed = [leaf, leaf.replace("experts.1", "experts.0")]
    config = {
        "compressed-tensors": quantised(QWEN, **compressed(listed)),
        "fp8": quantised(QWEN, **FP8, modules_to_not_convert=listed),
        "modelopt": quantised(QWEN, quant_method="modelopt", quant_algo="FP8", ignore=listed),
    }[method]
    assert weights(config)[0].startswith("fp8_w8a8")
    assert weights(config, "mtp") == ["bf16/none"]
    request = MoeRequest(device="gb10", model="FOLDER")
    shape = shape_from_config(config)
    *_, note = notes_on(config, request, shape, get_device("gb10"))
    assert (
        "the MTP layer asks for a file of its own, E=8,N=128,device_name=NVIDIA_GB10.json" in note
    )
    assert "autotune moe --device gb10 --model FOLDER --layer mtp" in note
    assert shape_from_config(config, layer="mtp").weight_dtype == "bf16"


def test_a_file_that_nothing_reads_is_not_tuned_without_a_word() -> None:
    request, config = MoeRequest(device="gb10", model="m"), quantised(SIZES, **compressed())
    shape = shape_from_config(config)
    assert notes_on(config, request, shape, get_device("gb10")) == ()
    (note,) = notes_on(config, request, shape, get_device("h200"))
    assert "vLLM runs these layers in VLLM_CUTLASS, which reads no such file" in note
    assert "--moe-backend triton" in note
    (note,) = notes_on(SIZES, request, shape_from_config(SIZES), get_device("gb10"))
    assert "FLASHINFER_CUTLASS" in note


def test_blocks_of_compressed_tensors_are_not_refined() -> None:
    block = {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 128]}
    groups = compressed(a=group("Linear", weights=block))
    config = quantised(SIZES | {"moe_intermediate_size": 704}, **groups)
    with pytest.raises(BadInputError, match="refines no blocks of compressed-tensors"):
        shape_from_config(config)


def test_an_mtp_layer_that_asks_for_the_same_file_is_no_news() -> None:
    config = quantised(QWEN, **FP8)
    request = MoeRequest(device="gb10", model="m")
    assert notes_on(config, request, shape_from_config(config), get_device("gb10")) == ()


PUZZLE: dict[str, Any] = {
    "model_type": "nemotron_h_puzzle",
    "architectures": ["NemotronHPuzzleForCausalLM"],
    "hidden_size": 512,
    "num_hidden_layers": None,
    "intermediate_size": 4096,
    "n_routed_experts": 16,
    "moe_latent_size": 128,
    "mlp_hidden_act": "relu2",
    "block_configs": [
        {"block_type": "mamba"},
        {"block_type": "moe", "moe_intermediate_size": 160, "num_experts_per_tok": 2},
        {"block_type": "attention"},
        {"block_type": "moe", "moe_intermediate_size": 320, "num_experts_per_tok": 6},
        {"block_type": "moe", "moe_intermediate_size": 160, "num_experts_per_tok": 2},
    ],
}


@pytest.mark.parametrize("more", [{}, {"num_experts_per_tok": 6}])
def test_layers_that_differ(more: dict[str, Any]) -> None:
    config = PUZZLE | more
    groups = [(g.numbers, g.intermediate, g.hidden, g.topk) for g in expert_layers(config)]
    assert groups == [((3,), 320, 128, 6), ((1, 4), 160, 128, 2)]
    shape = shape_from_config(config)
    assert (shape.intermediate, shape.hidden, shape.gated) == (320, 128, False)
    *_, note = notes_on(config, MoeRequest(device="gb10", model="m"), shape, get_device("gb10"))
    assert "E=16,N=160," in note
    assert "--layer 1" in note
    assert shape_from_config(config, layer="4").intermediate == 160
    with pytest.raises(BadInputError, match=r"--layer 2: no such layer .* layer 3"):
        shape_from_config(config, layer="2")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SIZES | {"first_k_dense_replace": 2}, [(2, 3)]),
        (SIZES | {"moe_layer_freq": 2}, [(0, 2)]),
        (SIZES | {"moe_layer_freq": [0, 1, 1, 0]}, [(1, 2)]),
        (SIZES | {"decoder_sparse_step": 2}, [(1, 3)]),
        (SIZES | {"mlp_only_layers": [0, 3]}, [(1, 2)]),
        (SIZES | {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}, [(1, 2, 3)]),
        (SIZES | {"interleave_moe_layer_step": 2}, [(1, 3)]),
        (SIZES | {"moe_layers_enum": "1,3"}, [(1, 3)]),
        (SIZES | {"num_dense_layers": 1}, [(1, 2, 3)]),
        (SIZES | {"expert_layer_period": 2, "expert_layer_offset": 0}, [(0, 2)]),
        (SIZES | {"moe_layer_start_index": 1, "moe_layer_interval": 1}, [(1, 2, 3)]),
        (SIZES | {"hybrid_override_pattern": "ME*E"}, [(1, 3)]),
        (SIZES | {"num_experts_per_tok": [2, 2, 4, 4]}, [(2, 3), (0, 1)]),
        (SIZES | {"moe_intermediate_size": [64, 64, 64, 96]}, [(0, 1, 2), (3,)]),
    ],
)
def test_which_layers_hold_experts(config: dict[str, Any], expected: list[Any]) -> None:
    assert [g.numbers for g in expert_layers(config)] == expected


def test_two_sets_of_experts_in_one_layer() -> None:
    """ERNIE 4.5 VL: lists of two are text and images, not one value per layer."""
    config = SIZES | {
        "num_experts": None,
        "moe_num_experts": [64, 32],
        "moe_intermediate_size": [1536, 512],
    }
    groups = [(g.part, g.experts, g.intermediate) for g in expert_layers(config)]
    assert groups == [("layers", 64, 1536), ("vision", 32, 512)]
    assert shape_from_config(config, layer="vision").experts == 32


def test_a_width_is_never_guessed_where_another_key_speaks_of_experts() -> None:
    config = {k: v for k, v in SIZES.items() if k != "moe_intermediate_size"}
    config |= {"intermediate_size": 4096}
    assert shape_from_config(config).intermediate == 4096
    assert shape_from_config(config | {"moe_shared_intermediate_size": 1}).intermediate == 4096
    with pytest.raises(BadInputError, match="moe_inner_width is not known here; give --experts"):
        shape_from_config(config | {"moe_inner_width": 512})


K3 = SIZES | {"model_type": "kimi_linear", "routed_expert_hidden_size": 64}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({}, (8, 128, 64)), ({"tp": 4, "ep": 4}, (2, 128, 64)), ({"tp": 4}, (8, 256, 64))],
)
def test_kimi_k3(flags: dict[str, Any], expected: tuple[int, ...]) -> None:
    """Experts read the latent width; a rank's part is padded to 256 columns."""
    nested = quantised(K3, **compressed(a=group("Linear", weights=WEIGHTS4, inputs=None)))
    config = {"model_type": "kimi_k3", "text_config": nested}
    with pytest.raises(BadInputError, match="mxfp4 in 4 layers"):
        shape_from_config(config)
    shape = shape_from_config(config, dtype="bf16", **flags)
    assert (shape.experts, shape.intermediate, shape.hidden) == expected


@pytest.mark.parametrize(
    ("width", "hidden", "tp", "block"),
    [
        (704, 2816, 1, (64, 64)),
        (704, 2816, 2, (32, 32)),
        (768, 2048, 4, (64, 64)),
        (1024, 2048, 8, (128, 128)),
        (512, 2048, 1, (128, 128)),
    ],
)
def test_blocks_that_vllm_refines(width: int, hidden: int, tp: int, block: tuple[int, int]) -> None:
    """The same numbers as vLLM's own function gives: see test_vllm_refines_alike."""
    config = quantised(SIZES | {"moe_intermediate_size": width, "hidden_size": hidden}, **BLOCK)
    shape = shape_from_config(config, tp=tp)
    assert (shape.scheme, shape.block_shape) == (Scheme.BLOCK, block)
    wanted = f",block_shape=[{block[0]},{block[1]}].json"
    assert shape.config_file_name("NVIDIA_GB10").endswith(wanted)


@settings(max_examples=60)
@given(
    width=st.integers(1, 64).map(lambda n: n * 16),
    hidden=st.integers(1, 64).map(lambda n: n * 16),
    tp=st.sampled_from([1, 2, 4, 8]),
)
def test_vllm_refines_alike(width: int, hidden: int, tp: int) -> None:
    from types import SimpleNamespace

    from vllm.model_executor.layers.fused_moe.oracle.fp8 import refine_fp8_moe_block_shape

    if width % tp:
        return
    seen: Any = SimpleNamespace(
        intermediate_size_per_partition=width // tp, tp_size=tp, hidden_dim=hidden
    )
    theirs = refine_fp8_moe_block_shape(seen, [128, 128])
    config = quantised(SIZES | {"moe_intermediate_size": width, "hidden_size": hidden}, **BLOCK)
    try:
        ours = shape_from_config(config, tp=tp).block_shape
    except BadInputError:
        ours = None
    serves = theirs or ([128, 128] if (width // tp) % 128 == 0 else None)
    assert ours == (tuple(serves) if serves else None)


def test_an_older_vllm_refines_nothing(tmp_path: Path) -> None:
    config = quantised(SIZES | {"moe_intermediate_size": 192}, **BLOCK)
    (tmp_path / "config.json").write_text(json.dumps(config))
    request = MoeRequest(device="gb10", model=str(tmp_path))
    shape = shape_from_config(config)
    check_refined(request, shape, "0.32.0+cpu")
    with pytest.raises(BadInputError, match=r"refines it to 64 since 0\.32, and 0\.24\.0 is"):
        check_refined(request, shape, "0.24.0")
    own = config | {"quantization_config": FP8 | {"weight_block_size": [64, 64]}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    check_refined(request, shape_from_config(own), "0.24.0")


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "auto-round", "bits": 4}, r"files …,dtype=int4_w4a16\.json for another"),
        ({"quant_method": "mxfp4"}, "mxfp4 in 4 layers"),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "expected a list of names"),
        ({"quant_method": "fp8", "weight_block_size": [True, 128]}, r"\[n, k\]"),
        (compressed(["re:(a+)+b"]), "may take for ever"),
        (compressed(["re:("]), "is no pattern"),
        ({"bits": 4}, "names no quant_method"),
        ({"quant_algo": "MIXED_PRECISION"}, "names no layer"),
    ],
)
def test_what_cannot_be_served_or_read(quantization: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        shape_from_config(quantised(SIZES, **quantization))


WORDS = st.sampled_from(
    [
        *SIZES,
        *("text_config", "quantization_config", "quant_method", "fp8", "compressed-tensors"),
        *("modelopt", "quant_algo", "ignore", "config_groups", "targets", "weights", "Linear"),
        *("weight_block_size", "block_configs", "block_type", "moe", "layer_types", "gptq"),
        *("dynamic", "bits", "extra_config", "auto-round", "quark", "exclude", "mtp_config"),
        *("hybrid_override_pattern", "model_type", "deepseek_v4", "kimi_k3", "re:.*experts.*"),
        *("quantized_layers", "quantization", "MIXED_PRECISION", "moe_layer_freq", "architectures"),
        *("num_nextn_predict_layers", "expert_dtype", "global_quant_config", "weight"),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**30) | st.floats() | st.text(max_size=4) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400, deadline=1000)
@given(st.dictionaries(WORDS, VALUES, max_size=8), st.booleans())
def test_no_configuration_ends_in_a_traceback(config: dict[str, Any], whole: bool) -> None:
    try:
        groups = expert_layers((SIZES if whole else {}) | config)
        shape_from_config((SIZES if whole else {}) | config)
    except BadInputError:
        return
    assert groups
