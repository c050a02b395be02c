"""What went wrong with a vLLM server that was started here, by its exit status and its log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autotune.core import Outcome
from autotune.serving.logs.errors import CAUSE_CHARS, asserted, find_errors
from autotune.serving.logs.kinds import OUTCOMES, FailureKind, is_bad_value
from autotune.serving.logs.read import Line, lines_in

__all__ = ["FailureKind", "ServerFailure", "classify", "judge"]

_KILLED = 128 + 9
_STOPPED = {128 + 15: "SIGTERM", 128 + 2: "SIGINT"}
_ALWAYS = {
    FailureKind.OUT_OF_RESOURCES,
    FailureKind.COMPILE_FAILED,
    FailureKind.COMMUNICATION,
    FailureKind.HANG,
    FailureKind.STOPPED,
}
"""Means under load what it means at the start."""
_CHATTER = ("resource_tracker", "warnings.warn")


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
        return OUTCOMES[self.kind]

    def __str__(self) -> str:
        where = f" (log: {self.log})" if self.log else ""
        return f"{self.kind}: {self.line}{where}"


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
    kind, line = judge(lines_in(log), exit_code, served=served, hung=hung)
    if log is None and kind is FailureKind.HANG:
        line = "no healthy answer in time"
    return ServerFailure(kind, line, exit_code, log)


def judge(  # noqa: PLR0911 - one return for each sign, the surest first
    lines: list[Line], exit_code: int | None, *, served: bool, hung: bool = False
) -> tuple[FailureKind, str]:
    """The class and the telling line of a failure; see :func:`classify`."""
    errors = find_errors(lines)
    if errors.stopped_first is not None and not hung:
        return FailureKind.STOPPED, errors.stopped_first.text[:CAUSE_CHARS]
    recognised = errors.recognised()
    if hung and (served or recognised is None):
        words = _last_words(lines, exit_code)
        return FailureKind.HANG, words if recognised is None else recognised[1]
    if recognised is not None and (counts := _under_load(recognised[0], served=served)):
        return counts, recognised[1]
    if not errors.found and exit_code in _STOPPED:
        return FailureKind.STOPPED, f"{_STOPPED[exit_code]} from outside (exit status {exit_code})"
    if not errors.found and (killed := _kill(lines, exit_code)):
        return _under_load(killed[0], served=served) or killed[0], killed[1]
    cause = errors.cause()
    line = cause.text if cause else (errors.noise[-1].text if errors.noise else "")
    line = line or _last_words(lines, exit_code)
    if any("device-side assert" in error.text for error in errors.found):
        assertion = asserted(lines)
        line = f"{line}: {assertion}" if assertion else line
    if exit_code == 0:
        return FailureKind.EXIT_ZERO, line
    if not served and is_bad_value(line):
        return FailureKind.BAD_VALUE, line
    return FailureKind.CRASH, line


def _under_load(kind: FailureKind, *, served: bool) -> FailureKind | None:
    """The class of a failure after the server had served; None where the words mean little then."""
    if not served or kind in _ALWAYS:
        return kind
    if kind.name.startswith("OUT_OF_MEMORY"):
        return FailureKind.OUT_OF_MEMORY_UNDER_LOAD
    return None


def _kill(lines: list[Line], exit_code: int | None) -> tuple[FailureKind, str] | None:
    """A process of the server that SIGKILL ended, by the exit status of the server or of a part."""
    parts = (line.text for line in lines if "Failed core proc(s)" in line.text)
    if exit_code == _KILLED or any(": -9" in text for text in parts):
        line = "killed by SIGKILL, most likely by the kernel for want of memory"
        return FailureKind.OUT_OF_MEMORY_AT_START, line
    return None


def _last_words(lines: list[Line], exit_code: int | None) -> str:
    words = (
        line
        for line in reversed(lines)
        if line.text.strip() and not any(chatter in line.text for chatter in _CHATTER)
    )
    last = next(words, None)
    said = "nothing in its log" if last is None else f"{last.level} {last.text.strip()}".strip()
    how = "still running" if exit_code is None else f"exit status {exit_code}"
    return f"{how}; last line: {said[:CAUSE_CHARS]}"
