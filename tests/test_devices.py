"""Device files: complete, consistent with the vendors' totals, found by every name."""

from __future__ import annotations

import ctypes
import re
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.machine import driver
from autotune.machine.devices import (
    GpuInfo,
    detect_gpus,
    get_device,
    load_devices,
    present_gpus,
    refuse_slices,
    resolve_device,
)
from autotune.util.resources import data_root

DEVICES = load_devices()
FOLDER = data_root() / "search_spaces" / "devices"
WORDS = {"name", "title", "vllm_name", "gpu_names", "unified_memory", "sources"}
OPTIONAL = {"memory_row_bytes", "memory_flight_bytes", "memory_width_cost"}

# Dense TFLOP/s of the data sheets (sparse figures halved; GB10: a quarter of 1 PFLOP sparse FP4).
DENSE = [
    ("gb10", "qmma_fp8", 250),
    ("h200", "qgmma_fp8", 1979),
    ("h200", "hgmma_bf16", 989.4),
    ("h100", "qgmma_fp8", 1979),
    ("h100", "hgmma_bf16", 989.4),
    ("rtx-pro-6000", "qmma_fp8", 1007),
    ("rtx-pro-6000", "hmma_bf16", 503.8),
]
# Bytes and counts of the CUDA programming guide, typed in here a second time:
# shared memory per SM, per block; threads and blocks per SM.
GUIDE = {90: (233472, 232448, 2048, 32), 100: (233472, 232448, 2048, 32)} | dict.fromkeys(
    (120, 121), (102400, 101376, 1536, 24)
)


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let nvidia-smi print a text, fail with a status, or not start."""

    def install(answer: str | int | Exception) -> None:
        def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
            assert command[0] == "nvidia-smi"
            assert kwargs["timeout"]
            if isinstance(answer, Exception):
                raise answer
            status, said = (answer, "GPU 0") if isinstance(answer, int) else (0, answer)
            return subprocess.CompletedProcess(command, status, said, "")

        monkeypatch.setattr(subprocess, "run", run)

    return install


def test_files_are_named_after_their_device() -> None:
    assert {"gb10", "h200", "h100", "rtx-pro-6000", "b200"} <= set(DEVICES)
    assert set(DEVICES) == {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("name", DEVICES)
def test_figures(name: str) -> None:
    device = DEVICES[name]
    shared = (
        device.shared_memory_per_sm,
        device.shared_memory_per_block,
        device.max_threads_per_sm,
        device.max_blocks_per_sm,
    )
    assert shared == GUIDE[device.arch]
    assert device.memory_bandwidth_gbs < device.memory_bandwidth_peak_gbs
    figures = set(type(device).model_fields) - WORDS
    assert figures - OPTIONAL <= set(device.sources) <= figures
    assert device.memory_bandwidth_gbs <= device.read_gbs <= device.memory_bandwidth_peak_gbs


@pytest.mark.parametrize(("name", "family", "teraflops"), DENSE)
def test_rates_agree_with_the_data_sheet(name: str, family: str, teraflops: float) -> None:
    device = DEVICES[name]
    rate = device.tensor_flops_per_sm_per_clock[family]
    # 10 %: the sheets do not say at which clock they count.
    total = rate * device.sm_count * device.boost_clock_mhz * 1e6
    assert total / (teraflops * 1e12) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", DEVICES)
def test_every_figure_needs_a_source(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("  l2_bytes:")))
    with pytest.raises(BadInputError, match="no source given for l2_bytes"):
        get_device(str(path))


def test_found_by_every_name(tmp_path: Path) -> None:
    for name in ("gb10", "GB10", "NVIDIA_GB10", "nvidia gb10", str(FOLDER / "gb10.yaml")):
        assert get_device(name) == DEVICES["gb10"]


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(BadInputError, match=r"did you mean gb10\? known: .*h200"):
        get_device("gb-10")
    with pytest.raises(BadInputError, match=r"'abacus'; known: "):
        get_device("abacus")


def test_auto_takes_the_gpu_of_this_machine(smi: Any) -> None:
    smi("NVIDIA H200, GPU-1, 580.1, 143771, 9.0\nNVIDIA H200, GPU-2, 580.1, 143771, 9.0\n")
    assert [gpu.uuid for gpu in detect_gpus()] == ["GPU-1", "GPU-2"]
    assert resolve_device("auto") == DEVICES["h200"]
    assert resolve_device("gb10") == DEVICES["gb10"]
    assert [gpu.index for gpu in present_gpus(DEVICES["h200"])] == [0, 1]
    assert [gpu.index for gpu in present_gpus(DEVICES["h200"], "1")] == [1]
    assert not present_gpus(DEVICES["gb10"])


def test_auto_takes_a_gpu_that_may_be_used(smi: Any) -> None:
    smi("NVIDIA H200, GPU-1, 580.1, 143771, 9.0\nNVIDIA GB10, GPU-2, 580.1, [N/A], 12.1\n")
    assert resolve_device("auto") == DEVICES["h200"]
    assert resolve_device("auto", "1") == DEVICES["gb10"]
    assert resolve_device("auto", "1,0") == DEVICES["gb10"]  # as CUDA counts them
    assert [gpu.index for gpu in present_gpus(DEVICES["gb10"], "1")] == [1]
    for visible in ("", "7"):
        with pytest.raises(
            MissingEnvironmentError,
            match=rf"CUDA_VISIBLE_DEVICES={visible} leaves none of the 2 .* --device gb10",
        ):
            resolve_device("auto", visible)
        assert resolve_device("gb10", visible) == DEVICES["gb10"]
    with pytest.raises(BadInputError, match="expected indices"):
        resolve_device("auto", "all")


def test_gpus_are_named_by_uuid_too(smi: Any) -> None:
    smi("NVIDIA H200, GPU-1a, 580.1, 143771, 9.0\nNVIDIA GB10, GPU-2b, 580.1, [N/A], 12.1\n")
    assert resolve_device("auto", "GPU-2b") == DEVICES["gb10"]
    assert resolve_device("auto", "GPU-1,1") == DEVICES["h200"], "as far as it is written out"
    assert [gpu.index for gpu in present_gpus(DEVICES["gb10"], "GPU-2b,1,GPU-9")] == [1]
    assert not present_gpus(DEVICES["gb10"], "GPU-1a")
    with pytest.raises(BadInputError, match=r"a slice \(MIG\).*name a whole GPU"):
        resolve_device("auto", "MIG-GPU-1a/1/0")


def test_a_gpu_that_is_divided_is_not_measured(smi: Any) -> None:
    """Without CUDA_VISIBLE_DEVICES too: CUDA would show its first slice alone."""
    h200 = GpuInfo(1, "NVIDIA H200", "GPU-1a", "580.1", "143771", "9.0")
    for modes in ("Enabled\nDisabled\n", "Enabled\n[N/A]\n", "[N/A]\n", ""):
        smi(modes)
        refuse_slices([h200])
    smi("Disabled\nEnabled\n")
    with pytest.raises(
        MissingEnvironmentError, match=r"GPU 1 \(NVIDIA H200\) is divided.*-i 1 -mig 0"
    ):
        refuse_slices([replace(h200, index=0), h200])


def test_auto_reads_unified_memory(smi: Any) -> None:
    smi("NVIDIA GB10, GPU-1, 580.1, [N/A], 12.1\n")
    assert resolve_device("auto") == DEVICES["gb10"]


L40S = {
    "boost_clock_khz": 2520000,
    "sm_count": 142,
    "integrated": 0,
    "memory_clock_khz": 9001000,
    "memory_bus_bits": 384,
    "l2_bytes": 100663296,
    "max_threads_per_sm": 1536,
    "capability_major": 8,
    "capability_minor": 9,
    "shared_memory_per_sm": 102400,
    "registers_per_sm": 65536,
    "shared_memory_per_block": 101376,
    "max_blocks_per_sm": 24,
    "shared_memory_reserved_per_block": 1024,
}
"""An L40S by its data sheet and the CUDA programming guide, in the driver's units."""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the driver tells, by UUID."""
    answers: dict[str, Any] = {}
    monkeypatch.setattr("autotune.machine.devices.driver_facts", answers.get)
    return answers


