"""The plots of a ``moe`` study."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from autotune.core import Basis, Trial
from autotune.kernels.config_file import FIELDS
from autotune.kernels.predict.roofline import Ceilings, Share
from autotune.kernels.stored import Tuned
from autotune.report.history import Step, together
from autotune.report.page import Plot
from autotune.report.plots import Axis, Series, chart, heat_map, round_ticks

FEW = 9
"""Labels of an axis that a phone has room for."""
APART = 3
"""Factor in operations per byte between two labelled points: nearer ones would overlap."""


def _tokens(batch_sizes: Sequence[int]) -> Axis:
    """M on a logarithmic axis."""
    powers = [2**k for k in range(24) if min(batch_sizes) <= 2**k <= max(batch_sizes)] or [
        min(batch_sizes)
    ]
    step = -(-len(powers) // FEW)
    return Axis("M (tokens)", log=True, ticks=powers[::step])


def speedups(tuned: Tuned) -> Plot:
    """Default over file at every key, and between the keys."""
    gains = {m: row.ratio for m, row in tuned.rows.items() if row.ratio is not None}
    kept = [m for m, row in tuned.rows.items() if row.ratio is None]
    series = []
    if gains:
        known = tuned.basis is Basis.MEASURED
        series.append(
            Series(
                "row of the file",
                list(gains),
                [ratio.value for ratio in gains.values()],
                [ratio.low for ratio in gains.values()] if known else None,
                [ratio.high for ratio in gains.values()] if known else None,
                "markers",
            )
        )
    if kept:
        ones, name = [1.0] * len(kept), "kept vLLM's default"
        series.append(Series(name, kept, ones, shows="markers", style=1, hollow=True))
    gaps = [gap for gap in tuned.gaps if gap.ratio.value > 0]
    if gaps:
        series.append(
            Series(
                "between the keys",
                [gap.m for gap in gaps],
                [gap.ratio.value for gap in gaps],
                [gap.ratio.low for gap in gaps],
                [gap.ratio.high for gap in gaps],
                "markers",
                style=4,
            )
        )
    says = f"{tuned.basis.value.capitalize()} speed-up over vLLM's default at every batch size"
    says += "; bars are 95 % intervals." if tuned.basis is Basis.MEASURED else "; no intervals."
    places = [*tuned.rows, *(gap.m for gap in gaps)]
    y = Axis(f"{tuned.basis.value} speed-up (×)", form=".3~f", reference=1.0)
    return Plot("speedups", chart(series, _tokens(places), y), says)


def times(tuned: Tuned, shares: Mapping[int, Share]) -> Plot:
    """µs at every key: the default, the file, and what the ceilings allow."""
    rows, floors = tuned.rows, [share.floor_us for share in shares.values()]
    series = [
        Series("file", list(rows), [row.us for row in rows.values()]),
        Series("vLLM's default", list(rows), [row.default_us for row in rows.values()], style=1),
        Series("least that the ceilings allow", list(shares), floors, shows="lines", style=2),
    ]
    seen = [us for one in series for us in one.y if us is not None]
    y = Axis(f"{tuned.basis.value} µs per call", log=True, ticks=round_ticks(seen))
    return Plot(
        "times",
        chart(series, _tokens(list(rows)), y),
        f"{tuned.basis.value.capitalize()} time of one call, and the least that the work would "
        "take at full bandwidth or full tensor rate.",
    )


def utilisation(tuned: Tuned, shares: Mapping[int, Share]) -> Plot:
    """Shares of both ceilings at every key."""
    series = [
        Series("memory bandwidth", list(shares), [s.bandwidth for s in shares.values()]),
        Series("tensor cores", list(shares), [s.tensor for s in shares.values()], style=1),
    ]
    y = Axis(f"share ({tuned.basis.value} time)", form=".0%", zero=True)
    return Plot(
        "utilisation",
        chart(series, _tokens(list(shares)), y),
        "Share of the memory bandwidth and of the tensor rate that each row of the file reaches, "
        "counting the least bytes and operations that the call needs.",
    )


def roofline(tuned: Tuned, shares: Mapping[int, Share], ceilings: Ceilings) -> Plot:
    """The classical picture: operations per second over operations per byte."""
    points = sorted((s.intensity, s.tflops, m) for m, s in shares.items())
    ridge = ceilings.tflops * 1e3 / ceilings.gbs
    ends = sorted({points[0][0] / 2, ridge, max(points[-1][0] * 8, ridge * 2)})
    roof = [min(ceilings.tflops, x * ceilings.gbs / 1e3) for x in ends]
    reached = [y for _, y, _ in points]
    labelled, place = set(), math.inf
    for at, _, m in reversed(points):
        if at * APART <= place:
            labelled.add(m)
            place = at
    series = [
        Series("ceiling", ends, roof, shows="lines", style=1),
        Series(
            "row of the file",
            [x for x, _, _ in points],
            reached,
            shows="markers",
            labels=[f"M={m}" if m in labelled else "" for _, _, m in points],
            notes=[f"M={m}: {y:.3g} TFLOP/s" for _, y, m in points],
        ),
    ]
    x = Axis("operations per byte", log=True, ticks=round_ticks(ends))
    y = Axis(f"TFLOP/s ({tuned.basis.value} time)", log=True, ticks=round_ticks([*roof, *reached]))
    return Plot(
        "roofline",
        chart(series, x, y),
        f"Roofline. Ceilings {ceilings.gbs:.0f} GB/s and {ceilings.tflops:.0f} TFLOP/s, "
        f"{ceilings.source}.",
    )


def landscapes(trials: Mapping[int, Sequence[Trial]], basis: Basis) -> list[Plot]:
    """Of each M, the best time at every size of tile, whatever the other parameters."""
    return [
        Plot(
            f"landscape-{m}",
            _tiles(own),
            f"M={m}: best {_least(own):.1f} µs {basis.value}",
            height=260,
        )
        for m, own in sorted(trials.items())
        if own
    ]


def _least(trials: Sequence[Trial]) -> float:
    return min(t.measurement.value for t in trials if t.measurement.value is not None)


def _tiles(trials: Sequence[Trial]) -> dict[str, object]:
    down, across = "BLOCK_SIZE_M", "BLOCK_SIZE_N"
    rows, columns = (sorted({t.candidate.int(name) for t in trials}) for name in (down, across))
    best: dict[tuple[int, int], float] = {}
    for trial in trials:
        place = trial.candidate.int(down), trial.candidate.int(across)
        value = trial.measurement.value
        if value is not None and value < best.get(place, float("inf")):
            best[place] = value
    cells = [[best.get((row, column)) for column in columns] for row in rows]
    return heat_map(Axis(down, ticks=rows), Axis(across, ticks=columns), cells, _least(trials))


def effects(trials: Mapping[int, Sequence[Trial]]) -> list[Plot]:
    """What it costs to hold one parameter at a value, the others free, at every M."""
    plots = []
    for name in FIELDS:
        values = sorted({t.candidate.int(name) for own in trials.values() for t in own})
        if len(values) < 2:
            continue
        cells = []
        for _, own in sorted(trials.items()):
            least = _least(own)
            at = {value: _least_at(own, name, value) for value in values}
            cells.append([None if us is None else us / least for us in at.values()])
        rows = Axis("M", ticks=sorted(trials))
        figure = heat_map(rows, Axis("", ticks=values), cells, 1.0, unit="× the best of this M")
        plots.append(Plot(f"effect-{name}", figure, name, height=110 + 22 * len(trials)))
    return plots


def _least_at(trials: Sequence[Trial], name: str, value: int) -> float | None:
    found = [
        us
        for t in trials
        if t.candidate.int(name) == value and (us := t.measurement.value) is not None
    ]
    return min(found, default=None)


def history(histories: Mapping[int, Sequence[Step]], by: str, unit: str) -> Plot:
    """Best so far over best in the end: one thin line per M, and their geometric mean."""
    series = [
        Series(
            f"M={m}",
            [getattr(step, by) for step in steps],
            [step.value / steps[-1].value for step in steps],
            shows="lines",
            muted=True,
            steps=True,
        )
        for m, steps in sorted(histories.items())
    ]
    mean = together({str(m): steps for m, steps in histories.items()}, by)
    at, factors = [x for x, _ in mean], [y for _, y in mean]
    series.append(Series("geometric mean", at, factors, shows="lines", steps=True))
    y = Axis("best so far / best in the end", form=".3~f", reference=1.0)
    return Plot(
        f"history-{by}",
        chart(series, Axis(unit), y),
        f"Best so far against {unit}; thin lines are single batch sizes, the thick one is their "
        "geometric mean. 1 is what the search found in the end.",
    )
