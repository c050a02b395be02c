"""Where a search's time goes: proposing and storing, beside the measuring itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from autotune.core import Proposer
from autotune.tune import TrialLog


class Stopwatch:
    """Seconds spent by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count the time within for ``name``."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


class TimedProposer:
    """A proposer whose time counts as ``propose``."""

    def __init__(self, proposer: Proposer, watch: Stopwatch) -> None:
        timed = watch.running("propose")
        self.ask, self.tell = timed(proposer.ask), timed(proposer.tell)


class TimedLog:
    """A log whose time counts as ``store``."""

    def __init__(self, log: TrialLog, watch: Stopwatch) -> None:
        timed = watch.running("store")
        self.load, self.append = timed(log.load), timed(log.append)
        self.load_parts, self.append_part = timed(log.load_parts), timed(log.append_part)
