"""What a check before the start found out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """``refuse``: it cannot work; ``warn``: it may not, or be slow; ``note``: good to know."""

    REFUSE = "refuse"
    WARN = "warn"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One line for the user: what, where, what to do. ``code`` names the check."""

    code: str
    severity: Severity
    message: str

    @property
    def refuses(self) -> bool:
        """Whether it stops the start."""
        return self.severity is Severity.REFUSE


def refuse(code: str, message: str) -> Finding:
    """A finding that stops the start."""
    return Finding(code, Severity.REFUSE, message)


def warn(code: str, message: str) -> Finding:
    """A finding that the user should weigh."""
    return Finding(code, Severity.WARN, message)


def note(code: str, message: str) -> Finding:
    """A finding for the report."""
    return Finding(code, Severity.NOTE, message)
