"""Checkpoints as people serve them: sizes of public models, and how each is quantised.

Numbers are those of the public releases; layers are cut to a few, which changes no file's name.
"""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_ATTENTION: Config = {
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}


def _model(architecture: str, kind: str, hidden: int, **more: Any) -> Config:
    return _ATTENTION | {
        "architectures": [architecture],
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": 4,
        "intermediate_size": 6144,
        **more,
    }


def _experts(count: int, topk: int, width: int, name: str = "num_experts") -> Config:
    return {name: count, "num_experts_per_tok": topk, "moe_intermediate_size": width}


QWEN3 = _model("Qwen3MoeForCausalLM", "qwen3_moe", 2048, **_experts(128, 8, 768))
CODER = _model("Qwen3MoeForCausalLM", "qwen3_moe", 6144, **_experts(160, 8, 2560))
NEXT = _model(
    "Qwen3NextForCausalLM",
    "qwen3_next",
    2048,
    **_experts(512, 10, 512),
    shared_expert_intermediate_size=512,
)
MIXTRAL = _model(
    "MixtralForCausalLM",
    "mixtral",
    4096,
    num_local_experts=8,
    num_experts_per_tok=2,
) | {"intermediate_size": 14336}
DEEPSEEK = _model(
    "DeepseekV3ForCausalLM",
    "deepseek_v3",
    7168,
    **_experts(256, 8, 2048, "n_routed_experts"),
    n_shared_experts=1,
    first_k_dense_replace=1,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    n_group=8,
    topk_group=4,
) | {"num_key_value_heads": 32}
V4 = _model(
    "DeepseekV4ForCausalLM",
    "deepseek_v4",
    4096,
    **_experts(256, 6, 2048, "n_routed_experts"),
    n_shared_experts=1,
    compress_ratios=[0] * 4,
    q_lora_rank=1024,
    o_lora_rank=1024,
    o_groups=8,
    qk_rope_head_dim=64,
    sliding_window=128,
    index_head_dim=128,
    index_n_heads=64,
    index_topk=512,
    num_hash_layers=0,
    scoring_func="sqrtsoftplus",
    hc_mult=4,
    hc_eps=1e-6,
    hc_sinkhorn_iters=20,
    swiglu_limit=7.0,
    routed_scaling_factor=1.5,
)
GPT_OSS = _model(
    "GptOssForCausalLM", "gpt_oss", 2880, num_local_experts=32, num_experts_per_tok=4
) | {"intermediate_size": 2880, "head_dim": 64}
GLM = _model(
    "Glm4MoeForCausalLM",
    "glm4_moe",
    4096,
    **_experts(128, 8, 1408, "n_routed_experts"),
    n_shared_experts=1,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
)
NEMOTRON = _model(
    "NemotronHForCausalLM",
    "nemotron_h",
    2688,
    **_experts(128, 6, 1856, "n_routed_experts"),
    hybrid_override_pattern="ME*E",
    moe_shared_expert_intermediate_size=3712,
    mlp_hidden_act="relu2",
) | {"intermediate_size": 1856}
MINIMAX = _model(
    "MiniMaxM2ForCausalLM",
    "minimax_m2",
    3072,
    num_local_experts=256,
    num_experts_per_tok=8,
    rotary_dim=64,
) | {"intermediate_size": 1536}
ERNIE = _model(
    "Ernie4_5_MoeForCausalLM",
    "ernie4_5_moe",
    2560,
    moe_num_experts=64,
    moe_k=6,
    moe_intermediate_size=1536,
    moe_layer_start_index=1,
    moe_layer_end_index=3,
)
SCOUT = _model(
    "Llama4ForCausalLM", "llama4_text", 5120, num_local_experts=16, num_experts_per_tok=1
) | {"intermediate_size": 8192, "interleave_moe_layer_step": 1}
LFM2 = _model(
    "Lfm2MoeForCausalLM",
    "lfm2_moe",
    2048,
    **_experts(32, 4, 1792),
    num_dense_layers=2,
    layer_types=["conv", "conv", "full_attention", "conv"],
)
JAMBA = _model("JambaForCausalLM", "jamba", 4096, num_experts=16, num_experts_per_tok=2) | {
    "intermediate_size": 14336
}
OLMOE = _model("OlmoeForCausalLM", "olmoe", 2048, num_experts=64, num_experts_per_tok=8) | {
    "intermediate_size": 1024
}
GRANITE = _model(
    "GraniteMoeHybridForCausalLM",
    "granitemoehybrid",
    1536,
    num_local_experts=64,
    num_experts_per_tok=6,
    shared_intermediate_size=1024,
    layer_types=["mamba", "mamba", "attention", "mamba"],
) | {"intermediate_size": 512}
GEMMA = {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "hidden_size": 2816,
    "intermediate_size": 2112,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
    "vocab_size": 32000,
}

