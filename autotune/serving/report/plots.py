"""The plots of a ``spec`` study."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.core import Trial
from autotune.decide.stats import median_interval, paired_ratio
from autotune.report.page import Plot
from autotune.report.plots import Axis, Series, chart
from autotune.serving.decide.pareto import Point, front, point_of
from autotune.serving.forecast.error_process import Others
from autotune.serving.forecast.forecast import level_rates, others
from autotune.serving.report.tables import setting
from autotune.serving.stored import Served, gamma_of, level_repeats

GAMMA_AXIS = "γ (drafted tokens)"
FRONT, BEHIND, BARRED = "Pareto front", "behind it", "outputs differ: not recommended"
MOST_LINES = 8
"""Lines in a plot: as many as there are markers to tell them apart."""


def _groups(trials: Sequence[Trial]) -> dict[Others, list[Trial]]:
    """By all parameters but gamma; those whose gamma is known, ascending."""
    groups: dict[Others, list[Trial]] = {}
    for trial in trials:
        if gamma_of(trial.candidate) is not None:
            groups.setdefault(others(trial.candidate), []).append(trial)
    return {
        values: sorted(found, key=lambda t: t.candidate.int("gamma"))
        for values, found in groups.items()
    }


def _named(values: Others) -> str:
    return ", ".join(f"{name}={value}" for name, value in values)


def _suffix(number: int) -> str:
    return f"-{number}" if number else ""


def _whole(gammas: Sequence[int]) -> Axis:
    return Axis(GAMMA_AXIS, ticks=sorted(set(gammas)))


def rates(served: Served, basis: str) -> list[Plot]:
    """Tokens per second by gamma, a line for every concurrency; a plot for every other setting."""
    plots = []
    for number, (values, trials) in enumerate(_groups(served.ok).items()):
        series, exact = [], True
        for style, concurrency in enumerate(served.scenario.concurrency):
            points = [(t, r) for t in trials if (r := level_repeats(t, concurrency))]
            spans = [_span(repeats) for _, repeats in points]
            exact &= all(known for _, _, _, known in spans)
            gammas = [t.candidate.int("gamma") for t, _ in points]
            middles, lows, highs, _ = zip(*spans, strict=True) if spans else ((), (), (), ())
            series.append(
                Series(f"at concurrency {concurrency}", gammas, middles, lows, highs, style=style)
            )
        said = f"All streams together, {basis}, {_named(values) or 'by γ'}. "
        said += "Medians with 95 % intervals" if exact else "Medians ± standard deviation"
        said += " over the repeats of one boot."
        figure = chart(
            series,
            _whole([t.candidate.int("gamma") for t in trials]),
            Axis(f"{basis} tok/s", zero=True),
        )
        plots.append(Plot(f"rates{_suffix(number)}", figure, said))
    return plots


def _span(repeats: Sequence[float]) -> tuple[float, float, float, bool]:
    """Median and its 95 % interval, or standard deviation of fewer than six."""
    interval = median_interval(repeats)
    if interval is not None:
        return statistics.median(repeats), *interval, True
    middle, spread = statistics.median(repeats), statistics.pstdev(repeats)
    return middle, middle - spread, middle + spread, False


def speedups(served: Served, basis: str) -> list[Plot]:
    """Rate over the baseline's by gamma, a line for every concurrency, repeats paired."""
    baseline = served.baseline
    if baseline is None or len(served.ok) < 2:
        return []
    plots = []
    for number, (values, trials) in enumerate(_groups(served.ok).items()):
        series = []
        for style, concurrency in enumerate(served.scenario.concurrency):
            before = level_repeats(baseline, concurrency)
            found = [
                (t.candidate.int("gamma"), paired_ratio(after, before))
                for t in trials
                if (after := level_repeats(t, concurrency)) and len(after) == len(before)
            ]
            series.append(
                Series(
                    f"at concurrency {concurrency}",
                    [gamma for gamma, _ in found],
                    [ratio.value for _, ratio in found],
                    [ratio.low for _, ratio in found],
                    [ratio.high for _, ratio in found],
                    style=style,
                )
            )
        x = _whole([t.candidate.int("gamma") for t in trials])
        figure = chart(series, x, Axis(f"× baseline ({basis} tok/s)", reference=1.0))
        said = (
            f"Rate over the baseline's, {_named(values) or 'by γ'}; repeats are paired, with 95 % "
            "intervals where there are six or more. One boot each: the interval knows nothing of "
            "the luck of a boot, see Confirmed."
        )
        plots.append(Plot(f"speedups{_suffix(number)}", figure, said))
    return plots


