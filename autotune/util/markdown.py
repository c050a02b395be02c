"""Text of models, servers and users inside Markdown: always words, never markup."""

from __future__ import annotations

import html
import re


def escape(text: str) -> str:
    """Return the words as they are: no markup, no line or cell of its own, no control character."""
    kept = _one_line(text)
    return re.sub(r"([\\`*|\[\]]|^#)", r"\\\1", html.escape(kept, quote=False))


def code_line(text: str) -> str:
    """Return the text as a line of an indented block of code."""
    return "    " + "".join(c for c in text if c.isprintable())


def in_code(text: str) -> str:
    """Return the words as they may stand in code, which they cannot end: one line, no backtick."""
    return _one_line(text).replace("`", "'")


def in_code_of_a_cell(text: str) -> str:
    """As :func:`in_code`, inside a table."""
    return in_code(text).replace("|", "\\|")


def in_comment(text: str) -> str:
    """Return the words as they may stand in an HTML comment, which they cannot end."""
    kept = _one_line(text)
    return kept.replace(">", "&gt;") if re.search(r"--!?>|^-?>", kept) else kept


def _one_line(text: str) -> str:
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
