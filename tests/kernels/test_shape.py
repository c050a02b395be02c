"""From a model's configuration to the shape, checked against vLLM and transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import BadInputError, MissingEnvironmentError, Workload
from autotune.kernels.moe.from_model import (
    explicit_shape,
    load_config,
    model_names,
    shape_from_config,
)
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.moe.variants import Scheme
from tests.support.installed_vllm import InstalledVllm

PLAIN = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)
SMALL = {
    "hidden_size": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    quant = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    return SMALL | {"quantization_config": quant}


def test_gemma_asks_for_the_file_that_is_missing() -> None:
    shape = shape_from_config(load_config("gemma-4-26b-a4b"))
    assert shape == PLAIN
    name = "E=128,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"
    assert shape.config_file_name("NVIDIA_GB10") == name


@pytest.mark.server
def test_file_names_are_those_of_vllm(installed_vllm: InstalledVllm) -> None:
    shapes = [shape_from_config(load_config(name)) for name in model_names()]
    shapes += [replace(PLAIN, dtype=None, weight_dtype="bf16", scheme=Scheme.NONE)]
    asked = [[s.experts, s.intermediate, s.dtype, s.block_shape] for s in shapes]
    script = (
        "import json, sys\n"
        "import vllm.model_executor.layers.fused_moe.fused_moe as f\n"
        "f.get_device_name_as_file_name = lambda: 'NVIDIA_GB10'\n"
        f"rows = json.loads({json.dumps(json.dumps(asked))})\n"
        "print('NAMES' + json.dumps([f.get_config_file_name(*row) for row in rows]))\n"
    )
    shown = installed_vllm.run(script)
    line = next(line for line in shown.splitlines() if line.startswith("NAMES"))
    names = json.loads(line.removeprefix("NAMES"))
    assert names == [s.config_file_name("NVIDIA_GB10") for s in shapes]
    assert any("block_shape=[128,128]" in name for name in names)


# experts, topk, expert width, hidden size: as get_model_params of vLLM's tuner reads them.
FIELDS: dict[str, tuple[str, str, str, str]] = {
    "mixtral": ("num_local_experts", "num_experts_per_tok", "intermediate_size", "hidden_size"),
    "jamba": ("num_experts", "num_experts_per_tok", "intermediate_size", "hidden_size"),
    "dbrx": ("moe_num_experts", "moe_top_k", "ffn_hidden_size", "d_model"),
    "hunyuan_v1_moe": ("num_experts", "moe_topk", "moe_intermediate_size", "hidden_size"),
    "ernie4_5_moe": ("moe_num_experts", "moe_k", "moe_intermediate_size", "hidden_size"),
    "gemma4": ("num_experts", "top_k_experts", "moe_intermediate_size", "hidden_size"),
    "diffusion_gemma": ("num_experts", "top_k_experts", "moe_intermediate_size", "hidden_size"),
}
FIELDS |= dict.fromkeys(
    ("phimoe", "granitemoe", "minimax", "minimax_m2", "gpt_oss", "llama4"), FIELDS["mixtral"]
)
FIELDS |= {"olmoe": FIELDS["jamba"]}
FIELDS |= dict.fromkeys(
    ("deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "nemotron_h"),
    ("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "hidden_size"),
)
FIELDS |= dict.fromkeys(
    ("qwen2_moe", "qwen3_moe", "qwen3_next", "qwen3_vl_moe", "qwen3_5_moe", "qwen3_omni_moe"),
    ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "hidden_size"),
)
VALUES = (48, 6, 1088, 1600)
NESTED = {
    "gemma4": ("text_config",),
    "diffusion_gemma": ("text_config",),
    "llama4": ("text_config",),
    "qwen3_vl_moe": ("text_config",),
    "qwen3_5_moe": ("text_config",),
    "qwen3_omni_moe": ("thinker_config", "text_config"),
}


@pytest.mark.parametrize("model_type", FIELDS)
def test_reads_what_transformers_writes(model_type: str) -> None:
    """The default config of the real class, with known values under the tuner's field names."""
    from transformers import CONFIG_MAPPING

    # DBRX copies d_model into its ffn_config when it is built.
    outer = CONFIG_MAPPING[model_type](**({"d_model": VALUES[3]} if model_type == "dbrx" else {}))
    inner = outer
    for key in NESTED.get(model_type, ()):
        inner = getattr(inner, key)
    for field, value in zip(FIELDS[model_type], VALUES, strict=True):
        holder = inner.ffn_config if model_type == "dbrx" and field != "d_model" else inner
        remote_code = (model_type, field) == ("hunyuan_v1_moe", "moe_intermediate_size")
        assert remote_code or hasattr(holder, field), f"{model_type} has no {field}"
        setattr(holder, field, value)
    config: dict[str, Any] = outer.to_dict()
    if model_type == "hunyuan_v1_moe":
        config |= {"moe_topk": [VALUES[1]] * 3, "moe_intermediate_size": [VALUES[2]] * 3}
    if model_type == "nemotron_h":
        config["architectures"] = ["NemotronHForCausalLM"]
    shape = shape_from_config(config, dtype="bf16")
    assert (shape.experts, shape.topk, shape.intermediate, shape.hidden) == VALUES
    assert shape.gated == (model_type != "nemotron_h")


