"""What else uses a GPU, as nvidia-smi tells it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autotune.machine.devices import GpuInfo
from autotune.machine.environment import others_on, usable_cpus

GPUS = (
    GpuInfo(0, "NVIDIA GB10", "GPU-a", "580.1", "[N/A]", "12.1"),
    GpuInfo(3, "NVIDIA GB10", "GPU-d", "580.1", "[N/A]", "12.1"),
)


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, processes: str, used: str) -> None:
    """An nvidia-smi that gives these rows."""
    file = folder / "nvidia-smi"
    file.write_text(
        "#!/bin/sh\n"
        f"case $1 in *compute-apps*) printf '{processes}' ;; *) printf '{used}' ;; esac\n"
    )
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_others_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = "GPU-a, 12, /usr/bin/vllm, serve\\nGPU-b, 13, python\\n"
    smi(tmp_path, monkeypatch, processes, "GPU-a, 0\\nGPU-b, 99\\nGPU-d, 37\\n")
    assert others_on(GPUS) == [
        "process 12 (/usr/bin/vllm, serve) computes on GPU 0",
        "GPU 3 is 37 % busy",
    ]
    assert others_on(GPUS[:0]) == []


@pytest.mark.parametrize(
    ("processes", "used"),
    [
        ("", "GPU-a, 5\\nGPU-d, [N/A]\\n"),
        ("No running processes found\\n", "a, b, c\\n"),
    ],
)
def test_a_gpu_at_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str, used: str
) -> None:
    smi(tmp_path, monkeypatch, processes, used)
    assert others_on(GPUS) == []


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "20000 100000\n"}, 1),
        ({"cpu.max": "9900000 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "100000 0\n"}, None),
        ({"cpu.max": "?"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota_of_cpus_counts(
    files: dict[str, str], most: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cpus(tmp_path) == (most or len(os.sched_getaffinity(0)))


def test_no_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert others_on(GPUS) == []
