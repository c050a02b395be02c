"""The real kernel on a real GPU: run with ``pytest -m gpu tests/gpu`` where there is one."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from autotune.core import Candidate, Group, Job, Outcome
from autotune.kernels.compile.job import kernel_info
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.processes import GpuOptions
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.plan import checks
from autotune.machine.devices import detect_gpus, resolve_device
from autotune.machine.environment import usable_cpus
from autotune.space.space import load_space
from tests import fake_kernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not detect_gpus(), reason="no GPU here"),
]
GEMMA = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)
SHAPES = {
    "channel": GEMMA,
    "tensor": MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.TENSOR, None, 128),
    "block": MoeShape(64, 512, 2048, 10, "fp8_w8a8", "fp8", Scheme.BLOCK, (128, 128), 64),
    "bf16": MoeShape(8, 1792, 1024, 2, None, "bf16", Scheme.NONE, None, 8),
    "int8": MoeShape(32, 512, 1024, 4, None, "int8", Scheme.CHANNEL, None, 32),
    "expert parallel": MoeShape(32, 512, 1024, 4, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 64),
    "no gate": MoeShape(32, 512, 1024, 4, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 32, gated=False),
}


@contextmanager
def measurer(
    shape: MoeShape, kernel: str = "autotune.kernels.measure.process"
) -> Iterator[GpuMeasurer]:
    device = resolve_device("auto")
    options = GpuOptions(
        gpus=(0,),
        arch=device.arch,
        l2_bytes=device.l2_bytes,
        kernel=kernel,
    )
    with GpuMeasurer(shape, options, CompileProcesses(kernel_info(), usable_cpus())) as opened:
        yield opened


def defaults(shape: MoeShape, *batch_sizes: int) -> dict[int, Candidate]:
    with CompileProcesses(kernel_info(), 1) as processes:
        return processes.defaults(shape, batch_sizes)


def with_group(candidate: Candidate, group: int) -> Candidate:
    return Candidate.of(candidate.params | {"GROUP_SIZE_M": group})


@pytest.mark.parametrize("name", SHAPES)
def test_every_scheme_is_timed_and_right(name: str) -> None:
    shape = SHAPES[name]
    rows = defaults(shape, 1, 48, 1024)
    with measurer(shape) as opened:
        print(opened.facts())
        jobs = [Job(row, MoeWorkload(shape, m)) for m, row in rows.items()]
        timed = list(opened.measure(jobs))
        groups = [
            Group(job.workload, (job.candidate, with_group(job.candidate, 16)), 7) for job in jobs
        ]
        compared = list(opened.compare(groups, check=True))
        print(opened.spent)
    for measurement in timed:
        print(measurement)
    for group in compared:
        for measurement in group.values():
            print(name, measurement)
    assert [m.outcome for m in timed] == [Outcome.OK] * 3
    assert opened.spent["compiled_late"] == 0
    assert {m.outcome for group in compared for m in group.values()} == {Outcome.OK}


class TestFaults:
    @pytest.fixture(scope="class")
    def opened(self) -> Iterator[GpuMeasurer]:
        with measurer(SHAPES["int8"], "tests.gpu.faulty_kernel") as opened:
            yield opened

    @pytest.mark.parametrize(
        ("kind", "outcome"),
        [
            (fake_kernel.HANGS, Outcome.TIMEOUT),
            (fake_kernel.LOSES_DEVICE, Outcome.RUNTIME_ERROR),
            (fake_kernel.SEGFAULTS, Outcome.CRASH),
            (fake_kernel.OUT_OF_MEMORY, Outcome.OUT_OF_MEMORY),
        ],
    )
    def test_the_search_goes_on(self, opened: GpuMeasurer, kind: int, outcome: Outcome) -> None:
        shape = SHAPES["int8"]
        row, workload = defaults(shape, 64)[64], MoeWorkload(shape, 64)
        begin = time.monotonic()
        jobs = [Job(c, workload) for c in (row, with_group(row, kind), with_group(row, 2))]
        before, bad, after = opened.measure(jobs)
        print(bad, f"{time.monotonic() - begin:.1f} s")
        assert before.outcome is after.outcome is Outcome.OK
        assert bad.outcome is outcome

    def test_a_wrong_result_cannot_win(self, opened: GpuMeasurer) -> None:
        shape = SHAPES["int8"]
        row, workload = defaults(shape, 64)[64], MoeWorkload(shape, 64)
        bad = (fake_kernel.WRONG, fake_kernel.NOT_A_NUMBER)
        kinds = (row, *(with_group(row, kind) for kind in bad))
        (group,) = opened.compare([Group(workload, kinds, 3)], check=True)
        print(group)
        wrong = Outcome.WRONG_RESULT
        assert [m.outcome for m in group.values()] == [Outcome.OK, wrong, wrong]


def test_memory_stays_bounded_and_nothing_is_compiled_twice() -> None:
    device = resolve_device("auto")
    feasible = load_space("stock", "moe").feasible(checks(GEMMA, device))
    chosen = random.Random(0).sample(feasible, 160)
    begin = time.monotonic()
    with measurer(GEMMA) as opened:
        jobs = [Job(c, MoeWorkload(GEMMA, m)) for c in chosen for m in (8, 64, 512)]
        found = list(opened.measure(jobs))
        print(opened.spent, f"{time.monotonic() - begin:.1f} s for {len(jobs)}")
    slowest = sorted(m.seconds for m in found)[-5:]
    print("slowest candidates (s):", slowest, [m.message for m in found if m.message][:5])
    assert sum(m.outcome is Outcome.OK for m in found) > 0.9 * len(jobs)
    assert opened.spent["compiled_late"] == 0
    spent = opened.spent
    assert spent["peak_rss_mib"] - spent["first_rss_mib"] < 1024
    assert spent["peak_device_mib"] - spent["first_device_mib"] < 1024
