"""For logs of tests whose measurements come in one piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autotune.core import Candidate, Workload


class NoParts:
    """The half of a :class:`autotune.tune.TrialLog` that keeps parts, where there are none."""

    def load_parts(
        self, workload: Workload, candidate: Candidate
    ) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def append_part(
        self, workload: Workload, candidate: Candidate, name: str, value: Mapping[str, Any]
    ) -> None:
        raise AssertionError(f"a part of {candidate}: {name}")
