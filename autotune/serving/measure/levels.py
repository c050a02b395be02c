"""What was measured at one concurrency, read back."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from autotune.decide.stats import mad

_SIGMA_BY_MAD = 1.4826
_MEDIAN_BY_MEAN = 1.2533
"""Of normal values, how much wider the median of a sample scatters than its mean: √(π/2)."""


def rate_of(level: Mapping[str, Any]) -> float:
    """Aggregate tokens per second: the median over the repeats.

    vLLM compiles kernels at their first use, which costs a repeat a second here and there.
    """
    return float(statistics.median(repeats_of(level)))


def repeats_of(level: Mapping[str, Any]) -> list[float]:
    """Aggregate tokens per second of every repeat; of a summary alone, its one rate."""
    return list(level.get("repeats") or [level["tok_s"]])


def noise_of(level: Mapping[str, Any]) -> float:
    """Standard error of the logarithm of :func:`rate_of`, from the repeats of this one boot.

    By their median absolute deviation, since a repeat that lost a second says nothing of the others
    (Rousseeuw and Croux 1993, JASA 88). What differs from boot to boot is not in it. 0 of one
    repeat.
    """
    logs = [math.log(rate) for rate in repeats_of(level)]
    return _MEDIAN_BY_MEAN * _SIGMA_BY_MAD * mad(logs) / math.sqrt(len(logs))
