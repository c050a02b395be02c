"""Memory needed against memory free: sizes against vLLM's own, starts that cannot succeed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import BadInputError
from autotune.machine.memory import MemoryReading
from autotune.machine.resident import Resident
from autotune.serving.memory.attention import attention_layers
from autotune.serving.memory.model import (
    MemoryNeed,
    Serving,
    bytes_per_value,
    check_memory,
    kv_bytes_per_request,
    kv_bytes_per_token,
    memory_need,
)
from autotune.serving.memory.weights import weight_bytes
from autotune.serving.pair.checkpoint import Checkpoint, load_checkpoint
from autotune.serving.pair.pairing import Pair, load_pair
from tests.serving.tiny_models import TinyModels
from tests.support.memory import GIB, model, reading

KINDS = ("qwen3", "qwen3_moe", "gemma4", "gemma4_moe", "gemma4_assistant")
GEMMA_26B: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": 2816,
    "num_hidden_layers": 30,
    "intermediate_size": 2112,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_global_key_value_heads": 2,
    "head_dim": 256,
    "global_head_dim": 512,
    "vocab_size": 262144,
    "sliding_window": 1024,
    "attention_k_eq_v": True,
    "num_experts": 128,
    "moe_intermediate_size": 704,
    "tie_word_embeddings": True,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5,
}
CHANNEL_FP8 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_counted_weights_are_those_of_the_files(kind: str, tiny_models: TinyModels) -> None:
    found = load_checkpoint(str(getattr(tiny_models, kind)))
    assert found.weight_bytes
    counted = weight_bytes(replace(found, weight_bytes=None))
    assert counted == pytest.approx(found.weight_bytes, rel=0.04)
    assert weight_bytes(found) == found.weight_bytes


def test_gemma_4_26b_in_fp8_is_as_large_as_vllm_loads_it() -> None:
    """24.5 GiB with dummy weights on vLLM 0.24."""
    counted = weight_bytes(Checkpoint("g", GEMMA_26B | {"quantization_config": CHANNEL_FP8}))
    assert counted / GIB == pytest.approx(24.5, rel=0.03)


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        (None, 16),
        ({"quant_method": "fp8"}, 8),
        (CHANNEL_FP8, 8),
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 8),
        ({"quant_method": "never heard of"}, 4),
    ],
)
def test_bits_of_a_weight(quantization: dict[str, Any] | None, bits: float) -> None:
    plain = model(intermediate_size=128, quantization_config=quantization)
    assert weight_bytes(plain) == (4 * 64 * 64 + 3 * 64 * 128) * 4 * bits / 8


def test_one_projection_for_keys_and_values_counts_once() -> None:
    """In the weights of full layers; the cache holds both all the same."""
    two, one = model(), model(attention_k_eq_v=True)
    assert weight_bytes(two) - weight_bytes(one) == 4 * 64 * 64 * 2
    assert kv_bytes_per_token(two) == kv_bytes_per_token(one)


def test_attention_with_a_latent_vector() -> None:
    """DeepSeek-V3: 671 billion parameters, 61 layers, 576 numbers per token and layer."""
    deepseek = Checkpoint(
        "d",
        {
            "num_hidden_layers": 61,
            "hidden_size": 7168,
            "num_attention_heads": 128,
            "num_key_value_heads": 128,
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 128,
            "v_head_dim": 128,
            "intermediate_size": 18432,
            "moe_intermediate_size": 2048,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "first_k_dense_replace": 3,
            "vocab_size": 129280,
            "tie_word_embeddings": False,
            "quantization_config": {"quant_method": "fp8"},
        },
    )
    assert kv_bytes_per_token(deepseek) == 61 * 576 * 2
    embeddings = 2 * 129280 * 7168
    assert weight_bytes(deepseek) - embeddings == pytest.approx(671e9, rel=0.005)


@pytest.mark.parametrize(
    ("kind", "per_token", "per_request"),
    [("qwen3", 512, 524_288), ("gemma4", 1024, 1_146_880), ("gemma4_moe", 1024, 1_146_880)],
)
def test_the_kv_cache_is_as_vllm_reserves_it(
    kind: str, per_token: int, per_request: int, tiny_models: TinyModels
) -> None:
    """Of 256 MiB, vLLM 0.32 on a CPU logged 512.00 and 234.06 requests of 1024 tokens."""
    found = load_checkpoint(str(getattr(tiny_models, kind)))
    serving = Serving(1024, block_size=128)
    assert kv_bytes_per_token(found) == per_token
    assert kv_bytes_per_request(found, 1024, serving) == per_request


def test_both_spellings_of_gemma_4_are_one() -> None:
    full = {"head_dim": 512, "num_key_value_heads": 2}
    table = {str(index): full for index in range(5, 30, 6)}
    spelt = {k: v for k, v in GEMMA_26B.items() if "global" not in k} | {"per_layer_config": table}
    layers = attention_layers(Checkpoint("g", GEMMA_26B))
    assert layers == attention_layers(Checkpoint("g", spelt))
    assert [layer.window for layer in layers[4:6]] == [1024, None]


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({}, 4 * 128),
        ({"num_key_value_heads": 2}, 4 * 64),
        ({"num_kv_shared_layers": 3}, 128),
        ({"layer_types": ["linear_attention"] * 3 + ["full_attention"]}, 128),
        ({"layer_types": ["mamba", "mlp", "full_attention", "full_attention"]}, 256),
    ],
)
def test_what_layers_keep(config: dict[str, Any], kept: int) -> None:
    assert sum(layer.values_per_token for layer in attention_layers(model(**config))) == kept


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        ({"sliding_window": 64}, [64] * 4),
        ({"sliding_window": 64, "use_sliding_window": False}, [None] * 4),
        ({"sliding_window": 64, "sliding_window_pattern": 2}, [64, None, 64, None]),
        ({"layer_types": ["chunked_attention"], "attention_chunk_size": 32}, [32] * 4),
        ({"sliding_window": None}, [None] * 4),
    ],
)
def test_windows(config: dict[str, Any], windows: list[int | None]) -> None:
    assert [layer.window for layer in attention_layers(model(**config))] == windows


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([16, 128]))
def test_a_window_saves_memory_only_past_itself(tokens: int, window: int, block: int) -> None:
    serving = Serving(5000, batched_tokens=256, block_size=block)
    slides = model(sliding_window=window)
    held = kv_bytes_per_request(slides, tokens, serving)
    everything = kv_bytes_per_request(model(), tokens, serving)
    spare = 4 * 128 * 2 * block
    assert held <= everything + spare
    assert held <= kv_bytes_per_token(slides) * (window - 1 + 256) + 2 * spare
    if tokens <= window:
        assert held == everything + spare


@pytest.mark.parametrize(
    ("dtype", "quantization", "size"),
    [
        ("auto", None, 2),
        ("auto", {"kv_cache_scheme": {"type": "float", "num_bits": 8}}, 1),
        ("auto", {"kv_cache_quant_algo": "FP8"}, 1),
        ("bfloat16", {"kv_cache_quant_algo": "FP8"}, 2),
        ("fp8", None, 1),
        ("fp8_e5m2", None, 1),
        ("nvfp4", None, 0.5625),
        ("int4_per_token_head", None, 0.5),
        ("something new", None, 2),
    ],
)
def test_bytes_of_a_kv_type(dtype: str, quantization: dict[str, Any] | None, size: float) -> None:
    assert bytes_per_value(dtype, model(quantization_config=quantization)) == size


def test_a_drafter_adds_weights_and_cache(tiny_models: TinyModels) -> None:
    serving = Serving(1024, concurrency=4, block_size=128)
    alone = memory_need(load_pair(str(tiny_models.qwen3), "ngram"), serving)
    noisy = str(tiny_models.noisy(tiny_models.qwen3, 0.05))
    both = memory_need(load_pair(str(tiny_models.qwen3), noisy), serving)
    assert (alone.drafter, alone.kv_request, alone.kv_reserve) == (0, 2**19, 2**16)
    assert (alone.kv_one, alone.kv_all) == (2**19 + 2**16, 2**21 + 2**16)
    assert both.drafter > 0
    assert (both.target, both.kv_request) == (alone.target, 2 * alone.kv_request)
    assert both.weights == both.target + both.drafter


def test_the_assistant_reads_the_cache_of_its_target(tiny_models: TinyModels) -> None:
    serving = Serving(1024, block_size=128)
    alone = memory_need(load_pair(str(tiny_models.gemma4), "ngram"), serving)
    both = memory_need(
        load_pair(str(tiny_models.gemma4), str(tiny_models.gemma4_assistant)), serving
    )
    assert both.kv_all == alone.kv_all
    plain = {"model_type": "gemma4_assistant", "backbone_hidden_size": 64}
    unsaid = Pair(model(), "mtp", model(**plain))
    assert (
        memory_need(unsaid, serving).kv_all == memory_need(Pair(model(), "ngram"), serving).kv_all
    )
    assert both.drafter > 0


@pytest.mark.parametrize(("kind", "reserve"), [("qwen3", 65_536), ("gemma4", 32_768)])
def test_one_block_is_kept_back(kind: str, reserve: int, tiny_models: TinyModels) -> None:
    """With exactly one request's KV cache vLLM 0.32 refuses to start: a block is missing."""
    pair = load_pair(str(getattr(tiny_models, kind)), "ngram")
    serving = Serving(1024, block_size=128)
    need = memory_need(pair, serving)
    assert need.kv_reserve == reserve
    here = reading(80, kind="cpu")
    for size, expected in ((need.kv_request, "memory-context"), (need.kv_one, "memory")):
        (found,) = check_memory(need, here, replace(serving, kv_cache_bytes=size))
        assert found.code == expected