FLOAT = {"type": "float", "num_bits": 8}
INT = {"type": "int", "num_bits": 8}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SMALL, (None, "bf16", Scheme.NONE)),
        (
            SMALL | {"quantization_config": {"quant_method": "fp8"}},
            ("fp8_w8a8", "fp8", Scheme.TENSOR),
        ),
        (
            SMALL | {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
            ("fp8_w8a8", "fp8", Scheme.TENSOR),
        ),
        (
            compressed(FLOAT | {"strategy": "tensor"}, FLOAT | {"strategy": "tensor"}),
            ("fp8_w8a8", "fp8", Scheme.TENSOR),
        ),
        (
            compressed(FLOAT | {"strategy": "channel"}, FLOAT | {"strategy": "token"}),
            ("fp8_w8a8", "fp8", Scheme.CHANNEL),
        ),
        (
            compressed(INT | {"strategy": "channel"}, INT | {"strategy": "token"}),
            (None, "int8", Scheme.CHANNEL),
        ),
    ],
)
def test_quantisation(config: dict[str, Any], expected: tuple[Any, ...]) -> None:
    shape = shape_from_config(config)
    assert (shape.dtype, shape.weight_dtype, shape.scheme) == expected
    assert shape.block_shape is None


def test_block_quantisation() -> None:
    quant = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    shape = shape_from_config(SMALL | {"quantization_config": quant})
    assert (shape.scheme, shape.block_shape) == (Scheme.BLOCK, (16, 32))
    weights = FLOAT | {"strategy": "block", "block_structure": [16, 32]}
    assert shape_from_config(compressed(weights, FLOAT)) == shape
    with pytest.raises(BadInputError, match=r"8 on this rank is not divisible .* 16"):
        shape_from_config(SMALL | {"quantization_config": quant}, tp=4)
    quant["weight_block_size"] = [128]
    with pytest.raises(BadInputError, match=r"\[128\] is not"):
        shape_from_config(SMALL | {"quantization_config": quant})


@pytest.mark.parametrize(
    ("ignored", "dtype"),
    [
        ("re:.*mlp.experts.*", None),
        ("model.layers.0.mlp.experts.0.up_proj", None),
        ("re:.*shared_experts.*", "fp8_w8a8"),
        ("model.layers.3.mlp.shared_experts.up_proj", "fp8_w8a8"),
        ("re:.*shared_expert_gate$", "fp8_w8a8"),
        ("lm_head", "fp8_w8a8"),
    ],
)
def test_layers_left_unquantised(ignored: str, dtype: str | None) -> None:
    """Only the routed experts run in this kernel."""
    config = compressed(FLOAT | {"strategy": "channel"}, FLOAT | {"strategy": "token"})
    config["quantization_config"]["ignore"] = ["lm_head", ignored]
    assert shape_from_config(config).dtype == dtype


@pytest.mark.parametrize(
    "quant",
    [
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "mxfp4"},
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        {"quant_method": "bitsandbytes"},
        compressed({"type": "float", "num_bits": 4}, FLOAT)["quantization_config"],
        compressed({"type": "int", "num_bits": 4}, None)["quantization_config"],
        {"quant_method": "compressed-tensors"},
        ["fp8"],
    ],
)
def test_what_the_kernel_does_not_serve(quant: Any) -> None:
    with pytest.raises(BadInputError) as caught:
        shape_from_config(SMALL | {"quantization_config": quant})
    assert "quantization" in str(caught.value)


def test_dtype_overrides_the_checkpoint() -> None:
    mxfp4 = SMALL | {"quantization_config": {"quant_method": "mxfp4"}}
    assert shape_from_config(mxfp4, dtype="bf16").scheme is Scheme.NONE
    assert shape_from_config(SMALL, dtype="fp8_w8a8").scheme is Scheme.TENSOR
    gemma = load_config("gemma-4-26b-a4b")
    assert shape_from_config(gemma, dtype="fp8_w8a8").scheme is Scheme.CHANNEL
    assert shape_from_config(gemma, dtype="bf16").dtype is None
    with pytest.raises(BadInputError, match="--dtype fp4: not one of auto, fp8_w8a8"):
        shape_from_config(SMALL, dtype="fp4")


@pytest.mark.parametrize("key", ["num_experts_per_tok", "moe_intermediate_size", "hidden_size"])
@pytest.mark.parametrize("value", [None, "many", -1, True, 1.5])
def test_values_that_cannot_be(key: str, value: object) -> None:
    with pytest.raises(BadInputError, match=r"config\.json"):
        shape_from_config(SMALL | {key: value})


@pytest.mark.parametrize("config", [{}, {"hidden_size": 64}, SMALL | {"num_experts": 1}])
def test_a_model_without_experts(config: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="has no experts"):
        shape_from_config(config)


