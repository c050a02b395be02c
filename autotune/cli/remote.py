"""A service elsewhere: asks it, follows a job there, and ends here as the job ended."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from autotune.cli.already_said import AlreadySaidError
from autotune.cli.common import print_json
from autotune.cli.consoles import err
from autotune.cli.requests import Watched
from autotune.core import BadInputError, ExitCode, MissingEnvironmentError
from autotune.machine.environment import exported
from autotune.serving.server import web
from autotune.util.edge import EdgeError, bad_input, parse_json, read_text
from autotune.util.escape import for_terminal
from autotune.util.secret import remember

LOOK_S = 1.0
PATIENCE_S = 600.0
"""A service that is gone may come back so long: its jobs go on, or go on when it starts."""
_TIMEOUT_S = 120.0
_LOOK_TIMEOUT_S = 20.0
_PARTS = 64
"""Answers with a log's next part that are asked for before the job is looked at again."""
MOST_LOG = 1 << 29
"""Characters of a log. Our service ends a job whose log is half as long: one of more is no log."""
_STATES = {"QUEUED", "RUNNING", "STOPPING"}
_ENDED = {"SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED"}
_TOKEN_FILE = Path("outputs/serve.token")
_LOCAL = {"127.0.0.1", "localhost", "::1"}


class Remote:
    """A service, by its URL and token."""

    def __init__(self, url: str | None, token_file: Path | None) -> None:
        """Read the token; nothing is sent yet.

        Raises:
            BadInputError: there is no service named, or no token for it.
        """
        given = url or exported("AUTOTUNE_SERVER")
        if not given:
            raise BadInputError("--server: is missing; name the service, or set AUTOTUNE_SERVER")
        self.url = _checked(given)
        token = _token(self.url, token_file)
        self.words = ["--server", self.url]
        """What a command needs to find this service again."""
        if token_file is not None:
            self.words += ["--token-file", str(token_file)]
        remember([token])
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        more: Mapping[str, str] | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> web.Reply:
        """Ask the interface for programs; gives an answer that is none of an error.

        Raises:
            web.UnansweredError: nobody answers.
            AutotuneError: the service refuses, in its words, with the exit code of the command.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {**self._headers, **(more or {})}
        url = f"{self.url}/api/v1{path}"
        reply = web.ask(method, url, timeout_s, headers, data)
        if reply.status >= 400:
            raise _refusal(reply)
        return reply

    def get(self, method: str, path: str, body: Any = None) -> Any:
        """Ask as :meth:`ask`; gives the JSON document.

        Raises:
            AutotuneError: also where nobody answers.
        """
        try:
            return _document(self.ask(method, path, body))
        except web.UnansweredError as error:
            raise self.silent(str(error)) from None

    def submit(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Queue a job, once, however often the network makes us ask."""
        key = {"Idempotency-Key": secrets.token_hex(16)}
        for attempt in (1, 2, 3):
            try:
                found: dict[str, Any] = _document(self.ask("POST", "/jobs", job, key))
                return found
            except web.UnansweredError as error:
                if attempt == 3:
                    raise self.silent(str(error)) from None
                time.sleep(LOOK_S)
        raise AssertionError

    def silent(self, why: str) -> MissingEnvironmentError:
        """Make the line about a service that does not answer."""
        return MissingEnvironmentError(f"--server {self.url}: {why}")


