"""The measurer of the measured mode: compile processes feed one measuring process per GPU.

Compile processes fill a Triton cache from which the measuring processes load, so that a GPU does
not wait for a compiler once started. The parent holds no CUDA context: whatever a candidate does
to the device dies with the process that ran it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median, median_low
from typing import Any, Self, cast

from autotune.core import (
    Basis,
    Cache,
    Candidate,
    Group,
    Job,
    Measurement,
    MissingEnvironmentError,
    Outcome,
    digest,
)
from autotune.kernels.compile.job import Compiled, CompileJob
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.measure.control import Pace
from autotune.kernels.measure.processes import SET_UP_LIMIT_S, GpuOptions, MeasuringProcesses
from autotune.kernels.measure.requests import (
    Comparison,
    Timing,
)
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.predict.measurer import compile_jobs
from autotune.machine.guard import guarded
from autotune.measure.pool import TaskResult

ROUNDS = 9
"""Of a comparison: the second smallest and second largest ratio then enclose 95 %."""


class _Memory(dict[str, dict[str, Any]]):
    """A compile cache for the life of a command: what it names lies in the Triton cache."""

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        self[key] = dict(value)


class GpuMeasurer(MeasuringProcesses):
    """Times candidates on this machine's GPUs.

    A :class:`autotune.kernels.measure.protocol.KernelTimer`.
    """

    basis = Basis.MEASURED

    def __init__(self, shape: MoeShape, options: GpuOptions, processes: CompileProcesses) -> None:
        """Take what measuring needs; processes start on entering the context.

        Args:
            shape: of every workload that will be given.
            options: how to measure.
            processes: compile.
        """
        super().__init__(shape, options)
        self._processes = processes
        self._known = _Memory()
        self._cache: Cache | None = None
        self._best: dict[str, float] = {}
        self._requests = 0
        self._compiled: set[CompileJob] = set()

    def __enter__(self) -> Self:
        options = self._options
        self._guard = self._stack.enter_context(guarded(options.unified))
        self._hold(self._stack)
        self._stack.enter_context(self._processes)
        self.folder = tempfile.mkdtemp(prefix="autotune-gpu-")
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._triton_cache = str(Path(self.folder) / "triton")
        Path(self._triton_cache).mkdir()
        self._stack.callback(self._close_pools)
        # Importing vLLM takes half a minute: compilation goes on meanwhile.
        started = self._pool("search").start(self._worker("device_facts"), 0, SET_UP_LIMIT_S)
        self._facts = started
        return self

    def __exit__(self, *ended: Any) -> None:
        self._stack.__exit__(*ended)

    def places(self, default: Candidate, workload: MoeWorkload) -> dict[str, float]:
        """Time the default on every GPU of a cluster; of one machine nothing is asked."""
        del default, workload
        return {}

    def use(self, cache: Cache) -> None:
        """Take a cache of compile results, for the probe of fp8."""
        self._cache = cache

    def defaults(self, batch_sizes: Sequence[int]) -> dict[int, Candidate]:
        """Return what vLLM would run at each M without a file."""
        return self._processes.defaults(self._shape, batch_sizes)

    def facts(self) -> dict[str, Any]:
        """Versions, GPU and measured ceilings, as the measuring process saw them at its start.

        Raises:
            MissingEnvironmentError: if nothing can be measured here.
        """
        widened = self._processes.widens_fp8(self._shape, self._options.arch, self._cache)
        result = self._facts()
        if result.value is None:
            raise MissingEnvironmentError(f"nothing can be measured here: {_said(result)}")
        return {**result.value, "fp16_fallback": widened}

    def prepare_comparisons(self) -> None:
        """Start the processes of :meth:`compare` in the background; importing vLLM takes long."""
        if self._options.unified:
            return  # only once those of the search are closed
        for _ in self._options.gpus:
            self._pool("compare").start(self._worker("ready"), None, SET_UP_LIMIT_S)

    def know_best(self, workload: MoeWorkload, us: float) -> None:
        """Tell a time that the candidates of ``workload`` race against."""
        self._best[workload.key] = min(us, self._best.get(workload.key, us))

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        """Yield a measurement per job, in order; compilation runs ahead."""
        order: deque[tuple[MoeWorkload, Pace, Measurement | None]] = deque()
        paces: deque[Pace] = deque()

        def noted() -> Iterator[Job]:
            for job in jobs:
                paces.append(job.rules if isinstance(job.rules, Pace) else Pace())
                yield job

        def launches() -> Iterator[Timing]:
            compiled = self._compile_ahead(noted())
            # Compilers draw on the memory that a kernel on unified memory is timed with.
            for candidate, workload, gemms in list(compiled) if self._options.unified else compiled:
                pace, failed = paces.popleft(), _failure(gemms)
                order.append((workload, pace, failed))
                if failed is None:
                    yield self._timing(candidate, workload, pace)

        with closing(self._answered("search", "time_candidate", launches())) as answers:
            for _, answer in answers:
                yield from self._failed_before(order)
                workload, pace, _ = order.popleft()
                measurement = self._measurement(answer)
                if measurement.value is not None:
                    self.know_best(workload, measurement.value / pace.slow)
                yield measurement
                yield from self._failed_before(order)
        yield from self._failed_before(order)

    @staticmethod
    def _failed_before(
        order: deque[tuple[MoeWorkload, Pace, Measurement | None]],
    ) -> Iterator[Measurement]:
        while order and (failed := order[0][2]) is not None:
            order.popleft()
            yield failed

    def _compile_ahead(
        self, jobs: Iterable[Job]
    ) -> Iterator[tuple[Candidate, MoeWorkload, tuple[Compiled, Compiled]]]:
        given: deque[tuple[Candidate, MoeWorkload, tuple[CompileJob, CompileJob]]] = deque()

        def gemms() -> Iterator[CompileJob]:
            for job in jobs:
                candidate, workload = job.candidate, job.workload
                if not isinstance(workload, MoeWorkload) or workload.shape != self._shape:
                    raise TypeError(f"not a workload of this measurer: {workload!r}")
                group = candidate.int("GROUP_SIZE_M")
                both = compile_jobs(candidate, workload, self._options.arch, group)
                given.append((candidate, workload, both))
                yield from both

        results = self._processes.compile(
            gemms(), self._known, disassemble=False, keep=self._triton_cache
        )
        for first in results:
            second = next(results)
            self._guard.raise_if_ended()  # then no compile failed of itself
            candidate, workload, both = given.popleft()
            for job, compiled in zip(both, (first, second), strict=True):
                if job not in self._compiled:  # batch sizes share kernels
                    self._compiled.add(job)
                    self._spent.compile_cpu += compiled.seconds
            yield candidate, workload, (first, second)

    def _timing(self, candidate: Candidate, workload: MoeWorkload, pace: Pace) -> Timing:
        self._requests += 1
        return Timing(
            key=f"{self._requests}-{candidate.key}",
            m=workload.m,
            params=candidate.ints,
            best_us=self._best.get(workload.key),
            slow=pace.slow,
            clocks=pace.control,
        )

    def _measurement(self, value: dict[str, Any] | Measurement) -> Measurement:
        if isinstance(value, Measurement):
            return value
        samples = tuple(value["samples"])
        self._spent.measuring += value["gpu_seconds"]
        self._spent.compiled_late += value["compiled_here"]
        return Measurement(
            Outcome.OK,
            Basis.MEASURED,
            # Of five the median; of the two of a slow candidate the one that was disturbed less.
            value=median_low(samples),
            samples=samples,
            details={"raced": value["raced"], **self._where(value)}
            | ({"clocks": value["clocks"]} if "clocks" in value else {}),
            seconds=value["gpu_seconds"],
        )

    def compare(
        self, groups: Iterable[Group], *, check: bool
    ) -> Iterator[dict[Candidate, Measurement]]:
        """Measure groups side by side, in processes that no search has run in.

        See :class:`autotune.core.SideBySide`. A group that fails as a whole is measured again
        candidate by candidate, so that the one at fault can be told.
        """
        given: deque[tuple[Comparison, list[Candidate], dict[Candidate, Measurement]]] = deque()

        def comparisons() -> Iterator[Comparison]:
            for group in groups:
                jobs = [Job(candidate, group.workload) for candidate in group.candidates]
                compiled = self._compile_ahead(dict.fromkeys(jobs))
                built = {c: _failure(gemms) for c, _, gemms in compiled}
                fine = [c for c, failed in built.items() if failed is None]
                seed, workload = group.seed, cast("MoeWorkload", group.workload)
                key = digest([workload.key, seed, [c.key for c in fine], check])
                request = Comparison(
                    key, workload.m, tuple(c.ints for c in fine), ROUNDS, seed, check
                )
                given.append((request, fine, {c: f for c, f in built.items() if f}))
                yield request

        with closing(self._answered("compare", "compare", comparisons())) as answers:
            for request, answer in answers:
                _, candidates, failed = given.popleft()
                found = failed | self._compared(request, candidates, answer)
                named = {"compared": request.key, "seed": request.seed}
                yield {c: replace(m, details={**m.details, **named}) for c, m in found.items()}

    def _compared(
        self,
        request: Comparison,
        candidates: Sequence[Candidate],
        value: dict[str, Any] | Measurement,
    ) -> dict[Candidate, Measurement]:
        if isinstance(value, Measurement):
            if len(candidates) == 1 or value.outcome is Outcome.HOST_MEMORY:
                return dict.fromkeys(candidates, value)
            return self._one_by_one(request, candidates)
        measurements = {}
        details = {"clocks": value["clocks"], **self._where(value)}
        for candidate, samples, error in zip(
            candidates, value["samples"], value["errors"], strict=True
        ):
            own = details | {"error": error}
            if error is not None and not error <= value["tolerance"]:
                measurements[candidate] = Measurement(
                    Outcome.WRONG_RESULT,
                    Basis.MEASURED,
                    samples=tuple(samples),
                    message=f"relative error {error:.3g} is over {value['tolerance']:g}",
                    details={**own, "error": str(error)},
                )
                continue
            measurements[candidate] = Measurement(
                Outcome.OK, Basis.MEASURED, median(samples), tuple(samples), details=own
            )
        return measurements

    def _one_by_one(
        self, request: Comparison, candidates: Sequence[Candidate]
    ) -> dict[Candidate, Measurement]:
        """Find the candidate at fault, then compare the rest."""
        found: dict[Candidate, Measurement] = {}
        for candidate in candidates:
            key = f"{request.key}-{candidate.key}"
            alone = replace(request, key=key, params=(candidate.ints,), rounds=1)
            found |= self._compared(alone, [candidate], self._one(alone))
            if found[candidate].outcome is Outcome.HOST_MEMORY:
                return dict.fromkeys(candidates, found[candidate])
        fine = [c for c in candidates if found[c].outcome is Outcome.OK]
        if len(fine) == len(candidates):  # none alone: what they did together is all that is known
            return {
                c: Measurement(Outcome.RUNTIME_ERROR, Basis.MEASURED, message="failed together")
                for c in candidates
            }
        if not fine:
            return found
        rest = replace(request, key=f"{request.key}-rest", params=tuple(c.ints for c in fine))
        return found | self._compared(rest, fine, self._one(rest))


def _failure(gemms: Sequence[Compiled]) -> Measurement | None:
    """The measurement of a candidate that did not compile."""
    for number, gemm in enumerate(gemms, start=1):
        if gemm.outcome is not Outcome.OK:
            return Measurement(
                gemm.outcome,
                Basis.MEASURED,
                message=f"GEMM {number}: {gemm.message}",
                seconds=sum(g.seconds for g in gemms),
            )
    return None


def _said(result: TaskResult[Any]) -> str:
    return result.message.partition(": ")[2] or result.message
