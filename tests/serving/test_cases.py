"""Checkpoints as people have them: missing keys, nested drafters, hybrids, lost weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from autotune.core import BadInputError
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving.memory.attention import attention_layers
from autotune.serving.memory.model import Serving, check_memory, kv_bytes_per_token, memory_need
from autotune.serving.pair.checkpoint import Checkpoint, load_checkpoint
from autotune.serving.pair.methods import own_heads, resolve_method
from autotune.serving.pair.pairing import Pair, check_pair, load_pair
from autotune.util.finding import Severity

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}


def model(kind: str, architecture: str = "?", **config: Any) -> Checkpoint:
    head = {"model_type": kind, "architectures": [architecture]}
    return Checkpoint(kind, head | SIZES | config)


def codes(pair: Pair) -> set[str]:
    return {f.code for f in check_pair(pair) if f.severity is Severity.REFUSE}


@pytest.mark.parametrize(
    ("checkpoint", "heads"),
    [
        (model("qwen3_next"), 1),
        (model("qwen3_next", num_nextn_predict_layers=2), 2),
        (model("qwen3_next", num_nextn_predict_layers=0), 0),
        (model("longcat_flash"), 1),
        (model("exaone_moe"), 1),
        (model("dots3_note"), 1),
        (model("qwen3_5_moe", text_config={"model_type": "qwen3_5_moe_text"}), 1),
        (model("minimax_m3_vl"), 1),
        (model("glm4_moe", "Glm4MoeForCausalLM"), 1),
        (model("mimo_v2_flash", "MiMoV2FlashForCausalLM"), 1),
        (model("mimo_v2", "MiMoV2ForCausalLM", num_nextn_predict_layers=3), 1),
        (model("deepseek_v4", "DeepseekV4ForCausalLM"), 0),
        (model("kimi_k3"), 0),
        (model("nemotron_h"), 0),
        (
            model(
                "omni",
                "NemotronH_Super_Omni_Reasoning_V3",
                text_config={"model_type": "nemotron_h", "num_nextn_predict_layers": 1},
            ),
            1,
        ),
        (model("llama", num_nextn_predict_layers=1), 0),
    ],
)
def test_a_count_that_is_missing_is_the_one_of_vllm(checkpoint: Checkpoint, heads: int) -> None:
    assert own_heads(checkpoint) == heads
    assert ("no-mtp-layers" in codes(Pair(checkpoint, "mtp"))) == (heads == 0)


def test_a_class_that_counts_none_and_divides_by_it_warns() -> None:
    found = check_pair(Pair(model("step3p5", "Step3p5ForCausalLM"), "mtp"))
    assert next((f.code, f.severity) for f in found) == ("mtp-count", Severity.WARN)


DRAFTER: dict[str, Any] = {
    "architectures": ["Eagle3DraftModel"],
    "speculators_model_type": "eagle3",
    "target_hidden_size": None,
    "draft_vocab_size": 500,
    "speculators_config": {"verifier": {"name_or_path": "org/target"}},
    "transformer_layer_config": SIZES | {"model_type": "llama", "num_hidden_layers": 1},
}


def folder(place: Path, config: dict[str, Any], **others: Any) -> str:
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    for name, content in others.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    return str(place)


@pytest.mark.parametrize(
    ("inner", "refused"),
    [
        ({}, set()),
        ({"hidden_size": 128}, {"hidden-size"}),
        ({"vocab_size": 2000}, {"vocabulary"}),
        ({"hidden_size": 128, "vocab_size": 2000}, {"hidden-size", "vocabulary"}),
    ],
)
def test_a_drafter_in_the_speculators_format(
    inner: dict[str, Any], refused: set[str], tmp_path: Path
) -> None:
    target = folder(tmp_path / "target", SIZES | {"model_type": "llama"})
    nested = DRAFTER["transformer_layer_config"] | inner
    drafter = folder(tmp_path / "drafter", DRAFTER | {"transformer_layer_config": nested})
    pair = load_pair(target, drafter)
    assert pair.method == "eagle3"  # the path does not say so
    assert codes(pair) == refused
    assert pair.drafter is not None
    assert pair.drafter.base_models == ("org/target",)
    assert memory_need(pair, Serving(1024)).drafter > 0


@pytest.mark.parametrize(
    ("kind", "method"),
    [("peagle", "eagle3"), ("dflash", "dflash"), ("dflash2", "dflash"), ("dspark", "dspark")],
)
def test_the_method_of_the_format_is_that_of_vllm(kind: str, method: str) -> None:
    drafter = Checkpoint("some/eagle3-like", DRAFTER | {"speculators_model_type": kind})
    assert resolve_method(drafter) == method


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speculators_model_type": "hydra"}, "hydra.* none that vLLM reads"),
        ({"speculators_model_type": 3}, "speculators_model_type 3"),
        ({"transformer_layer_config": {"model_type": "mistral"}}, "llama or qwen3 layers only"),
    ],
)
def test_a_format_that_vllm_does_not_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        resolve_method(Checkpoint("d", DRAFTER | change))


def test_heads_without_attention_have_no_cache() -> None:
    medusa = Checkpoint("m", {"model_type": "medusa", "hidden_size": 64, "vocab_size": 1000})
    speculator = {"model_type": "mlp_speculator", "emb_dim": 32, "vocab_size": 1000}
    assert attention_layers(medusa) == ()
    target = model("llama")
    assert memory_need(Pair(target, "medusa", medusa), Serving(64)).drafter == 128_000
    assert codes(Pair(target, "mlp_speculator", Checkpoint("s", speculator))) == {"hidden-size"}


def index(*names: str) -> dict[str, Any]:
    return {"weight_map": dict.fromkeys(names, "model-1-of-1.safetensors")}


EXPERT = "model.layers.0.mlp.experts.0.up_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "refused"),
    [
        ((EXPERT,), True),
        ((EXPERT, "mtp.layers.0.mlp.gate.weight"), False),
        ((EXPERT, "model.layers.8.mlp.gate.weight"), False),
        ((EXPERT, "model.layers.7.mlp.gate.weight"), True),
        ((EXPERT, "model.mtp_block.0.norm.weight"), False),
        ((), False),  # nothing is known
    ],
)
def test_mtp_layers_whose_weights_are_not_there(
    tensors: tuple[str, ...], refused: bool, tmp_path: Path
) -> None:
    names = {"model.safetensors.index": index(*tensors)}
    target = folder(tmp_path / "m", SIZES | {"model_type": "qwen3_next"}, **names)
    assert ("mtp-weights" in codes(load_pair(target, "mtp"))) == refused
    assert "mtp-weights" not in codes(load_pair(target, "ngram"))


def test_the_tensors_of_a_single_file_are_in_its_header(tmp_path: Path) -> None:
    target = folder(tmp_path / "m", SIZES | {"model_type": "qwen3_next"})
    header = json.dumps({"__metadata__": {}, EXPERT: {"dtype": "F8_E4M3"}}).encode()
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert load_checkpoint(target).tensors == frozenset({EXPERT})
    assert codes(load_pair(target, "mtp")) == {"mtp-weights"}
    file.write_bytes(b"\xff" * 64)
    assert load_checkpoint(target).tensors is None


def test_a_download_that_was_broken_off(tmp_path: Path) -> None:
    shards = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    target = folder(tmp_path / "m", SIZES | {"model_type": "llama"}, **{INDEX: shards})
    assert codes(load_pair(target, "none")) == set()  # no weights at all: the small files alone
    (tmp_path / "m" / "model-1.safetensors").write_bytes(b"")
    assert codes(load_pair(target, "none")) == {"weight-files"}


INDEX = "model.safetensors.index"


@pytest.mark.parametrize(
    ("kind", "config", "attending"),
    [
        ("qwen3_next", {"full_attention_interval": 4}, [3, 7]),
        ("qwen3_next", {}, [3, 7]),
        ("qwen3_5", {"text_config": SIZES | {"model_type": "qwen3_5_text"}}, [3, 7]),
        ("nemotron_h", {"hybrid_override_pattern": "M-M*EM*-"}, [3, 6]),
        ("nemotron_h", {"layers_block_type": ["mamba", "moe", "attention", "mlp"] * 2}, [2, 6]),
        (
            "nemotron_h_puzzle",
            {"num_hidden_layers": None, "block_configs": [{"block_type": "attention"}, {}]},
            [0],
        ),
        ("jamba", {"attn_layer_period": 4, "attn_layer_offset": 1}, [1, 5]),
        ("jamba", {}, [4]),
        ("kimi_linear", {"linear_attn_config": {"full_attn_layers": [4, 8]}}, [3, 7]),
        ("minimax_text_01", {"attn_type_list": [0, 0, 0, 1, 0, 0, 0, 1]}, [3, 7]),
        ("bamba", {"attn_layer_indices": [2], "mamba_d_state": 8}, [2]),
        ("lfm2", {"full_attn_idxs": [2, 5], "conv_L_cache": 3}, [2, 5]),
        ("zamba2", {"layers_block_type": ["mamba", "hybrid"] * 4}, [1, 3, 5, 7]),
        ("bailing_hybrid", {"layer_group_size": 3}, [2, 5]),
        ("falcon_h1", {"mamba_d_ssm": 8}, list(range(8))),
        ("deci", {"block_configs": [{"attention": {"no_op": i > 1}} for i in range(8)]}, [0, 1]),
        ("unheard_of", {"mamba_d_state": 8}, []),  # a lower bound
        ("llama", {}, list(range(8))),
    ],
)
def test_layers_that_keep_no_cache(kind: str, config: dict[str, Any], attending: list[int]) -> None:
    layers = attention_layers(model(kind, **config))
    assert [i for i, layer in enumerate(layers) if layer.values_per_token] == attending


def test_a_hybrid_starts_where_its_cache_fits() -> None:
    sizes: dict[str, Any] = {
        "num_hidden_layers": 48,
        "head_dim": 256,
        "max_position_embeddings": 262144,
    }
    hybrid = model("qwen3_next", **sizes, full_attention_interval=4)
    assert kv_bytes_per_token(hybrid) == 12 * 2 * 2 * 256 * 2
    serving = Serving(262144)
    reading = MemoryReading(8 << 30, 8 << 30, MemoryKind.GPU, "node")
    pair = Pair(Checkpoint("m", hybrid.config, weight_bytes=1 << 30), "none")
    assert not [f for f in check_memory(memory_need(pair, serving), reading, serving) if f.refuses]


@pytest.mark.parametrize(
    ("kind", "pattern", "full"),
    [("exaone4", "LLLG", [3, 7]), ("cohere2", 4, [3, 7]), ("mistral", None, [])],
)
def test_windows_by_pattern(kind: str, pattern: str | int | None, full: list[int]) -> None:
    layers = attention_layers(model(kind, sliding_window=32, sliding_window_pattern=pattern))
    assert [i for i, layer in enumerate(layers) if layer.window is None] == full


def test_on_a_cpu_the_server_s_own_processes_count_when_vllm_asks() -> None:
    """Seen: 14.6 of 15.84 GiB free before the start, 14.0 when vLLM asked for 14.57."""
    gib, used = 1 << 30, Serving(1024, utilization=0.92)
    pair = Pair(Checkpoint("m", model("llama").config, weight_bytes=gib), "none")
    need = memory_need(pair, used)
    for kind, refused in ((MemoryKind.CPU, True), (MemoryKind.GPU, False)):
        reading = MemoryReading(int(15.84 * gib), int(14.7 * gib), kind, "node0")
        found = [f for f in check_memory(need, reading, used) if f.refuses]
        assert [f.code for f in found] == (["memory-free"] if refused else [])
        assert not refused or "server itself takes first: at most 0.87" in found[0].message
