"""The measured mode's parent side: a fake kernel in the real measuring processes."""

from __future__ import annotations

import itertools
import os
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from autotune.core import (
    Basis,
    Candidate,
    Group,
    Job,
    Measurement,
    Measurer,
    MissingEnvironmentError,
    Outcome,
    Workload,
)
from autotune.kernels.compile.job import Compiled, CompileJob
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.processes import KERNEL, GpuOptions
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.moe.variants import Scheme
from tests import fake_kernel
from tests.contracts import MeasurerContract
from tests.support.slow_kernel import PIDS, STUCK
from tests.support.tasks import dead, wait_for

SHAPE = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)
M = 16
WORKLOAD = MoeWorkload(SHAPE, M)
LOCKS = tempfile.TemporaryDirectory(prefix="autotune-test-locks-")
"""Of this run alone: another one on this machine has no GPU to share with it."""


def candidate(kind: int = fake_kernel.FINE, columns: int = 128, stages: int = 3) -> Candidate:
    return Candidate.of(
        {
            "BLOCK_SIZE_M": 16,
            "BLOCK_SIZE_N": columns,
            "BLOCK_SIZE_K": 128,
            "GROUP_SIZE_M": kind,
            "num_warps": 4,
            "num_stages": stages,
        }
    )


class NoCompiler(CompileProcesses):
    """Everything compiles but tiles of 32 columns; the default has 64, and four stages."""

    def __init__(self, *, widens: bool = False) -> None:
        self.widens = widens

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def compile(self, jobs: Iterable[CompileJob], *_: object, **__: object) -> Iterator[Compiled]:
        for job in jobs:
            fails = job.block_n == 32
            yield Compiled(
                Outcome.COMPILE_ERROR if fails else Outcome.OK,
                message="no" if fails else "",
                seconds=0.5,
            )

    def defaults(self, shape: MoeShape, batch_sizes: Sequence[int]) -> dict[int, Candidate]:
        return {m: candidate(columns=64, stages=4) for m in batch_sizes}

    def widens_fp8(self, shape: MoeShape, arch: int, cache: object) -> bool:
        return self.widens


def measurer(gpus: Sequence[int] = (0,), **changes: Any) -> GpuMeasurer:
    options = GpuOptions(
        gpus=tuple(gpus),
        arch=90,
        l2_bytes=60 * 2**20,
        kernel="tests.fake_kernel",
        locks=(Path(LOCKS.name),),
    )
    return GpuMeasurer(SHAPE, replace(options, **changes), NoCompiler())


def starts(opened: GpuMeasurer, purpose: str = "search") -> list[str]:
    return (Path(opened.folder) / purpose / "starts").read_text().split()


class TestContract(MeasurerContract):
    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls) -> Iterator[Measurer]:
        """One for all, on a GPU of its own: the first measurement is none of another kind."""
        with measurer((9,)) as it:
            yield it

    def measurer(self) -> Measurer:
        return measurer()

    def workload(self) -> Workload:
        return WORKLOAD

    def expected(self) -> dict[Candidate, Measurement]:
        found = {
            candidate(stages=stages): Measurement(
                Outcome.OK,
                Basis.MEASURED,
                fake_kernel.time_us(M, candidate(stages=stages).ints) + 0.1,
            )
            for stages in (2, 3, 4)
        }
        return found | {candidate(columns=32): Measurement(Outcome.COMPILE_ERROR, Basis.MEASURED)}

    def unmeasurable(self) -> Candidate | None:
        return None


