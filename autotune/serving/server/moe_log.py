"""Which MoE configuration files a vLLM server took, by its log.

Source: vLLM 0.32 ``model_executor/layers/fused_moe/fused_moe.py`` (``get_moe_configs``). On a CPU
that kernel does not run, and neither line is written.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_USED = re.compile(r"Using configuration from (.+?) for MoE layer")
_MISSING = re.compile(r"Using default MoE config\..*Config file not found at (.+)$", re.MULTILINE)


def moe_files(log: Path | None) -> dict[str, Any]:
    """``moe_used`` and ``moe_missing``: paths of files, empty where the log names none."""
    try:
        text = log.read_text(errors="replace") if log is not None else ""
    except OSError:
        text = ""
    missing = {path.strip() for found in _MISSING.findall(text) for path in found.split(", ")}
    return {"moe_used": sorted(set(_USED.findall(text))), "moe_missing": sorted(missing)}
