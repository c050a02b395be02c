"""Texts of flags to values. Every function raises BadInputError in one line that names the flag."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from autotune.core import BadInputError

MOST_TOKENS = 1_048_576
"""The largest M."""


def typed(text: str) -> str:
    """Show a text as it was typed, where it stays in its line."""
    return text if text.isprintable() else json.dumps(text)


def seconds(text: str, flag: str) -> float:
    """Read ``90s``, ``10m`` or ``2h`` as seconds; a bare number could be any of them."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smh])", text.strip(), re.ASCII)
    value = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if value <= 0:
        raise BadInputError(f"{flag} {typed(text)}: expected a time such as 90s, 10m or 2h")
    return value


def batch_sizes(text: str | None, default: tuple[int, ...]) -> tuple[int, ...]:
    """Read ``1,8,64`` as ascending values of M; nothing, or ``auto``, as ``default``."""
    if text is None or text == "auto":
        return default
    return counts(text, "--batch-sizes", 1, MOST_TOKENS)


def counts(text: str, flag: str, least: int, most: int) -> tuple[int, ...]:
    """Read ``1,8,64`` as ascending numbers, none of them twice."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInputError(f"{flag} {typed(text)}: expected numbers such as 1,8,64") from None
    for number in numbers:
        within(number, flag, least, most)
        if numbers.count(number) > 1:
            raise BadInputError(f"{flag}: {number} is given twice")
    return tuple(sorted(numbers))


def each_once(values: Sequence[object], flag: str) -> None:
    """Refuse a list in which something stands twice.

    Raises:
        BadInputError: so it is.
    """
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise BadInputError(f"{flag}: {typed(str(twice))} is given twice")


def decode_sizes(gamma: str | None, concurrency: str | None) -> tuple[int, ...]:
    """Return the M of decoding: (γ+1) tokens for each of b sequences, for every γ and b.

    Verifying γ drafted tokens runs the target over γ+1 positions of each sequence (vLLM
    v1/spec_decode); γ=0, no speculation, is always among them.
    """
    if gamma is None and concurrency is None:
        return ()
    drafted = counts(gamma, "--gamma", 0, 64) if gamma is not None else ()
    sequences = counts(concurrency, "--concurrency", 1, 65_536) if concurrency is not None else (1,)
    sizes = sorted({(g + 1) * b for g in {0, *drafted} for b in sequences})
    if sizes[-1] > MOST_TOKENS:
        raise BadInputError(
            f"--gamma with --concurrency: {sizes[-1]} tokens are more than {MOST_TOKENS}"
        )
    return tuple(sizes)


def mebibytes(text: str | None) -> int | None:
    """Read ``8G``, ``8GiB`` or ``500M`` as MiB."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])(?:i?B)?", text.strip())
    value = float(match[1]) * {"M": 1, "G": 1024}[match[2]] if match else 0.0
    if not 512 <= value < 2**30:
        raise BadInputError(f"--memory-limit {typed(text)}: expected 512M or more, such as 16G")
    return round(value)


def study_name(text: str | None) -> str | None:
    """Refuse a name that, as part of a path, could lead out of ``--out``."""
    if text is not None and re.fullmatch(r"\w[\w.+ -]{0,99}", text) is None:
        raise BadInputError(
            f"--study {text!r}: expected up to 100 letters, digits and any of ._+- after the first"
        )
    return text


def fraction(text: str, flag: str) -> float:
    """Read ``1%`` or ``0.01`` as 0.01."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value < 1:
        raise BadInputError(
            f"{flag} {typed(text)}: expected a share from 0 to below 1, such as 1% or 0.01"
        )
    return value


def one_line(text: str | None, flag: str) -> None:
    """Refuse what is empty or breaks lines; None is no text."""
    if text is not None and (not text.strip() or not text.isprintable()):
        raise BadInputError(f"{flag} {text!r}: expected a line of text")


def plain_text(text: str, flag: str) -> None:
    """Refuse what no file and no database can hold; a shell gives no NUL, JSON may."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise BadInputError(f"{flag}: is not UTF-8 text, or holds a NUL character")


def one_of(text: str, flag: str, choices: Iterable[str]) -> None:
    """Refuse what is not among ``choices``."""
    if text not in choices:
        raise BadInputError(f"{flag} {typed(text)}: not one of {', '.join(choices)}")


def within(number: int | None, flag: str, least: int, most: int) -> None:
    """Refuse a number below ``least`` or above ``most``; None is no number."""
    if number is not None and not least <= number <= most:
        raise BadInputError(f"{flag} {number}: expected {least} to {most}")
