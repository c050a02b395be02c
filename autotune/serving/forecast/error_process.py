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
import numpy.typing as npt

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


class ErrorProcess:
    """The process, given what was seen of it."""

    def __init__(self, seen: Sequence[Seen], home: Others) -> None:
        """Condition it.

        Args:
            seen: every setting once, at least one of them.
            home: the parameters that the forecast was made with.
        """
        self._home = home
        self._known = [(one.others, one.gamma) for one in seen]
        between = np.array([self._towards(known) for known in self._known])
        self._measured = between + np.diag([one.noise**2 for one in seen])
        self._errors = np.array([one.error for one in seen])

    def at(self, others: Others, gamma: int) -> tuple[float, float]:
        """Mean and standard deviation of the error at a setting."""
        asked = (others, gamma)
        towards = self._towards(asked)
        weights = np.linalg.solve(self._measured, towards)
        left = self._covariance(asked, asked) - float(weights @ towards)
        return float(weights @ self._errors), math.sqrt(max(left, 0.0))

    def _towards(self, asked: tuple[Others, int]) -> npt.NDArray[np.float64]:
        return np.array([self._covariance(asked, one) for one in self._known])

    def _covariance(self, a: tuple[Others, int], b: tuple[Others, int]) -> float:
        walked = SPREAD**2 * min(a[1], b[1])
        own = UNKNOWN**2 + walked if a[0] == b[0] != self._home else 0.0
        return ANYWHERE**2 + walked + own
