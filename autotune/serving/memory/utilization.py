"""The least memory utilization that sustains the load, and the most that survives it.

Pure but for the probe, which boots a server: too little memory means preemptions or a KV cache
smaller than concurrency × context, too much means a start or a load that dies. Both borders are
found by bisection to one hundredth, the lower one led by what a server says of its KV cache, whose
size is linear in the utilization. Where a boot that takes too much may hang the machine, the upper
border is sought from below, in steps that double.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from autotune.core import BadInputError, NoFeasibleCandidateError, Outcome, Trial
from autotune.serving.server.failures import FailureKind
from autotune.util.flags import typed

_LED = 4
"""Steps towards the lower border that follow the KV cache's size before plain halving."""
_MEMORY = {Outcome.OUT_OF_MEMORY, Outcome.HOST_MEMORY, Outcome.CRASH, Outcome.TIMEOUT}


def parse_range(text: str) -> tuple[int, int]:
    """``0.4:0.9`` to hundredths.

    Raises:
        BadInputError: not two shares, the lower first, with two decimals at most.
    """
    try:
        low, high = (float(part) for part in text.split(":"))
        ends = (round(low * 100), round(high * 100))
        fits = 0 < ends[0] < ends[1] <= 100 and abs(ends[0] - 100 * low) < 1e-6
        fits = fits and abs(ends[1] - 100 * high) < 1e-6
    except (ValueError, OverflowError):
        fits = False
    if not fits:
        raise BadInputError(
            f"--gpu-memory-utilization {typed(text)}: expected LOW:HIGH such as 0.4:0.9, above 0, "
            "at most 1, in hundredths"
        )
    return ends


@dataclass(frozen=True)
class Evidence:
    """What a boot at some utilization showed under the full load."""

    trial: Trial

    @property
    def survived(self) -> bool:
        """Whether it started and answered everything."""
        return self.trial.measurement.outcome is Outcome.OK

    @property
    def too_little(self) -> bool:
        """Whether it did not start because nothing was left for the KV cache."""
        kind = self.trial.measurement.details.get("failure")
        return not self.survived and kind == FailureKind.KV_CACHE_TOO_SMALL.value

    @property
    def kv_tokens(self) -> int | None:
        """Capacity of the KV cache."""
        found: int | None = self.trial.measurement.details.get("kv_cache_tokens")
        return found

    @property
    def preemptions(self) -> int | None:
        """Requests that were preempted; None where the server does not count them."""
        found: int | None = self.trial.measurement.details.get("preemptions")
        return found

    @property
    def tells(self) -> bool:
        """Whether the server said what is needed to judge: preemptions and its capacity."""
        return self.preemptions is not None and self.kv_tokens is not None

    def sustains(self, tokens: int) -> bool:
        """Whether so many tokens fit at once, and no request was preempted; both must be known."""
        return self.survived and self.preemptions == 0 and (self.kv_tokens or 0) >= tokens


@dataclass
class Borders:
    """What was found, in hundredths; None where nothing in the range does it.

    Attributes:
        low: the range's lower end.
        high: its upper end, or less where less is free.
        tokens: what the KV cache must hold at once: concurrency × context.
        least: least utilization that sustains the load.
        most: largest utilization that survives it.
        evidence: every boot, in order.
        free: what a new start can ask for now; less than ``most`` where an earlier command, with
            more memory free, measured it.
    """

    low: int
    high: int
    tokens: int = 0
    least: int | None = None
    most: int | None = None
    evidence: dict[int, Evidence] = field(default_factory=dict)
    free: int | None = None

    @property
    def told(self) -> bool:
        """Whether the boot at the most tells if it sustains the load."""
        return self.most is not None and self.evidence[self.most].tells


