"""How far a forecast is off where nothing was measured, by what was measured elsewhere.

Gaussian process regression (Rasmussen and Williams 2006, Gaussian Processes for Machine Learning,
2.2) of the logarithm of measured over predicted time. In gamma it is a Wiener process that begins
anywhere, so that without noise its mean is the linear interpolation and its spread a Brownian
bridge (ibid., B.2.1). Settings with other parameters err by a process of their own on top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.core import Scalar

SPREAD = 0.04
"""Standard deviation of the change of the error from one gamma to the next: 5 % in
``benchmarks/results/h100-serving/grid.json``, of which boots that differ by 2 % are a part."""
UNKNOWN = 0.1
"""Standard deviation of what other parameters do at gamma 0 before anything was measured."""
ANYWHERE = 10.0
"""Standard deviation of the error at gamma 0 before anything was measured: as good as unbounded."""

Others = tuple[tuple[str, Scalar], ...]
"""A candidate's parameters but gamma."""


@dataclass(frozen=True)
class Seen:
    """One measured error.

    Attributes:
        others: the parameters but gamma.
        gamma: drafted tokens.
        error: logarithm of measured over predicted time.
        noise: standard deviation of the measurement's logarithm.
    """

    others: Others
    gamma: int
    error: float
    noise: float


def posterior(
    seen: Sequence[Seen], home: Others, others: Others, gamma: int
) -> tuple[float, float]:
    """Mean and standard deviation of the error at a setting.

    Args:
        seen: every setting once, at least one of them without noise or with ``home``'s parameters.
        home: the parameters that the forecast was made with.
        others: those of the setting asked for.
        gamma: its drafted tokens.
    """

    def covariance(a: tuple[Others, int], b: tuple[Others, int]) -> float:
        walked = SPREAD**2 * min(a[1], b[1])
        own = UNKNOWN**2 + walked if a[0] == b[0] != home else 0.0
        return ANYWHERE**2 + walked + own

    asked, known = (others, gamma), [(one.others, one.gamma) for one in seen]
    between = np.array([[covariance(a, b) for b in known] for a in known])
    noise = np.diag([one.noise**2 for one in seen])
    towards = np.array([covariance(asked, one) for one in known])
    weights = np.linalg.solve(between + noise, towards)
    mean = float(weights @ [one.error for one in seen])
    left = covariance(asked, asked) - float(weights @ towards)
    return mean, math.sqrt(max(left, 0.0))
