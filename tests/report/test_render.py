"""Pages as files: nothing from outside is markup, nothing is loaded, Markdown by a golden text."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from functools import cache
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from autotune.report.page import Code, Grid, Page, Plot, Section, Table, Text
from autotune.report.plots import Axis, Series, chart, heat_map
from autotune.report.render import to_html, to_json, to_markdown
from autotune.report.terminal import to_terminal

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&\"'`|*\u2028"


class Elements(HTMLParser):
    """What a browser would make of a file: elements, text, and the content of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def a_page(text: str) -> Page:
    figure = chart([Series(text, [1, 2], [3, 4], labels=[text, "b"])], Axis(text), Axis("y"))
    heat = heat_map(Axis(text, ticks=[text]), Axis("x", ticks=[1]), [[1.0]], 1.0)
    return Page(
        title=text,
        basis=text,
        banner=text,
        result=text,
        facts=[(text, text)],
        warnings=[text],
        sections=[
            Section("One", [Text(text), Code(text), Plot("p", figure, text)]),
            Section(
                "Two", [Table((text, "b"), [(text, "2")]), Grid([Plot("q", heat, text)], text)]
            ),
        ],
    )


def test_nothing_from_outside_is_markup() -> None:
    hostile, tame = Elements(to_html(a_page(HOSTILE))), Elements(to_html(a_page("tame")))
    assert hostile.tags == tame.tags
    assert [name for name, _ in hostile.attributes] == [name for name, _ in tame.attributes]
    assert " ".join(HOSTILE.split()) in " ".join(hostile.text.split())
    # Of four scripts two hold the data of the plots, and are JSON; the others are ours.
    assert len(hostile.scripts) == 4
    assert hostile.scripts[2:] == tame.scripts[2:]
    figure = json.loads(hostile.scripts[0])
    assert figure["data"][0]["name"] == html.escape(HOSTILE, quote=False)


def test_the_data_of_a_plot_cannot_end_its_element() -> None:
    figure = {"data": [{"name": HOSTILE}], "layout": {}}
    page = Page(
        "t", "measured", None, "r", [], sections=[Section("s", [Plot("p", figure, "says")])]
    )
    data, *ours = Elements(to_html(page)).scripts
    assert len(ours) == 2
    assert json.loads(data) == figure
    assert not set("<>&\u2028") & set(data)


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_leaves_the_page_as_it_is(text: str) -> None:
    assert Elements(to_html(a_page(text))).tags == tame_tags()


@cache
def tame_tags() -> list[str]:
    return Elements(to_html(a_page("tame"))).tags


def test_the_policy_names_the_two_scripts_and_allows_nothing_else() -> None:
    page = Elements(to_html(a_page("tame")))
    policy = dict(page.attributes)["content"]
    (policy,) = (v for _, v in page.attributes if v and v.startswith("default-src"))
    assert policy.startswith("default-src 'none'; ")
    hashes = {
        f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
        for script in page.scripts[2:]
    }
    assert set(re.findall(r"sha256-[^']+", policy)) == hashes
    assert "http" not in policy


def test_the_page_loads_nothing() -> None:
    page = Elements(to_html(a_page("tame")))
    named = [v for n, v in page.attributes if n in {"src", "href", "action", "data"} and v]
    assert all(value.startswith("#") for value in named)
    assert not {"link", "iframe", "object", "base"} & set(page.tags)


MARKDOWN = """\
# name

> **PREDICTED**

**Result:** 2 of 3

> **Warning:** few keys

- Device: a & b &lt;c&gt;

## Rows

A rule.

    autotune moe --x 'a|b'

| M | µs |
| :-- | --: |
| 1 | 2.0 \\| \\*x\\* |
"""


