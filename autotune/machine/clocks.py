"""The GPU's clock, temperature and power while it works: read, and judged."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from autotune.machine.health import now

LEAST_CLOCK = 0.8
"""A GPU whose clock falls below this share of the highest one seen was throttled."""
FIRST_S, EVERY_S = 1.0, 10.0
"""When a load is looked at: an idle GPU lowers its clock, so not before it works, nor after."""
_NAMES = {
    "sm_mhz": ("clock_mhz", 1.0),
    "temperature_c": ("celsius", 1.0),
    "power_mw": ("watts", 1e3),
}

Reading = Mapping[str, float]
"""SM clock (``sm_mhz``), temperature (``temperature_c``), power (``power_mw``), as far as told."""
Ranges = Mapping[str, Sequence[float]]
"""The least and the most of each."""


def read_busiest() -> Reading:
    """Read the GPU of this machine that works most; empty without nvidia-smi."""
    gpus = now()["gpus"]
    if not gpus:
        return {}
    busiest = max(gpus, key=lambda gpu: gpu["busy_percent"] or 0.0)
    told = {name: (busiest[field], factor) for name, (field, factor) in _NAMES.items()}
    return {name: value * factor for name, (value, factor) in told.items() if value is not None}


@contextmanager
def reading_clocks(
    *, first_s: float = FIRST_S, every_s: float = EVERY_S
) -> Iterator[list[Reading]]:
    """Read the clocks while the body runs, in a thread; the list is complete when it ends.

    Args:
        first_s: until the first reading.
        every_s: between two.
    """
    found: list[Reading] = []
    ended = threading.Event()

    def read() -> None:
        wait = first_s
        while not ended.wait(wait):
            reading = read_busiest()
            if not reading:
                return
            if not ended.is_set():  # of an idle GPU it would be
                found.append(reading)
            wait = every_s

    # Nobody waits for it: nvidia-smi may hang, and a measurement must not.
    threading.Thread(target=read, daemon=True, name="clocks").start()
    try:
        yield found
    finally:
        ended.set()


def ranges_of(readings: Iterable[Reading]) -> dict[str, tuple[float, float]]:
    """Return the least and the most of everything that was read."""
    found: dict[str, list[float]] = {}
    for one in readings:
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    return {name: (min(values), max(values)) for name, values in found.items()}


def extremes(readings: Iterable[Reading]) -> list[Reading]:
    """Return two readings with the same ranges, or none: what a trial keeps."""
    ranges = ranges_of(readings)
    return [{n: ends[i] for n, ends in ranges.items()} for i in (0, 1)] if ranges else []


def fallen(ranges: Ranges, when: str, most: float = 0.0) -> list[str]:
    """Return a warning where the SM clock fell; empty where it did not, or was not read.

    Args:
        ranges: of what was read.
        when: ends the sentence's first half, such as ``during the search``.
        most: the highest clock seen elsewhere, in MHz.
    """
    low, high = ranges.get("sm_mhz", (1.0, 1.0))
    high = max(high, most)
    if low >= LEAST_CLOCK * high:
        return []
    warmest = ranges.get("temperature_c", (0, 0))[1]
    heat = f" at {warmest:.0f} °C" if warmest else ""
    return [
        f"the SM clock fell to {low:.0f} of {high:.0f} MHz {when}{heat}: the device was throttled"
    ]