def find_borders(
    low: int,
    high: int,
    concurrency: int,
    probe: Callable[[int], Evidence],
    tokens_per_percent: float | None = None,
    *,
    upwards: bool = False,
) -> Borders:
    """Bisect both borders.

    Args:
        low: least utilization tried, in hundredths.
        high: largest.
        concurrency: requests at once.
        probe: boots a server and puts the full load on it.
        tokens_per_percent: PREDICTED growth of the KV cache by a hundredth; leads the first step.
        upwards: begin at the lowest, where a boot that takes too much may hang the machine.

    Raises:
        NoFeasibleCandidateError: a boot failed for a reason that no utilization changes, or none
            survives.
    """
    found = Borders(low, high)

    def look(percent: int) -> Evidence:
        if percent not in found.evidence:
            seen = found.evidence[percent] = probe(percent)
            measurement = seen.trial.measurement
            if not (seen.survived or seen.too_little or measurement.outcome in _MEMORY):
                raise NoFeasibleCandidateError(
                    f"--gpu-memory-utilization: at {percent / 100:.2f} the server fails for "
                    f"another reason than memory: {measurement.message}"
                )
        return found.evidence[percent]

    found.most = _most(low, high, look, upwards=upwards)
    if found.most is None:
        last = list(found.evidence.values())[-1].trial.measurement
        raise NoFeasibleCandidateError(
            f"--gpu-memory-utilization {low / 100:.2f}:{high / 100:.2f}: none survives the full "
            f"load; the last: {last.message}"
        )
    context = look(found.most).trial.measurement.details["context"]
    found.tokens = concurrency * int(context)
    found.least = _least(found, look, tokens_per_percent)
    return found


def _most(
    low: int, high: int, look: Callable[[int], Evidence], *, upwards: bool = False
) -> int | None:
    """The largest that survives; what is too little counts as below the border."""

    def is_below(percent: int) -> bool:
        seen = look(percent)
        return seen.survived or seen.too_little

    if upwards:
        below, above = _climb(low, high, is_below)
    else:
        below, above = (high, high + 1) if is_below(high) else (low - 1, high)
    while above - below > 1:
        middle = (below + above + 1) // 2
        below, above = (middle, above) if is_below(middle) else (below, middle)
    return below if below >= low and look(below).survived else None


def _climb(low: int, high: int, is_below: Callable[[int], bool]) -> tuple[int, int]:
    """Go up in steps that double; gives the last that is below the border, and the first not."""
    below, step = low - 1, 1
    while below < high:
        tried = min(high, below + step)
        if not is_below(tried):
            return below, tried
        below, step = tried, 2 * step
    return below, high + 1


def _least(found: Borders, look: Callable[[int], Evidence], slope: float | None) -> int | None:
    """The least that sustains the load; None where not even the most does."""
    assert found.most is not None  # noqa: S101 - the caller's
    if not look(found.most).sustains(found.tokens):
        return None
    below, above = found.low - 1, found.most
    for step in range(200):
        if above - below <= 1:
            break
        guess = _guess(found, slope) if step < _LED else None
        middle = (below + above) // 2 if guess is None else guess
        middle = min(max(middle, below + 1), above - 1)
        if look(middle).sustains(found.tokens):
            above = middle
        else:
            below = middle
    return above


def _guess(found: Borders, slope: float | None) -> int | None:
    """Where the KV cache should hold the tokens, by the two boots nearest to it, or one and slope.

    None where nothing tells. What was tried already leads one hundredth further down.
    """
    known = [(e.kv_tokens, p) for p, e in found.evidence.items() if e.kv_tokens is not None]
    if not known:
        return None
    known.sort(key=lambda pair: abs(pair[0] - found.tokens))
    (tokens, percent), *rest = known
    if rest and rest[0][0] != tokens:
        slope = (rest[0][0] - tokens) / (rest[0][1] - percent)
    if not slope or slope <= 0:
        return None
    guess = math.ceil(percent + (found.tokens - tokens) / slope)
    return guess - 1 if guess in found.evidence else guess
