"""A grid of gamma for :mod:`benchmarks.record_grid` on a GPU: Gemma 4 26B-A4B without its weights.

    python -m benchmarks.gpu_grid FOLDER MOE_FOLDER [LAYERS]

Writes configuration and tokenizer of the target (fp8, a scale per channel and per token) and of its
MTP drafter, prompts of random words, FOLDER/config.json: gamma 0 to 6 with the tuned files of
MOE_FOLDER, and gamma 0 without; and FOLDER/file.json: gamma 0 with and without, two boots each.
vLLM makes the weights up (``--load-format dummy``): shapes, kernels and scheduling are the model's,
the text is noise, so vLLM is told what to accept. It also draws the experts at random, because the
routers would send most tokens to the same eight (:mod:`benchmarks.dummy_routing`). LAYERS, a
multiple of six, is 30 as in the model unless said otherwise. Sizes are those of the model's
published configuration.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from autotune.engine.variables import FOLDER, ROUTING

VOCABULARY = 262144
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
SLIDING, FULL = "sliding_attention", "full_attention"
ACCEPTED = (0.844, 0.599, 0.385, 0.271, 0.19, 0.135)
"""By position: assumed, for nothing is accepted of dummy weights."""
SERVER = (
    "--load-format dummy --max-model-len 4096 --max-num-seqs 16 --moe-backend triton "
    "--attention-backend TRITON_ATTN --no-enable-prefix-caching "
    "--kv-cache-memory-bytes 2147483648"
)


def text_config(layers: int) -> dict[str, Any]:
    """The target's, as vLLM reads it."""
    return {
        "model_type": "gemma4_text",
        "torch_dtype": "bfloat16",
        "hidden_size": 2816,
        "num_hidden_layers": layers,
        "layer_types": ([SLIDING] * 5 + [FULL]) * (layers // 6),
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "num_global_key_value_heads": 2,
        "global_head_dim": 512,
        "attention_k_eq_v": True,
        "attention_bias": False,
        "sliding_window": 1024,
        "rope_parameters": {
            FULL: {
                "rope_type": "proportional",
                "rope_theta": 1000000.0,
                "partial_rotary_factor": 0.25,
            },
            SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        },
        "intermediate_size": 2112,
        "hidden_activation": "gelu_pytorch_tanh",
        "use_double_wide_mlp": False,
        "enable_moe_block": True,
        "num_experts": 128,
        "top_k_experts": 8,
        "moe_intermediate_size": 704,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 262144,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        # transformers 5.17 asks for it where layers have sizes of their own
        "allow_global_per_layer_attribute_access": True,
    }


def drafter_config() -> dict[str, Any]:
    """Four layers that read the target's hidden states and its KV cache."""
    dense = {"enable_moe_block": False, "num_experts": None, "top_k_experts": None}
    text = text_config(6) | dense
    text |= {
        "moe_intermediate_size": None,
        "hidden_size": 1024,
        "intermediate_size": 8192,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 4,
        "layer_types": [SLIDING] * 3 + [FULL],
        "vocab_size_per_layer_input": 0,
    }
    return {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "model_type": "gemma4_assistant",
        "torch_dtype": "bfloat16",
        "text_config": text,
        "backbone_hidden_size": 2816,
        "block_size": 4,
        "use_ordered_embeddings": False,
        "tie_word_embeddings": True,
    }


def target_config(layers: int) -> dict[str, Any]:
    """Quantised by compressed-tensors, but for router, embeddings and head."""
    eight_bits = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": eight_bits | {"strategy": "channel", "dynamic": False},
        "input_activations": eight_bits | {"strategy": "token", "dynamic": True},
    }
    quantisation = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": "float-quantized",
        "ignore": ["lm_head", "re:.*router.*", "re:.*embed.*"],
        "kv_cache_scheme": None,
        "config_groups": {"group_0": group},
    }
    own = {"architectures": ["Gemma4ForCausalLM"], "quantization_config": quantisation}
    return text_config(layers) | own


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """Its configuration, and a tokenizer of words t4, t5 … one token each."""
    words = {name: i for i, name in enumerate(SPECIAL)}
    words |= {f"t{i}": i for i in range(len(SPECIAL), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name.strip('<>')}_token": name for name in SPECIAL},
        chat_template="{% for m in messages %}{{ m['content'] }} {% endfor %}",
    ).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(ids))


def random_words(drawn: random.Random, number: int) -> str:
    """So many words of the tokenizer."""
    return " ".join(f"t{drawn.randrange(4, 200000)}" for _ in range(number))


def write_prompts(path: Path, drawn: random.Random, lengths: Iterable[int]) -> None:
    """One prompt of random words to a length."""
    lines = (json.dumps({"prompt": random_words(drawn, length)}) + "\n" for length in lengths)
    path.write_text("".join(lines))


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    folder, tuned = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    layers = int(sys.argv[3]) if len(sys.argv) > 3 else 30
    if layers < 6 or layers % 6:
        raise SystemExit(f"{layers} layers: not a multiple of six")
    if not any(tuned.glob("E=*.json")):
        raise SystemExit(f"{tuned}: holds no tuned file E=….json")
    for name, config in (("target", target_config(layers)), ("drafter", drafter_config())):
        (folder / name).mkdir(parents=True, exist_ok=True)
        write_model(folder / name, config)
    drawn = random.Random(0)
    write_prompts(folder / "chat.jsonl", drawn, (drawn.randint(40, 120) for _ in range(64)))
    write_prompts(folder / "long.jsonl", drawn, [3000] * 24)
    env = {FOLDER: str(tuned)}
    load = {"repeats": 5, "waves": 4}
    chat = {"name": "chat", "prompts": str(folder / "chat.jsonl"), "concurrency": [1, 8]}
    long = {"name": "long", "prompts": str(folder / "long.jsonl"), "concurrency": [1]}
    grid = {
        "target": str(folder / "target"),
        "drafter": str(folder / "drafter"),
        "method": "mtp",
        "synthetic": ACCEPTED,
        "server_args": SERVER.split(),
        "env": {
            "VLLM_CACHE_ROOT": str(folder / "cache"),
            ROUTING: "uniform_random",
        },
        "rounds": 1,
        "settings": [
            *({"name": f"g{gamma}", "gamma": gamma, "env": env} for gamma in (6, 0, 3, 1, 4, 2, 5)),
            {"name": "g0-default", "gamma": 0},
        ],
        "loads": [chat | load | {"max_tokens": 128}, long | load | {"max_tokens": 16}],
    }
    pair = [{"name": "g0-file", "gamma": 0, "env": env}, {"name": "g0-default", "gamma": 0}]
    for name, written in (("config", grid), ("file", grid | {"rounds": 2, "settings": pair})):
        (folder / f"{name}.json").write_text(json.dumps(written, indent=1))
        print(f"python -m benchmarks.record_grid {folder}/{name}.json OUT.json")


if __name__ == "__main__":
    main()