def test_shards_halve_everything() -> None:
    pair = Pair(replace(model(), weight_bytes=1000), "ngram")
    whole, half = (memory_need(pair, Serving(1024, shards=n)) for n in (1, 2))
    assert (half.target * 2, half.kv_all * 2) == (whole.target, whole.kv_all)


NEED = MemoryNeed(30 * GIB, 2 * GIB, kv_request=3 * GIB, kv_reserve=GIB, requests=5)
USUAL: dict[str, Any] = {"max_model_len": 4096, "concurrency": 4}
FIXED: dict[str, Any] = {"kv_cache_bytes": 16 * GIB, "utilization": 0.5}


@pytest.mark.parametrize(
    ("here", "flags", "expected"),
    [
        (reading(95), {"utilization": 0.9}, "note memory"),
        (reading(89), {"utilization": 0.9}, "refuse memory-free"),
        (reading(90), {"utilization": 0.9}, "note memory"),
        (reading(95), {"utilization": 0.47}, "warn memory-concurrency"),
        (reading(95), {"utilization": 0.48}, "note memory"),
        (reading(95), {"utilization": 0.35}, "refuse memory-context"),
        (reading(95), {"utilization": 0.36}, "warn memory-concurrency"),
        (reading(95), {"utilization": 0.31}, "refuse memory-weights"),
        (reading(95), {"kv_cache_bytes": 16 * GIB}, "note memory"),
        (reading(95), {"kv_cache_bytes": 15 * GIB}, "warn memory-concurrency"),
        (reading(95), {"kv_cache_bytes": 3 * GIB}, "refuse memory-context"),
        (reading(95), {"kv_cache_bytes": 64 * GIB}, "refuse memory-weights"),
        (reading(80), {"kv_cache_bytes": 16 * GIB}, "refuse memory-free"),
        (reading(80, kind="cpu"), {"kv_cache_bytes": 16 * GIB}, "note memory"),
        (reading(40, kind="cpu"), {"kv_cache_bytes": 16 * GIB}, "refuse memory-weights"),
        (reading(80, kind="cpu"), {}, "refuse memory-free"),
        (reading(99, kind="unified"), {"utilization": 0.98}, "refuse memory-host"),
        (reading(99, kind="unified"), {"utilization": 0.85}, "note memory, warn memory-host"),
        (reading(86, kind="unified"), {"utilization": 0.87}, "refuse memory-host"),
        (reading(88, kind="unified"), {"utilization": 0.8}, "note memory"),
        (reading(87.9, kind="unified"), {"utilization": 0.8}, "refuse memory-host"),
        (reading(62, kind="unified"), FIXED, "note memory"),
        (reading(61, kind="unified"), FIXED, "refuse memory-host"),
        (reading(62, kind="unified"), FIXED | {"utilization": 0.9}, "refuse memory-free"),
    ],
)
def test_the_table(here: MemoryReading, flags: dict[str, Any], expected: str) -> None:
    found = check_memory(NEED, here, Serving(**(USUAL | flags)))
    assert ", ".join(f"{f.severity} {f.code}" for f in found) == expected
    assert all("\n" not in f.message for f in found)