def test_more_experts_per_token_than_experts() -> None:
    with pytest.raises(BadInputError, match="topk 9 is more than 8"):
        shape_from_config(SMALL | {"num_experts_per_tok": 9})


@given(width=st.integers(1, 20000), tp=st.integers(1, 64))
def test_tensor_parallelism_divides_or_says_what_would(width: int, tp: int) -> None:
    config = SMALL | {"moe_intermediate_size": width}
    if width % tp == 0:
        shape = shape_from_config(config, tp=tp)
        assert (shape.intermediate * tp, shape.experts) == (width, 8)
        return
    with pytest.raises(BadInputError, match=f"--tp {tp} does not divide") as caught:
        shape_from_config(config, tp=tp)
    listed = str(caught.value).rsplit(": ", 1)[1].split(", ")
    assert listed == [str(n) for n in range(1, min(width, 64) + 1) if width % n == 0]


@given(experts=st.integers(2, 600), ep=st.integers(1, 64))
def test_expert_parallelism_keeps_the_router(experts: int, ep: int) -> None:
    config = SMALL | {"num_experts": experts}
    if experts % ep:
        with pytest.raises(BadInputError, match=f"--ep {ep} does not divide the experts {experts}"):
            shape_from_config(config, ep=ep)
        return
    shape = shape_from_config(config, ep=ep)
    assert (shape.experts * ep, shape.global_experts, shape.intermediate) == (experts, experts, 32)


def test_no_ranks() -> None:
    with pytest.raises(BadInputError, match="--tp must be at least 1, not 0"):
        shape_from_config(SMALL, tp=0)
    with pytest.raises(BadInputError, match="--ep must be at least 1, not -1"):
        shape_from_config(SMALL, ep=-1)


def test_explicit_sizes() -> None:
    shape = explicit_shape(experts=128, intermediate=704, hidden=2816, topk=8)
    assert shape == PLAIN
    with pytest.raises(BadInputError, match="--hidden, --topk not given"):
        explicit_shape(experts=128, intermediate=704, hidden=None, topk=None)
    with pytest.raises(BadInputError, match="topk 9 is more than 8"):
        explicit_shape(experts=8, intermediate=704, hidden=2816, topk=9)
    for bad in (0, -1):
        with pytest.raises(BadInputError, match=f"hidden must be at least 1, not {bad}"):
            explicit_shape(experts=8, intermediate=704, hidden=bad, topk=2)


@pytest.mark.parametrize("name", model_names())
def test_shapes_and_workloads_survive_json(name: str) -> None:
    shape = shape_from_config(load_config(name))
    back = MoeShape.from_json(json.loads(json.dumps(shape.as_json())))
    assert back == shape
    assert back.key == shape.key
    one, other = MoeWorkload(shape, 64), MoeWorkload(shape, 65)
    assert isinstance(one, Workload)
    assert one.label == "M=64"
    assert one.key == MoeWorkload(back, 64).key != other.key


def test_every_field_counts_in_the_key() -> None:
    changes: dict[str, Any] = {
        "experts": 64,
        "intermediate": 352,
        "hidden": 2048,
        "topk": 4,
        "dtype": None,
        "weight_dtype": "int8",
        "scheme": Scheme.TENSOR,
        "block_shape": (64, 128),
        "global_experts": 256,
        "gated": False,
    }
    assert set(changes) == set(PLAIN.as_json())
    keys = {replace(PLAIN, **{name: value}).key for name, value in changes.items()}
    assert len(keys | {PLAIN.key}) == len(changes) + 1


def test_config_from_a_folder_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL))
    assert load_config(str(tmp_path)) == load_config(str(path)) == SMALL


@pytest.mark.parametrize("text", ["", "[1]", "{", "nonsense"])
def test_a_file_that_is_no_config(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(BadInputError) as caught:
        load_config(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_model_that_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"presets: .*gemma-4-26b-a4b"):
        load_config("gemma-5")
    with pytest.raises(BadInputError, match="no such folder"):
        load_config(str(tmp_path / "absent"))


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingEnvironmentError, match=r"--model org/name: .*cannot be reached"):
        load_config("org/name")


def test_expert_parallelism_leaves_the_width_whole() -> None:
    shape = shape_from_config(load_config("deepseek-v3"), tp=8, ep=8)
    assert (shape.experts, shape.intermediate, shape.global_experts) == (32, 2048, 256)


def test_the_group_that_names_the_experts_decides() -> None:
    def group(target: str, strategy: str) -> dict[str, Any]:
        weights = {"type": "float", "num_bits": 8, "strategy": strategy}
        return {"targets": [target], "weights": weights, "input_activations": {"num_bits": 8}}

    groups = {"a": group("re:.*self_attn.*", "tensor"), "b": group("re:.*experts.*", "channel")}
    raw = {"quant_method": "compressed-tensors", "config_groups": groups}
    assert shape_from_config({**SMALL, "quantization_config": raw}).scheme is Scheme.CHANNEL
