"""Renderers of a page: HTML that needs no network, Markdown, JSON. See also ``terminal.py``."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import jinja2
import plotly.io  # type: ignore[import-untyped]
from markupsafe import Markup
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from autotune.report.page import Block, Code, Grid, Page, Plot, Table, Text
from autotune.util.escape import for_terminal
from autotune.util.markdown import code_line, escape


def to_html(page: Page) -> str:
    """Render one file with plotly.js in it (4.8 MB).

    The policy in its head lets a browser run the two scripts of this file and load nothing: even
    text that got past the escaping could not act.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("autotune.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: for_terminal(value) if type(value) is str else value,
    )
    environment.globals.update(kind=lambda block: type(block).__name__, data=_data)
    environment.filters["anchor"] = _anchor
    drawing, library = environment.get_template("draw.js").render(), get_plotlyjs()
    text: str = environment.get_template("page.html").render(
        page=page,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {_hash(drawing)} {_hash(library)}",
        drawing=Markup(drawing),  # noqa: S704 - our own file
        library=Markup(library),  # noqa: S704 - Plotly's own
        style=Markup(environment.get_template("page.css").render()),  # noqa: S704 - our own file
    )
    return text


def _hash(script: str) -> str:
    """As a Content-Security-Policy names a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _data(plot: Plot) -> Markup:
    """A figure as JSON that cannot end the element it stands in."""
    text: str = plotly.io.to_json(plot.figure, validate=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - escaped for JSON above


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def to_markdown(page: Page) -> str:
    """Render the page without its plots, of which the tables hold the figures."""
    lines = [f"# {escape(page.title)}", ""]
    if page.banner:
        lines += [f"> **{escape(page.banner)}**", ""]
    lines += [f"**Result:** {escape(page.result)}", ""]
    lines += [part for text in page.warnings for part in (f"> **Warning:** {escape(text)}", "")]
    lines += [f"- {escape(name)}: {escape(value)}" for name, value in page.facts]
    lines.append("")
    for section in page.sections:
        blocks = [part for block in section.blocks for part in _block(block)]
        if blocks:
            lines += [f"## {escape(section.title)}", "", *blocks]
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        said = escape(block.text)
        return [said, ""]
    if isinstance(block, Code):
        return [*map(code_line, block.text.splitlines()), ""]
    if isinstance(block, Table):
        aligned = [":--" if i < block.words else "--:" for i in range(len(block.heads))]
        rows = [block.heads, aligned, *block.rows]
        return [*(f"| {' | '.join(escape(cell) for cell in row)} |" for row in rows), ""]
    assert isinstance(block, Plot | Grid)  # noqa: S101 - nothing else is a block
    return []


def to_json(page: Page) -> dict[str, Any]:
    """Render the page as JSON values: every block names its ``kind``, plots hold their figure."""
    return {
        "title": page.title,
        "basis": page.basis,
        "banner": page.banner,
        "result": page.result,
        "facts": [list(fact) for fact in page.facts],
        "warnings": list(page.warnings),
        "sections": [
            {
                "title": section.title,
                "brief": section.brief,
                "blocks": [_block_json(block) for block in section.blocks],
            }
            for section in page.sections
        ],
    }


def _block_json(block: Block) -> dict[str, Any]:
    kind = {"kind": type(block).__name__.lower()}
    if isinstance(block, Plot):
        figure = json.loads(plotly.io.to_json(block.figure, validate=False))
        return kind | {**vars(block), "figure": figure}
    if isinstance(block, Grid):
        return kind | {"says": block.says, "plots": [_block_json(plot) for plot in block.plots]}
    if isinstance(block, Table):
        rows = [list(row) for row in block.rows]
        return kind | {"heads": list(block.heads), "rows": rows, "words": block.words}
    return kind | vars(block)
