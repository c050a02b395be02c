"""What was measured at one concurrency, read back."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any


def rate_of(level: Mapping[str, Any]) -> float:
    """Aggregate tokens per second: the median over the repeats.

    vLLM compiles kernels at their first use, which costs a repeat a second here and there.
    """
    return float(statistics.median(repeats_of(level)))


def repeats_of(level: Mapping[str, Any]) -> list[float]:
    """Aggregate tokens per second of every repeat; of a summary alone, its one rate."""
    return list(level.get("repeats") or [level["tok_s"]])
