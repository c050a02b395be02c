"""Two studies beside each other, as a page."""

from __future__ import annotations

from autotune.report.beside import ABSENT, beside
from autotune.report.page import Page, Section, Table, Text
from autotune.report.render import to_html, to_markdown

HEADS = ("M", "µs", "row")


def page(title: str, rows: list[tuple[str, str, str]], **facts: str) -> Page:
    sections = [
        Section("Rows", [Text("said once"), Table(HEADS, rows)]),
        Section("Runs", [Table(("run", "command"), [("1", "a"), ("1", "b")])]),
    ]
    return Page(title, "measured", None, f"{title} won", [*facts.items()], ["hot"], sections)


def test_what_differs_is_shown_twice_and_the_rest_once() -> None:
    first = page("a", [("1", "5.0", "x"), ("8", "6.0", "y")], device="gb10", vllm="0.24")
    second = page("b", [("1", "4.5", "x"), ("64", "9.0", "z")], device="gb10", triton="3.8")
    made = beside(first, second)
    assert made.facts == [("device", "gb10")]
    results, differs, rows = made.sections
    assert results.blocks == [Table(("Study", "Result"), [("a", "a won"), ("b", "b won")], 2)]
    assert differs.blocks == [
        Table(("", "a", "b"), [("vllm", "0.24", ABSENT), ("triton", ABSENT, "3.8")], 3)
    ]
    (table,) = rows.blocks
    assert isinstance(table, Table)
    assert [list(row) for row in table.rows] == [
        ["1", "5.0 → 4.5", "x"],
        ["8", f"6.0 → {ABSENT}", f"y → {ABSENT}"],
        ["64", f"{ABSENT} → 9.0", f"{ABSENT} → z"],
    ]
    # Rows that no cell tells apart are not matched by luck.
    assert "Runs" not in [section.title for section in made.sections]
    assert made.warnings[1:] == ["a: hot", "b: hot"]
    assert "5.0 → 4.5" in to_markdown(made)
    assert "a → b" in to_html(made)
