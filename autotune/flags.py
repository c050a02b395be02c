"""Texts of flags to values. Every function raises BadInputError in one line that names the flag."""

from __future__ import annotations

import re

from autotune.core import BadInputError


def seconds(text: str | None) -> float | None:
    """``90``, ``90s``, ``10m`` or ``2h`` to seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None:
        raise BadInputError(f"--budget {text}: expected a time such as 90s, 10m or 2h")
    value = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
    if not 0 < value < float("inf"):
        raise BadInputError(f"--budget {text}: must be more than nothing, and a time")
    return value


def batch_sizes(text: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """``1,8,64`` to ascending values of M; nothing to ``default``."""
    if text is None:
        return default
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInputError(f"--batch-sizes {text}: expected numbers such as 1,8,64") from None
    for size in sizes:
        if not 1 <= size <= 1_048_576:
            raise BadInputError(f"--batch-sizes: {size} is not between 1 and 1048576")
        if sizes.count(size) > 1:
            raise BadInputError(f"--batch-sizes: {size} is given twice")
    return tuple(sorted(sizes))


def study_name(text: str | None) -> str | None:
    """The name is part of paths: it must not lead out of ``--out``."""
    if text is not None and re.fullmatch(r"\w[\w.+ -]{0,99}", text) is None:
        raise BadInputError(
            f"--study {text!r}: expected up to 100 letters, digits and any of ._+- after the first"
        )
    return text


def fraction(text: str, flag: str) -> float:
    """``1%`` or ``0.01`` to 0.01."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value < 1:
        raise BadInputError(
            f"{flag} {text}: expected a share from 0 to below 1, such as 1% or 0.01"
        )
    return value
