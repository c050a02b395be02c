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