def acceptance(served: Served) -> list[Plot]:
    """Share of drafts accepted up to each position, at the highest concurrency."""
    concurrency = str(served.scenario.concurrency[-1])
    found = {
        setting(t.candidate): reached
        for t in served.ok
        if (reached := t.measurement.details.get("levels", {}).get(concurrency, {}).get("reached"))
    }
    if not found:
        return []
    longest = sorted(found.items(), key=lambda item: -len(item[1]))[:MOST_LINES]
    series = [
        Series(name, list(range(1, len(reached) + 1)), reached, style=style)
        for style, (name, reached) in enumerate(longest)
    ]
    positions = range(1, max(len(reached) for reached in found.values()) + 1)
    said = (
        f"Share of drafts of which all tokens up to the position were accepted, measured at "
        f"concurrency {concurrency}."
    )
    x = Axis("position in the draft", ticks=list(positions))
    return [Plot("acceptance", chart(series, x, Axis("accepted", form=".0%", zero=True)), said)]


@dataclass(frozen=True)
class Placed:
    """A setting's point, numbered by its single-stream rate, and where it stands."""

    number: int
    point: Point
    place: str


def placed(served: Served) -> list[Placed]:
    """Every setting with a value, the fastest single stream first."""
    found = [
        (point, bool(served.compared(trial).against))
        for trial in served.ok
        if (point := point_of(trial.candidate, level_rates(trial))) is not None
    ]
    best = front([point for point, barred in found if not barred])
    ordered = sorted(found, key=lambda one: -one[0].single)
    return [
        Placed(
            number,
            point,
            BARRED if barred else FRONT if point in best else BEHIND,
        )
        for number, (point, barred) in enumerate(ordered, 1)
    ]


def pareto(points: Sequence[Placed], served: Served, basis: str) -> list[Plot]:
    """A single stream's rate against that of all together."""
    if not points:
        return []
    series = [
        _cloud(place, [one for one in points if one.place == place], style)
        for place, style in ((FRONT, 0), (BEHIND, 1), (BARRED, 4))
    ]
    low, high = served.scenario.concurrency[0], served.scenario.concurrency[-1]
    figure = chart(
        [one for one in series if one.x],
        Axis(f"{basis} tok/s, one stream at {low}"),
        Axis(f"{basis} tok/s, together at {high}"),
    )
    said = "Up and to the right is better; what is on the front is beaten by nothing in both. "
    return [Plot("pareto", figure, said + "The numbers are those of the table.")]


def _cloud(place: str, points: Sequence[Placed], style: int) -> Series:
    return Series(
        place,
        [one.point.single for one in points],
        [one.point.aggregate for one in points],
        shows="lines+markers" if place == FRONT else "markers",
        style=style,
        labels=[str(one.number) for one in points],
        notes=[setting(one.point.candidate) for one in points],
    )


def forecast(rows: Sequence[Mapping[str, Any]], basis: str) -> list[Plot]:
    """PREDICTED against measured rates, as ``best.json`` has them."""
    if not rows:
        return []
    series = []
    for number, concurrency in enumerate(sorted({row["concurrency"] for row in rows})):
        own = sorted(
            (row for row in rows if row["concurrency"] == concurrency), key=lambda r: r["gamma"]
        )
        gammas = [row["gamma"] for row in own]
        series += [
            Series(
                f"PREDICTED at {concurrency}",
                gammas,
                [row["predicted_tok_s"] for row in own],
                style=number,
                hollow=True,
            ),
            Series(
                f"{basis} at {concurrency}",
                gammas,
                [row["measured_tok_s"] for row in own],
                shows="markers",
                style=number,
            ),
        ]
    figure = chart(
        series, _whole([row["gamma"] for row in rows]), Axis("tok/s together", zero=True)
    )
    said = (
        f"Predicted from the baseline and one probe at the largest γ (lines, outlines) and {basis} "
        "(filled). At γ=0 and at the probe's γ the two agree by construction."
    )
    return [Plot("forecast", figure, said)]
