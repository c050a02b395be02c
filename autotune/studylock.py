"""One process tunes a study at a time: an OS lock, which the kernel frees whatever happens."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from autotune.core import BadInputError, digest
from autotune.database import translated_errors

# Long enough to sit out another process that only looks whether a study is being tuned.
_PATIENCE_SECONDS = 0.5


def lock_path(database: Path, study: str) -> Path:
    """The lock file of ``study``; two studies never share one."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", study)[:80]
    if safe != study or safe.lower() != study:
        safe = f"{safe}-{digest(study)}"
    return database.with_name(f"{database.name}.{safe}.lock")


@contextmanager
def hold(database: Path, study: str, now: datetime) -> Iterator[None]:
    """Hold the lock of ``study``.

    Raises:
        BadInputError: if another process holds it.
        MissingEnvironmentError: if the lock file cannot be written.
    """
    path = lock_path(database, study)
    # The holder is named in a file of its own: some versions of filelock empty the lock file.
    holder = path.with_suffix(".holder")
    lock = FileLock(path, timeout=_PATIENCE_SECONDS)
    with translated_errors(path):
        try:
            lock.acquire(poll_interval=0.02)
        except Timeout as error:
            raise BadInputError(
                f"study {study!r} is being tuned by {_described(holder)} in {database}; wait for "
                "it, or use --study NAME for another one"
            ) from error
    try:
        with translated_errors(holder):
            fresh = holder.with_suffix(".new")
            fresh.write_text(json.dumps({"pid": os.getpid(), "since": now.isoformat()}))
            fresh.replace(holder)
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


@contextmanager
def try_hold(database: Path, study: str) -> Iterator[bool]:
    """Hold the lock for a moment if nobody does; gives whether it is held."""
    lock = FileLock(lock_path(database, study), timeout=0)
    with translated_errors(database), suppress(Timeout):
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()


def _described(holder: Path) -> str:
    try:
        known = json.loads(holder.read_text())
        return f"process {known['pid']} (since {known['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
