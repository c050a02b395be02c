"""The choice by predictions: vLLM's default stays where the model cannot tell the two apart."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.core import Selection, Trial, Workload
from autotune.decide.selection import select

MODEL_ERROR = 0.025
"""A predicted gain up to this says nothing: with it the choice lies behind vLLM's default at 2 of
234 batch sizes measured on an H100 and an H200, by 0.7 % at most; with 0.01 at 13, by 3.3 %
(``benchmarks/predicted_choice.py``)."""


def least_gain(min_gain: float) -> float:
    """Return the gain from which on a prediction replaces the default, as a fraction."""
    return max(min_gain, MODEL_ERROR)


def select_predicted(
    workload: Workload, incumbent: Trial | None, trials: Sequence[Trial], min_gain: float
) -> Selection:
    """Choose the best predicted trial, or vLLM's default if it is within the model's error.

    Args and Raises: as :func:`autotune.decide.selection.select`.
    """
    return select(workload, incumbent, trials, least_gain(min_gain))
