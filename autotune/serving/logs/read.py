"""Reads a log as lines: bounded, and without the prefixes and colours of those who passed it on.

A log is of others: it may be endless, binary, one line of megabytes, or a pipe that nobody writes
into. Its head and its tail are read, and every step takes linear time.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from autotune.util import edge
from autotune.util.edge import EdgeError

HEAD, TAIL = 1 << 20, 4 << 20
"""Bytes that are read of the beginning, which tells the settings, and of the end."""
_STREAM_BYTES = 256 << 20
_STREAM_S, _SILENCE_S = 20.0, 5.0
"""A pipe is read until its end, but no longer than this in all, or without a word."""
_LINES = 20_000, 80_000
_LINE_CHARS = 16_384
"""vLLM's longest line, its configuration, has some 6,000 characters."""
_ROUNDS = 8

_COLOUR = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-Z\\^-~])"
    r"|(?:\^\[|#033|\\x1b|\\u001b)\[[0-9;]*m"  # as journald and JSON write them
)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        r"\[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?(?:Z|[+-]\d\d:?\d\d)?\]?[ \t]",
        r"(?:stdout|stderr) [FP] ",  # Kubernetes
        r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d{1,9})? [\w.-]{1,64} [\w./@:-]{1,64}"
        r"(?:\[\d+\])?: ",  # syslog, journald
        r"[\w.-]{1,64} [\w./@:-]{1,64}\[\d{1,9}\]: ",  # journald -o short-iso, behind its date
        r"[A-Za-z][\w.-]{0,63} {0,32}\| ",  # Docker Compose
        r"\[[\w.-]{1,40}(?:-\d+)?\] \| ",  # Podman Compose
        r"\[rank\d+\]:? ?",
    )
)
_SOURCE = re.compile(r"\([^()=]{0,96}(?:pid|ip)=[^()]{0,128}\) ?")
_LEVEL = re.compile(
    r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? "
    r"(?:\[[^\]]{0,120}\]|[\w./]{1,80}:\d+\]) ?"
)
_REPEATED = re.compile(r" ?\[repeated \d+x across (?:cluster|actors)\](?: ?\([^()]*\))?\s*$")


@dataclass(frozen=True)
class Line:
    """One line, bare.

    Attributes:
        text: without prefixes; indentation is kept.
        source: such as ``EngineCore pid=93``, by which interleaved processes are told apart.
        level: of vLLM's logger; empty for a line that it did not write.
    """

    text: str
    source: str = ""
    level: str = ""


def read_log(path: Path) -> bytes:
    """The head and the tail of a regular file, or what a pipe gives in time.

    Raises:
        EdgeError: a device or another thing that is no log.
        OSError: a folder, not there, or not to be read.
    """
    with edge.open_file(path, pipe=True) as file:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            return read_stream(file.fileno())
        return edge.ends_of(file, HEAD, TAIL)


def read_stream(descriptor: int) -> bytes:
    """The head and the tail of what comes from a pipe, a terminal or a socket, in bounded time."""
    began = time.monotonic()
    head, tail, read = bytearray(), bytearray(), 0
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(descriptor, selectors.EVENT_READ)
        except PermissionError:  # a regular file is always ready
            selector.close()
            return os.read(descriptor, HEAD + TAIL)
        while read < _STREAM_BYTES and time.monotonic() - began < _STREAM_S:
            if not selector.select(_SILENCE_S):
                break
            try:
                part = os.read(descriptor, 1 << 20)
            except BlockingIOError:
                continue
            if not part:
                break
            read += len(part)
            room = HEAD - len(head)
            head += part[:room]
            tail += part[max(room, 0) :]
            if len(tail) > 2 * TAIL:
                del tail[:-TAIL]
    joint = b"\n" if read > HEAD + TAIL else b""
    return bytes(head + joint + tail[-TAIL:])


def lines_in(log: Path | None) -> list[Line]:
    """The lines of a server's log; none where it has no log, or one that cannot be read."""
    try:
        return lines_of(read_log(log)) if log is not None else []
    except (EdgeError, OSError):
        return []


def lines_of(data: bytes) -> list[Line]:
    """The lines of a log, the last ones and the first ones where there are too many."""
    text = _decode(data)
    first, last = _LINES
    raw = text.split("\n")
    if len(raw) > first + last:
        raw = raw[:first] + raw[-last:]
    return [_bare(line) for line in raw]


def is_text(data: bytes) -> bool:
    """Whether it is mostly text: a log with a few broken bytes is, an archive is not."""
    sample = data[: 64 << 10] + data[-(64 << 10) :]
    text = _COLOUR.sub("", _decode(sample, strip=False))
    odd = sum(text.count(c) for c in map(chr, (*range(9), *range(14, 32), 0xFFFD)))
    return odd * 10 <= max(len(text), 1)


def _decode(data: bytes, *, strip: bool = True) -> str:
    wide = data[:2] in {b"\xff\xfe", b"\xfe\xff"}  # PowerShell's redirection
    text = data.decode("utf-16" if wide else "utf-8", "replace").removeprefix("\ufeff")
    return _CONTROL.sub("", _COLOUR.sub("", text)) if strip else text


def _bare(line: str) -> Line:
    line = _unwrap_json(line.rstrip()[-_LINE_CHARS:] if "\r" in line else line[:_LINE_CHARS])
    line = line.rstrip().rpartition("\r")[2]  # what a progress bar wrote over
    source = level = ""
    for _ in range(_ROUNDS):
        before = len(line)
        if found := _SOURCE.match(line):
            source = source or found[0].strip("() ")
            line = line[found.end() :]
        elif found := _LEVEL.match(line):
            level = found[1]
            line = line[found.end() :]
        else:
            line = _without_prefix(line)
        if len(line) == before:
            break
    return Line(_REPEATED.sub("", line) if "[repeated " in line else line, source, level)


def _without_prefix(line: str) -> str:
    if not line or line[0] in " \t":
        return line
    for prefix in _PREFIXES:
        if found := prefix.match(line):
            return line[found.end() :]
    return line


def _unwrap_json(line: str) -> str:
    """The message of a line in JSON, as Docker's ``json-file`` and structured loggers write it."""
    if not line.startswith('{"'):
        return line
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if isinstance(value, dict):
        for key in ("log", "message", "msg", "MESSAGE"):
            if isinstance(value.get(key), str):
                return _CONTROL.sub("", _COLOUR.sub("", value[key])).rstrip().replace("\n", " ")
    return line