@pytest.mark.parametrize(
    ("kind", "outcome", "message"),
    [
        (fake_kernel.HANGS, Outcome.TIMEOUT, "did not end in time"),
        (fake_kernel.LOSES_DEVICE, Outcome.RUNTIME_ERROR, "illegal memory access"),
        (fake_kernel.SEGFAULTS, Outcome.CRASH, "SIGSEGV"),
        (fake_kernel.OUT_OF_MEMORY, Outcome.OUT_OF_MEMORY, "out of memory"),
    ],
)
def test_what_a_candidate_does_is_an_outcome_and_the_next_is_measured(
    kind: int, outcome: Outcome, message: str
) -> None:
    jobs = [Job(c, WORKLOAD) for c in (candidate(), candidate(kind), candidate(stages=4))]
    with measurer() as opened:
        before, bad, after = opened.measure(jobs)
        lost = outcome is not Outcome.OUT_OF_MEMORY
        assert len(starts(opened)) == (2 if lost else 1)
    assert (bad.outcome, bad.value) == (outcome, None)
    assert message in bad.message
    assert before.outcome is after.outcome is Outcome.OK


def test_a_kernel_of_two_batch_sizes_is_compiled_once() -> None:
    with measurer() as opened:
        list(opened.measure([Job(candidate(), w) for w in (WORKLOAD, MoeWorkload(SHAPE, 2 * M))]))
        assert opened.spent["compile_cpu"] == 2 * 0.5


def test_a_slow_candidate_is_given_up_after_two_samples() -> None:
    with measurer() as opened:
        fast, slow = opened.measure(
            itertools.chain(
                [Job(candidate(), WORKLOAD)], [Job(candidate(columns=256, stages=9), WORKLOAD)]
            )
        )
        again = list(opened.measure([Job(candidate(columns=256, stages=8), WORKLOAD)]))
    assert (len(fast.samples), fast.details["raced"]) == (5, False)
    assert slow.value is not None
    assert (len(again[0].samples), again[0].details["raced"]) == (2, True)
    assert again[0].value == min(again[0].samples)


def test_one_disturbed_sample_makes_no_slow_candidate() -> None:
    disturbed = candidate(fake_kernel.DISTURBED)
    with measurer() as opened:
        (fast,) = opened.measure([Job(candidate(), WORKLOAD)])
        (found,) = opened.measure([Job(disturbed, WORKLOAD)])
    assert found.samples[0] > 9 * (fast.value or 0)
    assert not found.details["raced"]
    assert found.value == fast.value


def test_the_race_is_of_one_batch_size() -> None:
    with measurer() as opened:
        list(opened.measure([Job(candidate(), MoeWorkload(SHAPE, 1))]))
        (other,) = opened.measure([Job(candidate(), MoeWorkload(SHAPE, 64))])
    assert not other.details["raced"]


def test_a_process_that_holds_too_much_is_replaced_and_nothing_is_lost() -> None:
    jobs = [Job(candidate(fake_kernel.GROWS, stages=stages), WORKLOAD) for stages in range(2, 14)]
    with measurer(memory_limit_mib=1250) as opened:
        found = list(opened.measure(jobs))
        assert len(starts(opened)) >= 3
        assert opened.spent["peak_rss_mib"] <= 1250 + 100
    assert [m.outcome for m in found] == [Outcome.OK] * 12


@pytest.mark.parametrize("bad", [(), (fake_kernel.OUT_OF_MEMORY,)], ids=["whole", "one by one"])
def test_a_process_that_holds_too_much_is_no_candidates_fault(bad: tuple[int, ...]) -> None:
    """Between two comparisons, and between the tries that tell which candidate fails."""
    grows = [candidate(fake_kernel.GROWS, stages=stages) for stages in (2, 3, 4)]
    group = (*grows, *map(candidate, bad))
    workloads = [MoeWorkload(SHAPE, m) for m in (1, 8, 64)]
    with measurer(memory_limit_mib=1250) as opened:
        found = list(opened.compare([Group(w, group, 0) for w in workloads], check=True))
        assert len(starts(opened, "compare")) >= 3
        assert opened.spent["replaced"] >= 2
    for compared in found:
        assert {compared[one].outcome for one in grows} == {Outcome.OK}
        assert all(len(compared[one].samples) == 9 for one in grows)