def test_markdown() -> None:
    plot = Plot("p", {}, "says")
    page = Page(
        "name",
        "predicted",
        "PREDICTED",
        "2 of 3",
        [("Device", "a & b <c>")],
        ["few keys"],
        [
            Section(
                "Rows",
                [
                    Text("A\nrule."),
                    plot,
                    Code("autotune moe --x 'a|b'"),
                    Table(("M", "µs"), [("1", "2.0 | *x*")]),
                ],
            ),
            Section("Only plots", [plot, Grid([plot], "these")]),
        ],
    )
    assert to_markdown(page) == MARKDOWN.replace("a & b", "a &amp; b")


def test_a_row_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="1 cells under 2 heads"):
        Table(("a", "b"), [("1",)])


def a_small_page() -> Page:
    table = Table(("M", "config", "µs", "limit"), [("1", "16/64", "2.0", "[red]")], 2, narrow=3)
    return Page(
        "name",
        "predicted",
        "PREDICTED",
        "2 of 3",
        [("Device", "d")],
        ["few keys"],
        [
            Section("Rows", [Text("A rule."), Plot("p", {}, "says"), table], brief=True),
            Section("Serve", [Code("x " * 60)], brief=True),
            Section("Only plots", [Plot("p", {}, "says")], brief=True),
            Section("Failures", [Text("many")]),
        ],
    )


TERMINAL = f"""\
name: predicted
Rows
A rule.
M   config    µs
────────────────
1   16/64    2.0
not shown for want of width, but in report.md: limit

Serve
{"x " * 60}

PREDICTED
2 of 3
"""


def test_a_terminal_shows_what_is_brief_and_the_result_last() -> None:
    def shown(width: int) -> str:
        console = Console(width=width, file=io.StringIO(), highlight=False)
        console.print(to_terminal(a_small_page(), width), crop=False)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    assert shown(80) == TERMINAL
    assert "[red]" in shown(120)
    assert "not shown" not in shown(120)


def test_a_terminal_gets_no_more_columns_than_fit() -> None:
    heads = ("M", "BM/BN/BK/G/warps/stages", "predicted µs", "default µs (predicted)", "limit")
    table = Table(heads, [("1", "16/64/128/1/4/3", "2.0", "3.0", "memory")], 2, narrow=5)
    page = Page("n", "b", None, "r", [], (), [Section("Rows", [table], brief=True)])
    for width in (40, 60, 80):
        console = Console(width=width, file=io.StringIO())
        console.print(to_terminal(page, width), crop=False)
        assert isinstance(console.file, io.StringIO)
        shown = console.file.getvalue().partition("not shown")[0].splitlines()
        assert max(map(len, shown)) <= width
        assert any("16/64/128/1/4/3" in line for line in shown)
        assert width == 40 or any(heads[1] in line for line in shown), "heads break between words"


def test_a_terminal_breaks_lines_between_words_but_not_what_is_copied() -> None:
    words, code = "several words " * 4, Code("command --with flags " * 3)
    page = Page("n", "b", None, "r", [], (), [Section("S", [Text(words), code], brief=True)])
    console = Console(width=30, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(to_terminal(page, 30), crop=False)
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert lines[2:4] == ["several words several words", "several words several words"]
    assert code.text.rstrip() in lines


def test_json_has_every_block_under_its_kind() -> None:
    document = to_json(a_small_page())
    assert json.loads(json.dumps(document)) == document
    rows, serve, plots, _ = document["sections"]
    assert [block["kind"] for block in rows["blocks"]] == ["text", "plot", "table"]
    assert rows["blocks"][2]["rows"] == [["1", "16/64", "2.0", "[red]"]]
    assert serve["blocks"] == [{"kind": "code", "text": "x " * 60}]
    assert plots["blocks"][0]["figure"] == {}
    assert (document["basis"], document["warnings"]) == ("predicted", ["few keys"])
    figure = chart([Series("s", [1], [2])], Axis("x"), Axis("y"))
    grid = Page("t", "b", None, "r", [], (), [Section("g", [Grid([Plot("q", figure, "")], "")])])
    (block,) = to_json(grid)["sections"][0]["blocks"]
    assert block["plots"][0]["figure"]["data"][0]["y"] == [2]
