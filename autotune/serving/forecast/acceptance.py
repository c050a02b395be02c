"""The arithmetic of speculative decoding: from one probe's rates to tok/s at every gamma.

Words: *gamma* is the number of tokens drafted per step (vLLM's ``num_speculative_tokens``).
``reached[i]`` is the probability that the draft tokens 0…i are all accepted: what vLLM logs as
"per-position acceptance rate" and takes as ``synthetic_acceptance_rates``; it never increases.

Sources: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding", arXiv
2211.17192 (equation 1, theorem 3.8); vLLM 0.32 ``vllm/v1/spec_decode/metrics.py`` (what is logged
as acceptance length and by position) and ``vllm/config/speculative.py`` (synthetic rates).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Rates = tuple[float, ...]


def check_reached(reached: Sequence[float]) -> Rates:
    """The rates as a tuple, if they can be probabilities of reaching ever later positions.

    Raises:
        ValueError: outside [0, 1], or increasing.
    """
    if not all(0.0 <= rate <= 1.0 for rate in reached):
        raise ValueError(f"acceptance rates must be within [0, 1]: {list(reached)}")
    if any(later > earlier for earlier, later in pairwise(reached)):
        raise ValueError(f"acceptance rates by position must not increase: {list(reached)}")
    return tuple(reached)


def tokens_per_step(reached: Sequence[float], gamma: int | None = None) -> float:
    """Expected tokens per step when ``gamma`` tokens are drafted: 1 + the sum of ``reached``.

    What is drafted at a position does not depend on how many more follow (not so for parallel
    drafters such as DFlash), so rates probed at a large gamma serve for every smaller one. vLLM
    calls the result mean acceptance length; it includes the token of the target itself.

    Args:
        reached: by position, from a probe.
        gamma: at most ``len(reached)``, which is the default.

    Raises:
        ValueError: as :func:`check_reached`, or more positions asked for than probed.
    """
    rates = check_reached(reached)
    gamma = len(rates) if gamma is None else gamma
    _check_gamma(gamma)
    if gamma > len(rates):
        raise ValueError(f"gamma {gamma} asked for, but {len(rates)} positions were probed")
    return 1.0 + math.fsum(rates[:gamma])


def distinct_experts(experts: int, topk: int, tokens: int) -> float:
    """Experts that ``tokens`` tokens touch, with uniform routing: E·(1 − (1 − topk/E)^M).

    The bytes of weights that a MoE layer reads in one step grow with it.

    Raises:
        ValueError: not 1 ≤ topk ≤ experts, or negative tokens.
    """
    if not 1 <= topk <= experts or tokens < 0:
        raise ValueError(f"experts {experts}, topk {topk}, tokens {tokens} cannot be")
    return float(experts * (1.0 - (1.0 - topk / experts) ** tokens))


@dataclass(frozen=True)
class StepTimes:
    """Two measured points of the time of one step, in seconds, at one concurrency.

    ``baseline`` without speculation, ``probe`` at ``probe_gamma`` with drafting included;
    ``draft`` is the drafter's time per drafted position (all requests of the batch together), 0
    where unknown or free. What of the probe's extra time is not drafting is the target verifying
    more rows, and is spread over the gammas by ``growth``: a rising function of the rows
    M = (gamma + 1)·concurrency that one step feeds the target (rows themselves by default;
    :func:`distinct_experts` for MoE).

    Raises:
        ValueError: times that cannot be.
    """

    baseline: float
    probe: float
    probe_gamma: int
    concurrency: int = 1
    draft: float = 0.0
    growth: Callable[[int], float] = float

    def __post_init__(self) -> None:
        if not (0 < self.baseline < math.inf and 0 < self.probe < math.inf):
            raise ValueError(f"step times must be positive: {self}")
        if self.probe_gamma < 1 or self.concurrency < 1:
            raise ValueError(f"probe_gamma and concurrency must be at least 1: {self}")
        if not 0 <= self.draft * self.probe_gamma < self.probe:
            raise ValueError(f"drafting alone cannot take the whole step: {self}")

    def seconds(self, gamma: int) -> float:
        """The time of a step that drafts ``gamma`` tokens: gamma·draft + verify(M).

        Raises:
            ValueError: gamma outside [0, ``probe_gamma``].
        """
        if not 0 <= gamma <= self.probe_gamma:
            raise ValueError(f"gamma {gamma} is not within [0, {self.probe_gamma}]")
        least, rows, most = (
            self.growth((g + 1) * self.concurrency) for g in (0, gamma, self.probe_gamma)
        )
        share = (rows - least) / (most - least) if most > least else gamma / self.probe_gamma
        verifying = self.probe - self.probe_gamma * self.draft - self.baseline
        return self.baseline + gamma * self.draft + share * verifying


def step_seconds(tokens_per_second: float, concurrency: int, step_tokens: float) -> float:
    """Seconds per step behind a measured aggregate throughput, the batch always being full.

    Raises:
        ValueError: a value that is not positive.
    """
    if not (tokens_per_second > 0 and concurrency >= 1 and step_tokens >= 1):
        raise ValueError(f"{tokens_per_second} tok/s at {concurrency} with {step_tokens} per step")
    return concurrency * step_tokens / tokens_per_second


@dataclass(frozen=True)
class Prediction:
    """PREDICTED throughput at one gamma and concurrency."""

    gamma: int
    concurrency: int
    tokens_per_step: float
    step_seconds: float

    @property
    def per_request(self) -> float:
        """Tokens per second of one stream."""
        return self.tokens_per_step / self.step_seconds

    @property
    def aggregate(self) -> float:
        """Tokens per second of all streams together."""
        return self.concurrency * self.per_request


def predict(reached: Sequence[float], times: StepTimes) -> list[Prediction]:
    """Throughput at every gamma from 0 to the probe's, at the concurrency of ``times``.

    With a constant rate, a constant verification time T and a draft time c·T, the speed-up is that
    of theorem 3.8 of Leviathan et al.: (1 − α^(γ+1)) / ((1 − α)(γc + 1)).

    Raises:
        ValueError: as :func:`check_reached`, or rates for another gamma than the probe's.
    """
    if len(reached) != times.probe_gamma:
        raise ValueError(f"{len(reached)} rates for a probe at gamma {times.probe_gamma}")
    found = []
    for gamma in range(times.probe_gamma + 1):
        tokens, seconds = tokens_per_step(reached, gamma), times.seconds(gamma)
        found.append(Prediction(gamma, times.concurrency, tokens, seconds))
    return found


def _check_gamma(gamma: int) -> None:
    if gamma < 0:
        raise ValueError(f"gamma must not be negative: {gamma}")
