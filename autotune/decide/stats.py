"""Robust statistics of small samples. Pure, and free of assumptions on the distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

CONFIDENCE = 0.95
LEAST_PAIRS = 6
"""Below six pairs no two order statistics enclose the median with 95 % confidence."""


def mad(values: Sequence[float]) -> float:
    """Median absolute deviation from the median, in the unit of the values (not scaled).

    Raises:
        statistics.StatisticsError: of no values.
    """
    centre = median(values)
    return median(abs(value - centre) for value in values)


def median_interval(
    values: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """A distribution-free interval for the median: two order statistics of the sample.

    The i-th smallest and i-th largest of n values enclose the median with probability
    ``1 - 2·P(B < i)`` with B ~ Binomial(n, 1/2) (David and Nagaraja, Order Statistics, 2003, 7.1).
    The narrowest pair with at least ``confidence`` is taken.

    Returns:
        Lower and upper end, or None where there are too few values for that confidence.
    """
    ordered, n = sorted(values), len(values)
    tail, narrowest = 0.0, None
    for rank in range(n // 2):
        tail += math.comb(n, rank) / 2**n
        if 1 - 2 * tail < confidence:
            break
        narrowest = (ordered[rank], ordered[n - 1 - rank])
    return narrowest


@dataclass(frozen=True)
class Ratio:
    """A ratio of two paired measurements with its 95 % interval.

    Attributes:
        value: the median of the ratios of the pairs.
        low: lower end of the interval; 0 with fewer than six pairs.
        high: upper end; infinite with fewer than six pairs.
        pairs: how many there were.
    """

    value: float
    low: float
    high: float
    pairs: int


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Compare two candidates measured side by side, such as default µs over tuned µs.

    What the two of a pair share (clock, temperature, routing) cancels.

    Raises:
        ValueError: if the lengths differ, or there is nothing.
    """
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    if not ratios:
        raise ValueError("no pairs to compare")
    low, high = median_interval(ratios) or (0.0, math.inf)
    return Ratio(median(ratios), low, high, len(ratios))


def geometric_mean(values: Sequence[float]) -> float:
    """The mean for ratios.

    Raises:
        ValueError: of nothing, or of a value that is not positive.
    """
    if not values or min(values) <= 0:
        raise ValueError("a geometric mean needs positive values")
    return math.exp(math.fsum(map(math.log, values)) / len(values))
