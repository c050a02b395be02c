"""What speaks for and against measuring on this machine: GPU, memory, clocks, container, compiler.

Everything is asked of nvidia-smi and of the system; nothing is started on the GPU.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from autotune.machine.devices import GpuInfo, detect_gpus, nvidia_smi
from autotune.machine.environment import container, meminfo_file, others_on
from autotune.machine.guard import GIB, RESERVE
from autotune.machine.memory import MemoryKind, MemoryReading, meminfo
from autotune.machine.resident import LEAST, Resident, residents, who_holds

HOT_C = 85
"""Degrees from which a measurement is likely to be slowed; a GB10 slows itself at 90."""
_THROTTLED = {
    0x08: "the hardware slows it down",
    0x20: "it is slowed for its temperature (by the driver)",
    0x40: "it is slowed for its temperature (by the hardware)",
    0x80: "the power supply asks it to slow down",
}
"""Bits of ``clocks_event_reasons.active`` (NVML's nvmlClocksEventReasons)."""


@dataclass(frozen=True)
class Health:
    """One line of a diagnosis: what was looked at, how it stands, and what to do if need be."""

    check: str
    level: Literal["ok", "warning", "error", "next"]
    text: str

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def gpus_here() -> Health:
    """Say which GPUs there are, and the driver."""
    here = detect_gpus()
    if not here:
        return Health("gpu", "ok", "none that nvidia-smi shows: nothing can be measured here")
    names = ", ".join(f"{g.name} (compute capability {g.compute_capability})" for g in here)
    return Health("gpu", "ok", f"{names}, driver {here[0].driver}")


def memory_here(memory: MemoryReading, need: int) -> Health:
    """Say how much memory is free, and whether that is enough.

    Args:
        memory: of the GPU.
        need: bytes of the least that is to be measured.
    """
    size = f"{memory.free / GIB:.1f} of {memory.total / GIB:.1f} GiB"
    if memory.kind is not MemoryKind.UNIFIED:
        few = memory.kind is MemoryKind.GPU and memory.free < need
        short = f"; measuring takes about {need / GIB:.1f} GiB" if few else ""
        return Health("memory", "warning" if few else "ok", f"{size} of {memory.where} free{short}")
    text = f"{size} that host and GPU share are available, {RESERVE // GIB} stay with the host"
    if memory.free < need + RESERVE:
        return Health("memory", "warning", f"{text}; measuring takes about {need / GIB:.1f} GiB")
    return Health("memory", "ok", text)


def held_here(gpus: Sequence[GpuInfo]) -> tuple[Health, list[Resident]]:
    """Say who holds the memory, and what else keeps the GPUs busy."""
    large, busy = residents(), others_on(gpus)
    text = who_holds(large) if large else f"no program with {LEAST / GIB:g} GiB or more is seen"
    text = "; ".join([text, *busy])
    if busy:
        return Health("held", "warning", f"{text}: times will suffer"), large
    return Health("held", "ok", text), large


def clocks_here(gpu: GpuInfo) -> Health:
    """Say how fast, how hot and how hungry the GPU is now, and whether it is being slowed."""
    fields = ("clocks.current.sm", "clocks.max.sm", "temperature.gpu", "power.draw")
    rows = nvidia_smi(*fields)
    if len(rows) <= gpu.index:
        return Health("clocks", "ok", "nvidia-smi does not tell them")
    now, most, heat, power = rows[gpu.index]
    slowed = [why for bit, why in _THROTTLED.items() if _reasons(gpu.index) & bit]
    if heat.isdecimal() and int(heat) >= HOT_C:
        slowed.append("it is hot")
    text = f"{now} of at most {most} MHz, {heat} °C, {power} W"
    if slowed:
        return Health("clocks", "warning", f"{text}; {', '.join(slowed)}: let it cool down first")
    return Health("clocks", "ok", text)


def _reasons(index: int) -> int:
    """Why the clocks are what they are, as bits; 0 where no name of the field is known."""
    for field in ("clocks_event_reasons.active", "clocks_throttle_reasons.active"):
        rows = nvidia_smi(field)
        if len(rows) > index:
            try:
                return int(rows[index][0], 16)
            except ValueError:
                continue
    return 0


_NOW = {
    "utilization.gpu": "busy_percent",
    "clocks.current.sm": "clock_mhz",
    "clocks.max.sm": "most_mhz",
    "temperature.gpu": "celsius",
    "power.draw": "watts",
    "memory.used": "used_mib",
    "memory.total": "total_mib",
}


def now() -> dict[str, Any]:
    """Tell how the machine stands at this moment, as JSON values.

    Memory of the host in bytes; of each GPU its name, and a figure or None (where nvidia-smi does
    not tell it) for each value of ``_NOW``.
    """
    info = meminfo(meminfo_file())
    gpus = [
        {"name": name, **dict(zip(_NOW.values(), map(_figure, figures), strict=True))}
        for name, *figures in nvidia_smi("name", *_NOW)
    ]
    memory = {"free": info.get("MemAvailable"), "total": info.get("MemTotal")}
    return {"memory": memory, "gpus": gpus}


def _figure(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def place_here() -> Health:
    """Say whether this is a container."""
    kind = container()
    if kind is None:
        return Health("container", "ok", "none: this is the host")
    return Health("container", "ok", f"{kind}; what other containers hold and do is not seen")


def toolchain_here() -> Health:
    """Say whether Triton can build the launcher of a kernel, for which it takes a C compiler."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    found = next((name for name in ("gcc", "clang", "cc") if shutil.which(name)), None)
    missing = [] if found else ["gcc"]
    missing += [] if header.is_file() else ["python3-dev"]
    if missing:
        lacks = " ".join(missing)
        return Health(
            "toolchain", "error", f"Triton builds its launcher in C: `apt install {lacks}`"
        )
    return Health("toolchain", "ok", f"{found} and Python.h are there, Triton can launch kernels")
