"""What a search and its comparisons saw of the GPU's clock, temperature and power, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autotune.core import Trial
from autotune.kernels.report.verdict import MeasuredOn
from autotune.report.page import Section, Table, Text
from autotune.util.words import counted

_COLUMNS = {"sm_mhz": 1.0, "temperature_c": 1.0, "power_mw": 1e-3}
"""What a reading holds, and the factor to the table's unit."""
_HEADS = ("read", "SM clock MHz", "°C", "W")
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
        rows.append(("at the start", _ranges([seen.clocks])))
        controls = f"in the search, {counted(seen.drift.controls, 'control')}"
        rows.append((controls, seen.drift.clocks))
    compared = readings(trials)
    both = [reading for pair in compared for reading in pair]
    rows.append((f"in {counted(len(compared), 'comparison')}", _ranges(both)))
    cells = [[label, *_cells(ranges)] for label, ranges in rows if ranges]
    return Section("Clocks", [Text(_SAID), Table(_HEADS, cells)] if cells else [], brief=True)


def readings(trials: Iterable[Trial]) -> list[Sequence[Mapping[str, float]]]:
    """Return what was read before and after each comparison, once each."""
    found: dict[Any, Sequence[Mapping[str, float]]] = {}
    for trial in trials:
        details = trial.measurement.details
        if details.get("compared") and any(details.get("clocks") or ()):
            found[details["compared"], trial.workload_key] = details["clocks"]
    return list(found.values())


def _ranges(readings: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    return {
        name: (min(values), max(values))
        for name in _COLUMNS
        if (values := [one[name] for one in readings if name in one])
    }


def _cells(ranges: Mapping[str, tuple[float, float]]) -> list[str]:
    cells = []
    for name, factor in _COLUMNS.items():
        low, high = (round(end * factor) for end in ranges.get(name, (0.0, 0.0)))
        told = name in ranges
        cells.append("–" if not told else f"{low}" if low == high else f"{low} to {high}")
    return cells
