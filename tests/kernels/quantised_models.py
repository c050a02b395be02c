"""Quantisations as checkpoints describe them, each of which vLLM reads."""

from __future__ import annotations

from collections.abc import Iterable

from tests.kernels.served_models import (
    AWQ,
    BLOCK,
    DEEPSEEK,
    ERNIE,
    FLOAT4,
    FLOAT8,
    GLM,
    GPT_OSS,
    GPTQ,
    GRANITE,
    JAMBA,
    LFM2,
    MINIMAX,
    MIXTRAL,
    NEMOTRON,
    NEXT,
    QUARK4,
    QUARK8,
    QWEN3,
    ROUND,
    SCOUT,
    Config,
    modelopt,
    quantised,
    quark,
)


def _group(
    targets: list[str], weights: Config, inputs: Config | None, form: str | None = None
) -> Config:
    usual = {"dynamic": False, "symmetric": True}
    group = {
        "targets": targets,
        "weights": usual | weights,
        "input_activations": None if inputs is None else usual | inputs,
        "output_activations": None,
    }
    return group | ({"format": form} if form else {})


def _compressed(
    groups: Config, ignore: list[str] | None = None, form: str = "mixed-precision"
) -> Config:
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore or [],
    }


_PER_CHANNEL = (FLOAT8 | {"strategy": "channel"}, FLOAT8 | {"strategy": "token", "dynamic": True})
_INT4 = ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}, None)
_NVFP4 = (FLOAT4, FLOAT4 | {"dynamic": "local"})
_VISION = {
    "architectures": ["Qwen3VLMoeForConditionalGeneration"],
    "model_type": "qwen3_vl_moe",
    "text_config": QWEN3 | {"model_type": "qwen3_vl_moe_text", "architectures": None},
    "vision_config": {"deepstack_visual_indexes": [], "depth": 1},
}
_QWEN35 = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "model_type": "qwen3_5_moe",
    "text_config": {k: v for k, v in NEXT.items() if k != "architectures"}
    | {"model_type": "qwen3_5_moe_text"},
}


def _leaves(layers: Iterable[int] = range(4), experts: Iterable[int] = (0, 1)) -> list[str]:
    return [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj"
        for layer in layers
        for expert in experts
        for part in ("gate", "up", "down")
    ]


