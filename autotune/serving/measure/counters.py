"""vLLM's counters of speculative decoding, and the acceptance rates that they give.

Source: vLLM 0.32 ``vllm/v1/spec_decode/metrics.py`` (``SpecDecodingStats``, ``SpecDecodingProm``)
and ``make_spec_decoding_stats`` in ``vllm/v1/core/sched/scheduler.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from autotune.serving.forecast.acceptance import Rates


@dataclass(frozen=True)
class DraftCounters:
    """vLLM's ``vllm:spec_decode_num_*`` counters, or the difference of two readings of them.

    A draft is one request in one step with at least one draft token; a step in which nothing was
    drafted (ngram without a match) is not counted. ``accepted_by_position`` has one entry for each
    of ``num_speculative_tokens``.

    Raises:
        ValueError: counts that cannot belong together.
    """

    drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_by_position: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = (0, *reversed(self.accepted_by_position), self.drafts)
        if any(later < earlier for earlier, later in pairwise(rising)):
            raise ValueError(f"accepted tokens by position must fall from the drafts to 0: {self}")
        if sum(self.accepted_by_position) != self.accepted_tokens:
            raise ValueError(f"accepted tokens by position must add up: {self}")
        if not self.accepted_tokens <= self.draft_tokens <= self.drafts * self.gamma:
            raise ValueError(f"more accepted than drafted, or more drafted than possible: {self}")

    @property
    def gamma(self) -> int:
        """The number of positions."""
        return len(self.accepted_by_position)

    def __add__(self, other: DraftCounters) -> DraftCounters:
        """Both together, as of two engines or two repeats."""
        return self._with(other, 1)

    def __sub__(self, earlier: DraftCounters) -> DraftCounters:
        """What was counted since an ``earlier`` reading."""
        return self._with(earlier, -1)

    def _with(self, other: DraftCounters, sign: int) -> DraftCounters:
        positions = zip(self.accepted_by_position, other.accepted_by_position, strict=True)
        return DraftCounters(
            self.drafts + sign * other.drafts,
            self.draft_tokens + sign * other.draft_tokens,
            self.accepted_tokens + sign * other.accepted_tokens,
            tuple(mine + sign * theirs for mine, theirs in positions),
        )

    @property
    def reached(self) -> Rates | None:
        """Acceptance by position over all drafts; None when nothing was drafted."""
        if not self.drafts:
            return None
        return tuple(accepted / self.drafts for accepted in self.accepted_by_position)

    @property
    def acceptance_length(self) -> float | None:
        """Mean tokens per draft, the target's own included; None when nothing was drafted."""
        return 1.0 + self.accepted_tokens / self.drafts if self.drafts else None

    def per_step(self, generated: int) -> Rates:
        """Like ``reached``, but over all steps, those without a draft too (ngram, suffix).

        Args:
            generated: tokens given out in the same time (first tokens, from prefill, not counted).

        Raises:
            ValueError: fewer steps (generated − accepted) than drafts.
        """
        steps = generated - self.accepted_tokens
        if steps < self.drafts or steps < 1:
            raise ValueError(f"{generated} tokens in {steps} steps do not go with {self}")
        return tuple(accepted / steps for accepted in self.accepted_by_position)
