"""Reads how much memory is free now, where vLLM will look for it when it starts.

Sources: vLLM 0.32 ``utils/mem_utils.py`` (``MemorySnapshot``: on unified memory what the host calls
available) and ``utils/cpu_resource_utils.py`` (``get_memory_node_info``: the NUMA node of the first
CPU, within the limit of the control group).
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from autotune.core import MissingEnvironmentError
from autotune.spec.memory import MemoryKind, MemoryReading

_MIB = 2**20
_UNLIMITED = 1 << 62


def nvidia_smi() -> str | None:
    """``name, total MiB, free MiB`` of every GPU as CSV; None when there is no nvidia-smi."""
    query = "--query-gpu=name,memory.total,memory.free"
    try:
        return subprocess.run(  # noqa: S603 - fixed arguments
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def read_memory(
    gpu: int = 0,
    *,
    root: Path = Path("/"),
    smi: Callable[[], str | None] = nvidia_smi,
    cpu: int | None = None,
) -> MemoryReading:
    """The memory of a GPU, or of this machine where it has none.

    Args:
        gpu: its number in nvidia-smi's list.
        root: where ``proc`` and ``sys`` are.
        smi: gives what nvidia-smi shows.
        cpu: the CPU whose NUMA node counts; None is the first that this process may use.

    Raises:
        MissingEnvironmentError: no such GPU, or the system does not tell its memory.
    """
    shown = smi()
    rows = list(csv.reader((shown or "").splitlines(), skipinitialspace=True))
    if not rows:
        return _host(root, min(os.sched_getaffinity(0)) if cpu is None else cpu)
    if gpu >= len(rows) or len(rows[gpu]) != 3:
        raise MissingEnvironmentError(f"nvidia-smi shows {len(rows)} GPUs, and none numbered {gpu}")
    name, total, free = rows[gpu]
    if total.isdecimal() and free.isdecimal():
        return MemoryReading(int(total) * _MIB, int(free) * _MIB, MemoryKind.GPU, name)
    info = _meminfo(root / "proc" / "meminfo")
    return MemoryReading(
        info.get("MemTotal", 0),
        info.get("MemAvailable", 0),
        MemoryKind.UNIFIED,
        f"{name} (unified)",
    )


def _host(root: Path, cpu: int) -> MemoryReading:
    system = root / "sys" / "devices" / "system"
    nodes = sorted((system / "cpu" / f"cpu{cpu}").glob("node[0-9]*"))
    node = nodes[0].name if nodes else "node0"
    path = system / "node" / node / "meminfo"
    if path.is_file():
        info, where = _meminfo(path), f"{node}'s memory"
        parts = ("MemFree", "Active(file)", "Inactive(file)", "SReclaimable")
        free = sum(info.get(part, 0) for part in parts)
    else:
        info, where = _meminfo(root / "proc" / "meminfo"), "the memory"
        free = info.get("MemAvailable", 0)
    total = info.get("MemTotal", 0)
    limit, used = _control_group(root / "sys" / "fs" / "cgroup")
    if limit is not None and limit < total:
        total, free = limit, max(0, min(free, limit - used))
        where += " (within the control group's limit)"
    return MemoryReading(total, free, MemoryKind.CPU, where)


def _meminfo(path: Path) -> dict[str, int]:
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
