"""A lock file whose holder is known by name: the system frees it whatever happens to the holder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from autotune.core import AutotuneError

# Long enough to sit out another process that only looks whether the lock is held.
_PATIENCE_SECONDS = 0.5


@contextmanager
def hold(path: Path, now: datetime, held: Callable[[str], AutotuneError]) -> Iterator[None]:
    """Hold the lock at ``path``.

    Args:
        path: of the lock file; its folder exists.
        now: told to others as the time from which it is held.
        held: makes the error from who holds it, such as ``process 12 (since …)``.

    Raises:
        AutotuneError: what ``held`` gives, if another process holds it.
        OSError: if the files cannot be written.
    """
    # The holder is named in a file of its own: some versions of filelock empty the lock file.
    holder = path.with_suffix(".holder")
    lock = FileLock(path, timeout=_PATIENCE_SECONDS)
    try:
        lock.acquire(poll_interval=0.02)
    except Timeout as error:
        raise held(_described(holder)) from error
    try:
        fresh = holder.with_suffix(".new")
        fresh.write_text(json.dumps({"pid": os.getpid(), "since": now.isoformat()}))
        fresh.replace(holder)
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def _described(holder: Path) -> str:
    try:
        known = json.loads(holder.read_text())
        return f"process {known['pid']} (since {known['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
