"""Figures: told apart without colour, honest about intervals."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from autotune.report.plots import Axis, Series, chart, heat_map, round_ticks


def test_neighbours_differ_in_dash_and_marker() -> None:
    series = [Series(str(i), [1], [1], style=i) for i in range(6)]
    traces = chart(series, Axis("x"), Axis("y"))["data"]
    looks = {(t["line"]["dash"], t["marker"]["symbol"]) for t in traces}
    assert len({dash for dash, _ in looks}) == len({symbol for _, symbol in looks}) == 6


def test_intervals_are_drawn_from_the_value() -> None:
    one = Series("s", [1, 2, 3], [2.0, 2.0, None], low=[1.5, 0.0, 1], high=[2.25, math.inf, 2])
    (trace,) = chart([one], Axis("x"), Axis("y"))["data"]
    assert trace["error_y"]["arrayminus"] == [0.5, 0, 0]
    assert trace["error_y"]["array"] == [0.25, 0, 0]  # without an end there is no interval
    (bare,) = chart([Series("s", [1], [1])], Axis("x"), Axis("y"))["data"]
    assert "error_y" not in bare


def test_one_line_needs_no_legend_and_many_thin_ones_have_none() -> None:
    thin = [Series(str(i), [1], [1], muted=True) for i in range(3)]
    figure = chart([*thin, Series("mean", [1], [1])], Axis("x"), Axis("y", reference=1.0))
    assert figure["layout"]["showlegend"] is False
    assert [t["showlegend"] for t in figure["data"]] == [False] * 3 + [True]
    assert figure["layout"]["shapes"][0]["y0"] == 1.0
    two = chart([Series("a", [1], [1]), Series("b", [1], [1])], Axis("x"), Axis("y"))
    assert two["layout"]["showlegend"] is True


def test_names_are_not_markup_for_plotly() -> None:
    figure = chart([Series("<a href='x'>", ["<b>"], [1], notes=["<i>"])], Axis("<u>"), Axis("y"))
    assert figure["data"][0]["name"] == "&lt;a href='x'&gt;"
    assert figure["data"][0]["x"] == ["&lt;b&gt;"]
    assert figure["data"][0]["hovertext"] == ["&lt;i&gt;"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "&lt;u&gt;"


def test_cells_are_factors_on_the_best() -> None:
    rows, columns = Axis("BM", ticks=[16, 32]), Axis("BN", ticks=[64, 128])
    figure = heat_map(rows, columns, [[10.0, None], [12.5, 150.0]], 10.0)
    (trace,) = figure["data"]
    assert trace["z"] == [[1.0, None], [1.25, 15.0]]
    assert trace["text"] == [["1.00", ""], ["1.25", "15"]]
    assert trace["customdata"] == [["10 µs", ""], ["12.5 µs", "150 µs"]]
    assert (trace["x"], trace["y"]) == (["64", "128"], ["16", "32"])
    # Cividis grows lighter all the way, so that it can be read in grey too.
    assert figure["layout"]["xaxis"]["type"] == "category"


@given(st.lists(st.floats(1e-6, 1e9), min_size=1))
def test_ticks_enclose_the_values_and_are_few(values: list[float]) -> None:
    ticks = round_ticks(values)
    assert ticks == sorted(set(ticks))
    assert min(ticks) <= min(values) * (1 + 1e-9)
    assert max(ticks) >= max(values) * (1 - 1e-9)
    assert len(ticks) <= 20