@contextlib.contextmanager
def understood(remote: Remote) -> Iterator[None]:
    """Say in one line that a service answers as none of ours does: it may be anybody's.

    Raises:
        MissingEnvironmentError: its documents are of another shape.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise remote.silent(f"answers as no service of autotune does ({said})") from error
    except web.UnansweredError as error:
        raise remote.silent(str(error)) from None


def run_there(request: Watched, kind: str) -> None:
    """Run a command at a service as if it ran here.

    Raises:
        AutotuneError: the service refuses, or cannot be reached.
        AlreadySaidError: with the exit code of the job, whose words were shown.
    """
    places = sorted(request.given() & {"out", "db", "events"})
    if places:
        raise BadInputError(
            f"{request.flag_name(places[0])}: the service has its own; leave it out"
        )
    if list(request.secrets()):
        raise BadInputError("--header: goes to no service; set AUTOTUNE_HEADER where it starts")
    remote = Remote(request.server, request.token_file)
    with understood(remote):
        _run(request, kind, remote)


def _run(request: Watched, kind: str, remote: Remote) -> None:
    ours = {"server", "token_file", "detach", "dry_run", "command"}
    given = request.model_dump(mode="json", exclude_unset=True)
    body = {"kind": kind, "args": {n: v for n, v in given.items() if n not in ours}}
    if request.dry_run:
        found = remote.get("POST", "/jobs:validate", body)
        if request.as_json:
            print_json(found["plan"])
        for line in found["said"]:
            typer.echo(for_terminal(line), err=True)
        return
    with _interrupted(f"the job may be queued; see: {_command(remote, 'list')}"):
        job = remote.submit(body)
    _say(f"job {job['id']} at {remote.url}")
    if request.detach:
        print_json(job) if request.as_json else typer.echo(for_terminal(str(job["id"])))
        return
    watch(remote, int(job["id"]), heard=True)


def _command(remote: Remote, *words: str) -> str:
    return shlex.join(["autotune", "jobs", *words, *remote.words])


@contextlib.contextmanager
def _interrupted(*lines: str) -> Iterator[None]:
    """Leave a service alone at Ctrl-C, and say what becomes of what was asked for.

    The command's own answer to a signal is about work of this machine.

    Raises:
        AlreadySaidError: it was pressed.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    try:
        for number in ours:
            signal.signal(number, signal.default_int_handler)
        yield
    except KeyboardInterrupt:
        if err.is_terminal:
            err.print()  # below the ^C
        _say(lines[0])
        for line in lines[1:]:
            err.print(line, markup=False, soft_wrap=True)
        raise AlreadySaidError(ExitCode.INTERRUPTED) from None
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def watch(
    remote: Remote,
    job_id: int,
    *,
    log: bool = True,
    limit_s: float | None = None,
    heard: bool = False,
) -> None:
    """Show what a job says until it has ended, and end as it did.

    Ctrl-C leaves the job alone.

    Args:
        remote: the service.
        job_id: of the job.
        log: show its log too.
        limit_s: wait no longer than so many seconds.
        heard: the service has answered already, and is waited for (:data:`PATIENCE_S`) if it goes.

    Raises:
        MissingEnvironmentError: nobody answers, what answers is none of our services, or the limit
            has passed.
        AlreadySaidError: the job did not end well, or Ctrl-C was pressed.
    """
    number = str(job_id)
    again = _command(remote, *(("logs", number, "-f") if log else ("wait", number)))
    detached = (
        f"detached; job {job_id} goes on",
        f"  attach again: {again}",
        f"  end it:       {_command(remote, 'cancel', number)}",
    )
    with _interrupted(*detached):
        until = time.monotonic() + (math.inf if limit_s is None else limit_s)
        job = _followed(remote, job_id, log=log, until=until, heard=heard)
        if job is None:
            raise MissingEnvironmentError(
                f"job {job_id} has not ended within {limit_s:g} s, and goes on; wait again: {again}"
            )
        end(job, remote)


def _followed(
    remote: Remote, job_id: int, *, log: bool, until: float, heard: bool
) -> dict[str, Any] | None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(
        *columns, TimeElapsedColumn(), console=err, transient=True, disable=not err.is_terminal
    )
    offset, lost = 0, None
    with bar:
        task = bar.add_task("waits", total=None)
        while time.monotonic() <= until:
            try:
                job = _job_of(remote.ask("GET", f"/jobs/{job_id}", timeout_s=_LOOK_TIMEOUT_S))
                heard = True
                if log:
                    offset = _show_log(remote, job_id, offset)
            except (web.UnansweredError, MissingEnvironmentError) as error:
                if not heard:
                    raise
                lost = _patient(lost, remote, str(error))
            else:
                lost = None
                _show_progress(bar, task, job)
                if job["state"] in _ENDED:
                    return job
            time.sleep(max(0.0, min(LOOK_S, until - time.monotonic())))
    return None


def _job_of(reply: web.Reply) -> dict[str, Any]:
    job = _document(reply)
    if job["state"] not in _STATES | _ENDED:
        raise ValueError(f"a job's state is {job['state']!r}")
    return dict(job)


def _patient(since: float | None, remote: Remote, why: str) -> float:
    now = time.monotonic()
    if since is None:
        _say(f"the service does not answer ({why}); its jobs go on, asking again")
        return now
    if now - since > PATIENCE_S:
        raise remote.silent(f"has not answered for {PATIENCE_S:g} s ({why})")
    return since


def _show_log(remote: Remote, job_id: int, offset: int) -> int:
    """Show the next parts of a log; the job is looked at before all of a long one is shown."""
    shown = offset
    parts = log_lines(remote, job_id, offset, _PARTS)
    for shown, line in parts:  # noqa: B007 - the last is returned
        err.print(line, markup=False, soft_wrap=True)
    return shown


