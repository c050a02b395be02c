"""Where a search's time goes: proposing and storing, beside the measuring itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from autotune.core import Candidate, Phase, Proposer, Trial, Workload
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
        self._proposer, self._watch = proposer, watch

    def ask(self, n: int, hints: Sequence[Candidate] = ()) -> list[Candidate]:
        """Ask the proposer."""
        with self._watch.running("propose"):
            return self._proposer.ask(n, hints)

    def tell(self, trial: Trial) -> None:
        """Tell the proposer."""
        with self._watch.running("propose"):
            self._proposer.tell(trial)


class TimedLog:
    """A log whose time counts as ``store``."""

    def __init__(self, log: TrialLog, watch: Stopwatch) -> None:
        self._log, self._watch = log, watch

    def load(self, workload: Workload, phase: Phase) -> list[Trial]:
        """Load from the log."""
        with self._watch.running("store"):
            return self._log.load(workload, phase)

    def append(self, workload: Workload, trial: Trial) -> None:
        """Append to the log."""
        with self._watch.running("store"):
            self._log.append(workload, trial)

    def load_parts(
        self, workload: Workload, candidate: Candidate
    ) -> Mapping[str, Mapping[str, Any]]:
        """Load parts from the log."""
        with self._watch.running("store"):
            return self._log.load_parts(workload, candidate)

    def append_part(
        self, workload: Workload, candidate: Candidate, name: str, value: Mapping[str, Any]
    ) -> None:
        """Append a part to the log."""
        with self._watch.running("store"):
            self._log.append_part(workload, candidate, name, value)
