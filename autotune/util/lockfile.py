"""A lock file whose holder is known by name: the system frees it whatever happens to the holder.

The lock is the kernel's (``flock``) on a regular file that nobody else planted: no link is
followed, a pipe or device is refused and not waited for, and only a holder's own note is ever
overwritten. The file stays: removing one that others wait for would give two of them the lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from autotune.core import AutotuneError

# Long enough to sit out another process that only looks whether the lock is held.
_PATIENCE_SECONDS = 0.5
_POLL_SECONDS = 0.02
_NOTE_BYTES = 4096
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class UnsafeError(OSError):
    """A lock file or its folder is not as we would have made it; somebody else may have."""


class Lock:
    """A lock on a file, from :meth:`acquire` to :meth:`release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds it."""
        return self._descriptor is not None

    def fileno(self) -> int:
        """The descriptor that holds the lock; a process that inherits it holds the lock too.

        Raises:
            ValueError: it is not held.
        """
        if self._descriptor is None:
            raise ValueError(f"{self._path}: is not locked by this process")
        return self._descriptor

    def acquire(self, patience_s: float = 0.0) -> bool:
        """Take the lock, waiting so many seconds for it at most; whether it was free.

        Raises:
            UnsafeError: the file is a link, a pipe, a device, or has other names.
            OSError: it cannot be made or opened, or the file system knows no locks.
        """
        descriptor = _opened(self._path)
        end = time.monotonic() + patience_s
        try:
            while not _locked(descriptor):
                if time.monotonic() >= end:
                    os.close(descriptor)
                    return False
                time.sleep(_POLL_SECONDS)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def note(self) -> str:
        """What the last holder left in the file; empty if nothing, or it cannot be read."""
        with suppress(OSError):
            descriptor = _opened(self._path) if self._descriptor is None else self._descriptor
            try:
                return os.pread(descriptor, _NOTE_BYTES, 0).decode("utf-8", "replace")
            finally:
                if descriptor != self._descriptor:
                    os.close(descriptor)
        return ""

    def leave(self, note: str) -> None:
        """Leave a note in the file that we hold; not over what is no note, or not ours to write."""
        old = self.note()
        if self._descriptor is None or (old.strip() and not _is_note(old)):
            return
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, note.encode(), 0)


def _is_note(text: str) -> bool:
    return text.strip().isdecimal() or text.startswith('{"pid"')


def _opened(path: Path) -> int:
    """A descriptor of the lock file, made if it is not there, with the user's umask.

    Raises:
        UnsafeError: it is something else than a file of this one name.
    """
    try:
        descriptor = _open_or_make(path)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise _unsafe(path, "is a link, a pipe or a socket") from None
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(descriptor)
        raise _unsafe(path, "is no plain file of one name")
    return descriptor


def _open_or_make(path: Path) -> int:
    for _ in range(3):  # made or removed by another process in between
        with suppress(FileNotFoundError):
            try:
                return os.open(path, os.O_RDWR | _FLAGS)
            except PermissionError:
                return os.open(path, os.O_RDONLY | _FLAGS)  # enough for a lock
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
    return os.open(path, os.O_RDWR | _FLAGS)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unsafe(path: Path, what: str) -> UnsafeError:
    return UnsafeError(errno.EPERM, f"{what}, which somebody else may have put there", str(path))


def make_private(folder: Path) -> Path:
    """Make a folder that is ours alone, or see that it is.

    Raises:
        UnsafeError: it is a link, somebody else's, or others may write to it.
        OSError: it cannot be made.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _unsafe(folder, "is no folder")
    if found.st_uid != os.getuid():
        raise _unsafe(folder, f"belongs to another user ({found.st_uid})")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise _unsafe(folder, "may be written by other users")
    return folder


@contextmanager
def hold(path: Path, now: datetime, held: Callable[[str], AutotuneError]) -> Iterator[None]:
    """Hold the lock at ``path``.

    Args:
        path: of the lock file; its folder exists.
        now: the time from which it is held, for others to read.
        held: makes the error from who holds it, such as ``process 12 (since …)``.

    Raises:
        AutotuneError: what ``held`` gives, if another process holds it.
        UnsafeError: there is something else than a lock file.
        OSError: the file cannot be made or opened.
    """
    lock = Lock(path)
    if not lock.acquire(_PATIENCE_SECONDS):
        raise held(_described(lock.note()))
    try:
        lock.leave(json.dumps({"pid": os.getpid(), "since": now.isoformat()}))
        yield
    finally:
        lock.leave("")
        lock.release()


def _described(note: str) -> str:
    try:
        known = json.loads(note)
        since = datetime.fromisoformat(known["since"]).isoformat()
        return f"process {int(known['pid'])} (since {since})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
