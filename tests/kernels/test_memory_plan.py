"""What a plan needs of unified memory, and what is done where it does not fit."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.core import MissingEnvironmentError
from autotune.kernels import memory
from autotune.kernels.memory import (
    COMPILER,
    PROCESS,
    fitting_workers,
    memory_of,
    process_bytes,
    within_memory,
)
from autotune.kernels.moe.from_model import load_config, shape_from_config
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.plan import Plan
from autotune.machine.devices import GpuInfo, get_device
from autotune.machine.guard import GIB, RESERVE
from autotune.machine.resident import Resident
from tests.support.kernel_pages import SHAPE
from tests.support.memory import reading

GB10 = get_device("gb10")
GPU = GpuInfo(0, "NVIDIA GB10", "GPU-0", "595.58", "[N/A]", "12.1")
DEEPSEEK = MoeShape(256, 2048, 7168, 8, "fp8_w8a8", "fp8", Scheme.BLOCK, (128, 128), 256)
ONE = process_bytes(SHAPE, GB10, (1, 4096))


def plan(workers: int = 18, measured: bool = True) -> Plan:
    """A plan as far as its memory goes."""
    given: dict[str, Any] = dict.fromkeys(field.name for field in fields(Plan)) | {
        "device": GB10,
        "model": "gemma",
        "shape": SHAPE,
        "batch_sizes": (1, 4096),
        "workers": workers,
        "gpus": (GPU,) if measured else (),
        "notes": (),
        "unified": False,
    }
    return Plan(**given)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [Resident(7, "vllm serve Qwen/Qwen3-8B", 84 * GIB)]
    monkeypatch.setattr("autotune.machine.resident.residents", lambda: held)


def test_the_sizes_are_those_that_were_counted_for_a_spark() -> None:
    """14 to 17 GiB for Gemma with 18 compilers, 38 to 42 for DeepSeek-V3.

    The latter with two measuring processes; here it is one at a time.
    """
    gemma = shape_from_config(load_config("gemma-4-26b-a4b"), dtype="auto", tp=1, ep=1)
    assert 14 < (process_bytes(gemma, GB10, (4096,)) + 18 * COMPILER) / GIB < 17
    assert 26 < (process_bytes(DEEPSEEK, GB10, (4096,)) + 18 * COMPILER) / GIB < 32
    bf16 = replace(DEEPSEEK, dtype=None, weight_dtype="bf16", scheme=Scheme.NONE, block_shape=None)
    twice = process_bytes(bf16, GB10, (4096,)) - process_bytes(DEEPSEEK, GB10, (4096,))
    assert twice == 256 * 3 * 2048 * 7168, "a byte more for every weight"


def test_small_weights_are_held_as_often_as_the_cache_wants() -> None:
    small = replace(SHAPE, experts=1, global_experts=8, topk=1)
    weights = 3 * 704 * 2816
    copies = -(-4 * GB10.l2_bytes // weights)
    assert copies > 1
    assert process_bytes(small, GB10, (1,)) == PROCESS + copies * weights + memory.FACTS


def test_with_room_nothing_changes() -> None:
    found = within_memory(plan(), reading(110, 121, "unified"))
    assert (found.workers, found.notes, found.unified) == (18, (), True)


def test_fewer_workers_come_first() -> None:
    free = (ONE + RESERVE + 5 * COMPILER + 1) / GIB
    found = within_memory(plan(), reading(free, 121, "unified"))
    assert found.workers == 5
    assert "5 compile processes in place of 18" in found.notes[0]
    assert "8 of which stay with the host" in found.notes[0]


@pytest.mark.parametrize("free", [0.0, (ONE + RESERVE + COMPILER - 1) / GIB])
def test_then_it_is_refused_with_who_holds_the_memory(free: float) -> None:
    with pytest.raises(MissingEnvironmentError) as refused:
        within_memory(plan(), reading(free, 121, "unified"))
    said = str(refused.value)
    assert said.startswith("measuring gemma takes about ")
    assert "vllm serve Qwen/Qwen3-8B (process 7) holds 84.0 GiB; stop that" in said
    assert "\n" not in said


def test_a_prediction_needs_its_compilers_alone() -> None:
    free = (RESERVE + 2 * COMPILER + 1) / GIB
    assert within_memory(plan(measured=False), reading(free, 121, "unified")).workers == 2


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_memory_that_is_not_shared_is_not_counted(kind: str) -> None:
    found = within_memory(plan(), reading(0.1, 80, kind))
    assert (found.workers, found.unified) == (18, False)
    assert fitting_workers(3, 99 * GIB, reading(0.1, 80, kind), "x") == 3


def test_every_gpu_counts() -> None:
    two = replace(plan(), gpus=(GPU, GPU))
    free = (2 * ONE + RESERVE + 5 * COMPILER + 1) / GIB
    assert within_memory(two, reading(free, 121, "unified")).workers == 5


def test_a_gb10_is_unified_whatever_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 127000000 kB\nMemAvailable: 1048576 kB\n")
    monkeypatch.setenv("AUTOTUNE_MEMINFO", str(file))
    monkeypatch.setattr("autotune.machine.memory.gpu_memory", list)
    found = memory_of(GB10, (GPU,))
    assert (found.kind, found.free) == ("unified", GIB)
    other = SimpleNamespace(unified_memory=False)
    assert memory_of(other, ()).kind == "cpu"  # type: ignore[arg-type]
