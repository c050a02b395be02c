"""How much memory is free, on machines of every kind: written as files, read as vLLM reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.machine.memory import MemoryReading, first_gpu, read_memory

NODE = (
    "Node 0 MemTotal:       1000 kB\nNode 0 MemFree:        100 kB\nNode 0 Active(file):  20 kB\n"
    "Node 0 Inactive(file):  30 kB\nNode 0 SReclaimable:    4 kB\nNode 0 Dirty:           7 kB\n"
)
PROC = "MemTotal:        2000 kB\nMemFree:          10 kB\nMemAvailable:     800 kB\n"
Machine = Callable[[dict[str, str]], Path]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def read(root: Path, gpus: list[list[str]] | None = None, gpu: int | None = 0) -> MemoryReading:
    return read_memory(gpu, root=root, gpus=lambda: gpus or [], cpu=0)


PROC_FILE, NODE_FILE = "proc/meminfo", "sys/devices/system/node/node0/meminfo"
V2 = {"sys/fs/cgroup/memory.max": "409600\n", "sys/fs/cgroup/memory.current": "102400\n"}
V1 = {
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "409600\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "307200\n",
}


@pytest.mark.parametrize(
    ("files", "total", "free"),
    [
        ({PROC_FILE: PROC}, 2000, 800),
        ({PROC_FILE: PROC, NODE_FILE: NODE}, 1000, 154),
        ({PROC_FILE: PROC} | V2, 400, 300),
        ({PROC_FILE: PROC} | V1, 400, 100),
        ({PROC_FILE: PROC, NODE_FILE: NODE} | V2, 400, 154),
        ({PROC_FILE: PROC, "sys/fs/cgroup/memory.max": "max\n"}, 2000, 800),
        ({PROC_FILE: PROC, "sys/fs/cgroup/memory.max": str(1 << 60)}, 2000, 800),
    ],
)
def test_a_machine_without_a_gpu(
    files: dict[str, str], total: int, free: int, machine: Machine
) -> None:
    found = read(machine(files))
    assert (found.total, found.free, found.kind) == (total * 1024, free * 1024, "cpu")


def test_the_numa_node_of_the_cpu(machine: Machine) -> None:
    other = NODE_FILE.replace("node0", "node1")
    root = machine({NODE_FILE: NODE, other: NODE.replace("1000", "500")})
    (root / "sys/devices/system/cpu/cpu3/node1").mkdir(parents=True)
    assert read_memory(root=root, gpus=list, cpu=3).total == 500 * 1024
    assert read_memory(root=root, gpus=list, cpu=2).total == 1000 * 1024


def test_a_shim_that_gives_a_spark_numbers_changes_nothing(machine: Machine) -> None:
    """nvml-unified-shim counts the page cache as used."""
    found = read(machine({PROC_FILE: PROC}), [["NVIDIA GB10", "124610", "3000"]])
    assert (found.kind, found.total, found.free) == ("unified", 2000 * 1024, 800 * 1024)


def test_another_file_can_stand_for_that_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text(PROC)
    monkeypatch.setenv("AUTOTUNE_MEMINFO", str(tmp_path / "meminfo"))
    found = read_memory(gpus=lambda: [["NVIDIA GB10", "[N/A]", "[N/A]"]])
    assert (found.kind, found.free) == ("unified", 800 * 1024)


def test_gpus(machine: Machine) -> None:
    two = [["NVIDIA H200", "143771", "143000"], ["NVIDIA H200", "143771", "1000"]]
    found = read(machine({}), two, gpu=1)
    assert (found.total, found.free, found.kind) == (143771 * 2**20, 1000 * 2**20, "gpu")
    assert read(machine({}), two).free == 143000 * 2**20
    with pytest.raises(MissingEnvironmentError, match="2 GPUs, and none numbered 2"):
        read(machine({}), two, gpu=2)


def test_unified_memory_is_the_hosts(machine: Machine) -> None:
    found = read(machine({PROC_FILE: PROC}), [["NVIDIA GB10", "[N/A]", "[N/A]"]])
    assert (found.total, found.free, found.kind) == (2000 * 1024, 800 * 1024, "unified")


@pytest.mark.parametrize("files", [{}, {PROC_FILE: "nothing\n"}])
def test_a_machine_that_does_not_tell(files: dict[str, str], machine: Machine) -> None:
    with pytest.raises(MissingEnvironmentError, match="meminfo"):
        read(machine(files))


def test_this_machine_can_be_read() -> None:
    here = read_memory()
    assert 0 < here.free <= here.total


UUIDS = ["GPU-aa11", "GPU-bb22", "GPU-cc33"]


@pytest.mark.parametrize(
    ("docker", "visible", "expected"),
    [
        (None, None, 0),
        (None, "1", 1),
        (None, "2,0", 2),
        (None, " 2 , 0", 2),
        (None, "GPU-bb", 1),
        (None, "MIG-77", 0),
        (None, "", None),
        (None, "-1", None),
        ("1", None, 1),
        ("1,2", "1", 2),
        ("2:0", None, 2),
        ("GPU-cc33,GPU-aa11", "1", 0),
        ("", None, None),
        ("", "0", None),
    ],
)
def test_the_gpu_that_a_server_sees_first(
    docker: str | None, visible: str | None, expected: int | None
) -> None:
    assert first_gpu(UUIDS, docker, visible) == expected


def test_lists_mean_nothing_where_no_gpu_is() -> None:
    assert first_gpu([], "device", "3") is None


@pytest.mark.parametrize(
    ("docker", "visible"), [(None, "3"), (None, "GPU-dd"), ("1", "1"), (None, "0,7")]
)
def test_a_gpu_that_is_not_there(docker: str | None, visible: str | None) -> None:
    with pytest.raises(BadInputError, match="not among the"):
        first_gpu(UUIDS, docker, visible)


def test_a_server_that_sees_no_gpu_has_the_hosts_memory(machine: Machine) -> None:
    found = read(machine({PROC_FILE: PROC}), [["NVIDIA H200", "143771", "143000"]], gpu=None)
    assert (found.total, found.kind) == (2000 * 1024, "cpu")
