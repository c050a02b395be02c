"""Jobs of a service whose processes are there at once: forked, where ``Popen`` would start Python.

The rest is as with :class:`subprocess.Popen`: a session and a group of their own, the lock that
they hold, where they write, how they end. That the service starts real programs is seen in
``tests/web/test_kill.py``.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any

from tests.support import synthetic_service
from tests.support.forks import FORKS


class _Handed:
    """Descriptors on their way to a process that is being started: there, their numbers."""

    def __init__(self, *descriptors: int) -> None:
        self.descriptors = descriptors

    def __reduce__(self) -> tuple[Any, ...]:
        return _taken, tuple(DupFd(one) for one in self.descriptors)


def _taken(*handed: Any) -> tuple[int, ...]:
    return tuple(one.detach() for one in handed)


def _run(handed: tuple[int, ...], words: list[str], cwd: Path, env: Mapping[str, str]) -> None:
    """Be the job; the process is new but for what it has imported."""
    begun, lock, out, err = handed
    os.setsid()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    os.write(begun, b"x")
    synthetic_service.main([str(lock), *words])


class ForkedJob:
    """What the service asks of a process, with the arguments that it gives to ``Popen``."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        stdin: int,
        stdout: IO[bytes],
        stderr: IO[bytes],
        cwd: Path,
        env: Mapping[str, str],
        pass_fds: Sequence[int],
        start_new_session: bool,
    ) -> None:
        assert (stdin, start_new_session) == (subprocess.DEVNULL, True)
        (lock,) = pass_fds
        ready, begun = os.pipe()
        given = words[words.index(str(lock)) + 1 :]
        handed = _Handed(begun, lock, stdout.fileno(), stderr.fileno())
        self._process = FORKS.Process(target=_run, args=(handed, list(given), cwd, dict(env)))
        self._process.start()
        os.close(begun)
        os.read(ready, 1)  # it leads its group: whoever ends the group ends it
        os.close(ready)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode
