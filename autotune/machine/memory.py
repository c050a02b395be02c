"""Reads how much memory is free now, where vLLM will look for it when it starts.

Sources: vLLM 0.32 ``utils/mem_utils.py`` (``MemorySnapshot``: on unified memory what the host calls
available) and ``utils/cpu_resource_utils.py`` (``get_memory_node_info``: the NUMA node of the first
CPU, within the limit of the control group).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.machine.devices import device_named, nvidia_smi
from autotune.machine.environment import meminfo_file

_MIB = 2**20
_UNLIMITED = 1 << 62


class MemoryKind(StrEnum):
    """``unified``: one memory for host and GPU, so that what the host uses is not free."""

    GPU = "gpu"
    UNIFIED = "unified"
    CPU = "cpu"


@dataclass(frozen=True)
class MemoryReading:
    """Bytes as vLLM will see them at its start; ``where`` names the device for people."""

    total: int
    free: int
    kind: MemoryKind
    where: str


def gpu_memory() -> list[list[str]]:
    """Name, total MiB and free MiB of every GPU, as nvidia-smi tells them."""
    return nvidia_smi("name", "memory.total", "memory.free")


def first_gpu(uuids: Sequence[str], *chosen: str | None) -> int | None:
    """The number of the first GPU that a server sees; None where it sees none.

    A slice of a GPU (MIG) counts as the first GPU: nvidia-smi does not tell its memory here.

    Args:
        uuids: of all GPUs, in nvidia-smi's order.
        chosen: lists as in ``CUDA_VISIBLE_DEVICES``, each of what the one before left: numbers or
            UUIDs, or their beginnings; None leaves all.

    Raises:
        BadInputError: a list names a GPU that is not there.
    """
    left = list(range(len(uuids)))
    for text in chosen:
        if text is None or not left or text.startswith("MIG-"):
            continue
        names = [name.strip().partition(":")[0] for name in text.split(",")]  # 0:1 is a slice of 0
        left = [] if names[0] in {"", "-1"} else [_named(name, left, uuids) for name in names]
    return left[0] if left else None


def _named(name: str, left: Sequence[int], uuids: Sequence[str]) -> int:
    if name.isdecimal():
        found = list(left[int(name) : int(name) + 1])
    else:
        found = [gpu for gpu in left if uuids[gpu].startswith(name)]
    if not found:
        raise BadInputError(
            f"GPU {name}, as CUDA_VISIBLE_DEVICES or --gpus has it: not among the {len(left)} that "
            "can be seen"
        )
    return found[0]


def read_memory(
    gpu: int | None = 0,
    *,
    root: Path = Path("/"),
    gpus: Callable[[], list[list[str]]] = gpu_memory,
    cpu: int | None = None,
) -> MemoryReading:
    """The memory of a GPU, or of this machine where it has none.

    Args:
        gpu: its number in nvidia-smi's list; None where none is used.
        root: where ``proc`` and ``sys`` are.
        gpus: gives what nvidia-smi shows.
        cpu: the CPU whose NUMA node counts; None is the first that this process may use.

    Raises:
        MissingEnvironmentError: no such GPU, or the system does not tell its memory.
    """
    rows = gpus()
    if not rows or gpu is None:
        return _host(root, min(os.sched_getaffinity(0)) if cpu is None else cpu)
    if gpu >= len(rows):
        raise MissingEnvironmentError(f"nvidia-smi shows {len(rows)} GPUs, and none numbered {gpu}")
    name, total, free = rows[gpu]
    if total.isdecimal() and free.isdecimal() and not _is_unified(name):
        return MemoryReading(int(total) * _MIB, int(free) * _MIB, MemoryKind.GPU, name)
    return shared_with_host(name, _of_host(root))


def shared_with_host(name: str, file: Path | None = None) -> MemoryReading:
    """The memory that a GPU of this name shares with the host, as ``/proc/meminfo`` tells it.

    Raises:
        MissingEnvironmentError: the system does not tell its memory.
    """
    info = meminfo(meminfo_file() if file is None else file)
    total, free = info.get("MemTotal", 0), info.get("MemAvailable", 0)
    return MemoryReading(total, free, MemoryKind.UNIFIED, f"{name} (unified)")


def _is_unified(name: str) -> bool:
    """Whether a GPU's file says so: with a shim, nvidia-smi tells numbers there too."""
    known = device_named(name)
    return known is not None and known.unified_memory


def _of_host(root: Path) -> Path:
    return meminfo_file() if root == Path("/") else root / "proc" / "meminfo"


def _host(root: Path, cpu: int) -> MemoryReading:
    system = root / "sys" / "devices" / "system"
    nodes = sorted((system / "cpu" / f"cpu{cpu}").glob("node[0-9]*"))
    node = nodes[0].name if nodes else "node0"
    path = system / "node" / node / "meminfo"
    if path.is_file():
        info, where = meminfo(path), f"{node}'s memory"
        parts = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
        free = sum(info.get(part, 0) for part in parts)
    else:
        info, where = meminfo(_of_host(root)), "the memory"
        free = info.get("MemAvailable", 0)
    total = info.get("MemTotal", 0)
    limit, used = _control_group(root / "sys" / "fs" / "cgroup")
    if limit is not None and limit < total:
        total, free = limit, max(0, min(free, limit - used))
        where += " (within the control group's limit)"
    return MemoryReading(total, free, MemoryKind.CPU, where)


def meminfo(path: Path) -> dict[str, int]:
    """Bytes by name, of ``MemTotal: 5 kB`` or ``Node 0 MemTotal: 5 kB``.

    Raises:
        MissingEnvironmentError: the file is not there, or not of that form.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise MissingEnvironmentError(f"{path}: cannot be read: {error.strerror}") from None
    found = re.findall(r"^(?:Node \d+ )?([\w()]+):\s+(\d+) kB$", text, re.MULTILINE)
    if "MemTotal" not in dict(found):
        raise MissingEnvironmentError(f"{path}: does not tell the memory of this machine")
    return {name: int(kib) * 1024 for name, kib in found}


def _control_group(folder: Path) -> tuple[int | None, int]:
    """(limit, use) in bytes of version 2, else version 1; no limit is None."""
    for limit, use in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most = _number(folder / limit)
        if most is not None:
            return (most if most < _UNLIMITED else None), _number(folder / use) or 0
    return None, 0


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None
