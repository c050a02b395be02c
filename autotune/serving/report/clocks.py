"""What the loads of a study saw of the GPU's clock, temperature and power."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from autotune.core import Phase, Trial
from autotune.machine.clocks import Reading, fallen, ranges_of
from autotune.report.clocks import clock_section
from autotune.report.page import Section
from autotune.serving.report.tables import setting
from autotune.util.words import counted

_SAID = (
    "As nvidia-smi told them of the GPU that worked most: in each timed load after a second, then "
    "every ten. A range is from the least to the most."
)


def clocks(trials: Iterable[Trial]) -> Section:
    """Make the section; without blocks where nothing was read."""
    told = [trial for trial in trials if _read(trial)]
    fresh = [trial for trial in told if trial.phase is Phase.CONFIRM]
    searched = [trial for trial in told if trial.phase is not Phase.CONFIRM]
    kinds = (("in the search", "server", searched), ("in the comparison", "fresh boot", fresh))
    rows = [
        (f"{where}, {counted(len(some), what)}", ranges_of(r for one in some for r in _read(one)))
        for where, what, some in kinds
    ]
    return clock_section(_SAID, rows)


def clock_warnings(trials: Iterable[Trial]) -> Iterator[str]:
    """Say which settings were loaded under a clock far below the highest one."""
    read = [(trial, ranges_of(_read(trial))) for trial in trials if _read(trial)]
    most = max((ranges["sm_mhz"][1] for _, ranges in read if "sm_mhz" in ranges), default=0.0)
    for trial, ranges in read:
        fresh = "a fresh boot of " if trial.phase is Phase.CONFIRM else ""
        yield from fallen(ranges, f"under the load of {fresh}{setting(trial.candidate)}", most)


def _read(trial: Trial) -> list[Reading]:
    return list(trial.measurement.details.get("clocks") or ())
