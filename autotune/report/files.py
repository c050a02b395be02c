"""Where the files of a page go."""

from __future__ import annotations

from pathlib import Path

from autotune.export.files import write_whole
from autotune.report.page import Page
from autotune.report.render import render_html, render_markdown


def write_html(page: Page, folder: Path) -> Path:
    """``report.html``, whole.

    Raises:
        BadInputError: the folder cannot be written.
        MissingEnvironmentError: no space is left.
    """
    path = folder / "report.html"
    write_whole(path, render_html(page).encode("utf-8", "replace"))
    return path


def write_markdown(page: Page, folder: Path) -> Path:
    """``report.md``, whole; raises as :func:`write_html`."""
    path = folder / "report.md"
    write_whole(path, render_markdown(page).encode("utf-8", "replace"))
    return path
