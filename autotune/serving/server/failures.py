"""What went wrong with a vLLM server, read off its exit status and its log.

vLLM's last lines are usually noise ("Engine core initialization failed. See root cause above"), so
the errors are gone through from the last to the first. The phrases come from vLLM 0.32.0; the
tests provoke what a CPU can and name the source file of the rest.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from autotune.core import Outcome

_LOG_BYTES = 4 << 20
_LINE_CHARS = 400


class FailureKind(StrEnum):
    """Why a server does not serve."""

    BAD_FLAG = "bad_flag"
    BAD_VALUE = "bad_value"
    MODEL_MISSING = "model_missing"
    KV_CACHE_TOO_SMALL = "kv_cache_too_small"
    OUT_OF_MEMORY_AT_START = "out_of_memory_at_start"
    OUT_OF_MEMORY_UNDER_LOAD = "out_of_memory_under_load"
    HANG = "hang"
    EXIT_ZERO = "exit_zero"
    """It ended by itself with status 0, which vLLM does when its engine dies under load."""
    PORT_TAKEN = "port_taken"
    CRASH = "crash"


_OUTCOMES = {
    FailureKind.BAD_FLAG: Outcome.CONSTRAINT,
    FailureKind.BAD_VALUE: Outcome.CONSTRAINT,
    FailureKind.MODEL_MISSING: Outcome.RUNTIME_ERROR,
    FailureKind.KV_CACHE_TOO_SMALL: Outcome.OUT_OF_MEMORY,
    FailureKind.OUT_OF_MEMORY_AT_START: Outcome.OUT_OF_MEMORY,
    FailureKind.OUT_OF_MEMORY_UNDER_LOAD: Outcome.OUT_OF_MEMORY,
    FailureKind.HANG: Outcome.TIMEOUT,
    FailureKind.EXIT_ZERO: Outcome.CRASH,
    FailureKind.PORT_TAKEN: Outcome.RUNTIME_ERROR,
    FailureKind.CRASH: Outcome.CRASH,
}


@dataclass(frozen=True)
class ServerFailure:
    """How a server failed.

    Attributes:
        kind: the class of the failure.
        line: the log's telling line, without the prefixes that vLLM adds; never empty.
        exit_code: of the server, 128 plus the signal where one ended it; None if it still ran.
        log: where the whole log lies; None for a server that somebody else started.
    """

    kind: FailureKind
    line: str
    exit_code: int | None = None
    log: Path | None = None

    @property
    def outcome(self) -> Outcome:
        """The outcome of a candidate whose server failed so."""
        return _OUTCOMES[self.kind]

    def __str__(self) -> str:
        where = f" (log: {self.log})" if self.log else ""
        return f"{self.kind}: {self.line}{where}"


_PREFIX = re.compile(r"^(\(\w[^)]*pid=\d+\) )?((ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[[^\]]*\] ?)?")
_ERROR = re.compile(
    r"^([\w.]+\.)?\w*(Error|Exception|Exit)(: |$)"  # the last line of a traceback
    r"|^[\w./-]+( \w+)?: error: "  # argparse
    r"|^docker: |^unknown (shorthand )?flag: "
    r"|^supervisor: "
)
_NOISE = re.compile(
    r"initialization failed.*(root cause|stack trace|background process)"
    r"|EngineDeadError|EngineGenerateError|KeyboardInterrupt|SystemExit|CancelledError"
    r"|^RuntimeError: cancelled",
    re.IGNORECASE,
)
_CHATTER = re.compile(r"resource_tracker|^\s+warnings.warn")
_OUT_OF_MEMORY = (
    r"OutOfMemoryError|out of memory|is less than desired \w+ memory utilization|^MemoryError"
    r"|is less than requested memory for kv"
    r"|can't allocate memory|Cannot allocate memory|bad_alloc"
)
_SIGNS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            FailureKind.BAD_FLAG,
            r"error: (unrecognized arguments|ambiguous option)|^unknown (shorthand )?flag: ",
        ),
        (FailureKind.BAD_VALUE, r": error: argument "),
        (FailureKind.PORT_TAKEN, r"[Aa]ddress already in use|port is already allocated"),
        (
            FailureKind.KV_CACHE_TOO_SMALL,
            r"No available memory for the cache blocks|To serve at least one request with"
            r"|larger than the (maximum number of tokens that can be stored in|available) KV cache"
            r"|is less than requested memory for kv \((-|0\.0/)",
        ),
        (FailureKind.OUT_OF_MEMORY_AT_START, _OUT_OF_MEMORY),
        (
            FailureKind.MODEL_MISSING,
            r"Invalid repository ID or local directory|LocalEntryNotFoundError"
            r"|RepositoryNotFoundError|GatedRepoError|HFValidationError|OfflineModeIsEnabled"
            r"|is not a valid model identifier|Cannot find any model weights",
        ),
    )
)
_BAD_VALUE = re.compile(r"^([\w.]+\.)?(ValidationError|ValueError|NotImplementedError)\b")
_ASSERTION = re.compile(r"Assertion `(.+)` failed")
"""Written by a kernel, for each of its threads; torch's error then says only that there was one."""
_KILLED = 128 + 9


