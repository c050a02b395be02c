"""How the real vLLM server is started on a machine without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.serving.server.server import ServeSettings

START_S = 240.0
CPU_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_CI_ENV": "1"}
CPU_ARGS = ("--enforce-eager", "--max-model-len", "1024")
CACHE_ARGS = ("--kv-cache-memory-bytes", "268435456")


def cpu_settings(
    model: Path | str, *args: str, speculative: Mapping[str, Any] | None = None
) -> ServeSettings:
    """A small server: eager, 1024 tokens of context, a quarter of a GiB of KV cache."""
    return ServeSettings(
        str(model), speculative, extra_args=(*CPU_ARGS, *(args or CACHE_ARGS)), env=CPU_ENV
    )