VARIANTS: dict[str, Config] = {
    "ct experts fp8 by leaf targets": quantised(
        QWEN3,
        _compressed(
            {
                "g0": _group(
                    ["re:.*mlp.experts.*.(gate|up|down)_proj"], *_PER_CHANNEL, "float-quantized"
                )
            },
            form="float-quantized",
        ),
    ),
    "ct linear nvfp4 but ignore experts": quantised(
        QWEN3,
        _compressed(
            {"g0": _group(["Linear"], *_NVFP4)},
            ["lm_head", "re:.*mlp.experts.*"],
            form="nvfp4-pack-quantized",
        ),
    ),
    "ct experts fp8 + linear nvfp4": quantised(
        QWEN3,
        _compressed(
            {
                "g0": _group(["Linear"], *_NVFP4, "nvfp4-pack-quantized"),
                "g1": _group(["re:.*experts.*"], *_PER_CHANNEL, "float-quantized"),
            }
        ),
    ),
    "ct first layer's experts ignored": quantised(
        QWEN3,
        _compressed(
            {"g0": _group(["Linear"], *_PER_CHANNEL)},
            ["lm_head", *_leaves([0], range(128))],
            form="float-quantized",
        ),
    ),
    "ct w8a16 int": quantised(
        QWEN3,
        _compressed(
            {"g0": _group(["Linear"], {"num_bits": 8, "type": "int", "strategy": "channel"}, None)},
            ["lm_head"],
            form="pack-quantized",
        ),
    ),
    "ct w4a8 fp8": quantised(
        QWEN3,
        _compressed(
            {
                "g0": _group(
                    ["Linear"],
                    {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
                    FLOAT8 | {"strategy": "token", "dynamic": True},
                )
            },
            ["lm_head"],
            form="pack-quantized",
        ),
    ),
    "ct mxfp8": quantised(
        QWEN3,
        _compressed(
            {
                "g0": _group(
                    ["Linear"],
                    FLOAT8 | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
                    FLOAT8 | {"strategy": "group", "group_size": 32, "dynamic": True},
                )
            },
            ["lm_head"],
            form="mxfp8-quantized",
        ),
    ),
    "ct fp8 tensor dynamic": quantised(
        QWEN3,
        _compressed(
            {
                "g0": _group(
                    ["Linear"],
                    FLOAT8 | {"strategy": "tensor"},
                    FLOAT8 | {"strategy": "tensor", "dynamic": True},
                )
            },
            ["lm_head"],
            form="float-quantized",
        ),
    ),
    "ct nvfp4 w4a16": quantised(
        QWEN3,
        _compressed(
            {"g0": _group(["Linear"], FLOAT4, None)}, ["lm_head"], form="nvfp4-pack-quantized"
        ),
    ),
    "ct vl": quantised(
        _VISION,
        _compressed(
            {"g0": _group(["Linear"], *_PER_CHANNEL)},
            ["re:.*lm_head", "re:visual.*", "re:.*mlp.gate$"],
            form="float-quantized",
        ),
    ),
    "ct w4 experts, q35 in text": quantised(
        _QWEN35,
        _compressed(
            {"g0": _group(["Linear"], *_INT4)},
            ["re:.*linear_attn.*", "re:.*shared_expert.*", "re:.*visual.*", "lm_head"],
            form="pack-quantized",
        ),
    ),
    "fp8 modules_to_not_convert gate": quantised(
        QWEN3,
        BLOCK
        | {
            "modules_to_not_convert": ["lm_head"] + [f"model.layers.{i}.mlp.gate" for i in range(4)]
        },
    ),
    "fp8 ignored_layers experts all": quantised(QWEN3, BLOCK | {"ignored_layers": _leaves()}),
    "fp8 ignored layer 0 experts": quantised(QWEN3, BLOCK | {"ignored_layers": _leaves([0])}),
    "fp8 not convert 'mlp.experts'": quantised(
        QWEN3, BLOCK | {"modules_to_not_convert": ["mlp.experts"]}
    ),
    "fp8 not convert model.layers.0": quantised(
        QWEN3, BLOCK | {"modules_to_not_convert": ["model.layers.0"]}
    ),
    "fp8 block 64": quantised(QWEN3, BLOCK | {"weight_block_size": [64, 64]}),
    "modelopt fp8 exclude experts": quantised(
        QWEN3, modelopt("FP8", ignore=["lm_head", "*mlp.experts*"])
    ),
    "modelopt fp8 exclude layer": quantised(
        QWEN3, modelopt("FP8", ignore=["lm_head", "model.layers.0.*"])
    ),
    "modelopt nvfp4 exclude layer 3 wildcard": quantised(
        QWEN3, modelopt("NVFP4", ignore=["lm_head", "model.layers.3*"])
    ),
    "modelopt pb_wo": quantised(QWEN3, modelopt("FP8_PB_WO")),
    "modelopt per channel per token": quantised(QWEN3, modelopt("FP8_PER_CHANNEL_PER_TOKEN")),
    "modelopt nested": QWEN3
    | {
        "quantization_config": {
            "producer": {"name": "modelopt"},
            "quantization": {
                "quant_algo": "NVFP4",
                "group_size": 16,
                "kv_cache_quant_algo": None,
                "exclude_modules": ["lm_head"],
            },
        }
    },
    "modelopt mixed nvfp4 experts, fp8 attn": quantised(
        QWEN3,
        modelopt(
            "MIXED_PRECISION",
            quantized_layers={
                **{f"model.layers.{i}.self_attn.q_proj": {"quant_algo": "FP8"} for i in range(4)},
                **{
                    f"model.layers.{i}.mlp.experts": {"quant_algo": "NVFP4", "group_size": 16}
                    for i in range(4)
                },
            },
        ),
    ),
    "modelopt mixed by leaf": quantised(
        QWEN3,
        modelopt(
            "MIXED_PRECISION",
            quantized_layers={
                f"model.layers.{i}.mlp.experts.{e}.{p}_proj": {"quant_algo": "FP8"}
                for i in range(4)
                for e in range(2)
                for p in ("gate", "up", "down")
            },
        ),
    ),
    "modelopt mixed with layer 0 whole": quantised(
        QWEN3,
        modelopt(
            "MIXED_PRECISION",
            quantized_layers={
                f"model.layers.{i}.mlp.experts.{e}.{p}_proj": {"quant_algo": "FP8"}
                for i in range(1, 4)
                for e in range(2)
                for p in ("gate", "up", "down")
            },
        ),
    ),
    "modelopt vl nvfp4": quantised(_VISION, modelopt("NVFP4", ignore=["lm_head", "model.visual*"])),
    "modelopt method name modelopt_fp4": quantised(
        QWEN3, modelopt("NVFP4") | {"quant_method": "modelopt_fp4"}
    ),
    "gptq dynamic skip experts": quantised(QWEN3, GPTQ | {"dynamic": {r"-:.*mlp\.experts.*": {}}}),
    "gptq 8 bit group -1": quantised(QWEN3, GPTQ | {"bits": 8, "group_size": -1}),
    "awq skip gate": quantised(QWEN3, AWQ | {"modules_to_not_convert": ["mlp.gate", "lm_head"]}),
    "awq skip experts": quantised(QWEN3, AWQ | {"modules_to_not_convert": ["mlp.experts"]}),
    "awq marlin": quantised(QWEN3, AWQ | {"quant_method": "awq_marlin"}),
    "awq skip layer 0": quantised(QWEN3, AWQ | {"modules_to_not_convert": ["model.layers.0."]}),
    "autoround awq packing": quantised(QWEN3, ROUND | {"packing_format": "auto_round:auto_awq"}),
    "autoround 8": quantised(QWEN3, ROUND | {"bits": 8}),
    "autoround extra exp 16": quantised(
        QWEN3,
        ROUND
        | {
            "extra_config": {
                f"model.layers.{i}.mlp.experts.0.gate_proj": {"bits": 16, "data_type": "float"}
                for i in range(4)
            }
        },
    ),
    "autoround extra regex shared": quantised(
        QWEN3,
        ROUND | {"extra_config": {".*shared_expert.*": {"bits": 16}, ".*self_attn.*": {"bits": 8}}},
    ),
    "autoround blocks": quantised(QWEN3, ROUND | {"block_name_to_quantize": "model.layers"}),
    "autoround mxfp4": quantised(
        QWEN3,
        ROUND
        | {
            "data_type": "mx_fp",
            "act_bits": 4,
            "act_data_type": "mx_fp",
            "group_size": 32,
            "packing_format": "auto_round:llm_compressor",
            "bits": 4,
        },
    ),
    "inc": quantised(QWEN3, ROUND | {"quant_method": "inc"}),
    "quark ptpc fp8": quantised(
        QWEN3,
        quark(
            {"dtype": "fp8_e4m3", "qscheme": "per_channel"},
            {"dtype": "fp8_e4m3", "qscheme": "per_channel", "is_dynamic": True},
        ),
    ),
    "quark int8": quantised(
        QWEN3,
        quark(
            {"dtype": "int8", "qscheme": "per_channel"},
            {"dtype": "int8", "qscheme": "per_channel", "is_dynamic": True},
        ),
    ),
    "quark exclude experts": quantised(
        QWEN3,
        quark(QUARK8, QUARK8 | {"is_dynamic": False})
        | {"exclude": ["lm_head", "re:.*mlp.experts.*"]},
    ),
    "quark layer cfg": quantised(
        QWEN3,
        quark(QUARK8, QUARK8 | {"is_dynamic": False})
        | {
            "layer_quant_config": {
                "*mlp.experts*": {
                    "weight": {
                        "dtype": "fp4",
                        "qscheme": "per_group",
                        "group_size": 32,
                        "scale_format": "e8m0",
                        "ch_axis": -1,
                        "observer_cls": "x",
                        "symmetric": None,
                    },
                    "input_tensors": {
                        "dtype": "fp4",
                        "qscheme": "per_group",
                        "group_size": 32,
                        "scale_format": "e8m0",
                        "is_dynamic": True,
                    },
                    "output_tensors": None,
                    "bias": None,
                }
            }
        },
    ),
    "mxfp4 of qwen": quantised(QWEN3, {"quant_method": "mxfp4"}),
    "gpt-oss skip": quantised(
        GPT_OSS,
        {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "lm_head",
            ],
        },
    ),
    "gpt-oss quark": quantised(GPT_OSS, quark(QUARK4, QUARK8 | {"is_dynamic": False})),
    "gpt-oss ct nvfp4": quantised(
        GPT_OSS,
        _compressed({"g0": _group(["Linear"], *_NVFP4)}, ["lm_head"], form="nvfp4-pack-quantized"),
    ),
    "minimax modules": quantised(
        MINIMAX, BLOCK | {"modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]}
    ),
    "nemotron nvfp4 backbone ignore": quantised(
        NEMOTRON, modelopt("NVFP4", ignore=["lm_head", "backbone.layers.1.mixer.*"])
    ),
    "nemotron nvfp4 mtp": quantised(
        NEMOTRON, modelopt("NVFP4", ignore=["lm_head", "mtp*", "backbone.embeddings"])
    ),
    "nemotron fp8 kv": quantised(
        NEMOTRON,
        modelopt(
            "FP8",
            kv_cache_scheme={"dynamic": False, "num_bits": 8, "type": "float"},
            ignore=["lm_head", "*.mixer.shared_experts.*"],
        ),
    ),
    "glm fp8 ct ignoring some": quantised(
        GLM,
        _compressed(
            {"g0": _group(["Linear"], *_PER_CHANNEL)},
            ["lm_head", "model.layers.0.mlp.down_proj", "re:.*shared_experts.*"],
            form="float-quantized",
        ),
    ),
    "llama4 fp8 ct router": quantised(
        SCOUT,
        _compressed(
            {"g0": _group(["Linear"], *_PER_CHANNEL)},
            ["re:.*router", "re:.*lm_head"],
            form="float-quantized",
        ),
    ),
    "llama4 modelopt fp8": quantised(SCOUT, modelopt("FP8", ignore=["*router*", "*vision_model*"])),
    "ernie fp8": quantised(ERNIE, BLOCK),
    "granite fp8 ct": quantised(
        GRANITE,
        _compressed(
            {"g0": _group(["Linear"], *_PER_CHANNEL)},
            ["re:.*router.*", "lm_head"],
            form="float-quantized",
        ),
    ),
    "jamba experts_int8": quantised(JAMBA, {"quant_method": "experts_int8"}),
    "lfm2 ct w4a16": quantised(
        LFM2,
        _compressed(
            {"g0": _group(["Linear"], *_INT4)},
            ["lm_head", "re:.*feed_forward.gate.*"],
            form="pack-quantized",
        ),
    ),
    "mixtral awq": quantised(MIXTRAL, AWQ),
    "mixtral gptq": quantised(MIXTRAL, GPTQ),
    "mixtral fp8 dyn": quantised(MIXTRAL, {"quant_method": "fp8", "activation_scheme": "dynamic"}),
    "deepseek awq": quantised(DEEPSEEK, AWQ),
    "deepseek ct w4a16": quantised(
        DEEPSEEK,
        _compressed(
            {"g0": _group(["Linear"], *_INT4)},
            [
                "lm_head",
                "re:.*self_attn.*",
                "re:.*shared_experts.*",
                "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
            ],
            form="pack-quantized",
        ),
    ),
    "deepseek nvfp4": quantised(DEEPSEEK, modelopt("NVFP4", ignore=["lm_head", "*self_attn*"])),
}