def log_lines(
    remote: Remote, job_id: int, offset: int = 0, most: int | None = None
) -> Iterator[tuple[int, str]]:
    """Iterate over what is there of a job's log, each line with the offset behind its part.

    Args:
        remote: the service.
        job_id: of the job.
        offset: where to begin.
        most: parts to ask for; None for all that are there.

    Raises:
        web.UnansweredError: nobody answers.
        ValueError: the log is longer than that of a job can be.
    """
    taken = 0
    for _ in itertools.count() if most is None else range(most):
        path = f"/jobs/{job_id}/log?offset={offset}"
        reply = remote.ask("GET", path, timeout_s=_LOOK_TIMEOUT_S)
        following = reply.headers.get("x-next-offset", "")
        if not reply.text or not following.isdecimal() or int(following) <= offset:
            return
        offset, taken = int(following), taken + len(reply.text)
        if max(offset, taken) > MOST_LOG:
            raise ValueError("its log has no end")
        yield from ((offset, line) for line in reply.text.splitlines())


def _show_progress(bar: Progress, task: Any, job: Mapping[str, Any]) -> None:
    progress = job.get("progress") or {}
    said = f"{job['state'].lower()} {progress.get('at') or ''}".strip()
    done, total = progress.get("done") or 0, progress.get("total")
    bar.update(task, description=for_terminal(said), completed=done, total=total)


def end(job: Mapping[str, Any], remote: Remote) -> None:
    """Print what the job printed, and end as it did.

    Raises:
        AlreadySaidError: the job did not end well.
    """
    name = "result.json" if (job.get("args") or {}).get("as_json") else "result.txt"
    try:
        text = remote.ask("GET", f"/jobs/{job['id']}/artifacts/{name}").text
        sys.stdout.write("".join(map(_line, text.splitlines(keepends=True))))
        sys.stdout.flush()
    except BadInputError:
        pass  # it never came so far
    except web.UnansweredError as error:
        raise remote.silent(str(error)) from None
    code = job.get("exit_code")
    if job["state"] != "SUCCEEDED" and job.get("reason"):
        _say(str(job["reason"]))
    if job["state"] in {"CANCELLED", "INTERRUPTED"}:
        raise AlreadySaidError(ExitCode.INTERRUPTED)
    if code not in set(ExitCode):
        raise AlreadySaidError(ExitCode.MISSING_ENVIRONMENT)
    if code != ExitCode.DONE:
        raise AlreadySaidError(ExitCode(code))


def _line(text: str) -> str:
    return for_terminal(text.rstrip("\n")) + ("\n" if text.endswith("\n") else "")


def _say(text: str) -> None:
    err.print(f"autotune: {text}", markup=False, soft_wrap=True)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise BadInputError("--server: expected a URL such as http://127.0.0.1:8077")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise BadInputError("--server: expected a URL without a path, such as http://spark:8077")
    return f"{parts.scheme}://{parts.netloc}"


def _token(url: str, file: Path | None) -> str:
    if file is None:
        if token := exported("AUTOTUNE_TOKEN"):
            return token.strip()
        if urlsplit(url).hostname not in _LOCAL or not _TOKEN_FILE.exists():
            raise BadInputError(
                "--token-file: is missing; name the file with the service's token, or set "
                "AUTOTUNE_TOKEN"
            )
        file = _TOKEN_FILE
    try:
        token = read_text(file, 4096).strip()
    except (EdgeError, OSError) as error:
        raise bad_input(file, error) from None
    if not token.isascii() or not token.isprintable() or " " in token or not token:
        raise BadInputError(f"{file}: holds no token")
    return token


def _document(reply: web.Reply) -> Any:
    try:
        return parse_json(reply.text) if reply.text else None
    except EdgeError as error:
        raise web.UnansweredError(f"its answer is {error}") from None


def _refusal(reply: web.Reply) -> Exception:
    try:
        found = parse_json(reply.text)
        said, code = str(found["detail"]), found.get("exit_code")
    except (EdgeError, KeyError, TypeError, AttributeError):
        return web.UnansweredError(f"HTTP {reply.status}, and no word of this service")
    if reply.status >= 500 or reply.status == 429:
        return MissingEnvironmentError(said)
    kinds: dict[Any, Callable[[str], Exception]] = {3: MissingEnvironmentError}
    return kinds.get(code, BadInputError)(said)
