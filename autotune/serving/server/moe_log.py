"""Which MoE configuration files a vLLM server took, by its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.serving.logs import facts
from autotune.serving.logs.read import lines_of, read_log
from autotune.util.edge import EdgeError


def moe_files(log: Path | None) -> dict[str, Any]:
    """``moe_used`` and ``moe_missing``: paths of files, empty where the log names none."""
    try:
        lines = lines_of(read_log(log)) if log is not None else []
    except (EdgeError, OSError):
        lines = []
    return facts.moe_files(lines)
