"""A text as token ids, and how far each stands behind what the target thinks best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.util import edge

RIVALS = 5
"""Of the target's best tokens at each place; a token beyond them is no near tie."""
CLOSE = 2.0
"""Nats behind the best within which a rival is kept: far beyond any near tie."""
_NOTABLE = 1e-3
"""Nats; less behind the best is as good as the best."""
_FURTHEST = 20.0
"""Nats; what stands further behind is written so."""


@dataclass(frozen=True)
class Text:
    """A text holds its tokens and what the target thinks of them, in nats.

    Attributes:
        tokens: ids, the one that ended it included.
        behind: by place, how much less likely the token is than the target's best; places where it
            is the best are left out.
        rivals: by place, other tokens and how far behind the best they are, up to ``RIVALS``; only
            of places where one stands within :data:`CLOSE`.
    """

    tokens: tuple[int, ...]
    behind: Mapping[int, float]
    rivals: Mapping[int, Mapping[int, float]]

    def as_json(self) -> dict[str, Any]:
        """JSON values; :meth:`of_json` takes them."""
        return {
            "tokens": list(self.tokens),
            "behind": {str(at): nats for at, nats in self.behind.items()},
            "rivals": {
                str(at): {str(token): nats for token, nats in found.items()}
                for at, found in self.rivals.items()
            },
        }

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> Text:
        """Read what :meth:`as_json` gave."""
        return cls(
            tuple(values["tokens"]),
            {int(at): nats for at, nats in values["behind"].items()},
            {
                int(at): {int(token): nats for token, nats in found.items()}
                for at, found in values["rivals"].items()
            },
        )


def scored(tokens: Sequence[int], places: Sequence[Mapping[str, Any]]) -> Text:
    """Make a text of its tokens and vLLM's ``prompt_logprobs`` at their places.

    Raises:
        ValueError, LookupError, TypeError: the places are not what vLLM sends.
    """
    behind: dict[int, float] = {}
    rivals: dict[int, dict[int, float]] = {}
    for at, (token, place) in enumerate(zip(tokens, places, strict=True)):
        found = {int(k): edge.number(entry["logprob"], "logprob") for k, entry in place.items()}
        best = max(found.values())
        lost = {name: min(round(best - value, 4), _FURTHEST) for name, value in found.items()}
        own = lost.pop(token)
        if own > _NOTABLE:
            behind[at] = own
        close = {name: nats for name, nats in lost.items() if nats < CLOSE}
        if close:
            rivals[at] = close
    return Text(tuple(tokens), behind, rivals)
