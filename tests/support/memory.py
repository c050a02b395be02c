"""Checkpoints and readings of memory as tests need them."""

from __future__ import annotations

from typing import Any

from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving.pair.checkpoint import Checkpoint

GIB = 2**30


def model(**config: Any) -> Checkpoint:
    plain = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64}
    return Checkpoint("model", plain | config)


def reading(free: float, total: float = 100, kind: str = "gpu") -> MemoryReading:
    return MemoryReading(int(total * GIB), int(free * GIB), MemoryKind(kind), "the GPU")
