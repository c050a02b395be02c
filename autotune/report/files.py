"""The files of a page."""

from __future__ import annotations

from autotune.export.files import Exporter
from autotune.report.page import Page
from autotune.report.render import to_html, to_markdown


def html(page: Page) -> bytes:
    """Return the content of ``report.html``."""
    return to_html(page).encode("utf-8", "replace")


def markdown(page: Page) -> bytes:
    """Return the content of ``report.md``."""
    return to_markdown(page).encode("utf-8", "replace")


PAGE_FILES: dict[str, Exporter[Page]] = {"report.md": markdown, "report.html": html}
"""What ``autotune report`` writes."""
