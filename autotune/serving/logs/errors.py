"""Finds the errors of a log and, of each chain of exceptions, the one that is the cause.

Python's traceback prints the cause first («was the direct cause of»), vLLM passes an error on from
worker to engine to API server («See root cause above»), and compilers write what is wrong into the
lines that follow or precede the exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from autotune.serving.logs.kinds import FailureKind, kind_of
from autotune.serving.logs.read import Line

CAUSE_CHARS = 400
_NEAR = 200
"""Lines before and after an exception in which a compiler's own words are looked for."""
_FOLLOWING = 12
_FEW = 100
"""Errors that are looked at of the beginning; four times as many of the end."""
_ERROR = re.compile(
    r"([\w.]+\.)?\w*(Error|Exception|Exit|Interrupt|OutOfResources|Failed|Unsupported|Expired"
    r"|Timeout|TimedOut|Abort|Died|Enabled|Warning)(\([\w.]+\))?(: |:?$)"
    r"|[\w./-]+( \w+)?: error: "  # argparse
    r"|(docker|podman): |unknown (shorthand )?flag: |Error: (unknown|unable|creating|initializing)"
    r"|Error response from daemon: |supervisor: |nvidia-container-cli: "
    r"|Error: OCI runtime error"
)
_ANY_CLASS = re.compile(r"([A-Za-z_]\w*\.)*[A-Z]\w*(\([\w.]+\))?(: |:?$)")
_NOT_CLASS = re.compile(r"(INFO|WARNING|ERROR|DEBUG|Traceback|File|During|The|NOTE|Note): ?")
_TRACEBACK = "Traceback (most recent call last):"
_LINKS = {
    "The above exception was the direct cause of the following exception:": "cause",
    "During handling of the above exception, another exception occurred:": "handling",
}
_NOISE = re.compile(
    r"initialization failed.*(root cause|stack trace|background process)"
    r"|EngineDeadError|EngineGenerateError|KeyboardInterrupt|SystemExit|CancelledError"
    r"|^RuntimeError: cancelled|^RuntimeError: Executor failed|^\S*Warning\b"
    r"|Ptx assembly aborted due to errors|BrokenPipeError|^docker: $"
    r"|^Exception: WorkerProc initialization failed",
    re.IGNORECASE,
)
_BUILD = re.compile(
    r"Ninja build failed|PTXASError|PTXAS error|CalledProcessError|Error (building|compiling)"
    r"|CppCompileError|InductorError|NVCC compilation failed|ninja: build stopped|non-zero exit"
)
_COMPILER_SAID = re.compile(
    r"\S+, line \d+; (fatal|error)|nvcc fatal|ptxas (fatal|error)"
    r"|\S+[:(]\d+[^ ]*: (fatal )?error|fatal error: "
    r"|(\S*ld|collect2|cc1plus|\S*g?cc|\S*[cg]\+\+|clang): .*(error|cannot find)|ninja: error"
    r"|(/bin/)?sh: .*not found|.*: error: .*"
)
_PASSED_ON = re.compile(
    r"Worker failed with error ['\"](?P<inner>.*?)['\"], ?please check", re.DOTALL
)
_SYSTEM = re.compile(
    r"(\[[ \d.]+\] )?(Memory cgroup )?[Oo]ut of memory: Kill(ed)? process"
    r"|(\[[ \d.]+\] )?oom-kill:|(earlyoom(\[\d+\])?: )?(low memory! at or below"
    r"|sending SIG(TERM|KILL))"
    r"|.*[Kk]illed .* due to memory pressure|Killed$|.*\bOOMKilled\b"
    r"|Segmentation fault|Bus error|Aborted( \(|$)|Fatal Python error: |!!!!!!! Segfault"
    r"|terminate called after throwing|(nvcc|ptxas) (fatal|error)|LLVM ERROR: "
    r"|.*Watchdog caught collective operation timeout"
    r"|Worker proc \S+ died unexpectedly|.*: command not found$"
    r"|(vllm|python3?|\S+): error while loading shared libraries: |exec .*: exec format error"
    r"|.*\[Errno 98\].*address already in use|ERROR: Unexpected bus error"
    r"|\S+ exited with code 1(37|39|43)\b"  # Docker Compose
    r"|\S+\.service: (A process of this unit has been killed by the OOM killer"
    r"|Main process exited, code=killed|Failed with result 'oom-kill')"
)
_STOP = re.compile(
    r"\[shutdown\] .*received signal=(?P<signal>SIG\w+)|^Stopping \S+\.(service|scope)\b"
)
_NCCL = re.compile(r"nccl\w+(Error|Warning): ")
"""Explains the exception before it, and says less than NCCL's own «Last error:» behind it."""
_FRAME = re.compile(r'  File "(?P<file>[^"]{1,300})", line (?P<line>\d+)')
_ASSERTION = re.compile(r"Assertion `(.+)` failed")
"""Written by a kernel, for each of its threads; torch's error then says only that there was one."""


