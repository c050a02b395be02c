"""Text of others, made harmless for where it goes."""

from __future__ import annotations

import unicodedata

_KEPT = "\n\t"
_SHOWN = "\N{REPLACEMENT CHARACTER}"


def _is_harmful(character: str) -> bool:
    """Control characters, halves of surrogate pairs, and what turns the reading direction."""
    kind = unicodedata.category(character)
    return (kind in {"Cc", "Cs", "Zl", "Zp"} and character not in _KEPT) or (
        kind == "Cf" and unicodedata.bidirectional(character) != "BN"
    )


def for_terminal(text: str) -> str:
    """The text without what a terminal obeys: escape sequences, bells, changes of direction."""
    if text.isprintable():
        return text
    return "".join(_SHOWN if _is_harmful(character) else character for character in text)


def for_json(text: str) -> str:
    """A JSON document with escapes for what a terminal obeys and JSON allows: C1, directions."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(_as_escape(c) if _is_harmful(c) else c for c in text)


def _as_escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else character
