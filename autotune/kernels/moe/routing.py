"""Which experts the tokens of a measurement go to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from autotune.core import BadInputError
from autotune.util import edge

_STEEPEST = 10.0
_MOST = 1e18  # tokens; NaN is not below it either
_HALVINGS = 200


@dataclass(frozen=True)
class Routing:
    """How often each expert is chosen, relative to the others.

    Attributes:
        name: as given by the user: ``uniform``, ``zipf:1.1`` or the path of a file.
        counts: of each expert, in the file's order; empty for a formula.
        exponent: of Zipf's law, 0 for uniform; the i-th expert has the weight i^-exponent.
    """

    name: str = "uniform"
    counts: tuple[float, ...] = ()
    exponent: float = 0.0

    def weights(self, experts: int) -> list[float]:
        """Relative frequency of each of ``experts`` experts; all are positive.

        Raises:
            BadInputError: if the file holds another number of experts.
        """
        if not self.counts:
            return [(rank + 1) ** -self.exponent for rank in range(experts)]
        if len(self.counts) != experts:
            raise BadInputError(
                f"--routing {self.name}: {len(self.counts)} counts for {experts} experts"
            )
        # An expert that was never seen may be chosen by the next token: half a token for it.
        return [max(count, 0.5) for count in self.counts]

    def active_experts(self, m: int, topk: int, experts: int) -> float:
        """How many of ``experts`` at least one of ``m`` tokens is expected to choose.

        A token's choice is what first happens of Poisson events whose rates are the weights (Gumbel
        top-k, which the measuring process draws by): until the time at which ``topk`` experts are
        expected to have had one, each has with 1 - exp(-weight · time). Exact for equal weights.
        """
        weights = np.array(self.weights(experts))
        if topk >= experts:
            return float(experts)
        # Between times at which even the rarest, and not even the most frequent expert is chosen.
        low, high = -np.log(weights.max()) - 50, -np.log(weights.min()) + 50
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            chosen = -np.expm1(-weights * np.exp(middle))
            low, high = (middle, high) if chosen.sum() < topk else (low, middle)
        return float((1 - (1 - chosen) ** m).sum())

    @property
    def uniform(self) -> bool:
        """Whether all experts are chosen alike."""
        return not self.counts and self.exponent == 0

    @property
    def label(self) -> str:
        """For people: what is stored does not hold the name of a file."""
        if self.counts:
            return f"by the counts of {len(self.counts)} experts"
        return "uniform" if self.uniform else f"zipf:{self.exponent:g}"

    def as_json(self) -> dict[str, Any]:
        """What of it decides a measurement, as JSON values."""
        return {"exponent": self.exponent, "counts": list(self.counts)}

    @classmethod
    def from_setup(cls, setup: Mapping[str, Any]) -> Self:
        """Of a stored search; predictions are uniform."""
        found = setup.get("routing") or {}
        counts = tuple(map(float, found.get("counts", ())))
        return cls(counts=counts, exponent=found.get("exponent", 0.0))


def parse_routing(text: str) -> Routing:
    """``uniform``, ``zipf:EXPONENT``, or a JSON file with one token count per expert.

    Raises:
        BadInputError: it is none of these.
    """
    if text == "uniform":
        return Routing()
    found = re.fullmatch(r"zipf:(\d+(?:\.\d+)?)", text)
    if found is not None:
        exponent = float(found[1])
        if exponent > _STEEPEST:
            raise BadInputError(f"--routing {text}: the exponent must be at most {_STEEPEST:g}")
        return Routing(text, exponent=exponent)
    path = Path(text)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # such as a name that is too long
        is_file = False
    if not is_file:
        said = text[:100] if text.isprintable() else edge.shown(text)
        raise BadInputError(
            f"--routing {said}: expected uniform, zipf:1.1, or a JSON file with a list of counts"
        )
    try:
        counts = edge.read_json(path)
    except (OSError, edge.EdgeError) as error:
        raise edge.bad_input(f"--routing {text}", error) from None
    if not isinstance(counts, list) or not all(
        isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < _MOST for n in counts
    ):
        raise BadInputError(f"--routing {text}: expected a list of counts, one for each expert")
    if not any(counts):
        raise BadInputError(f"--routing {text}: no expert was ever chosen")
    return Routing(text, counts=tuple(map(float, counts)))
