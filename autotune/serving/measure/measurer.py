"""Turns a candidate into a measurement: a server of its own, warmed up, loaded, stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from autotune.core import (
    Basis,
    Candidate,
    HoldsNothing,
    Job,
    Measurement,
    MissingEnvironmentError,
    Outcome,
    Part,
)
from autotune.machine.guard import RESERVE, MemoryGuard, guarded
from autotune.machine.resident import shortage
from autotune.serving.dial.columns import columns, is_dialled, largest
from autotune.serving.dial.dial import Dial
from autotune.serving.dial.trust import DialUnfitError, check_log
from autotune.serving.measure.column import measure_column
from autotune.serving.measure.load import LoadOptions, Served, UnservedError, measure_server
from autotune.serving.measure.tasks import Tasks, evaluate
from autotune.serving.measure.wire import Wire
from autotune.serving.memory.sustain import FullLoad, measure_sustained
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.moe_log import moe_files
from autotune.serving.server.server import Launcher, ServerFailedError, ServeSettings, start

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
        tasks: Tasks | None = None,
        unified: bool = False,
        need_of: Callable[[Candidate], int] | None = None,
    ) -> None:
        """Make a measurer.

        Args:
            launcher: how servers are started.
            settings_of: what a candidate's server is started with.
            options: prompts and time limits.
            logs: the folder for the servers' output.
            basis: synthetic where the acceptance is told to vLLM.
            start_timeout_s: wall seconds that a start may take.
            tasks: what lm-eval evaluates where the scenario asks for it.
            unified: whether the GPU allocates from the host's memory, which is then guarded.
            need_of: bytes of that memory which a candidate's server will take; None starts it
                however little there is.
        """
        self._unified, self._need_of = unified, need_of
        self._tasks = tasks
        self._launcher, self._settings_of, self._options = launcher, settings_of, options
        self._logs, self._basis, self._start_timeout_s = logs, basis, start_timeout_s

    @property
    def basis(self) -> Basis:
        """What the values are."""
        return self._basis

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement | Part]:
        """One server after the other; see :class:`autotune.core.Measurer`.

        Jobs that follow each other and differ in gamma alone share a server that the dial turns,
        where their scenario says so.
        """
        for group in columns(jobs):
            if is_dialled(group[0]):
                yield from (yield from self._measured_column(group))
            else:
                yield (yield from self._measured(group[0]))

    @contextmanager
    def _booted(self, settings: ServeSettings, log: Path, guard: MemoryGuard) -> Iterator[Wire]:
        """Start a server, and stop it in the end.

        Raises:
            ServerFailedError: it does not serve.
        """
        with start(self._launcher, settings, log, self._start_timeout_s, guard) as server:
            yield Wire(server)

    def _wait_for_room(self, candidate: Candidate, guard: MemoryGuard) -> None:
        """Wait until a candidate's server has room.

        Raises:
            MissingEnvironmentError: it has none.
        """
        need = self._need_of(candidate) if self._unified and self._need_of else -RESERVE
        if not guard.has_room(need):
            said = shortage("the next server", need, guard.available())
            raise MissingEnvironmentError(
                f"{said}; what was measured is kept, and the same command goes on"
            )

    def _served(self, wire: Wire, job: Job) -> Generator[Part, None, Served]:
        load = cast("SpecScenario | FullLoad", job.workload)
        if isinstance(load, FullLoad):
            return measure_sustained(wire, load, self._options)
        found = yield from measure_server(wire, job, self._options)
        if load.evaluates and self._tasks is not None:
            out = self._logs / f"{job.candidate.key}-{load.key}-tasks"
            found.details["tasks"] = evaluate(wire.server, self._tasks, chat=load.chat, out=out)
        return found

    def _measured_column(self, jobs: list[Job]) -> Generator[Part, None, list[Measurement]]:
        """Every gamma of one server; what ends the server is the outcome of all."""
        with guarded(self._unified) as guard:
            self._wait_for_room(largest(jobs).candidate, guard)
            found = yield from self._column_under(jobs, guard)
        least = {} if guard.lowest is None else {"available_least": guard.lowest}
        return [replace(one, details={**one.details, **least}) for one in found]

    def _column_under(
        self, jobs: list[Job], guard: MemoryGuard
    ) -> Generator[Part, None, list[Measurement]]:
        began, most = time.monotonic(), largest(jobs)
        gammas = [job.candidate.int(GAMMA) for job in jobs]
        scenario = cast("SpecScenario", most.workload)
        log = self._logs / f"{most.candidate.key}-{scenario.key}.log"
        details: dict[str, Any] = {"log": str(log), "dial": gammas}
        found: list[Served | UnservedError]
        try:
            with Dial.made() as dial:
                static = self._settings_of(most.candidate)
                settings = dial.settings(static, gammas, scenario.concurrency[-1])
                with self._booted(settings, log, guard) as wire:
                    details["start_s"] = wire.server.start_seconds
                    check_log(wire.server.log)
                    found = yield from measure_column(wire, jobs, dial, self._options)
                    if wire.server.fall is not None:
                        raise UnservedError(Outcome.HOST_MEMORY, str(wire.server.fall))
                    details |= moe_files(wire.server.log)
        except ServerFailedError as error:
            failed = {"failure": error.failure.kind.value}
            found = [UnservedError(error.failure.outcome, error.failure.line, failed)] * len(jobs)
        except UnservedError as error:
            found = [error] * len(jobs)
        except DialUnfitError as error:
            said = {"dial_unfit": str(error)}
            found = [UnservedError(Outcome.CONSTRAINT, str(error), said)] * len(jobs)
        seconds = (time.monotonic() - began) / len(jobs)
        boots = [1, *[0] * (len(jobs) - 1)]
        return [
            self._as_measurement(one, {"boots": booted, **details}, seconds)
            for booted, one in zip(boots, found, strict=True)
        ]

    def _as_measurement(
        self, found: Served | UnservedError, details: dict[str, Any], seconds: float
    ) -> Measurement:
        if isinstance(found, UnservedError):
            return Measurement(
                outcome=found.outcome,
                basis=self._basis,
                message=str(found),
                details=details | found.details,
                seconds=seconds,
            )
        return Measurement(
            outcome=Outcome.OK,
            basis=self._basis,
            value=found.value,
            samples=found.samples,
            details=details | found.details,
            seconds=seconds,
        )

    def _measured(self, job: Job) -> Generator[Part, None, Measurement]:
        with guarded(self._unified) as guard:
            self._wait_for_room(job.candidate, guard)
            found = yield from self._measured_under(job, guard)
        if guard.lowest is None:
            return found
        return replace(found, details={**found.details, "available_least": guard.lowest})

    def _measured_under(self, job: Job, guard: MemoryGuard) -> Generator[Part, None, Measurement]:
        began = time.monotonic()
        log = self._logs / f"{job.candidate.key}-{job.workload.key}.log"
        booted = int(self._launcher.starts)
        details: dict[str, Any] = {"boots": booted, "log": str(log) if booted else None}
        found: Served | UnservedError
        try:
            with self._booted(self._settings_of(job.candidate), log, guard) as wire:
                details["start_s"] = wire.server.start_seconds
                found = yield from self._served(wire, job)
                if wire.server.fall is not None:
                    raise UnservedError(Outcome.HOST_MEMORY, str(wire.server.fall))
                details |= moe_files(wire.server.log)
        except ServerFailedError as error:
            failed = {"failure": error.failure.kind.value}
            found = UnservedError(error.failure.outcome, error.failure.line, failed)
        except UnservedError as error:
            found = error
        return self._as_measurement(found, details, time.monotonic() - began)
