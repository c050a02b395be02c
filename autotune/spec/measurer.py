"""Turns a candidate into a measurement: a server of its own, warmed up, loaded, stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from autotune.core import Basis, Candidate, HoldsNothing, Job, Measurement, Outcome
from autotune.spec.load import LoadOptions, UnservedError, measure_server
from autotune.spec.scenario import SpecScenario
from autotune.spec.server import Launcher, ServerFailedError, ServeSettings, start

START_TIMEOUT_S = 1800.0
"""A start with compilation and CUDA graphs of a large model took 165 s on an H200; loading weights
from a slow disk takes longer."""


class ServingMeasurer(HoldsNothing):
    """Boots a server for every candidate; implements :class:`autotune.core.Measurer`.

    ``value`` and ``samples`` are µs per output token by the scenario's objective: the median over
    the repeats, and every repeat. A server that fails is an outcome with the telling line.
    """

    def __init__(
        self,
        launcher: Launcher,
        settings_of: Callable[[Candidate], ServeSettings],
        options: LoadOptions,
        logs: Path,
        *,
        basis: Basis = Basis.MEASURED,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Make a measurer.

        Args:
            launcher: how servers are started.
            settings_of: what a candidate's server is started with.
            options: prompts and time limits.
            logs: the folder for the servers' output.
            basis: synthetic where the acceptance is told to vLLM.
            start_timeout_s: wall seconds that a start may take.
        """
        self._launcher, self._settings_of, self._options = launcher, settings_of, options
        self._logs, self._basis, self._start_timeout_s = logs, basis, start_timeout_s
        self.boots = 0
        """Servers started so far."""

    @property
    def basis(self) -> Basis:
        """What the values are."""
        return self._basis

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        """One server after the other; see :class:`autotune.core.Measurer`."""
        for candidate, workload in jobs:
            yield self._measured(candidate, cast("SpecScenario", workload))

    def _measured(self, candidate: Candidate, scenario: SpecScenario) -> Measurement:
        began = time.monotonic()
        log = self._logs / f"{candidate.key}-{scenario.key}.log"
        details: dict[str, Any] = {"boots": 1, "log": str(log)}
        self.boots += 1
        outcome, message = Outcome.OK, ""
        samples: tuple[float, ...] = ()
        try:
            settings = self._settings_of(candidate)
            with start(self._launcher, settings, log, self._start_timeout_s) as server:
                details["start_s"] = server.start_seconds
                found = measure_server(server, scenario, self._options)
                samples = found.samples
                details |= found.details
        except ServerFailedError as error:
            outcome, message = error.failure.outcome, error.failure.line
            details["failure"] = error.failure.kind.value
        except UnservedError as error:
            outcome, message = error.outcome, str(error)
            details |= error.details
        return Measurement(
            outcome=outcome,
            basis=self._basis,
            value=_median(samples) if outcome is Outcome.OK else None,
            samples=samples,
            message=message,
            details=details,
            seconds=time.monotonic() - began,
        )


def _median(samples: tuple[float, ...]) -> float:
    ordered, middle = sorted(samples), len(samples) // 2
    return (ordered[middle] + ordered[~middle]) / 2
