"""The two terminals: results go to ``out``, everything said about the work to ``err``."""

from __future__ import annotations

import sys

from rich.console import Console

PIPED_WIDTH = 160
"""A file or a pipe has no width of its own; tables must not be cut to 80 columns there."""

out = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
err = Console(stderr=True, highlight=False, emoji=False)
