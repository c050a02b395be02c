"""The dialled server beside servers of one gamma: by how much they differ, and whether it matters.

What is recommended is a server of one gamma, so those decide. They may capture other CUDA graphs
than the dialled one, which is worth up to a quarter (docs/lab/).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.core import Candidate, Outcome, Trial
from autotune.decide.stats import Ratio, geometric_mean, paired_ratio
from autotune.serving.forecast.forecast import level_rates

LEAST = 0.03
"""Differences below this share are not worth a word, however well boots agree."""


@dataclass(frozen=True)
class Beside:
    """One setting by the dial, and in fresh boots.

    ``ratio`` is the fresh boots' tokens per second over the dial's, a geometric mean over
    concurrencies; ``spread`` by what share fresh boots of one setting differ, at most.
    """

    candidate: Candidate
    ratio: float
    spread: float

    @property
    def differs(self) -> bool:
        """Tell whether boots alone do not explain the difference."""
        return abs(math.log(self.ratio)) > max(math.log1p(self.spread), math.log1p(LEAST))


def beside(
    searched: Sequence[Trial], confirmed: Mapping[Candidate, Sequence[Trial]]
) -> list[Beside]:
    """Compare what was measured both ways.

    Args:
        searched: trials of dialled servers.
        confirmed: trials of fresh boots of one gamma, by candidate.
    """
    by_dial = {t.candidate: level_rates(t) for t in searched}
    rates = {
        candidate: [level_rates(t) for t in trials if t.measurement.outcome is Outcome.OK]
        for candidate, trials in confirmed.items()
    }
    spread = max((_spread(boots) for boots in rates.values()), default=0.0)
    found = []
    for candidate, boots in rates.items():
        dial = by_dial.get(candidate) or {}
        if not dial or not boots:
            continue
        ratios = [statistics.median(boot[c] for boot in boots) / dial[c] for c in dial]
        found.append(Beside(candidate, geometric_mean(ratios), spread))
    return found


def _spread(boots: Sequence[Mapping[int, float]]) -> float:
    """By what share the boots of one setting differ, at the concurrency where they do most."""
    levels = boots[0] if boots else ()
    return max((max(b[c] for b in boots) / min(b[c] for b in boots) - 1 for c in levels), default=0)


def disagreeing(
    searched: Sequence[Trial], home: Candidate, ratios: Mapping[Candidate, Ratio]
) -> dict[Candidate, tuple[Ratio, Ratio]]:
    """Find settings whose gain over the baseline is another one side by side than by the dial.

    Two gains are so where their 95 % intervals have nothing in common.

    Args:
        searched: trials of the dialled server.
        home: no speculation.
        ratios: gains of servers that were up side by side.

    Returns:
        The gain by the dial, and side by side.
    """
    samples = {t.candidate: t.measurement.samples for t in searched}
    before, found = samples.get(home, ()), {}
    for candidate, static in ratios.items():
        ours = samples.get(candidate, ())
        if not before or len(ours) != len(before):
            continue
        dial = paired_ratio(before, ours)
        far = abs(math.log(static.value / dial.value)) > math.log1p(LEAST)
        if far and (static.low > dial.high or dial.low > static.high):
            found[candidate] = (dial, static)
    return found
