"""A server's processes: started under the supervisor, seen, ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from autotune.machine.guard import kill_tree
from autotune.serving.server.supervisor import CLEANUP_S, KILL_S, SUPERVISOR, SURVIVORS
from autotune.util import secret

_LINE_BYTES = 1 << 16
_LAST_WORDS_S = 2.0
LOCALHOST = "127.0.0.1"
_SLACK_S = 15.0
"""Beyond what the supervisor may take it is killed as well, and its clean-up with it."""


def child_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Our environment for a program that we start, without what is secret and ours alone."""
    ours = {name: value for name, value in os.environ.items() if name != "AUTOTUNE_HEADER"}
    return ours | dict(more)


def _filter(process: subprocess.Popen[bytes], log: Path) -> threading.Thread:
    """Copy a process's output to its log without secrets, line by line, until it ends."""

    def copy() -> None:
        source = process.stdout
        if source is None:
            return
        with source, log.open("wb") as output:
            while line := source.readline(_LINE_BYTES):
                text = line.decode("utf-8", "surrogateescape")
                output.write(secret.mask(text).encode("utf-8", "surrogateescape"))
                output.flush()

    thread = threading.Thread(target=copy, name=f"log of {process.pid}", daemon=True)
    thread.start()
    return thread


def _members(supervisor: int) -> list[psutil.Process]:
    """The supervisor with all that it started: its descendants, and its group should it be dead."""
    found = []
    with contextlib.suppress(psutil.Error):
        found = psutil.Process(supervisor).children(recursive=True)
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getpgid(process.pid) == supervisor and process not in found:
                found.append(process)
    return found


class ProcessHandle:
    """A command under :mod:`autotune.serving.server.supervisor`, in a process group of its own.

    The supervisor's standard input is a pipe that only we hold: closing it is the request to stop,
    and our death closes it too. Not a session of its own: Linux shares processors out by session
    (autogroup), and a busy server in another one kept our client waiting for seconds (seen on 2
    cores with Linux 6.18), which would be measured as the server's time.
    """

    model: str | None = None
    """It serves one."""

    def __init__(
        self,
        command: list[str],
        port: int,
        log: Path,
        grace_s: float,
        *,
        env: Mapping[str, str] | None = None,
        cleanup: list[str] | None = None,
        contained: bool = False,
    ) -> None:
        """Start ``command``.

        Args:
            command: program and arguments.
            port: where it is to serve on 127.0.0.1.
            log: replaced; takes standard output and error.
            grace_s: seconds between SIGTERM and SIGKILL.
            env: added to our own environment.
            cleanup: a command run after its end, even if we are dead by then.
            contained: the server runs in a container, where its processes are not our descendants:
                neither can they be told by the port that they hold, nor can their memory be seen.
        """
        self.url = f"http://{LOCALHOST}:{port}"
        self.log = log
        self.headers: Mapping[str, str] = {}
        self._port, self._contained = port, contained
        self._stop_s = grace_s + KILL_S + (CLEANUP_S if cleanup else 0.0) + _SLACK_S
        self._stopped = False
        self._cleanup = cleanup
        self._killer: subprocess.Popen[bytes] | None = None
        # By its path: with -P a package that is not installed would not be found.
        supervisor = [sys.executable, "-P", SUPERVISOR]
        options = ["--grace", str(grace_s)]
        if cleanup:
            options += ["--cleanup", json.dumps(cleanup)]
        log.parent.mkdir(parents=True, exist_ok=True)
        filtered = secret.is_any_known()  # a program may log what it was given
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603
                [*supervisor, *options, "--", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if filtered else output,
                stderr=subprocess.STDOUT,
                env=child_environment(env or {}),
                process_group=0,
            )
        self._filter = _filter(self._process, log) if filtered else None

    def poll(self) -> int | None:
        """Exit status (128 plus a signal's number), None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._finish_log()
        return code if code is None or code >= 0 else 128 - code

    def is_ours(self) -> bool:
        """Whether one of our processes listens on the port."""
        if self._contained:
            return True
        for process in _members(self._process.pid):
            with contextlib.suppress(psutil.Error):
                for one in process.net_connections(kind="tcp"):
                    if one.status == psutil.CONN_LISTEN and one.laddr.port == self._port:
                        return True
        return False

    def processes(self) -> list[int]:
        """Ids of the supervisor and of the command's processes."""
        return [process.pid for process in _members(self._process.pid)]

    def memory_bytes(self) -> int | None:
        """Resident memory of all its processes, shared pages counted for each."""
        if self._contained:
            return None
        total = 0
        for process in _members(self._process.pid):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def kill(self) -> subprocess.Popen[bytes] | None:
        """Kill the command with all its processes at once, from whichever thread.

        Returns:
            Where it is a container, the command that kills it, once at a time.
        """
        if self._process.returncode is not None:
            return None
        if self._cleanup and (self._killer is None or self._killer.poll() is not None):
            with contextlib.suppress(OSError):
                self._killer = subprocess.Popen(  # noqa: S603
                    self._cleanup,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                return self._killer
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                kill_tree(child.pid)  # the supervisor sees to what is left
        return None

    def stop(self) -> None:
        """SIGTERM, then SIGKILL, for the command and all its processes.

        Raises:
            RuntimeError: a process of the server cannot be killed.
        """
        if self._stopped:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            code = self._process.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code < 0 or code == SURVIVORS:
            self._kill_all()
        self._finish_log()
        self._stopped = True

    def _finish_log(self) -> None:
        """Its last words are in the log, unless a process that survived it keeps the pipe open."""
        if self._filter is not None:
            self._filter.join(_LAST_WORDS_S)

    def _kill_all(self) -> None:
        """What the supervisor would have done, had it lived."""
        end = time.monotonic() + KILL_S
        while left := _members(self._process.pid):
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if time.monotonic() >= end:
                raise RuntimeError(f"processes {left} of a stopped server cannot be killed")
            time.sleep(0.05)
