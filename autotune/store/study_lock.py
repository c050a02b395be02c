"""One process tunes a study at a time: an OS lock, which the kernel frees whatever happens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from autotune.core import BadInputError, digest
from autotune.store.database import translated_errors
from autotune.util import lockfile


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

    def held(holder: str) -> BadInputError:
        return BadInputError(
            f"study {study!r} is being tuned by {holder} in {database}; wait for it, or use "
            "--study NAME for another one"
        )

    path = lock_path(database, study)
    with ExitStack() as stack:
        with translated_errors(path):
            stack.enter_context(lockfile.hold(path, now, held))
        yield


@contextmanager
def try_hold(database: Path, study: str) -> Iterator[bool]:
    """Hold the lock for a moment if nobody does; gives whether it is held."""
    lock = lockfile.Lock(lock_path(database, study))
    with translated_errors(database):
        lock.acquire()
    try:
        yield lock.is_held
    finally:
        lock.release()
