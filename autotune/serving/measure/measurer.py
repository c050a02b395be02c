"""Turns a candidate into a measurement: a server of its own, warmed up, loaded, stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from autotune.core import Basis, Candidate, HoldsNothing, Job, Measurement, Outcome
from autotune.serving.measure.load import LoadOptions, Served, UnservedError, measure_server
from autotune.serving.measure.repeats import Journal, PartLog
from autotune.serving.measure.stopping import Rules
from autotune.serving.measure.tasks import Tasks, evaluate
from autotune.serving.memory.sustain import FullLoad, measure_sustained
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.moe_log import moe_files
from autotune.serving.server.server import Launcher, Server, ServerFailedError, ServeSettings, start

START_TIMEOUT_S = 1800.0
"""A start with compilation and CUDA graphs of a large model took 165 s on an H200; loading weights
from a slow disk takes longer."""


class ServingMeasurer(HoldsNothing):
    """Boots a server for every candidate; implements :class:`autotune.core.Measurer`.

    ``value`` and ``samples`` are µs per output token by the scenario's objective: of the median
    rates over the repeats, and of every repeat. A server that fails is an outcome with the telling
    line.
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
        parts: PartLog | None = None,
        rules_of: Callable[[Candidate, SpecScenario], Rules] = lambda *_: Rules(),
        tasks: Tasks | None = None,
    ) -> None:
        """Make a measurer.

        Args:
            launcher: how servers are started.
            settings_of: what a candidate's server is started with.
            options: prompts and time limits.
            logs: the folder for the servers' output.
            basis: synthetic where the acceptance is told to vLLM.
            start_timeout_s: wall seconds that a start may take.
            parts: keeps every finished repeat, and gives back what a killed run had finished.
            rules_of: what may stop the measurement of a candidate half-way.
            tasks: what lm-eval evaluates where the scenario asks for it.
        """
        self._parts, self._rules_of, self._tasks = parts, rules_of, tasks
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
            yield self._measured(candidate, cast("SpecScenario | FullLoad", workload))

    def _served(
        self, server: Server, candidate: Candidate, scenario: SpecScenario | FullLoad
    ) -> Served:
        if isinstance(scenario, FullLoad):
            return measure_sustained(server, scenario, self._options)
        journal = Journal(self._parts, scenario, candidate)
        rules = self._rules_of(candidate, scenario)
        found = measure_server(server, scenario, self._options, journal, rules)
        if scenario.evaluates and self._tasks is not None:
            out = self._logs / f"{candidate.key}-{scenario.key}-tasks"
            found.details["tasks"] = evaluate(server, self._tasks, chat=scenario.chat, out=out)
        return found

    def _measured(self, candidate: Candidate, scenario: SpecScenario | FullLoad) -> Measurement:
        began = time.monotonic()
        log = self._logs / f"{candidate.key}-{scenario.key}.log"
        booted = int(self._launcher.starts)
        details: dict[str, Any] = {"boots": booted, "log": str(log) if booted else None}
        self.boots += booted
        outcome, message = Outcome.OK, ""
        value: float | None = None
        samples: tuple[float, ...] = ()
        try:
            settings = self._settings_of(candidate)
            with start(self._launcher, settings, log, self._start_timeout_s) as server:
                details["start_s"] = server.start_seconds
                found = self._served(server, candidate, scenario)
                value, samples = found.value, found.samples
                details |= found.details
                details |= moe_files(server.log)
        except ServerFailedError as error:
            outcome, message = error.failure.outcome, error.failure.line
            details["failure"] = error.failure.kind.value
        except UnservedError as error:
            outcome, message = error.outcome, str(error)
            details |= error.details
        return Measurement(
            outcome=outcome,
            basis=self._basis,
            value=value if outcome is Outcome.OK else None,
            samples=samples,
            message=message,
            details=details,
            seconds=time.monotonic() - began,
        )