@dataclass
class Error:
    """One error of a log.

    Attributes:
        text: in one line, with what the lines around it say where it says nothing itself.
        index: number of its line.
        source: the process that wrote it.
        link: how the error before it in the same traceback is bound to it: ``cause``, ``handling``
            or nothing.
        before: that error.
    """

    text: str
    index: int
    source: str = ""
    link: str = ""
    before: Error | None = field(default=None, repr=False)

    @property
    def is_noise(self) -> bool:
        """Whether it points to another error and names no cause."""
        return _NOISE.search(self.text) is not None

    @property
    def kind(self) -> FailureKind | None:
        """The class by its words."""
        return kind_of(self.text)

    @property
    def says_something(self) -> bool:
        """Whether it has words beside its class."""
        return bool(self.text.partition(": ")[2].strip())


@dataclass
class _Trace:
    """The traceback that a process is writing."""

    open: bool = False
    link: str = ""
    last: Error | None = None
    frame: str = ""
    code: str = ""


@dataclass
class Errors:
    """What a log holds of errors, in order: exceptions, the system's own words, a stop."""

    found: list[Error]
    noise: list[Error]
    stopped: Error | None

    def recognised(self) -> tuple[FailureKind, str] | None:
        """The last error that says by its words what it is."""
        for error in reversed(self.found):
            kind = error.kind
            if kind is not None:
                return kind, error.text
        return None

    @property
    def stopped_first(self) -> Error | None:
        """The signal from outside, where no error came before it."""
        if self.stopped is None or (self.found and self.found[0].index < self.stopped.index):
            return None
        return self.stopped

    def cause(self) -> Error | None:
        """The error to tell of: the root of the last chain, what is noise left out."""
        if not self.found:
            return None
        told = self.found[-1]
        while told.before is not None and told.link == "cause" and told.before.says_something:
            if told.before.is_noise:
                break
            told = told.before
        if told.before is not None and not told.says_something and told.before.says_something:
            told = told.before
        return told


def find_errors(lines: Sequence[Line]) -> Errors:
    """Every error of a log."""
    every = list(_walk(lines))
    every = every[:_FEW] + every[max(_FEW, len(every) - 4 * _FEW) :]
    for error in every:
        error.text = _with_neighbours(error, lines)[:CAUSE_CHARS].strip()
    every = [_unwrapped(error, every) for error in every]
    found = [error for error in every if not error.is_noise]
    noise = [error for error in every if error.is_noise]
    return Errors(found, noise, _stop(lines))


def asserted(lines: Iterable[Line]) -> str | None:
    """What a kernel asserted."""
    found = next(filter(None, (_ASSERTION.search(one.text) for one in lines)), None)
    return found[1][:CAUSE_CHARS] if found else None