def test_a_measurement_says_which_gpu_made_it() -> None:
    with measurer(uuids={0: "GPU-abc"}) as known:
        (measured,) = known.measure([Job(candidate(), WORKLOAD)])
        (compared,) = known.compare(
            [Group(WORKLOAD, (candidate(), candidate(stages=4)), 0)], check=True
        )
    assert {m.details["gpu"] for m in (measured, *compared.values())} == {"GPU-abc"}
    with measurer() as unknown:
        (measured,) = unknown.measure([Job(candidate(), WORKLOAD)])
    assert measured.details["gpu"] == "0"


def test_a_gpu_is_measured_on_by_one_command_at_a_time() -> None:
    said = f"GPU 1 is being measured on by process {os.getpid()} "
    with measurer((0, 1)), pytest.raises(MissingEnvironmentError, match=said), measurer((1,)):
        pass
    with measurer((0, 1)):  # freed again
        pass


def test_every_gpu_has_a_process_of_its_own() -> None:
    jobs = [Job(candidate(stages=stages), WORKLOAD) for stages in range(2, 40)]
    with measurer(range(3)) as opened:
        assert len(list(opened.measure(jobs))) == len(jobs)
        assert sorted(starts(opened)) == ["0", "1", "2"]


class TestCompare:
    def compare(self, *candidates: Candidate) -> dict[Candidate, Measurement]:
        with measurer() as opened:
            (found,) = opened.compare([Group(WORKLOAD, candidates, 5)], check=True)
            assert len(starts(opened, "compare")) >= 1
        return found

    def test_side_by_side_in_processes_of_its_own(self) -> None:
        a, b = candidate(), candidate(stages=4)
        found = self.compare(a, b)
        assert [len(m.samples) for m in found.values()] == [9, 9]
        assert found[a].details["compared"] == found[b].details["compared"]
        assert found[a].details["error"] == 0.004

    @pytest.mark.parametrize("kind", [fake_kernel.WRONG, fake_kernel.NOT_A_NUMBER])
    def test_a_wrong_result_is_an_outcome_of_its_own(self, kind: int) -> None:
        found = self.compare(candidate(), candidate(kind))
        assert found[candidate(kind)].outcome is Outcome.WRONG_RESULT
        assert found[candidate()].outcome is Outcome.OK

    @pytest.mark.parametrize(
        ("kind", "outcome"),
        [
            (fake_kernel.HANGS, Outcome.TIMEOUT),
            (fake_kernel.LOSES_DEVICE, Outcome.RUNTIME_ERROR),
            (fake_kernel.SEGFAULTS, Outcome.CRASH),
            (fake_kernel.OUT_OF_MEMORY, Outcome.OUT_OF_MEMORY),
        ],
    )
    def test_the_one_at_fault_is_found_and_the_others_compared(
        self, kind: int, outcome: Outcome
    ) -> None:
        found = self.compare(candidate(), candidate(kind), candidate(stages=4))
        assert found[candidate(kind)].outcome is outcome
        # So that the next command finds it in the store.
        assert {m.details["seed"] for m in found.values()} == {5}
        assert len({m.details["compared"] for m in found.values()}) == 1
        assert len(found[candidate()].samples) == len(found[candidate(stages=4)].samples) == 9

    def test_what_does_not_compile_is_left_out(self) -> None:
        found = self.compare(candidate(), candidate(columns=32))
        assert found[candidate(columns=32)].outcome is Outcome.COMPILE_ERROR
        assert found[candidate()].outcome is Outcome.OK


# ------------------------------------------------------------------- a parent that is killed


JOB = """
    import sys
    from pathlib import Path
    from tests.kernels.test_gpu import run_job

    if __name__ == "__main__":
        run_job(Path(sys.argv[1]))
"""


def run_job(folder: Path) -> int:
    """Tune with the fake kernel and write the files: how many trials were new."""
    from autotune.kernels import job
    from autotune.kernels.export.write import write
    from autotune.kernels.report.page import page_of
    from autotune.store.store import Store
    from tests.kernels.test_measured_job import plan

    with Store.open(f"sqlite:///{folder}/a.db") as store:
        kernel = "tests.support.slow_kernel"
        timer = measurer(kernel=kernel, uuids={0: "GPU-0"}, locks=(folder / "locks",))
        result = job.run(plan(batch_sizes=(1, 64)), store, timer, lambda _: None)
        page = page_of(store, "fake")
    write(result, page, folder)
    return result.fresh


