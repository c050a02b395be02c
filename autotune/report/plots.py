"""Figures by Plotly that can be told apart without colour, on paper and on a phone."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go  # type: ignore[import-untyped]

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "triangle-down")
MUTED = "rgba(128,128,128,0.55)"
WORSE = 1.5
"""Factor from which a heat map's colour no longer changes: what matters is near the best."""


@dataclass(frozen=True)
class Series:
    """A line or a set of points.

    Attributes:
        name: for the legend and when hovered over.
        x: numbers, or texts on an axis of categories.
        y: values; None leaves a gap.
        low: lower ends of the intervals, or None without any.
        high: upper ends.
        shows: lines, markers, or both.
        style: which dash, marker and colour.
        hollow: points drawn as outlines.
        labels: a text at each point.
        notes: a text when hovered over.
        muted: one of many thin grey lines without a legend.
        steps: the line goes in steps, as what is best so far does.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    shows: Literal["lines", "markers", "lines+markers"] = "lines+markers"
    style: int = 0
    hollow: bool = False
    labels: Sequence[str] | None = None
    notes: Sequence[str] | None = None
    muted: bool = False
    steps: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis; ``ticks`` are where its labels stand, ``log`` is to base 10 but labelled plainly."""

    title: str
    log: bool = False
    ticks: Sequence[float | str] | None = None
    form: str = ""
    zero: bool = False
    reference: float | None = None
    """A dotted line across, such as at 1×."""


def plain(text: str) -> str:
    """Text for Plotly, which takes some tags for markup."""
    return html.escape(text, quote=False)


def chart(series: Sequence[Series], x: Axis, y: Axis) -> dict[str, Any]:
    """Lines and points over two axes, as JSON values for plotly.js."""
    figure = go.Figure([_trace(one) for one in series], _layout(x, y))
    figure.update_layout(showlegend=sum(not one.muted for one in series) > 1)
    if y.reference is not None:
        figure.add_hline(y.reference, line={"dash": "dot", "width": 1.5, "color": "#888888"})
    found: dict[str, Any] = figure.to_plotly_json()
    return found


def _trace(series: Series) -> go.Scatter:
    style = series.style
    shows = series.shows + ("+text" if series.labels else "")
    marker: dict[str, Any] = {"symbol": MARKERS[style % len(MARKERS)], "size": 8}
    if series.hollow:
        marker["symbol"] += "-open"
    line: dict[str, Any] = {"dash": DASHES[style % len(DASHES)], "width": 2}
    if series.steps:
        line["shape"] = "hv"
    if series.muted:
        line |= {"color": MUTED, "width": 1, "dash": "solid"}
    return go.Scatter(
        # The page gives colours, which depend on whether it is dark.
        meta=None if series.muted else {"style": style},
        name=plain(series.name),
        x=[plain(v) if isinstance(v, str) else v for v in series.x],
        y=list(series.y),
        mode=shows,
        line=line,
        marker=marker,
        error_y=_errors(series),
        text=[plain(t) for t in series.labels] if series.labels else None,
        textposition="bottom right",
        hovertext=[plain(t) for t in series.notes] if series.notes else None,
        showlegend=not series.muted,
    )


def _errors(series: Series) -> dict[str, Any] | None:
    if series.low is None or series.high is None:
        return None
    above, below = [], []
    for low, y, high in zip(series.low, series.y, series.high, strict=True):
        # Of too few values the interval has no end.
        known = low is not None and high is not None and y is not None and math.isfinite(high)
        above.append(high - y if known else 0.0)  # type: ignore[operator]
        below.append(y - low if known else 0.0)  # type: ignore[operator]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1.5,
        "width": 4,
    }


def _label(tick: float | str) -> str:
    return plain(tick) if isinstance(tick, str) else f"{tick:.15g}"


def round_ticks(values: Sequence[float]) -> list[float]:
    """Labels for a logarithmic axis: 1, 2 and 5, or powers of ten over more than three decades."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    return [step * 10.0**power for power in range(low, high + 1) for step in steps]


def _layout(x: Axis, y: Axis) -> go.Layout:
    return go.Layout(
        # Outlives the default theme, whose background is not that of the page.
        template="none",
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        xaxis=_axis(x),
        yaxis=_axis(y),
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )


def _axis(axis: Axis) -> dict[str, Any]:
    found: dict[str, Any] = {
        "title": {"text": plain(axis.title), "standoff": 8},
        "automargin": True,
        "showline": True,
        "ticks": "outside",
        "zeroline": False,
    }
    if axis.log:
        found["type"] = "log"
    if axis.form:
        found["tickformat"] = axis.form
    if axis.ticks is not None:
        found |= {"tickvals": list(axis.ticks), "ticktext": [_label(t) for t in axis.ticks]}
    if axis.zero:
        found["rangemode"] = "tozero"
    return found


def heat_map(
    rows: Axis,
    columns: Axis,
    cells: Sequence[Sequence[float | None]],
    best: float,
    unit: str = "µs",
) -> dict[str, Any]:
    """What each cell costs as a factor on the ``best``; dark is fast, and every cell says its own.

    Args:
        rows: with its ticks, from the bottom up.
        columns: with its ticks.
        cells: values row by row; None where nothing was measured.
        best: what is divided by.
        unit: of the values, shown when a cell is hovered over.
    """
    factors = [[None if v is None else v / best for v in row] for row in cells]
    texts = [["" if f is None else _factor(f) for f in row] for row in factors]
    notes = [["" if v is None else f"{v:.4g} {unit}" for v in row] for row in cells]
    trace = go.Heatmap(
        z=factors,
        x=[_label(t) for t in columns.ticks or ()],
        y=[_label(t) for t in rows.ticks or ()],
        text=texts,
        customdata=notes,
        texttemplate="%{text}",
        hovertemplate="%{y} × %{x}: %{customdata}<extra></extra>",
        zmin=1,
        zmax=WORSE,
        colorscale="Cividis",
        showscale=False,
        xgap=1,
        ygap=1,
        hoverongaps=False,
    )
    layout = _layout(Axis(columns.title), Axis(rows.title))
    layout.update(xaxis_type="category", yaxis_type="category")
    layout.update(xaxis_showgrid=False, yaxis_showgrid=False)
    found: dict[str, Any] = go.Figure([trace], layout).to_plotly_json()
    return found


def _factor(factor: float) -> str:
    return f"{factor:.2f}" if factor < 10 else f"{factor:.0f}"
