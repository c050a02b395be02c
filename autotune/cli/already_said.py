"""The end of a command whose last word another process had, such as the same one in a container."""

from __future__ import annotations

from autotune.core import AutotuneError, ExitCode


class AlreadySaidError(AutotuneError):
    """The command failed, and the user has read why."""

    def __init__(self, exit_code: ExitCode) -> None:
        super().__init__("")
        self.exit_code = exit_code