def _walk(lines: Sequence[Line]) -> Iterator[Error]:
    traces: dict[str, _Trace] = {}
    for index, line in enumerate(lines):
        text, trace = line.text, traces.setdefault(line.source, _Trace())
        if not text:
            continue
        if text.startswith(_TRACEBACK):
            trace.open, trace.frame, trace.code = True, "", ""
        elif text in _LINKS:
            trace.link = _LINKS[text]
        elif trace.open and text[0] in " \t|+":
            frame = _FRAME.match(text)
            trace.frame = f"{frame['file']}:{frame['line']}" if frame else trace.frame
            trace.code = "" if frame else trace.code or text.strip()
        elif _is_error(line, in_traceback=trace.open):
            error = Error(text.rstrip(), index, line.source, trace.link)
            if trace.open and text.rstrip(": ") == "AssertionError" and trace.code:
                error.text = f"AssertionError: {trace.code} ({trace.frame})"
            error.before = trace.last if trace.link else None
            trace.last, trace.link, trace.open = error, "", False
            yield error


def _is_error(line: Line, *, in_traceback: bool) -> bool:
    text = line.text
    if line.level in {"INFO", "DEBUG"} or _NCCL.match(text):
        return False
    if _ERROR.match(text) or (_SYSTEM.match(text) and line.level != "WARNING"):
        return True
    return in_traceback and bool(_ANY_CLASS.match(text)) and not _NOT_CLASS.match(text)


def _with_neighbours(  # noqa: PLR0911 - one return for each who writes so
    error: Error, lines: Sequence[Line]
) -> str:
    """The text of an error with the line that tells what it does not."""
    text, following = error.text, _following(error, lines)
    if "validation error" in text:
        more = " ".join(part.strip() for part in following[:2])
        return f"{text}: {more.partition(' [type=')[0]}"
    if _BUILD.search(text):
        said = _compiler_said(error, lines)
        return f"{text.rstrip(': ')}: {said}" if said and said not in text else text
    if text.startswith("terminate called"):
        said = next((part for part in following if "what():" in part), "")
        return f"{text} {said.strip()}".strip()
    if "NCCL error" in text or "DistBackendError" in text:
        for here, part in enumerate(following[:-1]):
            if part.strip() == "Last error:":
                return f"{text[:250]}: {following[here + 1].strip()}"
    if "failed with" in text and following and following[0].lstrip().startswith("Error: "):
        return f"{text} {following[0].strip()}"
    if text.endswith(":") or (": " in text and not error.says_something):
        said = next((part.strip() for part in following if part.strip()), "")
        return f"{text} {said}" if said and said != _TRACEBACK else text
    return text


def _following(error: Error, lines: Sequence[Line]) -> list[str]:
    """What the same process writes next, up to another traceback."""
    said: list[str] = []
    for line in lines[error.index + 1 : error.index + 1 + _NEAR]:
        if line.source == error.source:
            if line.text.startswith(_TRACEBACK) or len(said) == _FOLLOWING:
                break
            said.append(line.text)
    return said


def _compiler_said(error: Error, lines: Sequence[Line]) -> str | None:
    """The compiler's own first error, after the exception or else before it."""
    after = lines[error.index + 1 : error.index + 1 + _NEAR]
    before = lines[max(0, error.index - _NEAR) : error.index]
    for part in (after, before):
        for line in part:
            text = line.text.strip()
            if _COMPILER_SAID.match(text) and "Error: Command" not in text:
                return text
    return None


def _unwrapped(error: Error, every: Sequence[Error]) -> Error:
    """The error that a worker had, for the engine's «Worker failed with error '…'»."""
    found = _PASSED_ON.search(error.text)
    inner = found["inner"].strip() if found else ""
    if not inner:
        return error
    same = next((e for e in every if e.index < error.index and e.text.endswith(inner)), None)
    if same is not None and same is not error:
        return same
    error.text = inner
    return error


def _stop(lines: Sequence[Line]) -> Error | None:
    for index, line in enumerate(lines):
        if found := _STOP.search(line.text):
            signal = found["signal"] or "SIGTERM"
            return Error(f"{signal} from outside: {line.text.strip()}", index, line.source)
    return None
