"""What a search and its comparisons saw of the GPU's clock, temperature and power, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autotune.core import Trial
from autotune.kernels.report.verdict import MeasuredOn
from autotune.machine.clocks import ranges_of
from autotune.report.clocks import clock_section
from autotune.report.page import Section
from autotune.util.words import counted

_SAID = (
    "As NVML told them: at the start after a copy and a product, in the search with each control, "
    "and before and after each comparison. A range is from the least to the most."
)


def clocks(seen: MeasuredOn | None, trials: Iterable[Trial]) -> Section:
    """Make the section; without blocks where nothing was read.

    Args:
        seen: what the job that finished last saw; None where none did.
        trials: of the search and its comparisons.
    """
    rows = []
    if seen is not None:
        rows.append(("at the start", ranges_of([seen.clocks])))
        controls = f"in the search, {counted(seen.drift.controls, 'control')}"
        rows.append((controls, seen.drift.clocks))
    compared = readings(trials)
    both = [reading for pair in compared for reading in pair]
    rows.append((f"in {counted(len(compared), 'comparison')}", ranges_of(both)))
    return clock_section(_SAID, rows)


def readings(trials: Iterable[Trial]) -> list[Sequence[Mapping[str, float]]]:
    """Return what was read before and after each comparison, once each."""
    found: dict[Any, Sequence[Mapping[str, float]]] = {}
    for trial in trials:
        details = trial.measurement.details
        if details.get("compared") and any(details.get("clocks") or ()):
            found[details["compared"], trial.workload_key] = details["clocks"]
    return list(found.values())
