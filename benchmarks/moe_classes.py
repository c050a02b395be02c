"""Sweep every model class that vLLM registers with routed experts: what we say, what vLLM builds.

Each configuration is the default one of its class in transformers or vLLM, with the few values that
the class leaves empty; where the class comes with a checkpoint, it is written here with the keys
that vLLM's model file reads. vLLM's own classes are built on torch's ``meta`` device as on a GPU
(``tests/kernels/vllm_models.py``), and their layers compared with ``expert_layers``.

    python -m benchmarks.moe_classes --to benchmarks/results/moe-classes.md
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import transformers
import vllm
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto
from vllm.model_executor.models.registry import ModelRegistry
from vllm.transformers_utils.config import _CONFIG_REGISTRY

from autotune.core import BadInputError
from autotune.kernels.moe.layers import expert_layers
from tests.kernels.vllm_models import ask

Key = tuple[str, int, int, int, int, bool]
"""part, experts, width, hidden size, top-k, gated."""

_MLA = {
    "q_lora_rank": 512,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_BASE = {
    "hidden_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 5120,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_LING = _BASE | {
    "num_experts": 64,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408,
    "num_shared_experts": 2,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "use_bias": False,
    "use_qkv_bias": False,
    "embedding_dropout": 0.0,
    "layer_group_size": 3,
    "score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
}
_ROUTED = _BASE | {
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 1,
    "topk_group": 1,
    "moe_layer_freq": 1,
}

_GEMMA = {
    "enable_moe_block": True,
    "num_experts": 128,
    "top_k_experts": 8,
    "moe_intermediate_size": 704,
}
_SEEING = {"text_config": _GEMMA, "vision_config": {"model_type": "gemma4_vision"}}
_LATENT = (
    _BASE
    | _MLA
    | {
        "mla_use_nope": True,
        "num_experts": 96,
        "num_experts_per_token": 8,
        "moe_intermediate_size": 1024,
        "routed_expert_hidden_size": 1024,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "num_shared_experts": 1,
        "num_expert_group": 1,
        "topk_group": 1,
        "moe_router_activation_func": "sigmoid",
        "moe_renormalize": True,
        "routed_scaling_factor": 1.0,
        "use_grouped_topk": True,
        "linear_attn_config": {
            "full_attn_layers": [3, 6],
            "kda_layers": [1, 2, 4, 5],
            "head_dim": 128,
            "num_heads": 16,
            "short_conv_kernel_size": 4,
        },
    }
)

WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "BailingMoeForCausalLM": ("bailing_moe", _LING),
    "BailingMoeV2ForCausalLM": ("bailing_moe", _LING),
    "BailingMoeV2_5ForCausalLM": ("bailing_hybrid", _LING | _MLA | {"q_lora_rank": None}),
    "BailingMoeV3ForCausalLM": (
        "bailing_hybrid_v3",
        _LING
        | _MLA
        | {
            "short_conv_kernel_size": 4,
            "no_kda_lora": True,
            "moe_shared_expert_intermediate_size": 1408,
        },
    ),
    "DeepseekForCausalLM": ("deepseek", _ROUTED | {"scoring_func": "softmax"}),
    "ExaoneMoEForCausalLM": ("exaone_moe", {}),
    "K2HorizonForCausalLM": (
        "k2_horizon",
        _LING
        | {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [0],
            "mova_num_experts": 0,
            "layernorm_num_groups": 1,
            "rope_head_dim": 64,
            "router_score_func": "sigmoid",
            "router_scaling_factor": 1.0,
            "num_shared_experts": 1,
            "moe_gate_bias": False,
            "query_key_norm": True,
            "attention_gate_func": None,
            "attention_bias": False,
        },
    ),
    "MiMoV2ForCausalLM": (
        "mimo_v2",
        _ROUTED
        | {
            "moe_layer_freq": [0, 1, 1, 1, 1, 1],
            "hybrid_layer_pattern": [0, 1, 1, 1, 1, 1],
            "layernorm_epsilon": 1e-6,
            "sliding_window_size": 128,
            "sliding_window": 128,
            "attention_bias": False,
            "swa_num_key_value_heads": 8,
            "n_shared_experts": None,
        },
    ),
    "NemotronHPuzzleForCausalLM": (
        "nemotron_h_puzzle",
        _BASE
        | {
            "num_hidden_layers": 5,
            "n_routed_experts": 16,
            "num_experts_per_tok": 6,
            "moe_latent_size": 1024,
            "moe_shared_expert_intermediate_size": 1024,
            "n_shared_experts": 1,
            "mlp_hidden_act": "relu2",
            "mlp_bias": False,
            "attention_bias": False,
            "layer_norm_epsilon": 1e-5,
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "routed_scaling_factor": 1.0,
            "mamba_num_heads": 32,
            "mamba_head_dim": 64,
            "ssm_state_size": 128,
            "n_groups": 8,
            "conv_kernel": 4,
            "use_conv_bias": True,
            "use_bias": False,
            "mamba_hidden_act": "silu",
            "chunk_size": 128,
            "residual_in_fp32": False,
            "block_configs": [
                {"block_type": "mamba"},
                {"block_type": "moe", "moe_intermediate_size": 1280, "num_experts_per_tok": 4},
                {"block_type": "attention"},
                {"block_type": "moe", "moe_intermediate_size": 2688, "num_experts_per_tok": 6},
                {"block_type": "moe", "moe_intermediate_size": 1280, "num_experts_per_tok": 4},
            ],
            "layers_block_type": ["mamba", "moe", "attention", "moe", "moe"],
            "hybrid_override_pattern": "ME*EE",
        },
    ),
    "PanguProMoEV2ForCausalLM": ("pangu_pro_moe_v2", _ROUTED | {"router_enable_expert_bias": True}),
    "PanguUltraMoEForCausalLM": (
        "pangu_ultra_moe",
        _ROUTED | _MLA | {"router_enable_expert_bias": True},
    ),
    "Param2MoEForCausalLM": ("param2moe", _LING | {"moe_shared_expert_intermediate_size": None}),
    "PhiMoEForCausalLM": ("phimoe", {}),
    "SarvamMoEForCausalLM": ("sarvam_moe", _LING),
    "SarvamMLAForCausalLM": ("sarvam_mla", _LING | _MLA),
    "Step3TextForCausalLM": (
        "step3_text",
        _BASE
        | {
            "num_attention_groups": 1,
            "moe_intermediate_size": 5120,
            "moe_num_experts": 48,
            "moe_top_k": 3,
            "share_expert_dim": 5120,
            "share_q_dim": 2048,
            "norm_expert_weight": False,
            "max_position_embedding": 4096,
            "moe_layers_enum": "4,5",
        },
    ),
    "MistralLarge3ForCausalLM": ("deepseek_v3", {"num_hidden_layers": 6}),
    "Step3p5ForCausalLM": ("step3p5", {}),
    "KimiVLForConditionalGeneration": (
        "kimi_vl",
        {"text_config": _ROUTED | _MLA | {"model_type": "deepseek_v3", "num_hidden_layers": 6}},
    ),
    "DeepseekVLV2ForCausalLM": (
        "deepseek_vl_v2",
        {"language_config": _ROUTED | {"model_type": "deepseek_v2", "topk_method": "greedy"}},
    ),
    "Gemma4ForCausalLM": ("gemma4_text", _GEMMA),
    "Gemma4ForConditionalGeneration": ("gemma4", _SEEING),
    "Gemma4UnifiedForConditionalGeneration": ("gemma4_unified", _SEEING),
    "DiffusionGemmaForBlockDiffusion": ("diffusion_gemma", {"text_config": _GEMMA}),
    "KimiK3ForConditionalGeneration": (
        "kimi_k3",
        {"text_config": _LATENT | {"model_type": "kimi_linear"}},
    ),
    "KimiK25ForConditionalGeneration": (
        "kimi_k25",
        {"text_config": _ROUTED | _MLA | {"model_type": "kimi_k2", "rope_scaling": None}},
    ),
    "Dots3NoteForCausalLM": ("dots3_note", {}),
    "InternS2PreviewForConditionalGeneration": ("intern_s2_preview", {}),
}
"""Architectures whose configuration no class of transformers gives by its name."""

KINDS = {
    "Llama4ForCausalLM": "llama4_text",
    "Qwen4ExpForCausalLM": "qwen4_exp_text",
    "InklingForCausalLM": "inkling_text",
    "Qwen3_5MoeForCausalLM": "qwen3_5_moe_text",
}
"""The type of the language model alone, where transformers lists the class under both."""

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_GATE = {"output_gate_type": "silu"}
MORE: dict[str, dict[str, Any]] = {
    "AfmoeForCausalLM": {"n_group": 1, "topk_group": 1},
    "DeepseekV2ForCausalLM": {"num_experts_per_tok": 6, "n_group": 8, "topk_group": 3},
    "DeepseekV4ForCausalLM": {"mlp_layer_types": None, "compress_ratios": [0] * 43},
    "Qwen4ExpForCausalLM": _GATE,
    "Qwen4ExpForConditionalGeneration": {"text_config": _GATE},
    "Glm4MoeLiteForCausalLM": {"first_k_dense_replace": 1},
    "Glm5NextForConditionalGeneration": {"text_config": {"rope_parameters": _ROPE}},
    "HYV3ForCausalLM": {"first_k_dense_replace": 1, "expert_hidden_dim": 1536},
    "KimiLinearForCausalLM": {"mla_use_nope": True},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "conv", "full_attention"] * 10 + ["conv"] * 2},
    "LongcatFlashForCausalLM": {"zero_expert_type": "identity", "zero_expert_num": 256},
    "InklingForCausalLM": {
        "padded_vocab_size": 201024,
        "unpadded_vocab_size": 201024,
        "local_layer_ids": [0],
        "dense_mlp_idx": 2,
    },
    "MiMoV2FlashForCausalLM": {
        "hybrid_layer_pattern": [0] + [1] * 47,
        "moe_layer_freq": [0] + [1] * 47,
    },
    "HunYuanMoEV1ForCausalLM": {
        "num_experts": 16,
        "moe_topk": 2,
        "moe_intermediate_size": 1024,
        "head_dim": 128,
        "num_hidden_layers": 4,
    },
    "Step3p5ForCausalLM": {
        "att_impl_type": "GQA",
        "max_position_embeddings": 4096,
        "moe_layers_enum": "4,5,6",
    },
    "MiniMaxM3SparseForConditionalGeneration": {
        "vision_config": {"img_token_compression_config": {}}
    },
    "NemotronH_Omni_Reasoning_V3": {"force_image_size": 512, "patch_size": 16, "image_size": 512},
    "Ernie4_5_VLMoeForConditionalGeneration": {
        "vision_config": {"embed_dim": 1280, "hidden_size": 1280}
    },
}
"""Values that a class leaves empty and its checkpoints give."""


def architectures(only: Collection[str] = ()) -> dict[str, str]:
    """Architectures with routed experts by transformers' default configuration, and their type."""

    known = set(only or ModelRegistry.get_supported_archs())
    found: dict[str, str] = {}
    for word, table in vars(modeling_auto).items():
        if not (word.startswith("MODEL_") and word.endswith("_NAMES")):
            continue
        for kind, names in table.items():
            for name in names if isinstance(names, list | tuple) else [names]:
                if name in known and name not in found and kind in CONFIG_MAPPING:
                    config = _default(kind)
                    if config and _counts_experts(config):
                        found[name] = kind
    return dict(sorted(found.items()))


