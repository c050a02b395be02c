"""One command measures on a GPU at a time: another one's kernels would spoil its times."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from autotune.core import MissingEnvironmentError
from autotune.util import lockfile


def lock_folder() -> Path:
    """Where a user's locks of this machine's GPUs lie, whatever folder a command runs in."""
    return Path(tempfile.gettempdir()) / f"autotune-{os.getuid()}"


@contextmanager
def hold_gpus(gpus: Iterable[int], folder: Path) -> Iterator[None]:
    """Hold these GPUs, by their indices.

    Raises:
        MissingEnvironmentError: if another command measures on one of them; names it.
        OSError: if the folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        for gpu in gpus:
            stack.enter_context(_held(gpu, folder))
        yield


@contextmanager
def _held(gpu: int, folder: Path) -> Iterator[None]:
    def busy(holder: str) -> MissingEnvironmentError:
        return MissingEnvironmentError(
            f"GPU {gpu} is being measured on by {holder}; wait for it: two at once spoil both"
        )

    with lockfile.hold(folder / f"gpu-{gpu}.lock", datetime.now(UTC), busy):
        yield
