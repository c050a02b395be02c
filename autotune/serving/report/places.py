"""Where a study was measured, on a cluster: what each place measured, and how far they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from autotune.report.page import Section, Table, Text
from autotune.serving.cluster.fleet import place_of
from autotune.serving.job import Result
from autotune.serving.report.figures import number
from autotune.serving.stored import Served

WORTH = 0.01
"""Places that differ by less than this share are not worth a word."""


def places(served: Served) -> Section:
    """One row for each place; empty without a cluster."""
    made = Counter(place_of(d.trial.measurement.details) for d in served.dated)
    del made[None]
    if not made:
        return Section("Places", [])
    controls = {place_of(t.measurement.details): t.measurement.value for t in served.controls}
    base = served.baseline
    if base is not None and not controls.get(place_of(base.measurement.details)):
        controls[place_of(base.measurement.details)] = base.measurement.value
    rows = [[str(p), str(made[p]), number(controls.get(p))] for p in sorted(map(str, made))]
    text = (
        "The control is the baseline, booted on every place. Settings are compared in fresh "
        "boots on one place; values of several places only chose which."
    )
    heads = ("host and GPU", "measurements", "control, µs per token")
    return Section("Places", [Text(text), Table(heads, rows)])


def place_warnings(result: Result) -> Iterator[str]:
    """What must be known of a result from several places."""
    found = result.control
    if found.spread >= WORTH:
        by_speed = sorted(found.speeds, key=lambda place: found.speeds[place])
        slowest, fastest = by_speed[0], by_speed[-1]
        yield (
            f"the same setting is {found.spread:.1%} faster on {fastest} than on {slowest}: rates "
            "of the search were measured on several places, and the margin by which settings are "
            "let into the fresh boots is as much wider; the fresh boots share one place"
        )
    for place, why in found.failed.items():
        yield f"the control failed on {place}, so nothing tells how far it differs: {why}"
    trials = result.confirmed.trials.values() if result.confirmed is not None else ()
    met = {place_of(t.measurement.details) for boots in trials for t in boots}
    if len(met) > 1:
        yield (
            f"fresh boots were made on several places ({', '.join(sorted(map(str, met)))}), for "
            "one was lost: their differences are in the comparison"
        )
