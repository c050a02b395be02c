"""What was seen of the GPU's clock, temperature and power, as a section of a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from autotune.report.page import Section, Table, Text

_COLUMNS = {"sm_mhz": 1.0, "temperature_c": 1.0, "power_mw": 1e-3}
"""What a reading holds, and the factor to the table's unit."""
_HEADS = ("read", "SM clock MHz", "°C", "W")


def clock_section(said: str, rows: Iterable[tuple[str, Mapping[str, Sequence[float]]]]) -> Section:
    """Make the section; without blocks where nothing was read.

    Args:
        said: how and when it was read.
        rows: when, and the least and the most of each figure.
    """
    cells = [[label, *_cells(ranges)] for label, ranges in rows if ranges]
    return Section("Clocks", [Text(said), Table(_HEADS, cells)] if cells else [], brief=True)


def _cells(ranges: Mapping[str, Sequence[float]]) -> list[str]:
    cells = []
    for name, factor in _COLUMNS.items():
        low, high = (round(end * factor) for end in ranges.get(name, (0.0, 0.0)))
        told = name in ranges
        cells.append("–" if not told else f"{low}" if low == high else f"{low} to {high}")
    return cells