def start_job(folder: Path) -> subprocess.Popen[str]:
    """A measuring job as a program of its own."""
    script = folder / "job.py"
    script.write_text(textwrap.dedent(JOB))
    root = str(Path(__file__).parents[2])
    environment = {PIDS: str(folder / "pids"), "PYTHONPATH": root, "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of(process: subprocess.Popen[str]) -> set[int]:
    return {child.pid for child in psutil.Process(process.pid).children(recursive=True)}


def stored(folder: Path) -> list[tuple[Any, ...]]:
    query = """
        SELECT w.label, t.phase, t.sequence, t.candidate_key, m.outcome, m.value
        FROM trials t JOIN workloads w ON w.id = t.workload_id
        JOIN measurements m ON m.trial_id = t.id ORDER BY 1, 2, 3
    """
    try:
        with closing(sqlite3.connect(folder / "a.db")) as database:
            return database.execute(query).fetchall()
    except sqlite3.OperationalError:  # no tables yet
        return []


def has_stored(folder: Path, trials: int) -> bool:
    return len(stored(folder)) >= trials


def finished(folder: Path) -> tuple[int, bytes]:
    """Let a job run to its end, in this process: the trials that it made, and the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PIDS, str(folder / "pids"))
        fresh = run_job(folder)
    (file,) = folder.glob("*/measured/E=*.json")
    return fresh, file.read_bytes()


def kill(process: subprocess.Popen[str], folder: Path) -> None:
    """Kill -9: nothing of it may be left, the measuring processes least of all."""
    left = processes_of(process)
    measuring = {int(pid) for pid in (folder / "pids").read_text().split()}
    assert left & measuring, "nothing was being measured"
    process.kill()
    process.communicate()
    assert wait_for(lambda: all(dead(pid) for pid in left | measuring), 3)


@pytest.mark.vllm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_killed_while_measuring_and_run_again(kills: int, tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    made, expected = finished(calm)
    assert made == len(stored(calm)) > 50
    seen: list[tuple[Any, ...]] = []
    for moment in (20, made - 3)[:kills]:  # in the search, while confirming
        process = start_job(rough)
        assert wait_for(partial(has_stored, rough, moment), 90)
        kill(process, rough)
        assert set(seen) <= set(stored(rough)), "a stored trial was lost"
        seen = stored(rough)
        assert len(seen) < made, "it was over before the kill"
        (rough / "pids").unlink()
    fresh, file = finished(rough)
    assert fresh <= made - 20, "what was stored was measured again"
    assert file == expected
    searched = [row for row in stored(rough) if row[1] != "confirm"]
    assert searched == [row for row in stored(calm) if row[1] != "confirm"]


@pytest.mark.vllm
def test_killed_while_a_measuring_process_hangs(tmp_path: Path) -> None:
    """It stands still inside a call, so that nothing but a signal can end it."""
    stuck = tmp_path / STUCK
    stuck.touch()
    process = start_job(tmp_path)
    try:
        assert wait_for(lambda: stuck.read_text().strip(), 90)
        hanging = int(stuck.read_text())
        assert not dead(hanging)
        kill(process, tmp_path)
        assert dead(hanging)
    finally:
        process.kill()
        process.communicate()
    before = stored(tmp_path)
    assert before
    stuck.unlink()
    fresh, _ = finished(tmp_path)
    assert set(before) <= set(stored(tmp_path))
    assert fresh == len(stored(tmp_path)) - len(before)


@pytest.mark.vllm
def test_a_gpu_that_torch_cannot_use_is_one_line() -> None:
    """As told by the real measuring process: the torch of these tests is the CPU build."""
    with measurer(kernel=KERNEL) as opened, pytest.raises(MissingEnvironmentError) as error:
        list(opened.measure([Job(candidate(), WORKLOAD)]))
    assert str(error.value) == "torch sees no CUDA device; is this a CPU build of torch?"
