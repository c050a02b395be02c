"""Two pages of one kind laid beside each other, as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autotune.core import Basis
from autotune.report.page import Block, Page, Section, Table

ABSENT = "–"
"""In place of what one of the two does not have."""
APART = (
    "The two were measured at different times. A difference of a few percent may be the machine's; "
    "`autotune compare` times two files in turn."
)


def beside(first: Page, second: Page) -> Page:
    """Make the page that compares two studies.

    Facts and tables that both have are shown once where they agree; where they differ as
    «first → second». Tables are matched by section and heads, their rows by the first cell.

    Args:
        first: what the second is compared with.
        second: of the same kind.
    """
    names = (first.title, second.title)
    known, other = dict(first.facts), dict(second.facts)
    same = [(name, text) for name, text in first.facts if other.get(name) == text]
    rows = [
        (name, known.get(name, ABSENT), other.get(name, ABSENT))
        for name in dict.fromkeys([*known, *other])
        if known.get(name) != other.get(name)
    ]
    sections = [
        Section(
            "Results",
            [
                Table(
                    ("Study", "Result"), [(page.title, page.result) for page in (first, second)], 2
                )
            ],
        ),
        Section("What differs", [Table(("", *names), rows, words=3)] if rows else []),
        *_tables(first, second),
    ]
    return Page(
        title=" → ".join(names),
        basis=first.basis if first.basis == second.basis else f"{first.basis} → {second.basis}",
        banner=first.banner or second.banner,
        result=f"{names[0]} beside {names[1]}.",
        facts=same,
        warnings=[
            *([APART] if Basis.MEASURED in (first.basis, second.basis) else []),
            *(f"{p.title}: {text}" for p in (first, second) for text in p.warnings),
        ],
        sections=[section for section in sections if section.blocks],
    )


def _tables(first: Page, second: Page) -> list[Section]:
    """Sections with the tables that both pages have, in the order of the first page."""
    others = {
        (section.title, block.heads): block
        for section in second.sections
        for block in section.blocks
        if isinstance(block, Table)
    }
    made = []
    for section in first.sections:
        blocks: list[Block] = []
        for block in section.blocks:
            if not isinstance(block, Table):
                continue
            other = others.get((section.title, block.heads))
            if other is not None and _has_keys(block) and _has_keys(other):
                blocks.append(_joined(block, other))
        made.append(Section(section.title, blocks))
    return made


def _has_keys(table: Table) -> bool:
    """Whether the first cell tells the rows apart."""
    return max(Counter(row[0] for row in table.rows).values(), default=1) == 1


def _joined(first: Table, second: Table) -> Table:
    left = {row[0]: row for row in first.rows}
    right = {row[0]: row for row in second.rows}
    none = [ABSENT] * len(first.heads)
    rows = [
        _cells(key, left.get(key, none), right.get(key, none))
        for key in dict.fromkeys([*left, *right])
    ]
    return Table(first.heads, rows, first.words)


def _cells(key: str, left: Sequence[str], right: Sequence[str]) -> list[str]:
    pairs = zip(left[1:], right[1:], strict=True)
    return [key, *(one if one == two else f"{one} → {two}" for one, two in pairs)]