BLOCK: Config = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
TENSOR: Config = {"quant_method": "fp8", "activation_scheme": "static"}


def compressed(weights: Config, inputs: Config | None, **more: Any) -> Config:
    """A configuration of compressed-tensors with one group."""
    usual = {"dynamic": False, "symmetric": True, "observer": "minmax"}
    given = None if inputs is None else usual | inputs
    group = {
        "targets": ["Linear"],
        "weights": usual | weights,
        "input_activations": given,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": more.pop("format", "float-quantized"),
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        **more,
    }


FLOAT8 = {"num_bits": 8, "type": "float"}
CHANNEL = compressed(
    FLOAT8 | {"strategy": "channel"}, FLOAT8 | {"strategy": "token", "dynamic": True}
)
STATIC = compressed(FLOAT8 | {"strategy": "tensor"}, FLOAT8 | {"strategy": "tensor"})
CT_BLOCK = compressed(
    FLOAT8 | {"strategy": "block", "block_structure": [128, 128]},
    FLOAT8 | {"strategy": "group", "group_size": 128, "dynamic": True},
)
W8A8 = compressed(
    {"num_bits": 8, "type": "int", "strategy": "channel"},
    {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    format="int-quantized",
)
W4A16 = compressed(
    {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
    None,
    format="pack-quantized",
)
FLOAT4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
CT_NVFP4 = compressed(FLOAT4, FLOAT4 | {"dynamic": "local"}, format="nvfp4-pack-quantized")
CT_MXFP4 = compressed(
    {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
    None,
    format="mxfp4-pack-quantized",
)
GPTQ: Config = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "desc_act": False,
    "dynamic": {},
}
AWQ: Config = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 128,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": None,
}
ROUND: Config = {
    "quant_method": "auto-round",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "data_type": "int",
    "packing_format": "auto_round:auto_gptq",
}


def modelopt(algorithm: str, **more: Any) -> Config:
    """A configuration of ModelOpt as newer ones write it."""
    return {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "ignore": ["lm_head"],
        "producer": {"name": "modelopt", "version": "0.40.0"},
        **more,
    }


def quark(weight: Config, inputs: Config | None) -> Config:
    """A configuration of Quark with one scheme for all layers."""
    usual = {"observer_cls": "PerTensorMinMaxObserver", "ch_axis": 0, "group_size": None}
    usual |= {"symmetric": True, "round_method": "half_even", "scale_type": "float"}
    given = None if inputs is None else usual | inputs
    return {
        "quant_method": "quark",
        "quant_mode": "eager_mode",
        "exclude": ["lm_head"],
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        "export": {"kv_cache_group": [], "min_kv_scale": 0.0, "pack_method": "reorder",
                   "weight_format": "real_quantized", "weight_merge_groups": None},
        "global_quant_config": {"weight": usual | weight, "input_tensors": given,
                                "output_tensors": None, "bias": None, "target_device": None},
    }  # fmt: skip


QUARK8 = {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}
QUARK4 = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}


def quantised(model: Config, how: Config) -> Config:
    """A model with a quantisation."""
    return model | {"quantization_config": how}


