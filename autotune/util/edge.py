"""The edge: where files and JSON of others enter, and leave plain, finite, encodable values.

Past it the code trusts what it has: text of a known size from a regular file; JSON whose numbers
are finite and of ordinary length, whose nesting is shallow, and whose texts can be written.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from autotune.core import BadInputError

MIB = 1 << 20
SMALL = 4 * MIB
"""Bytes of a file that people write, or a model's ``config.json`` (some 5 KiB)."""
LARGE = 128 * MIB
"""Bytes of the largest small file of a model: ``tokenizer.json`` has up to 35 MiB."""
MOST = 2**53
"""Counts are below it: up to here a float holds every whole number."""
_DEPTH = 64
_DIGITS = 40
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


class EdgeError(ValueError):
    """What is wrong with data of others, in one line without its name."""


@contextmanager
def open_file(path: Path, *, pipe: bool = False) -> Iterator[BinaryIO]:
    """Open a regular file to read: the one way in for files of others.

    Args:
        path: of the file.
        pipe: whether a pipe will do as well, which the caller must not wait for.

    Raises:
        EdgeError: a pipe, a device, a socket.
        OSError: a folder, not there, or not to be read; its ``strerror`` says why.
    """
    # Without O_NONBLOCK a pipe would be waited for; what was opened is looked at, not the name.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode) and not (pipe and stat.S_ISFIFO(mode)):
            raise EdgeError("is not a regular file")
        yield file


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        EdgeError: a pipe, a device, or longer.
        OSError: a folder, not there, or not to be read; its ``strerror`` says why.
    """
    with open_file(path) as file:
        # A sparse file may say terabytes, and one of /proc says nothing of its size.
        too_large = os.fstat(file.fileno()).st_size > limit
        data = b"" if too_large else read_some(file, limit + 1)
    if too_large or len(data) > limit:
        raise EdgeError(f"is larger than {_size(limit)}, which no such file should be")
    return data


def read_some(file: BinaryIO, count: int) -> bytes:
    """At most so many bytes of a file that :func:`open_file` opened, from where it stands.

    Raises:
        OSError: it cannot be read, or has nothing to say yet.
    """
    taken = bytearray()
    while len(taken) < count:
        part = file.read(min(count - len(taken), MIB))
        if part is None:  # of /proc or /sys, and it would wait
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if not part:
            break
        taken += part
    return bytes(taken)


def read_ends(path: Path, head: int, tail: int) -> bytes:
    """A regular file, or of a longer one so many bytes of its beginning and of its end, as lines.

    Raises:
        EdgeError, OSError: as :func:`open_file`.
    """
    with open_file(path) as file:
        return ends_of(file, head, tail)


def ends_of(file: BinaryIO, head: int, tail: int) -> bytes:
    """As :func:`read_ends`, of a file that is open."""
    size = os.fstat(file.fileno()).st_size
    if size <= head + tail:
        return read_some(file, head + tail)
    first = read_some(file, head)
    file.seek(size - tail)
    return first + b"\n" + read_some(file, tail)


def unpacked(data: bytes, limit: int) -> bytes:
    """Return what gzip packed, up to ``limit`` bytes: a kilobyte may hold a gigabyte.

    Raises:
        EdgeError: longer, or not of gzip.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            found = file.read(limit + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise EdgeError(f"not of gzip: {error}") from None
    if len(found) > limit:
        raise EdgeError(f"unpacks to more than {_size(limit)}")
    return found


def read_text(path: Path, limit: int = SMALL) -> str:
    """As :func:`read_bytes`, as UTF-8 text; a byte order mark is left out.

    Raises:
        EdgeError: as there, or not UTF-8.
        OSError: as there.
    """
    return as_text(read_bytes(path, limit))


def read_json(path: Path, limit: int = SMALL) -> Any:
    """As :func:`read_bytes`, as JSON (:func:`parse_json`).

    Raises:
        EdgeError: as there, or not JSON.
        OSError: as there.
    """
    return parse_json(read_bytes(path, limit))


def as_text(data: bytes) -> str:
    """UTF-8 bytes as text; a byte order mark is left out.

    Raises:
        EdgeError: not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EdgeError(f"not UTF-8 at byte {error.start}") from None


def parse_json(data: str | bytes, twice: set[str] | None = None, *, lost: bool = False) -> Any:
    """The value of a JSON text; of a key that is there twice the last value, as JSON readers do.

    Args:
        data: UTF-8.
        twice: takes the keys that one object has twice.
        lost: whether NaN and Infinity become None, as in files that Python wrote, or are refused.

    Raises:
        EdgeError: not JSON; NaN or Infinity; a number that no machine type holds; nesting beyond
            64; half of a surrogate pair.
    """
    try:
        text = as_text(data) if isinstance(data, bytes | bytearray) else data
    except EdgeError as error:
        raise EdgeError(f"not JSON: {error}") from None
    try:
        value = _decoder(twice, lost=lost).decode(text)
    except json.JSONDecodeError as error:
        raise EdgeError(
            f"not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except RecursionError:
        raise EdgeError("not JSON: nested too deep") from None
    halves = _SURROGATE.search(text) is not None
    if not halves and text.count("[") + text.count("{") <= _DEPTH:
        return value  # as are the many small ones of a database
    for depth, one in _containers(value, halves=halves):
        if depth > _DEPTH:
            raise EdgeError("not JSON: nested too deep")
        if isinstance(one, str):
            _check_encodable(one)
    return value


_Hook = Callable[[Sequence[tuple[str, Any]]], Any]


def _decoder(twice: set[str] | None, *, lost: bool) -> json.JSONDecoder:
    if twice is None:
        return _DECODERS[lost]
    return _made(lambda pairs: _object(pairs, twice), lost=lost)


def _made(hook: _Hook | None = None, *, lost: bool) -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_constant=(lambda _: None) if lost else _refuse,
        parse_int=_whole_number,
        parse_float=_finite,
        object_pairs_hook=hook,
    )


def whole(value: Any, what: str, least: int = 0) -> int:
    """A count: a whole number from ``least`` to 2^53.

    Raises:
        EdgeError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < MOST:
        raise EdgeError(f"{what}: expected a whole number from {least}, found {shown(value)}")
    return value


def number(value: Any, what: str) -> float:
    """A finite number.

    Raises:
        EdgeError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise EdgeError(f"{what}: expected a number, found {shown(value)}")
    return float(value)


def text(value: Any, what: str, longest: int) -> str:
    """A text that can be written, of at most so many characters.

    Raises:
        EdgeError: anything else.
    """
    if not isinstance(value, str) or len(value) > longest:
        raise EdgeError(f"{what}: expected a text of up to {longest} characters")
    _check_encodable(value)
    return value


def shown(value: Any) -> str:
    """A foreign value for a message: cut, and in characters that can be written."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**_DIGITS:
        return f"a number of over {_DIGITS} digits"
    try:
        said = json.dumps(value)
    except (TypeError, ValueError):
        said = type(value).__name__
    return said if len(said) <= 60 else f"{said[:57]}..."


def _containers(value: Any, *, halves: bool) -> Iterator[tuple[int, Any]]:
    """Every object and list with its depth, without recursion; with ``halves`` every text too."""
    left = [(1, value)]
    wanted = (dict, list, str) if halves else (dict, list)
    while left:
        depth, one = left.pop()
        yield depth, one
        if isinstance(one, dict):
            left.extend((depth + 1, inner) for inner in one.values() if isinstance(inner, wanted))
            if halves:
                left.extend((depth, key) for key in one)
        elif isinstance(one, list):
            left.extend((depth + 1, inner) for inner in one if isinstance(inner, wanted))


def _check_encodable(one: str) -> None:
    try:
        one.encode()
    except UnicodeEncodeError:
        raise EdgeError("holds half of a surrogate pair, which is no text") from None


def _object(pairs: Sequence[tuple[str, Any]], twice: set[str]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            (twice if name in seen else seen).add(name)
    return found


def _refuse(name: str) -> NoReturn:
    raise EdgeError(f"not JSON: {name} is no number")


def _whole_number(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise EdgeError(f"not JSON: a number of over {_DIGITS} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise EdgeError("not JSON: a number too large for a float")
    return value


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


_DECODERS = {lost: _made(lost=lost) for lost in (False, True)}
"""Made once: a study has thousands of texts, and each decoder takes longer than its text."""


def _size(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // 1024} KiB"


def bad_input(path: Path | str, error: Exception) -> BadInputError:
    """The one line about a file of the user that could not be read.

    Args:
        path: as the user knows it.
        error: what the functions of this module raise.
    """
    if isinstance(error, OSError):
        return BadInputError(f"{path}: cannot be read: {error.strerror or error}")
    return BadInputError(f"{path}: {error}")
