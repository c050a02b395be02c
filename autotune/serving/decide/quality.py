"""Does speculation change what is said? Greedy outputs with and without it, compared.

Verification by the target makes outputs equal but for rounding: a batch of gamma + 1 rows is summed
in another order than one row. Where a server scores its own texts, hundreds of tokens are judged by
these scores (``gate/``). Where it does not, the first ten tokens of each prompt must be equal for
80 % of prompts, as vLLM's own MTP test (``tests/v1/e2e/spec_decode``) asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.core import Basis, Candidate, Trial
from autotune.serving.gate.judge import Judged, judged_details
from autotune.serving.recipe import DRAFTER_OPTION, GAMMA

BAR = 0.8
"""Least share of prompts with identical output; below, a setting is not recommended."""


def identical_share(reference: Sequence[str], outputs: Sequence[str]) -> float | None:
    """Share of equal entries, 0 to 1; None where there is nothing to compare.

    Raises:
        ValueError: of different length.
    """
    pairs = list(zip(reference, outputs, strict=True))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def without_speculation(candidate: Candidate, baseline: Candidate) -> Candidate:
    """The same setting at gamma 0: what its outputs are compared with.

    Options of the drafter change nothing then; they are those of ``baseline``.
    """
    options = {name: value for name, value in baseline.items if name.startswith(DRAFTER_OPTION)}
    return Candidate.of({**candidate.params, **options, GAMMA: 0})


def share_of(trial: Trial, reference: Trial) -> float | None:
    """:func:`identical_share` of two trials.

    None where one has no outputs, or was told what to accept, which makes its text noise.
    """
    if _is_synthetic(trial, reference):
        return None
    ours, theirs = (t.measurement.details.get("outputs") or () for t in (trial, reference))
    return identical_share(theirs, ours) if ours and theirs else None


@dataclass(frozen=True)
class Compared:
    """What a setting says, against what is said without speculation.

    Attributes:
        identical: :func:`share_of` both.
        judged: what the gate says of long texts; None where they were not scored.
    """

    identical: float | None
    judged: Judged | None = None

    @property
    def against(self) -> str:
        """Why the setting may not be recommended; empty where it may, or where nothing is known."""
        if self.judged is not None:
            return "" if self.judged.passes else f"output differs: {self.judged.said}"
        if self.identical is None or self.identical >= BAR:
            return ""
        return f"output differs: {self.identical:.0%} of its outputs are those without " + (
            f"speculation, less than {BAR:.0%}"
        )

    @property
    def known(self) -> bool:
        """Whether there was anything to compare."""
        return self.identical is not None or self.judged is not None


NOT_COMPARED = Compared(None)
"""There was nothing to compare."""


def compared(trial: Trial, reference: Trial | None) -> Compared:
    """Compare a trial with one of the same parameters without speculation, if there is one."""
    if reference is None or _is_synthetic(trial, reference):
        return NOT_COMPARED
    judged = judged_details(trial.measurement.details, reference.measurement.details)
    return Compared(share_of(trial, reference), judged)


def equal_texts(a: Trial, b: Trial) -> int:
    """How many long texts of two trials are the same, to the end."""
    ours, theirs = (t.measurement.details.get("texts") or () for t in (a, b))
    return sum(x["tokens"] == y["tokens"] for x, y in zip(ours, theirs, strict=False))


def _is_synthetic(*trials: Trial) -> bool:
    return any(t.measurement.basis is Basis.SYNTHETIC for t in trials)
