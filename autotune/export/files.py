"""Paths as people write them, and result files: whole or not at all, errors in one line."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from autotune.core import AutotuneError, BadInputError, MissingEnvironmentError
from autotune.util.secret import mask

T = TypeVar("T")

Exporter = Callable[[T], bytes | None]
"""Makes one file of a result; None where the result has nothing for it."""


def write_files(
    folder: Path, table: Mapping[str, Exporter[T]], result: T, flag: str = "--out"
) -> list[Path]:
    """Write the files of a table, by name, each whole; all are made before the first is written.

    Raises:
        BadInputError: the folder cannot be written.
        MissingEnvironmentError: no space is left.
    """
    made = {name: exporter(result) for name, exporter in table.items()}
    files = {folder / name: data for name, data in made.items() if data is not None}
    for path, data in files.items():
        write_whole(path, data, flag)
    return list(files)


def json_file(document: Mapping[str, object], *, sort: bool = True) -> bytes:
    """Return a document as result files hold it."""
    text = json.dumps(document, indent=2, sort_keys=sort, ensure_ascii=False)
    return (text + "\n").encode()


def expand_user(path: str) -> str:
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
    data = _without_secrets(data)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name[:40]}-{os.urandom(8).hex()}")
        # The system takes the user's umask off; what is there already, a link too, is refused.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise _translated(error, path, flag) from None


def _without_secrets(data: bytes) -> bytes:
    """Files are made to be shared: no secret that this process knows stands in one."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data
    masked = mask(text)
    return data if masked == text else masked.encode()


def check_parent(path: Path, flag: str) -> None:
    """Refuse a file that a flag names in a folder that is not there, which is a slip more often.

    Raises:
        BadInputError: so it is.
    """
    if not path.parent.is_dir():
        raise BadInputError(f"{flag} {path}: there is no folder {path.parent}; make it first")


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
