"""What commands show when a job has ended: its page in brief, its warnings, its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.markup import escape

from autotune.cli.consoles import err, out
from autotune.report.page import Page
from autotune.report.terminal import to_terminal


def show_page(page: Page) -> None:
    """Print the summary to stdout and the warnings to stderr."""
    out.print(to_terminal(page, out.width), crop=False)
    for text in page.warnings:
        err.say(f"[yellow]Warning: {escape(text)}[/yellow]")


def show_files(files: Sequence[Path]) -> None:
    """Print one path a line."""
    for path in files:
        typer.echo(path)