_AS_RELEASED = ("inkling_mm_model",)
"""Types for which vLLM's class has no sizes, and transformers' has those of the release."""


def _default(kind: str) -> dict[str, Any] | None:

    try:
        theirs = kind in CONFIG_MAPPING and kind in _AS_RELEASED
        registered = kind in _CONFIG_REGISTRY and not theirs
        own = _CONFIG_REGISTRY[kind] if registered else CONFIG_MAPPING[kind]
        text = own().to_json_string(use_diff=False)
    except Exception:  # noqa: BLE001 - some classes cannot be made without arguments
        return None
    config: dict[str, Any] = json.loads(text)
    return config | {"model_type": kind}


def _merged(config: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with other values; None takes a key away."""
    for key, value in more.items():
        inner = config.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            config[key] = _merged(inner, value)
        elif value is None:
            config.pop(key, None)
        else:
            config[key] = value
    return config


def _counts_experts(value: Any) -> bool:
    words = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
    return isinstance(value, dict) and any(
        (key in {*words, "moe_num_experts"} and inner and inner != 1) or _counts_experts(inner)
        for key, inner in value.items()
    )


def configurations(only: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """One configuration for each architecture, or for these, of a few layers where it can be."""
    found: dict[str, dict[str, Any]] = {}
    written = {name: kind for name, (kind, _) in WRITTEN.items()}
    for name, kind in sorted((architectures(only) | KINDS | written).items()):
        if only and name not in only:
            continue
        config = (_default(kind) or {}) | {"model_type": kind, "architectures": [name]}
        config = _merged(config, WRITTEN.get(name, (kind, {}))[1])
        found[name] = _merged(config, MORE.get(name, {}))
    for config in found.values():
        for drop in ("_name_or_path", "output_attentions"):
            for inner in (config, *(v for v in config.values() if isinstance(v, dict))):
                inner.pop(drop, None)
    return found


def theirs(layers: list[dict[str, Any]]) -> dict[Key, list[int]]:
    """Layers that vLLM built, alike ones together."""
    found: dict[Key, list[int]] = {}
    for layer in layers:
        number = re.search(r"\.(?:layers|blocks|h)\.(\d+)\.", layer["name"])
        part = "vision" if "vision_experts" in layer["name"] else "layers"
        key = (
            part,
            layer["experts"],
            layer["intermediate"],
            layer["hidden"],
            layer["topk"],
            layer["gated"],
        )
        found.setdefault(key, []).append(int(number[1]) if number else 0)
    return {key: sorted(numbers) for key, numbers in sorted(found.items())}


def ours(config: dict[str, Any]) -> dict[Key, list[int]] | str:
    """What ``autotune`` says of the same configuration; the refusal where it says none."""
    try:
        groups = expert_layers(config)
    except BadInputError as error:
        return str(error)
    found: dict[Key, list[int]] = {}
    for g in groups:
        if g.part != "mtp":
            key = (g.part, g.experts, g.intermediate, g.hidden, g.topk, g.gated)
            found.setdefault(key, []).extend(g.numbers)
    return {key: sorted(numbers) for key, numbers in sorted(found.items())}


EXPLAINED = {
    "DeepseekV32ForCausalLM": "vLLM 0.32 asserts a GPU's attention backend before it builds "
    "anything; the layers are those of DeepseekV3ForCausalLM",
    "DeepseekVLV2ForCausalLM": "vLLM reads the tokenizer while it builds the model; the layers "
    "are those of DeepseekV2ForCausalLM",
    "DiffusionGemmaForBlockDiffusion": "vLLM needs its second model runner, which needs a GPU; the "
    "layers are those of Gemma4ForCausalLM",
    "Dots3NoteForCausalLM": "vLLM reads the tokenizer while it builds the model",
    "Ernie4_5_VLMoeForConditionalGeneration": "the default vision configuration is incomplete, and "
    "vLLM builds the vision tower first",
    "InklingForCausalLM": "transformers' default configuration lacks what vLLM's class reads; the "
    "layers are those of InklingForConditionalGeneration",
    "InternS2PreviewForConditionalGeneration": "its class has no default configuration",
    "MiniMaxM3SparseForConditionalGeneration": "the default vision configuration is empty, and "
    "vLLM builds the vision tower first",
    "NemotronHPuzzleForCausalLM": "vLLM takes each layer's sizes from objects that the "
    "checkpoint's own configuration class makes of `block_configs`",
    "Step3p7ForConditionalGeneration": "the default vision configuration is incomplete, and vLLM "
    "builds the vision tower first; the layers are those of Step3p5ForCausalLM",
}
"""Why a row is not «same»."""


def main() -> None:
    """Write the table."""

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="the table, a .md file")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--trace", action="store_true")
    chosen = parser.parse_args()
    wanted = configurations(chosen.only)
    asked = [{"files": {"config.json": c}, "trace": chosen.trace} for c in wanted.values()]
    rows, counts = [], {"same": 0, "differs": 0, "vLLM fails": 0}
    for (name, config), answer in zip(wanted.items(), ask(asked, deep_gemm=True), strict=True):
        mine = ours(config)
        built = theirs(answer["layers"]) if "layers" in answer else answer["error"]
        none = built == {} and isinstance(mine, str)
        fails = "vLLM fails" if isinstance(built, str) else "differs"
        word = "same" if mine == built or none else fails
        counts[word] += 1
        print(f"{word:10} {name}", flush=True)
        if chosen.trace and word != "same":
            print(answer.get("trace", "")[-700:])
        why = "" if word == "same" else EXPLAINED.get(name, "not explained")
        if isinstance(built, str):
            built = f"({built[:90]})"
        cells = (name, config["model_type"], _short(built), _short(mine), word, why)
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    total = ", ".join(f"{n} {word}" for word, n in counts.items())
    head = HEAD.format(vllm=vllm.__version__, transformers=transformers.__version__, total=total)
    chosen.to.write_text(head + "\n".join(rows) + "\n")


HEAD = """# Every class of vLLM with routed experts

Made by `python -m benchmarks.moe_classes --to benchmarks/results/moe-classes.md` with vLLM {vllm}
and transformers {transformers}, on a machine without a GPU: vLLM's own classes are built on torch's
`meta` device as on a GB10. A group of layers is written E×N, K, top-k, number of layers
(first-last). {total}.

| class | model_type | vLLM builds | autotune says | | why |
|:--|:--|:--|:--|:--|:--|
"""


def _short(found: Any) -> str:
    if isinstance(found, str):
        return found[:130].replace("\n", " ")
    groups = []
    for (part, experts, width, hidden, topk, _), at in found.items():
        what = "" if part == "layers" else f"{part} "
        sizes = f"{experts}×{width}, K {hidden}, top {topk}"
        groups.append(f"{what}{sizes}, {len(at)} ({at[0]}-{at[-1]})")
    return "; ".join(groups) or "no experts"


if __name__ == "__main__":
    main()
