"""The flags that decide a server's memory, in every way in which vLLM reads them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autotune.engine.arguments import argument_value, is_given, whole_value
from autotune.serving.memory.fit import check_fit
from autotune.serving.pair.pairing import Pair
from autotune.serving.server.server import ServeSettings
from autotune.util.finding import Finding
from tests.support.memory import GIB, model, reading

LENGTH = 100_000
"""Of a request whose KV cache is 100000 · 1024 bytes, which does not fit where 1/20 GiB is left."""
CONFIG: dict[str, Any] = {"max_position_embeddings": LENGTH, "intermediate_size": 64}
TARGET = replace(model(**CONFIG), weight_bytes=8 * GIB)
PAIR = Pair(TARGET, "ngram")
HERE = reading(10, total=10)


def found(*args: str, pair: Pair = PAIR, **settings: Any) -> list[Finding]:
    given = {"gpu_memory_utilization": 0.805} | settings
    return check_fit(pair, ServeSettings("m", extra_args=args, **given), 1, HERE)


def codes(*args: str, **more: Any) -> list[str]:
    return [f"{f.severity} {f.code}" for f in found(*args, **more)]


def test_without_flags_the_length_is_too_much() -> None:
    assert codes() == ["refuse memory-context"]
    assert codes(gpu_memory_utilization=0.7) == ["refuse memory-weights"]


@pytest.mark.parametrize(
    "args",
    [
        ("--max-model-len", "4k"),
        ("--max-model-len=4K",),
        ("--max_model_len", "40000"),
        ("--max-model", "4000"),
        ("--max-model-len", "90000", "--max-model-len", "25.6k"),
        ("-tp", "2"),
        ("-tp=2",),
        ("--tensor_parallel_size=2",),
        ("--pipeline-parallel-size", "2"),
        ("-pp", "2"),
        ("--kv-cache-dtype", "nvfp4"),
    ],
)
def test_flags_with_which_it_fits(args: tuple[str, ...]) -> None:
    assert codes(*args) == ["note memory"]


@pytest.mark.parametrize("args", [("--max-model-len", "99k"), ("-tp", "1"), ("-dcp", "2")])
def test_flags_with_which_it_does_not(args: tuple[str, ...]) -> None:
    assert codes(*args) == ["refuse memory-context"]


@pytest.mark.parametrize(
    "args",
    [
        ("--max-model-len", "auto"),
        ("--max-model-len", "-1"),
        ("--max-model-len", "1.5K"),
        ("--quantization", "fp8"),
        ("-q", "fp8"),
        ("--cpu-offload-gb", "4"),
        ("--load-format=bitsandbytes",),
        ("--hf-overrides", '{"num_hidden_layers": 1}'),
        ("--hf-overrides.num_hidden_layers", "1"),
        ("-dp", "2"),
        ("--config", "serve.yaml"),
        ("--language-model-only",),
    ],
)
def test_what_may_lessen_the_need_is_no_refusal(args: tuple[str, ...]) -> None:
    (weights,) = found(*args, gpu_memory_utilization=0.7)
    assert (weights.severity, weights.code) == ("warn", "memory-weights")
    assert "it may fit all the same" in weights.message


def test_a_share_that_is_not_free_is_refused_whatever_is_loaded() -> None:
    settings = ServeSettings("m", gpu_memory_utilization=0.9, extra_args=("-q", "fp8"))
    (free,) = check_fit(PAIR, settings, 1, reading(5, total=10))
    assert (free.severity, free.code) == ("refuse", "memory-free")
    settings = replace(settings, extra_args=("--config", "f"))
    (free,) = check_fit(PAIR, settings, 1, reading(5, total=10))
    assert free.severity == "warn"


def test_the_utilization_is_taken_from_where_it_is_given() -> None:
    for flag in ("--gpu-memory-utilization", "--device-memory-utilization"):
        assert codes(flag, "0.99", gpu_memory_utilization=None) == ["note memory"]


def test_the_drafter_counts_where_there_is_speculation() -> None:
    pair = Pair(TARGET, "draft_model", replace(model(**CONFIG), weight_bytes=GIB))
    length = ("--max-model-len", "1000")
    assert codes(*length, pair=pair) == ["note memory"]
    assert codes(*length, pair=pair, speculative={"x": 1}) == ["refuse memory-weights"]


def test_a_model_that_tells_no_length_is_not_judged() -> None:
    assert codes(pair=Pair(replace(model(), weight_bytes=99 * GIB), "ngram")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("7", 7), ("4k", 4000), ("4K", 4096), ("25.6k", 25600), (" 2m ", 2_000_000)),
        *(("1G", 2**30), ("1.5K", None), ("1.5", None), ("auto", None), ("", None), ("k", None)),
        *(("٣", None), ("9" * 5000, None)),
    ],
)
def test_whole_numbers_as_vllm_reads_them(text: str, expected: int | None) -> None:
    assert whole_value(["--x-y", text], "--x-y") == expected


def test_numbers_are_those_of_vllms_own_parser() -> None:
    parser = pytest.importorskip("vllm.utils.argparse_utils")
    for text in ("7", "4k", "4K", "25.6k", "2m", "1G", "1.1t"):
        assert whole_value(["--x", text], "--x") == parser.human_readable_int(text)


def test_flags_by_any_name() -> None:
    args = ["--kv_cache_memory=5", "-q", "fp8", "--json-arg.key", "v", "--quantization-config", "x"]
    assert argument_value(args, "--kv-cache-memory-bytes") == "5"
    assert argument_value(args, "--quantization") == "fp8"
    assert is_given(args, "--json-arg")
    assert not is_given(["--config-format", "hf"], "--config")
    assert not is_given(["--hf"], "--hf-overrides"), "too short a beginning to tell"
    assert argument_value(["--last"], "--last") is None
