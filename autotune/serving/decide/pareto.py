"""A single stream's rate against that of all streams together: what no other setting beats in both.

Pure. The knee is the point of the front farthest from the straight line through its ends, both axes
scaled to the front's own extent (Das 1999, "On characterizing the knee of the Pareto curve based on
normal-boundary intersection", Structural Optimization 18).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.core import Candidate


@dataclass(frozen=True)
class Point:
    """Measured tokens per second of a setting.

    Attributes:
        candidate: the setting.
        single: of one stream, at the lowest concurrency.
        aggregate: of all streams together, at the highest concurrency.
    """

    candidate: Candidate
    single: float
    aggregate: float

    def dominates(self, other: Point) -> bool:
        """Whether this one is at least as fast in both, and faster in one."""
        ours, theirs = (self.single, self.aggregate), (other.single, other.aggregate)
        return ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True))


def point_of(candidate: Candidate, tok_s: Mapping[int, float]) -> Point | None:
    """The point of measured aggregate rates by concurrency; None where there are none."""
    if not tok_s:
        return None
    lowest, highest = min(tok_s), max(tok_s)
    return Point(candidate, tok_s[lowest] / lowest, tok_s[highest])


def front(points: Sequence[Point]) -> list[Point]:
    """What no other point dominates, the fastest single stream first; of equal ones the first."""
    kept: dict[tuple[float, float], Point] = {}
    for point in points:
        if not any(other.dominates(point) for other in points):
            kept.setdefault((point.single, point.aggregate), point)
    return sorted(kept.values(), key=lambda point: -point.single)


def knee(ordered: Sequence[Point]) -> Point:
    """The point of a front (as :func:`front` gives it) that gives up least of both.

    The end with the faster single stream where no point lies outside the line.

    Raises:
        ValueError: of no points.
    """
    if not ordered:
        raise ValueError("an empty front has no knee")
    first, last = ordered[0], ordered[-1]
    width, height = first.single - last.single, last.aggregate - first.aggregate
    if not (width and height):
        return first

    def outside(point: Point) -> float:
        """Distance from the line through the ends, times the square root of 2."""
        across = (point.single - last.single) / width
        return across + (point.aggregate - first.aggregate) / height - 1

    return max(ordered, key=outside)


def ends_and_knee(points: Sequence[Point]) -> list[Point]:
    """The knee of the points' front, then its ends; each once, nothing of no points."""
    ordered = front(points)
    if not ordered:
        return []
    return list(dict.fromkeys([knee(ordered), ordered[0], ordered[-1]]))
