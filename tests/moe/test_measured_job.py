"""The measured job end to end, with a fake kernel in the real measuring processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core import Basis, Outcome, Phase
from autotune.devices import GpuInfo, get_device
from autotune.moe import export, job
from autotune.moe.config_file import parse
from autotune.moe.gpu import GpuMeasurer, GpuOptions
from autotune.moe.job import Result, run
from autotune.moe.kernel_source import kernel_info
from autotune.moe.plan import Plan
from autotune.space import load_space
from autotune.store import Store
from tests.moe.test_gpu import SHAPE, compiler

pytestmark = pytest.mark.vllm


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    def measurer(shape: Any, options: GpuOptions, _: Any) -> GpuMeasurer:
        return GpuMeasurer(shape, replace(options, kernel="tests.fake_kernel"), compiler)

    monkeypatch.setattr(job, "GpuMeasurer", measurer)


def plan(**changes: Any) -> Plan:
    known: dict[str, Any] = {
        "study": "fake",
        "device": get_device("h200"),
        "model": "fake",
        "shape": SHAPE,
        "ms": (1, 8, 64),
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


def tune(tmp_path: Path, **changes: Any) -> tuple[Result, list[Any]]:
    steps: list[Any] = []
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        result = run(plan(**changes), store, steps.append)
    return result, steps


def test_a_measured_job_writes_what_it_measured(tmp_path: Path) -> None:
    result, steps = tune(tmp_path)
    assert {s.trial.measurement.basis for s in steps} == {Basis.MEASURED}
    assert {s.trial.phase for s in steps} == set(Phase)
    files = export.write(result, tmp_path)
    assert {path.parent.name for path in files} == {"measured"}
    rows = parse(files[-1].read_bytes(), "file")
    assert set(rows) >= {1, 8, 64}
    # The fake is fastest at 128 columns; vLLM's default has 64.
    assert all(rows[m]["BLOCK_SIZE_N"] == 128 for m in (1, 8, 64))
    assert "MEASURED" in (tmp_path / "fake/measured/report.md").read_text()
    assert result.measured is not None
    assert result.measured.between


def test_a_second_command_measures_nothing_again(tmp_path: Path) -> None:
    first, _ = tune(tmp_path)
    again, steps = tune(tmp_path)
    assert again.fresh == 0
    assert all(step.reused for step in steps)
    assert {m: s.winner for m, s in again.selections.items()} == {
        m: s.winner for m, s in first.selections.items()
    }


def test_keys_of_an_earlier_command_stay(tmp_path: Path) -> None:
    tune(tmp_path)
    result, _ = tune(tmp_path, ms=(256,))
    assert set(result.selections) >= {1, 8, 64, 256}
    assert result.measured is not None
    # The file is checked between all its keys, not only those of this command.
    assert {b.m for b in result.measured.between} == {5, 36, 160, 512}


def test_counts_what_does_not_compile(tmp_path: Path) -> None:
    result, _ = tune(tmp_path, effort="exhaustive", ms=(8,))
    assert result.counts[Outcome.COMPILE_ERROR.value] > 10