def test_auto_reads_a_gpu_that_no_file_describes_from_its_driver(
    smi: Any, told: dict[str, Any]
) -> None:
    smi(
        "NVIDIA H200, GPU-1, 580.1, 143771, 9.0\nNVIDIA L40S, GPU-2, 580.1, 46068, 8.9\n"
        "NVIDIA H200 NVL, GPU-3, 580.1, 143771, 9.0\n"
    )
    told["GPU-2"] = L40S
    told["GPU-3"] = L40S | {"capability_major": 9, "capability_minor": 0, "sm_count": 132}
    found = resolve_device("auto", "GPU-2")
    assert (found.name, found.vllm_name, found.arch) == ("nvidia-l40s", "NVIDIA_L40S", 89)
    assert (found.sm_count, found.l2_bytes, found.shared_memory_per_block) == (
        142,
        96 * 2**20,
        101376,
    )
    assert found.memory_bandwidth_peak_gbs == pytest.approx(864, rel=1e-3), "by its data sheet"
    assert found.memory_bandwidth_gbs < found.memory_bandwidth_peak_gbs
    total = found.tensor_flops_per_sm_per_clock["qmma_fp8"] * 142 * found.boost_clock_mhz * 1e6
    assert total == pytest.approx(733e12, rel=0.01), "dense fp8 by its data sheet"
    assert [gpu.uuid for gpu in present_gpus(found, None)] == ["GPU-2"]
    assert found.from_driver
    assert not DEVICES["h200"].from_driver
    hopper = resolve_device("auto", "2")
    assert hopper.vllm_name == "NVIDIA_H200", "as vLLM calls all of the family"
    assert "qgmma_fp8" in hopper.tensor_flops_per_sm_per_clock


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"capability_major": 7, "capability_minor": 5}, "7.5; vLLM's fused-MoE kernel"),
        ({"capability_major": 14}, "says it is sm_149, unknown here; copy one of"),
        ({"memory_clock_khz": 0}, "does not tell what it is made of; copy one of"),
        ({"l2_bytes": 0}, "does not tell what it is made of; copy one of"),
    ],
)
def test_auto_with_a_gpu_that_cannot_be_described(
    changes: dict[str, int], said: str, smi: Any, told: dict[str, Any]
) -> None:
    smi("NVIDIA X1, GPU-1, 580.1, 15360, 7.5\n")
    told["GPU-1"] = L40S | changes
    with pytest.raises(BadInputError, match=re.escape(said)):
        resolve_device("auto")


