"""What a page is made of. Text here is plain: who renders it escapes it.

Each kind makes its pages with ``page_of(store, study)``; :mod:`autotune.report.render` and
:mod:`autotune.report.terminal` write them as HTML, Markdown, JSON and for a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Text to be copied, such as a command."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        heads: of the columns.
        rows: of as many cells.
        words: columns from the left that hold words, not figures.
        narrow: columns from the left that a terminal of 80 characters shows; all if None.
    """

    heads: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    words: int = 1
    narrow: int | None = None

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.heads):
                raise ValueError(f"{len(row)} cells under {len(self.heads)} heads: {row}")


@dataclass(frozen=True)
class Plot:
    """A figure for plotly.js; ``says`` tells those who cannot see it what it shows."""

    name: str
    figure: dict[str, Any]
    says: str
    height: int = 380


@dataclass(frozen=True)
class Grid:
    """Small plots side by side, as many as fit; ``says`` is about all of them."""

    plots: Sequence[Plot]
    says: str


Block = Text | Code | Table | Plot | Grid


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; ``brief`` ones make up the terminal's summary."""

    title: str
    blocks: Sequence[Block]
    brief: bool = False


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: usually the study's name.
        basis: measured, predicted or synthetic.
        banner: what a reader must never overlook, such as that the times are predicted.
        result: the outcome in a sentence or two.
        facts: name and value, the shortest description of what was done.
        warnings: what must be known beside the numbers.
        sections: the rest.
    """

    title: str
    basis: str
    banner: str | None
    result: str
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=tuple)

    @property
    def plots(self) -> list[Plot]:
        """Every plot, in order."""
        found: list[Plot] = []
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Plot):
                    found.append(block)
                elif isinstance(block, Grid):
                    found += block.plots
        return found
