"""The measured job end to end, with a fake kernel: in memory, and once in measuring processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core import (
    Basis,
    MissingEnvironmentError,
    NoFeasibleCandidateError,
    Outcome,
    Phase,
    Trial,
)
from autotune.kernels import job
from autotune.kernels.compile.job import Compiled
from autotune.kernels.compile.kernel_source import kernel_info
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.config_file import parse
from autotune.kernels.export import write as export
from autotune.kernels.job import Result, run
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.processes import GpuOptions
from autotune.kernels.measure.requests import EXIT_DEVICE_ERROR, Comparison, Timing
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.plan import Plan
from autotune.kernels.report.document import provenance, warnings
from autotune.kernels.report.page import page_of
from autotune.kernels.stored import load
from autotune.machine.devices import GpuInfo, get_device
from autotune.report.page import Page, Table
from autotune.report.render import to_html
from autotune.report.verdict import keep_verdict
from autotune.space.space import load_space
from autotune.store.store import Store
from tests import fake_kernel
from tests.kernels.test_gpu import SHAPE, NoCompiler
from tests.support.timer_in_memory import TimerInMemory

# ------------------------------------------------------ this module in place of the kernel

FAILS = "AUTOTUNE_TEST_FAILS"
"""In the environment: what loses the device, such as ``stages 4 at 8`` or ``compare``."""
set_up, device_facts, ready = fake_kernel.set_up, fake_kernel.device_facts, fake_kernel.ready


def _lose(*names: str) -> None:
    if os.environ.get(FAILS) in names:
        os._exit(EXIT_DEVICE_ERROR)


def time_candidate(request: Timing) -> dict[str, Any]:
    stages = request.params["num_stages"]
    _lose("timing", f"stages {stages} at {request.m}")
    return fake_kernel.time_candidate(request)


def compare(request: Comparison) -> dict[str, Any]:
    _lose("compare", f"compare {request.m}")
    return fake_kernel.compare(request)


# ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fails_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAILS, raising=False)


def plan(**changes: Any) -> Plan:
    known: dict[str, Any] = {
        "study": "fake",
        "device": get_device("h200"),
        "model": "fake",
        "shape": SHAPE,
        "batch_sizes": (1, 8, 64),
        "space": load_space("stock", "moe"),
        "effort": "quick",
        "budget_s": None,
        "sampler": "tpe",
        "seed": 0,
        "min_gain": 0.01,
        "workers": 1,
        "kernel": kernel_info(),
        "command": "autotune moe",
        "gpus": (GpuInfo(0, "NVIDIA H200", "GPU-0", "1", "1", "9.0"),),
    }
    return Plan(**(known | changes))


def tune(
    tmp_path: Path, *, widens: bool = False, processes: bool = False, **changes: Any
) -> tuple[Result, list[Any]]:
    steps: list[Any] = []
    options = GpuOptions(
        gpus=(0,),
        arch=90,
        l2_bytes=60 * 2**20,
        kernel="tests.kernels.test_measured_job",
        uuids={0: "GPU-0"},
        locks=(tmp_path / "locks",),
    )
    make = GpuMeasurer if processes else TimerInMemory
    measurer = make(SHAPE, options, NoCompiler(widens=widens))
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        result = run(plan(**changes), store, measurer, steps.append)
    return result, steps


def page(tmp_path: Path, result: Result) -> Page:
    """The page of a job that has just ended, as the command makes it."""
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        keep_verdict(store, result.plan, provenance(result))
        made = result.plan
        return page_of(store, made.study, setup=made.setup(), device=made.device)


@pytest.mark.parametrize("processes", [False, True])
def test_a_measured_job_writes_what_it_measured(processes: bool, tmp_path: Path) -> None:
    result, steps = tune(tmp_path, processes=processes, effort="standard")
    assert {s.trial.measurement.basis for s in steps} == {Basis.MEASURED}
    assert {s.trial.phase for s in steps} == set(Phase)
    files = export.write(result, page(tmp_path, result), tmp_path)
    assert {path.parent.name for path in files} == {"measured"}
    rows = parse(files[-1].read_bytes(), "file")
    assert set(rows) >= {1, 8, 64}
    for m in (1, 8, 64):
        tried = [s.trial for s in steps if s.trial.workload_key == MoeWorkload(SHAPE, m).key]
        ok = [t.candidate.ints for t in tried if t.measurement.outcome is Outcome.OK]
        times = [fake_kernel.time_us(m, params) for params in ok]
        assert fake_kernel.time_us(m, rows[m].ints) == min(times) < max(times)
    assert "MEASURED" in (tmp_path / "fake/measured/report.md").read_text()
    assert result.measured is not None
    assert result.measured.between


def test_the_page_of_a_measured_job_has_its_ceilings(tmp_path: Path) -> None:
    result, _ = tune(tmp_path)
    text = to_html(page(tmp_path, result))
    assert "Ceilings 4200 GB/s and 200 TFLOP/s, measured on a fake" in text
    assert "PREDICTED" not in text


def test_a_second_command_measures_nothing_again(tmp_path: Path) -> None:
    first, _ = tune(tmp_path)
    again, steps = tune(tmp_path)
    assert again.fresh == 0
    assert all(step.reused for step in steps)
    assert {m: s.winner for m, s in again.selections.items()} == {
        m: s.winner for m, s in first.selections.items()
    }


def clocks_of(page: Page) -> Sequence[Sequence[str]]:
    blocks = [b for one in page.sections if one.title == "Clocks" for b in one.blocks]
    (table,) = (block for block in blocks if isinstance(block, Table))
    return table.rows


def test_a_comparison_under_a_low_clock_is_a_warning_and_the_clocks_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = fake_kernel.compare

    def hot(request: Comparison) -> dict[str, Any]:
        after = {"sm_mhz": 1200.0 if request.m == 64 else 2400.0, "temperature_c": 88.0}
        return compared(request) | {"clocks": [{"sm_mhz": 2400.0, "power_mw": 45_400.0}, after]}

    timed = fake_kernel.time_candidate

    def read(request: Timing) -> dict[str, Any]:
        return timed(request) | ({"clocks": {"sm_mhz": 2300.0}} if request.clocks else {})

    monkeypatch.setattr(fake_kernel, "compare", hot)
    monkeypatch.setattr(fake_kernel, "time_candidate", read)
    searched = [row[1] for row in clocks_of(page(tmp_path, tune(tmp_path)[0]))][-2]
    result, _ = tune(tmp_path)
    (said,) = (one for one in warnings(result) if "SM clock" in one)
    assert "(M=64: 1200)" in said
    shown = clocks_of(page(tmp_path, result))
    assert list(shown[-1][1:]) == ["1200 to 2400", "88", "45"]
    assert searched == shown[-2][1] == "2300", "of the first command: the second searched nothing"


def test_keys_of_an_earlier_command_stay(tmp_path: Path) -> None:
    tune(tmp_path)
    result, _ = tune(tmp_path, batch_sizes=(256,))
    assert set(result.selections) >= {1, 8, 64, 256}
    assert result.measured is not None
    # The file is checked between all its keys, not only those of this command.
    assert {b.m for b in result.measured.between} == {5, 36, 160, 512}


def test_counts_what_does_not_compile(tmp_path: Path) -> None:
    result, _ = tune(tmp_path, effort="exhaustive", batch_sizes=(8,))
    assert result.counts[Outcome.COMPILE_ERROR.value] > 10


# ------------------------------------------------------------------------- what can fail


def trials(tmp_path: Path) -> list[Trial]:
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        (search,) = store.get_study("fake").searches
        return store.trials(search)


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_a_batch_size_that_cannot_be_confirmed_is_left_out_until_it_can(
    processes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILS, "compare 8")
    result, _ = tune(tmp_path, processes=processes)
    assert set(result.selections) == {1, 64}
    assert result.failed.keys() == {8}
    (said,) = result.noticed
    assert said.startswith("not in the file: M=8: vLLM's default fails beside the finalists")
    # Without that key, the file is checked between those that it has.
    assert result.measured is not None
    assert {b.m for b in result.measured.between} == {33, 128}
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        read = load(store, "fake", 0.01)
    page(tmp_path, result)
    assert (set(read.rows), read.unconfirmed) == ({1, 64}, (8,))
    monkeypatch.delenv(FAILS)
    mended, _ = tune(tmp_path)
    assert (set(mended.selections), mended.failed, mended.noticed) == ({1, 8, 64}, {}, [])


def test_where_no_batch_size_can_be_confirmed_there_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILS, "compare")
    with pytest.raises(NoFeasibleCandidateError, match="M=8: vLLM's default fails beside"):
        tune(tmp_path, batch_sizes=(8,))
    monkeypatch.delenv(FAILS)
    result, _ = tune(tmp_path, batch_sizes=(8,))
    assert 8 in result.selections


def test_a_gpu_on_which_nothing_runs_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILS, "timing")
    with pytest.raises(MissingEnvironmentError) as error:
        tune(tmp_path, batch_sizes=(1, 8))
    assert str(error.value) == (
        "vLLM's default fails at every batch size, so nothing can be measured here: the device "
        "was lost"
    )
    assert {t.phase for t in trials(tmp_path)} == {Phase.BASELINE}
    monkeypatch.delenv(FAILS)
    result, _ = tune(tmp_path, batch_sizes=(1, 8))
    assert {1, 8} <= set(result.selections)


def test_a_default_that_fails_somewhere_is_tried_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAILS, "stages 4 at 8")
    tune(tmp_path, batch_sizes=(8, 64))
    (first,) = [
        t.measurement.outcome
        for t in trials(tmp_path)
        if t.phase is Phase.BASELINE and t.workload_key == MoeWorkload(SHAPE, 8).key
    ]
    assert first is Outcome.RUNTIME_ERROR
    monkeypatch.delenv(FAILS)
    again, _ = tune(tmp_path, batch_sizes=(8, 64))
    assert again.fresh == 1
    (second,) = [t for t in trials(tmp_path) if t.phase is Phase.BASELINE and t.sequence == 1]
    assert second.measurement.outcome is Outcome.OK


def test_failures_of_the_moment_are_tried_again_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcomes() -> list[Outcome]:
        searched = [t for t in trials(tmp_path) if t.phase is Phase.SEARCH]
        return [t.measurement.outcome for t in searched if t.candidate.int("num_stages") == 3]

    monkeypatch.setenv(FAILS, "stages 3 at 8")
    tune(tmp_path, batch_sizes=(8,))
    failed = len(outcomes())
    assert set(outcomes()) == {Outcome.RUNTIME_ERROR}
    monkeypatch.delenv(FAILS)
    unasked, _ = tune(tmp_path, batch_sizes=(8,))
    assert unasked.fresh == 0
    asked, _ = tune(tmp_path, batch_sizes=(8,), retry_failed=True)
    assert asked.fresh >= failed
    assert outcomes().count(Outcome.RUNTIME_ERROR) == failed, "nothing stored is changed"
    assert outcomes().count(Outcome.OK) > 0
    once_more, _ = tune(tmp_path, batch_sizes=(8,), retry_failed=True)
    assert once_more.fresh == 0


# ----------------------------------------------------------------- what else is recorded


def test_less_effort_later_takes_nothing_away(tmp_path: Path) -> None:
    """The file and its page are of all trials of the batch size."""
    standard, _ = tune(tmp_path, batch_sizes=(8,), effort="standard")
    assert {t.measurement.value for t in trials(tmp_path) if t.sequence >= 24}
    quick, _ = tune(tmp_path, batch_sizes=(8,), effort="quick")
    assert quick.fresh == 0
    assert {m: s.winner for m, s in quick.selections.items()} == {
        m: s.winner for m, s in standard.selections.items()
    }
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        page = load(store, "fake", 0.01)
    assert page.configs == {m: s.winner.candidate for m, s in quick.selections.items()}


def test_every_measurement_names_its_gpu(tmp_path: Path) -> None:
    tune(tmp_path, batch_sizes=(8,))
    ok = [t.measurement for t in trials(tmp_path) if t.measurement.outcome is Outcome.OK]
    assert {m.details["gpu"] for m in ok} == {"GPU-0"}


@pytest.mark.parametrize("widens", [True, False])
def test_fp8_multiplied_as_fp16_is_warned_of(tmp_path: Path, widens: bool) -> None:
    result, _ = tune(tmp_path, batch_sizes=(8,), widens=widens)
    assert result.fp16_fallback is widens
    assert any("fp16 tensor-core" in text for text in warnings(result)) is widens
    assert provenance(result)["measured_on"]["fp16_fallback"] is widens


@pytest.mark.parametrize(("found", "widens"), [("HMMA", True), ("QMMA", False)])
def test_the_probe_of_fp8_is_one_kernel_of_64_rows_and_columns(found: str, widens: bool) -> None:
    asked: list[Any] = []

    class Probed(CompileProcesses):
        def compile(self, jobs: Any, *_: Any, **__: Any) -> Any:
            asked.extend(jobs)
            return iter([Compiled(Outcome.OK, instructions={found: 4})])

    assert Probed(kernel_info(), 1).widens_fp8(SHAPE, 90, None) is widens
    assert [(one.arch, one.block_m, one.block_n) for one in asked] == [(90, 64, 64)]
    whole = replace(SHAPE, dtype=None, weight_dtype="bf16", scheme=Scheme.NONE)
    assert not Probed(kernel_info(), 1).widens_fp8(whole, 90, None)
    assert len(asked) == 1, "where nothing is fp8, nothing is compiled"


@pytest.mark.compile
def test_the_probe_of_fp8_is_really_compiled() -> None:
    """For sm_90, on which tiles of 64 rows and columns use its own fp8 instructions."""
    with CompileProcesses(kernel_info(), 1) as processes:
        assert not processes.widens_fp8(SHAPE, 90, None)


def test_what_else_used_the_gpu_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "others_on", lambda gpus: [f"GPU {gpus[0].index} is 37 % busy"])
    result, _ = tune(tmp_path, batch_sizes=(8,))
    assert result.noticed == ["when measuring began, GPU 0 is 37 % busy: times may be too long"]
    assert provenance(result)["measured_on"]["others"] == ["GPU 0 is 37 % busy"]
