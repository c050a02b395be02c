"""The two terminals: results go to ``out``, everything said about the work to ``err``."""

from __future__ import annotations

from rich.console import Console

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)
