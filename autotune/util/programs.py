"""Programs of this machine: whether one is there, and what it says."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence

from autotune.core import MissingEnvironmentError


def require_program(name: str) -> None:
    """Refuse a program that is not there.

    Raises:
        MissingEnvironmentError: so it is.
    """
    if shutil.which(name) is None:
        raise MissingEnvironmentError(f"{name}: no such program; is it installed and in PATH?")


def run_quietly(
    command: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that asks nothing, and keep what it says.

    Args:
        command: its words.
        timeout_s: wall seconds after which it is ended.
        env: its variables; None for ours.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it has not ended by then.
    """
    return subprocess.run(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        env=env,
        check=False,
    )
