"""Runs a command and leaves nothing of it behind, whatever becomes of the one who asked for it.

A server is a tree of processes: vLLM's API server starts an engine core, which starts workers, and
a parent that is killed outright does not take them along. The process here stands above that tree
and ends all of it when its own standard input closes, which the kernel does when the tuner dies, by
``kill -9`` as well. As the "child subreaper" (prctl(2)) it inherits whatever loses its parent, so
that no process can escape by outliving the one that started it.

Usage: ``python supervisor.py --grace SECONDS [--cleanup JSON] -- COMMAND …``. Its
exit status is the command's, or 128 plus the signal that ended the command.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time

import psutil

SUPERVISOR = __file__
"""What Python is to run."""
SURVIVORS = 70
"""Exit status when a process of the tree could not be killed (EX_SOFTWARE of sysexits.h)."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_STOP = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
CLEANUP_S = 60.0
"""For the command that is run at the very end."""
KILL_S = 20.0
"""For SIGKILL to end the whole tree."""
_FAREWELL_S = 2.0
"""What a command that ended by itself leaves its children for their own clearing up."""


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def _die_with_parent() -> None:
    """In the child, before it becomes the command: even a killed supervisor takes it along.

    Where memory runs out, the kernel is to choose the server before anything else.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")


class Tree:
    """The command and everything that it starts.

    Attributes:
        status: the command's exit status as :mod:`subprocess` reports it (negative is a signal),
            None while it runs.
    """

    def __init__(self, command: list[str]) -> None:
        """Start ``command`` without input; its output goes where ours goes.

        Raises:
            OSError: it cannot be started.
        """
        self.status: int | None = None
        self._child = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509  (one thread only)
        )

    def reap(self) -> None:
        """Take in the exit statuses of all that ended, of inherited orphans as well."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._child.pid:
                    self.status = os.waitstatus_to_exitcode(status)

    def empty(self, within_s: float) -> bool:
        """Whether nothing of the tree is left, now or within so many seconds."""
        end = time.monotonic() + within_s
        while True:
            self.reap()
            if not psutil.Process().children():
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)

    def ask_to_stop(self) -> None:
        """SIGTERM for the command itself, which knows how to end its children."""
        if self.status is None:
            os.kill(self._child.pid, signal.SIGTERM)

    def kill(self) -> bool:
        """SIGKILL for every process until none is left; False if one stays."""
        end = time.monotonic() + KILL_S
        while time.monotonic() < end:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if self.empty(0.2):
                return True
        return False


def _watch(tree: Tree, wakeup: int) -> None:
    """Return when the command has ended or somebody wants it to end."""
    while tree.status is None:
        ready, _, _ = select.select([0, wakeup], [], [])
        if wakeup in ready and _STOP & set(os.read(wakeup, 64)):
            return
        if 0 in ready and not os.read(0, 64):
            return
        tree.reap()


def _clean_up(command: list[str]) -> None:
    try:
        subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, check=False, timeout=CLEANUP_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"supervisor: {error}\n")


def supervise(command: list[str], grace_s: float, cleanup: list[str] | None = None) -> int:
    """Run ``command`` until it ends, standard input closes or SIGTERM, SIGINT or SIGHUP comes.

    Args:
        command: the program and its arguments.
        grace_s: seconds between SIGTERM and SIGKILL.
        cleanup: a command run at the very end, such as ``docker rm -f NAME``.

    Returns:
        The exit status for this process: the command's, 128 plus its signal, or
        :data:`SURVIVORS`.

    Raises:
        OSError: the command cannot be started.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    woken, wakeup = os.pipe()
    for end in (woken, wakeup):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    for number in (*_STOP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    tree = Tree(command)
    _watch(tree, woken)
    if tree.status is None:
        tree.ask_to_stop()
        gone = tree.empty(grace_s)
    else:
        gone = tree.empty(_FAREWELL_S)
    gone = gone or tree.kill()
    if cleanup:
        _clean_up(cleanup)
    if not gone or tree.status is None:
        left = [process.pid for process in psutil.Process().children(recursive=True)]
        sys.stderr.write(f"supervisor: cannot kill {left}\n")
        return SURVIVORS
    return tree.status if tree.status >= 0 else 128 - tree.status


def main() -> int:
    """Read the command line and supervise.

    Returns:
        The exit status; 127 for a command that cannot be started.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--grace", type=float, required=True)
    parser.add_argument("--cleanup", type=json.loads, default=None)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    try:
        return supervise(options.command, options.grace, options.cleanup)
    except OSError as error:
        sys.stderr.write(f"supervisor: {options.command[0]}: {error}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main())
