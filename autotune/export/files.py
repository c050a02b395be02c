"""Paths as people write them, and result files: whole or not at all, errors in one line."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from autotune.core import AutotuneError, BadInputError, MissingEnvironmentError


def at_home(path: str) -> str:
    """``~`` and ``~user`` written out; a user that does not exist is left as it is."""
    return os.path.expanduser(path)  # noqa: PTH111 - Path's raises for an unknown ~user


def _translated(error: OSError, path: Path, flag: str) -> AutotuneError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return MissingEnvironmentError(f"{path}: {reason}; free some and run the command again")
    return BadInputError(f"{path}: cannot be written: {reason}; name another folder with {flag}")


def write_whole(path: Path, data: bytes, flag: str = "--out") -> None:
    """Replace ``path`` by ``data``: a reader or a crash sees the old file or the new one.

    ``flag`` is what names another folder, for messages.

    Raises:
        BadInputError: the place cannot be written.
        MissingEnvironmentError: no space is left.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise _translated(error, path, flag) from None


def check_writable(folder: Path, flag: str = "--out") -> None:
    """Fail before the work rather than after it; ``flag`` names another folder, for messages.

    Raises:
        BadInputError: ``folder`` is not a folder that files can be made in.
        MissingEnvironmentError: no space is left.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
            probe.write(b"x" * 4096)
            probe.flush()
    except OSError as error:
        raise _translated(error, folder, flag) from None
