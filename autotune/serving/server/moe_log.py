"""Which MoE configuration files a vLLM server took, by its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.serving.logs import facts
from autotune.serving.logs.read import lines_in


def moe_files(log: Path | None) -> dict[str, Any]:
    """``moe_used`` and ``moe_missing``: paths of files, empty where the log names none."""
    return facts.moe_files(lines_in(log))
