"""What models, servers and users wrote stays words in Markdown."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from autotune.report.page import Page, Section, Table
from autotune.report.render import to_markdown
from autotune.util.markdown import escape, in_comment


@given(st.text())
def test_escaped_text_has_no_line_cell_tag_or_control_character(text: str) -> None:
    written = escape(text)
    assert written.isprintable()
    assert not re.search(r"[<>]|^#", written)
    assert len(re.findall(r"(?<!\\)\|", written.replace("\\\\", ""))) == 0


def test_a_hostile_cell_stays_in_its_cell() -> None:
    shown = Table(("a", "b"), [["x | y\n| z |\x1b[31m <img src=x>", "`1`"]])
    page = Page("t", "measured", None, "r", [], sections=[Section("s", [shown])])
    lines = to_markdown(page).splitlines()[-3:]
    assert lines[0] == "| a | b |"
    assert lines[2] == "| x \\| y \\| z \\|\\[31m &lt;img src=x&gt; | \\`1\\` |"


@given(st.text(alphabet="-!><a \n\x1b"))
def test_a_comment_ends_where_we_end_it(text: str) -> None:
    comment = f"<!-- Title: {in_comment(text)} -->"
    assert re.search(r"--!?>", comment[4:]) is not None
    assert re.search(r"--!?>", comment[4:]).start() == len(comment) - 7  # type: ignore[union-attr]