MODELS: dict[str, Config] = {
    "gemma-4-26b-a4b": GEMMA,
    "gemma-4-26b-a4b fp8 channel": quantised(GEMMA, CHANNEL),
    "gemma-4-26b-a4b fp8 block": quantised(GEMMA, BLOCK),
    "qwen3-30b-a3b": QWEN3,
    "qwen3-30b-a3b fp8": quantised(QWEN3, BLOCK),
    "qwen3-30b-a3b fp8 channel": quantised(QWEN3, CHANNEL),
    "qwen3-30b-a3b fp8 block compressed": quantised(QWEN3, CT_BLOCK),
    "qwen3-30b-a3b gptq": quantised(QWEN3, GPTQ),
    "qwen3-30b-a3b gptq int8": quantised(QWEN3, GPTQ | {"bits": 8}),
    "qwen3-30b-a3b awq": quantised(QWEN3, AWQ),
    "qwen3-30b-a3b auto-round": quantised(QWEN3, ROUND),
    "qwen3-30b-a3b w4a16": quantised(QWEN3, W4A16),
    "qwen3-30b-a3b w8a8": quantised(QWEN3, W8A8),
    "qwen3-30b-a3b nvfp4": quantised(QWEN3, modelopt("NVFP4")),
    "qwen3-30b-a3b nvfp4 compressed": quantised(QWEN3, CT_NVFP4),
    "qwen3-30b-a3b mxfp4 compressed": quantised(QWEN3, CT_MXFP4),
    "qwen3-30b-a3b mxfp8": quantised(QWEN3, modelopt("MXFP8")),
    "qwen3-30b-a3b experts_int8": quantised(QWEN3, {"quant_method": "experts_int8"}),
    "qwen3-30b-a3b quark fp8": quantised(QWEN3, quark(QUARK8, QUARK8 | {"is_dynamic": False})),
    "qwen3-30b-a3b quark mxfp4": quantised(QWEN3, quark(QUARK4, QUARK4 | {"is_dynamic": True})),
    "qwen3-coder-480b fp8": quantised(CODER, BLOCK),
    "qwen3-next-80b-a3b": NEXT,
    "qwen3-next-80b-a3b fp8": quantised(NEXT, BLOCK),
    "qwen3-next-80b-a3b experts whole": quantised(
        NEXT,
        BLOCK
        | {
            "modules_to_not_convert": [
                f"model.layers.{i}.mlp.experts.{e}.{p}_proj"
                for i in range(4)
                for e in range(2)
                for p in ("gate", "up", "down")
            ]
        },
    ),
    "mixtral-8x7b": MIXTRAL,
    "mixtral-8x7b fp8 static": quantised(MIXTRAL, TENSOR),
    "mixtral-8x7b fp8 static compressed": quantised(MIXTRAL, STATIC),
    "deepseek-v3 fp8": quantised(DEEPSEEK, BLOCK),
    "deepseek-v4-flash": quantised(V4, BLOCK),
    "deepseek-v4-flash base": quantised(V4 | {"expert_dtype": "fp8"}, BLOCK),
    "gpt-oss-20b": quantised(GPT_OSS, {"quant_method": "mxfp4"}),
    "gpt-oss-20b bf16": GPT_OSS,
    "glm-4.5-air": GLM,
    "glm-4.5-air fp8": quantised(GLM, CHANNEL),
    "nemotron-3-nano": NEMOTRON,
    "nemotron-3-nano fp8": quantised(NEMOTRON, modelopt("FP8")),
    "nemotron-3-nano nvfp4": quantised(NEMOTRON, modelopt("NVFP4")),
    "nemotron-3-nano mixed": quantised(
        NEMOTRON,
        modelopt(
            "MIXED_PRECISION",
            quantized_layers={
                f"backbone.layers.{i}.mixer.experts.0.up_proj": {"quant_algo": "FP8"}
                for i in range(4)
            },
        ),
    ),
    "minimax-m2": quantised(MINIMAX, BLOCK),
    "ernie-4.5-21b-a3b": ERNIE,
    "llama-4-scout": SCOUT,
    "llama-4-scout fp8": quantised(SCOUT, CHANNEL),
    "lfm2-8b-a1b": LFM2,
    "jamba-mini": JAMBA,
    "olmoe-1b-7b": OLMOE,
    "granite-4-tiny": GRANITE,
}