def test_auto_without_a_driver_that_answers(smi: Any, told: dict[str, Any]) -> None:
    smi("NVIDIA X1, GPU-1, 580.1, 15360, 7.5\n")
    assert told == {}
    with pytest.raises(BadInputError, match="describes 'NVIDIA X1', and the driver does not tell"):
        resolve_device("auto")


UUIDS = (uuid.UUID(int=7), uuid.UUID(int=9))


def libcuda() -> SimpleNamespace:
    """Two GPUs; of the second it knows no attribute beyond 100, as older ones do."""

    def count(value: Any) -> int:
        value._obj.value = 2
        return 0

    def get(device: Any, index: int) -> int:
        device._obj.value = index
        return 0

    def name(raw: Any, device: ctypes.c_int) -> int:
        raw._obj[:] = UUIDS[device.value].bytes
        return 0

    def attribute(value: Any, number: int, device: ctypes.c_int) -> int:
        value._obj.value = 1000 * device.value + number
        return 1 if device.value and number > 100 else 0

    return SimpleNamespace(
        cuInit=lambda flags: flags,
        cuDeviceGetCount=count,
        cuDeviceGet=get,
        cuDeviceGetUuid=name,
        cuDeviceGetAttribute=attribute,
    )


def test_the_driver_is_asked_for_the_gpu_of_a_uuid() -> None:
    first, second = (f"GPU-{one}" for one in UUIDS)
    assert driver.ask(libcuda(), first) == driver.ATTRIBUTES
    known = {name: 1000 + n for name, n in driver.ATTRIBUTES.items() if n <= 100}
    assert driver.ask(libcuda(), second) == known
    assert driver.ask(libcuda(), "GPU-none") is None


def test_a_driver_that_is_not_there_tells_nothing() -> None:
    """Through the process of its own; where there is a GPU, none has this UUID."""
    assert driver.driver_facts("GPU-none") is None


def test_an_amd_gpu_is_refused_by_name(
    smi: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi("")
    monkeypatch.setattr("autotune.machine.devices._AMD", tmp_path)
    with pytest.raises(MissingEnvironmentError, match=r"an AMD GPU is here, and only NVIDIA's"):
        resolve_device("auto")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "No devices were found\n",
        FileNotFoundError("nvidia-smi"),
        subprocess.TimeoutExpired("nvidia-smi", 20),
        9,
    ],
)
def test_auto_without_a_gpu(smi: Any, answer: str | int | Exception) -> None:
    smi(answer)
    assert detect_gpus() == []
    with pytest.raises(MissingEnvironmentError, match="--device gb10"):
        resolve_device("auto")
