"""What is tuned for: a target, its drafter, and the load that users put on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from autotune.core import digest
from autotune.stats import geometric_mean

OBJECTIVES = ("geomean", "single", "aggregate")
"""``geomean`` over all concurrencies; ``single``: a stream's own rate at the lowest one;
``aggregate``: all streams together at the highest one."""


@dataclass(frozen=True)
class SpecScenario:
    """A serving load; a :class:`autotune.core.Workload`.

    Attributes:
        target: the model served, a folder or a hub id.
        drafter: a folder, a hub id or a method without a model.
        prompts: the name of the set or the file, for people.
        prompts_key: the identity of its content.
        concurrency: requests in flight at once, ascending.
        max_tokens: output tokens per request at most.
        ignore_eos: whether every request generates ``max_tokens`` in any case.
        chat: whether the server applies its chat template.
        repeats: timed loads at each concurrency.
        waves: requests of a timed load, as a multiple of its concurrency.
        objective: one of :data:`OBJECTIVES`.
        round: 0 for the search; rounds of confirmation count from 1.
    """

    target: str
    drafter: str
    prompts: str
    prompts_key: str
    concurrency: tuple[int, ...]
    max_tokens: int
    ignore_eos: bool
    chat: bool
    repeats: int
    waves: int
    objective: str
    round: int = 0

    @cached_property
    def key(self) -> str:
        """Identity used in the database."""
        values = self.as_json()
        del values["prompts"]
        return digest(values)

    @property
    def label(self) -> str:
        """Such as ``c=1,4,8`` or ``c=1,4,8 round 2``."""
        levels = ",".join(map(str, self.concurrency))
        return f"c={levels} round {self.round}" if self.round else f"c={levels}"

    def as_json(self) -> dict[str, Any]:
        """Everything that defines the load, as JSON values."""
        return asdict(self) | {"concurrency": list(self.concurrency)}

    def in_round(self, number: int) -> SpecScenario:
        """The same load in round ``number`` of the confirmation."""
        return replace(self, round=number)

    def microseconds(self, tok_s: Mapping[int, float]) -> float:
        """What is minimised: µs per output token by the objective.

        Args:
            tok_s: aggregate output tokens per second at every concurrency.
        """
        if self.objective == "single":
            lowest = self.concurrency[0]
            return 1e6 * lowest / tok_s[lowest]
        if self.objective == "aggregate":
            return 1e6 / tok_s[self.concurrency[-1]]
        return 1e6 / geometric_mean([tok_s[c] for c in self.concurrency])
