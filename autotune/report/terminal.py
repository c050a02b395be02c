"""Renderer of a page: the summary that a command shows when it ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text as RichText

from autotune.report.page import Block, Code, Page, Section, Table, Text

FULL_WIDTH = 120
"""Columns of a terminal from which on tables are shown whole."""
LEAST_WIDTH = 24
"""Characters of a cell that a narrow terminal shows in one line: a row of a configuration."""


def to_terminal(page: Page, width: int) -> RenderableType:
    """Render the brief sections and then the result, which stands next to the prompt.

    Warnings are left to the caller, who has a place of their own for them.

    Args:
        page: the whole of it.
        width: of the terminal, in characters.
    """
    brief = [section for section in page.sections if section.brief]
    parts: list[RenderableType] = [RichText(f"{page.title}: {page.basis}", style="bold")]
    for section in brief:
        parts += _section(section, width)
    if page.banner:
        parts.append(_Line(page.banner, "bold yellow"))
    return Group(*parts, _Line(page.result))


def _section(section: Section, width: int) -> Iterator[RenderableType]:
    shown = [part for block in section.blocks for part in _block(block, width)]
    if shown:
        yield RichText(section.title, style="bold")
        yield from shown
        yield RichText()


def _block(block: Block, width: int) -> Iterator[RenderableType]:
    if isinstance(block, Text):
        yield _Line(block.text)
    elif isinstance(block, Code):
        yield _Line(block.text, copied=True)
    elif isinstance(block, Table):
        yield from _table(block, width)


def _table(table: Table, width: int) -> Iterator[RenderableType]:
    fits = len(table.heads) if width >= FULL_WIDTH or not table.narrow else table.narrow
    shown = _columns(table, fits)
    while fits > table.words + 1 and _width_of(shown, width) > width:
        fits -= 1
        shown = _columns(table, fits)
    if _width_of(shown, width) > width:
        shown = _columns(table, fits, whole=False)
    yield shown
    if hidden := ", ".join(table.heads[fits:]):
        yield _Line(f"not shown for want of width, but in report.md: {hidden}")


def _width_of(table: RichTable, width: int) -> int:
    """Return the characters that a table takes where so many are asked for."""
    console = Console(width=width)
    return max(map(Segment.get_line_length, Segment.split_lines(console.render(table))))


def _columns(table: Table, fits: int, *, whole: bool = True) -> RichTable:
    """Return the first ``fits`` columns; ``whole`` breaks no word of a head."""
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, head in enumerate(table.heads[:fits]):
        words = number < table.words
        longest = max((len(row[number]) for row in table.rows), default=0)
        least = max(map(len, head.split()), default=0) if whole else 0
        shown.add_column(
            RichText(head),
            justify="left" if words else "right",
            overflow="fold",
            min_width=max(min(longest, LEAST_WIDTH), least),
        )
    for row in table.rows:
        shown.add_row(*(RichText(cell) for cell in row[:fits]))
    return shown


@dataclass(frozen=True)
class _Line:
    """Text that ends between words on a terminal, and in a pipe nowhere.

    What is ``copied`` the terminal wraps by itself: then no line break gets into the copy.
    """

    text: str
    style: str = ""
    copied: bool = False

    def __rich_console__(self, console: Console, _: ConsoleOptions) -> Iterator[RichText]:
        if self.copied or not console.is_terminal:
            yield RichText(self.text, self.style, no_wrap=True, overflow="ignore")
        else:
            yield RichText(self.text, self.style)