def test_on_unified_memory_the_message_names_a_share_a_size_and_who_holds_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Resident(7, "vllm serve Qwen/Qwen3-8B", 30 * GIB)
    monkeypatch.setattr("autotune.serving.memory.model.residents", lambda: [server])
    here = reading(70, kind="unified")
    (found,) = check_memory(NEED, here, Serving(**USUAL, utilization=0.8))
    assert "80.00 GiB of the GPU, and 70.00 GiB of 100.00 GiB are available" in found.message
    assert "8 GiB stay with the host" in found.message
    assert "at most 0.62, or --server-arg '--kv-cache-memory-bytes SIZE'" in found.message
    assert "vllm serve Qwen/Qwen3-8B (process 7) holds 30.0 GiB" in found.message
    assert not [
        f
        for f in check_memory(NEED, here, Serving(**USUAL, utilization=0.62))
        if f.severity == "refuse"
    ]


def test_the_message_names_what_would_fit() -> None:
    found = check_memory(NEED, reading(50.5), Serving(**USUAL))
    assert "92.00 GiB of the GPU, and 50.50 GiB of 100.00 GiB are free" in found[0].message
    assert "at most 0.50" in found[0].message
    assert not [
        f
        for f in check_memory(NEED, reading(50.5), Serving(**USUAL, utilization=0.5))
        if f.severity == "refuse"
    ]


@pytest.mark.parametrize(
    "flags",
    [
        {"max_model_len": 0},
        {"concurrency": 0},
        {"utilization": 0},
        {"utilization": 1.01},
        {"utilization": float("nan")},
        {"block_size": 0},
        {"shards": 0},
    ],
)
def test_flags_that_cannot_be(flags: dict[str, Any]) -> None:
    with pytest.raises(BadInputError, match="start at 1"):
        Serving(**(USUAL | flags))


@pytest.mark.parametrize("layers", [None, 10**9])
def test_a_model_without_a_number_of_layers(layers: int | None) -> None:
    with pytest.raises(BadInputError, match="num_hidden_layers"):
        attention_layers(model(num_hidden_layers=layers))
