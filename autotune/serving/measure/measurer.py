"""Turns a candidate into a measurement: a server of its own, warmed up, loaded, stopped."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

from autotune.core import (
    Basis,
    Candidate,
    Group,
    HoldsNothing,
    Job,
    Measurement,
    Outcome,
    Part,
)
from autotune.machine.guard import RESERVE, MemoryGuard, guarded
from autotune.machine.resident import wait_for_room
from autotune.serving.dial.columns import columns, is_dialled, largest
from autotune.serving.dial.dial import Dial
from autotune.serving.dial.trust import DialUnfitError, check_log
from autotune.serving.logs.facts import moe_files
from autotune.serving.logs.read import lines_in
from autotune.serving.measure.beside import NOTHING_BESIDE, measure_beside
from autotune.serving.measure.cell import Cell, measure_server
from autotune.serving.measure.column import measure_column
from autotune.serving.measure.load import LoadOptions, Served, UnservedError
from autotune.serving.measure.soak import SoakLoad, measure_soak
from autotune.serving.measure.stopping import Rules
from autotune.serving.measure.tasks import Tasks, evaluate
from autotune.serving.measure.wire import Wire
from autotune.serving.memory.sustain import FullLoad, measure_sustained
from autotune.serving.memory.together import alongside
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.launchers import variables_of
from autotune.serving.server.server import Launched, Launcher, ServerFailedError, ServeSettings

START_TIMEOUT_S = 1800.0
"""A start with compilation and CUDA graphs of a large model took 165 s on an H200; loading weights
from a slow disk takes longer."""


class ServingMeasurer(HoldsNothing):
    """Boots a server for every candidate; implements :class:`autotune.core.SideBySide`.

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
        need_of: Callable[[ServeSettings], int] | None = None,
        ahead: tuple[Candidate, int] | None = None,
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
            need_of: bytes of that memory which a server will take; None starts it however little
                there is.
            ahead: a candidate whose server starts beside the dialled one that measures it too, and
                ends when that serves: what vLLM compiles for it is cached then; and the bytes of
                KV cache that both are given. None starts the dialled one alone.
        """
        self._ahead = ahead
        self._unified, self._need_of = unified, need_of
        self._tasks = tasks
        self.launcher, self._settings_of, self._options = launcher, settings_of, options
        self._logs, self.basis, self._start_timeout_s = logs, basis, start_timeout_s

    def moved(self, logs: Path, launcher: Launcher | None = None) -> Self:
        """Return the same for another machine: with a folder, and a launcher, of that one."""
        other = copy.copy(self)
        other._logs, other.launcher = logs, launcher or self.launcher
        return other

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
    def _launched(
        self, settings: ServeSettings, log: Path, guard: MemoryGuard
    ) -> Iterator[Callable[[], Wire]]:
        """Launch a server, and stop it in the end; what is given waits until it serves.

        Raises:
            ServerFailedError: of the wait, where it does not serve.
        """
        with Launched(self.launcher, settings, log, self._start_timeout_s, guard) as launched:
            yield lambda: Wire(launched.wait())

    @contextmanager
    def _booted(self, settings: ServeSettings, log: Path, guard: MemoryGuard) -> Iterator[Wire]:
        """Start a server, and stop it in the end.

        Raises:
            ServerFailedError: it does not serve.
        """
        with self._launched(settings, log, guard) as ready:
            yield ready()

    def _wait_for_room(self, servers: Iterable[ServeSettings], guard: MemoryGuard) -> None:
        """Wait until all of these servers have room together.

        Raises:
            MissingEnvironmentError: they have none.
        """
        need = -RESERVE
        if self._unified and self._need_of:
            need = sum(map(self._need_of, servers))
        wait_for_room(guard, "the next server", need)

    def _served(self, wire: Wire, job: Job) -> Generator[Part, None, Served]:
        load = cast("SpecScenario | FullLoad | SoakLoad", job.workload)
        if isinstance(load, SoakLoad):
            return (yield from measure_soak(wire, job, self._options))
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
            self._wait_for_room([self._settings_of(largest(jobs).candidate)], guard)
            found = yield from self._column_under(jobs, guard)
        least = {} if guard.lowest is None else {"available_least": guard.lowest}
        return [replace(one, details={**one.details, **least}) for one in found]

    def _column_under(
        self, jobs: list[Job], guard: MemoryGuard
    ) -> Generator[Part, None, list[Measurement]]:
        began, most = time.monotonic(), largest(jobs)
        candidates = {job.candidate for job in jobs}
        ahead = self._ahead if self._ahead and self._ahead[0] in candidates else None
        gammas = [job.candidate.int(GAMMA) for job in jobs]
        scenario = cast("SpecScenario", most.workload)
        log = self._logs / f"{most.candidate.key}-{scenario.key}.log"
        details: dict[str, Any] = {"log": str(log), "dial": gammas, "ahead": ahead is not None}
        found: list[Served | UnservedError]
        try:
            with Dial.made() as dial:
                static = self._settings_of(most.candidate)
                inherited = variables_of(self.launcher)
                settings = dial.settings(static, gammas, scenario.concurrency[-1], inherited)
                with self._dialled(settings, ahead, log, guard) as wire:
                    details["start_s"] = wire.server.start_seconds
                    check_log(wire.server.log)
                    found = yield from measure_column(wire, jobs, dial, self._options)
                    if wire.server.fall is not None:
                        raise UnservedError(Outcome.HOST_MEMORY, str(wire.server.fall))
                    details |= moe_files(lines_in(wire.server.log))
        except ServerFailedError as error:
            found = [_unserved(error)] * len(jobs)
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

    @contextmanager
    def _dialled(
        self,
        settings: ServeSettings,
        ahead: tuple[Candidate, int] | None,
        log: Path,
        guard: MemoryGuard,
    ) -> Iterator[Wire]:
        """Start the dialled server, and another beside it until it serves; nothing is timed yet."""
        if ahead is None:
            with self._booted(settings, log, guard) as wire:
                yield wire
            return
        candidate, room = ahead
        other = alongside(self._settings_of(candidate), room)
        with self._launched(alongside(settings, room), log, guard) as ready:
            with self._launched(other, log.with_suffix(".ahead.log"), guard):
                wire = ready()
            yield wire

    def compare(
        self,
        groups: Iterable[Group],
        *,
        check: bool,  # noqa: ARG002 - outputs are taken in any case
    ) -> Iterator[dict[Candidate, Measurement] | Part]:
        """The servers of a group are up at once; see :class:`autotune.core.SideBySide`."""
        for group in groups:
            with guarded(self._unified) as guard:
                found = yield from self._compared(group, guard)
            least = {} if guard.lowest is None else {"available_least": guard.lowest}
            yield {c: replace(one, details={**one.details, **least}) for c, one in found.items()}

    def _compared(
        self, group: Group, guard: MemoryGuard
    ) -> Generator[Part, None, dict[Candidate, Measurement]]:
        began, scenario = time.monotonic(), cast("SpecScenario", group.workload)
        room = 0 if scenario.beside is None else scenario.beside.kv_bytes
        settings = {c: alongside(self._settings_of(c), room) for c in group.candidates}
        self._wait_for_room(settings.values(), guard)
        found: dict[Candidate, Served | UnservedError] = {}
        named = {"compared": scenario.key, "seed": group.seed, "boots": 1}
        logs = {c: self._logs / f"{c.key}-{scenario.key}.log" for c in settings}
        details: dict[Candidate, dict[str, Any]] = {
            c: {**named, "log": str(log)} for c, log in logs.items()
        }
        # The servers end first, and with them what is still asked of one.
        with ThreadPoolExecutor(len(settings)) as askers, ExitStack() as stack:
            ready = {
                c: stack.enter_context(self._launched(one, logs[c], guard))
                for c, one in settings.items()
            }
            cells = self._asked(group, ready, found, askers)
            if len(cells) == len(ready) or _goes_on(group, found):
                results = yield from measure_beside(cells)
                for cell, result in zip(cells, results, strict=True):
                    candidate, server = cell.job.candidate, cell.wire.server
                    found[candidate] = self._evaluated(cell, result)
                    details[candidate] |= moe_files(lines_in(server.log))
                    details[candidate]["start_s"] = server.start_seconds
        unmeasured = UnservedError(Outcome.RUNTIME_ERROR, NOTHING_BESIDE)
        seconds = (time.monotonic() - began) / len(settings)
        return {
            c: self._as_measurement(found.get(c, unmeasured), details[c], seconds) for c in settings
        }

    def _asked(
        self,
        group: Group,
        ready: Mapping[Candidate, Callable[[], Wire]],
        failed: dict[Candidate, Served | UnservedError],
        askers: ThreadPoolExecutor,
    ) -> list[Cell]:
        """Wait for every server, and ask it for its outputs while others still start.

        Nothing is timed yet, and a server compiles kernels for its first requests: half a minute of
        three servers in turn on an H200. Servers that do not serve are noted in ``failed``.
        """
        cells, asking = list[Cell](), list[Future[None]]()
        for candidate, wait in ready.items():
            try:
                cells.append(Cell.of(_rival(group, candidate), wait(), self._options))
            except ServerFailedError as error:
                failed[candidate] = _unserved(error)
            else:
                asking.append(askers.submit(cells[-1].ask_or_stop))
        for asked in asking:
            asked.result()
        return cells

    def _evaluated(self, cell: Cell, found: Served | UnservedError) -> Served | UnservedError:
        """Add what tasks say of it, where the scenario asks for them."""
        server, scenario = cell.wire.server, cell.scenario
        if server.fall is not None:
            return UnservedError(Outcome.HOST_MEMORY, str(server.fall))
        if isinstance(found, Served) and scenario.evaluates and self._tasks is not None:
            out = self._logs / f"{cell.job.candidate.key}-{scenario.key}-tasks"
            found.details["tasks"] = evaluate(server, self._tasks, chat=scenario.chat, out=out)
        return found

    def _as_measurement(
        self, found: Served | UnservedError, details: dict[str, Any], seconds: float
    ) -> Measurement:
        if isinstance(found, UnservedError):
            return Measurement(
                outcome=found.outcome,
                basis=self.basis,
                message=str(found),
                details=details | found.details,
                seconds=seconds,
            )
        return Measurement(
            outcome=Outcome.OK,
            basis=self.basis,
            value=found.value,
            samples=found.samples,
            details=details | found.details,
            seconds=seconds,
        )

    def _measured(self, job: Job) -> Generator[Part, None, Measurement]:
        with guarded(self._unified) as guard:
            self._wait_for_room([self._settings_of(job.candidate)], guard)
            found = yield from self._measured_under(job, guard)
        if guard.lowest is None:
            return found
        return replace(found, details={**found.details, "available_least": guard.lowest})

    def _measured_under(self, job: Job, guard: MemoryGuard) -> Generator[Part, None, Measurement]:
        began = time.monotonic()
        log = self._logs / f"{job.candidate.key}-{job.workload.key}.log"
        booted = int(self.launcher.starts)
        details: dict[str, Any] = {"boots": booted, "log": str(log) if booted else None}
        found: Served | UnservedError
        try:
            with self._booted(self._settings_of(job.candidate), log, guard) as wire:
                details["start_s"] = wire.server.start_seconds
                found = yield from self._served(wire, job)
                if wire.server.fall is not None:
                    raise UnservedError(Outcome.HOST_MEMORY, str(wire.server.fall))
                details |= moe_files(lines_in(wire.server.log))
        except ServerFailedError as error:
            found = _unserved(error)
        except UnservedError as error:
            found = error
        return self._as_measurement(found, details, time.monotonic() - began)


def _rival(group: Group, candidate: Candidate) -> Job:
    """One of a group as a job; what the others are compared with goes on if it misses an SLO."""
    scenario = cast("SpecScenario", group.workload)
    rules = Rules(dict(scenario.slo), to_the_end=candidate == group.candidates[0])
    return Job(candidate, scenario, rules, group.parts.get(candidate, {}))


def _unserved(error: ServerFailedError) -> UnservedError:
    said = {"failure": error.failure.kind.value}
    return UnservedError(error.failure.outcome, error.failure.line, said)


def _goes_on(group: Group, failed: Mapping[Candidate, Served | UnservedError]) -> bool:
    """Whether the rest is worth measuring, where some did not start.

    Not without what it is compared with, and not where the device is too small for all: then they
    are measured one after the other.
    """
    memory = {Outcome.OUT_OF_MEMORY, Outcome.HOST_MEMORY}
    short = any(isinstance(one, UnservedError) and one.outcome in memory for one in failed.values())
    return (
        not short and group.candidates[0] not in failed and len(failed) < len(group.candidates) - 1
    )
