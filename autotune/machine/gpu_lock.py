"""One command measures on a GPU at a time: another one's kernels would spoil its times.

The locks of a user lie at fixed places of the machine, whatever ``TMPDIR`` says, in folders that
are the user's alone. They are named by the GPUs' UUIDs where these are known, for in a container
the indices are others. Another folder, such as the database's, may carry them too, for containers
that share it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from autotune.core import MissingEnvironmentError
from autotune.util import lockfile


def lock_folders() -> tuple[Path, ...]:
    """Where a user's locks of this machine's GPUs lie, whatever the environment says.

    In ``/run/user`` nobody else can put anything, but it comes and goes with logins; ``/tmp``
    stays.
    """
    user = str(os.getuid())
    return Path("/run/user", user, "autotune"), Path("/tmp", f"autotune-{user}")  # noqa: S108


@contextmanager
def hold_gpus(
    gpus: Iterable[int],
    folders: Sequence[Path],
    uuids: Mapping[int, str] | None = None,
    shared: Path | None = None,
) -> Iterator[None]:
    """Hold these GPUs, by their indices.

    Args:
        gpus: their indices on this machine.
        folders: of this machine, made if they are not there. Those that are not ours alone are
            left out, unless none is left.
        uuids: of the GPUs, by index, as far as they are known.
        shared: a folder that other machines or containers may see too; a GPU whose UUID is known
            is locked there as well.

    Raises:
        MissingEnvironmentError: another command measures on one of them, which is named; or
            somebody else's file or folder is in the lock's place.
    """
    known = uuids or {}
    places = _usable(folders)
    with ExitStack() as stack:
        for gpu in gpus:
            uuid = re.sub(r"[^A-Za-z0-9-]", "_", known.get(gpu, ""))[:80]
            for folder in places:
                _enter(stack, gpu, folder / f"gpu-{uuid or gpu}.lock")
            if shared is not None and uuid:
                _enter(stack, gpu, shared / f".autotune-{uuid}.lock")
        yield


def _usable(folders: Sequence[Path]) -> list[Path]:
    """The folders that are ours alone.

    Raises:
        MissingEnvironmentError: none is.
    """
    found, why = [], None
    for folder in folders:
        try:
            found.append(lockfile.make_private(folder))
        except OSError as error:
            why = _unusable(error, folder)
    if not found and why is not None:
        raise why
    return found


def _enter(stack: ExitStack, gpu: int, path: Path) -> None:
    def busy(holder: str) -> MissingEnvironmentError:
        return MissingEnvironmentError(
            f"GPU {gpu} is being measured on by {holder}; wait for it: two at once spoil both"
        )

    try:
        stack.enter_context(lockfile.hold(path, datetime.now(UTC), busy))
    except OSError as error:
        raise _unusable(error, path) from None


def _unusable(error: OSError, path: Path) -> MissingEnvironmentError:
    where = error.filename or path
    return MissingEnvironmentError(
        f"{where}: {error.strerror or error}; it should hold the locks of GPUs: look who made it, "
        "and have it removed"
    )
