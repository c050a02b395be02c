"""Does speculation change what is said? Greedy outputs with and without it, compared.

Verification by the target makes outputs equal but for rounding: a batch of gamma + 1 rows is summed
in another order than one row. vLLM's own MTP test (``tests/v1/e2e/spec_decode``) asks for 80 % of
prompts with identical output, 10 tokens each; so do we.
"""

from __future__ import annotations

from collections.abc import Sequence

from autotune.core import Basis, Candidate, Trial
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
    if Basis.SYNTHETIC in (trial.measurement.basis, reference.measurement.basis):
        return None
    ours, theirs = (t.measurement.details.get("outputs") or () for t in (trial, reference))
    return identical_share(theirs, ours) if ours and theirs else None
