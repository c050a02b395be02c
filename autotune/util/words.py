"""Words for numbers."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """``1 trial``, ``2 trials``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