def _read_tail(log: Path | None) -> list[str]:
    """The last lines of the log, without vLLM's prefixes."""
    if log is None:
        return []
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [_PREFIX.sub("", line, count=1).rstrip() for line in text.split("\n")]


def _errors(lines: list[str]) -> tuple[list[str], list[str]]:
    """The errors of a log in order, those that name no cause apart.

    A ValidationError takes along the two lines that say what is wrong.
    """
    found: list[str] = []
    noise: list[str] = []
    for index, line in enumerate(lines):
        if _ERROR.match(line):
            whole = line
            if "validation error" in line:
                more = " ".join(part.strip() for part in lines[index + 1 : index + 3])
                whole = f"{line}: {more.partition(' [type=')[0]}"
            (noise if _NOISE.search(line) else found).append(whole[:_LINE_CHARS])
    return found, noise


def _recognise(errors: list[str]) -> tuple[FailureKind, str] | None:
    """The last error that says by its words what it is."""
    for line in reversed(errors):
        for kind, sign in _SIGNS:
            if sign.search(line):
                return kind, line
    return None


def _last_words(lines: list[str], exit_code: int | None) -> str:
    words = (line for line in reversed(lines) if line.strip() and not _CHATTER.search(line))
    said = next(words, "nothing in its log")
    how = "still running" if exit_code is None else f"exit status {exit_code}"
    return f"{how}; last line: {said.strip()[:_LINE_CHARS]}"


def classify(
    log: Path | None, exit_code: int | None, *, served: bool, hung: bool = False
) -> ServerFailure:
    """Say why a server does not serve.

    Args:
        log: the file with its standard output and error.
        exit_code: its exit status (128 plus a signal's number); None if it still ran.
        served: whether it had answered before.
        hung: whether a time limit passed while it ran.
    """
    lines = _read_tail(log)
    errors, noise = _errors(lines)
    line = (errors or noise or [_last_words(lines, exit_code)])[-1]
    if any("device-side assert" in error for error in errors):
        asserted = next(filter(None, map(_ASSERTION.search, lines)), None)
        line = f"{line}: {asserted[1][:_LINE_CHARS]}" if asserted is not None else line
    recognised = _recognise(errors)
    if hung and (served or recognised is None):
        kind = FailureKind.HANG
        line = _last_words(lines, exit_code) if recognised is None else recognised[1]
        if log is None:
            line = "no healthy answer in time"
    elif recognised is not None and (not served or recognised[0].name.startswith("OUT")):
        kind, line = recognised
        if served:
            kind = FailureKind.OUT_OF_MEMORY_UNDER_LOAD
    elif exit_code == 0:
        kind = FailureKind.EXIT_ZERO
    elif exit_code == _KILLED and not errors:
        line = "killed by SIGKILL, most likely by the kernel for want of memory"
        kind = FailureKind.OUT_OF_MEMORY_AT_START
        if served:
            kind = FailureKind.OUT_OF_MEMORY_UNDER_LOAD
    elif not served and _BAD_VALUE.search(line):
        kind = FailureKind.BAD_VALUE
    else:
        kind = FailureKind.CRASH
    return ServerFailure(kind, line, exit_code, log)
