"""What NVIDIA's driver tells of a GPU, asked of libcuda without a context or any memory of the GPU.

Run as a program, so that a driver that hangs or crashes takes nobody with it: it prints JSON.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

ATTRIBUTES = {
    "boost_clock_khz": 13,
    "sm_count": 16,
    "integrated": 18,
    "memory_clock_khz": 36,
    "memory_bus_bits": 37,
    "l2_bytes": 38,
    "max_threads_per_sm": 39,
    "capability_major": 75,
    "capability_minor": 76,
    "shared_memory_per_sm": 81,
    "registers_per_sm": 82,
    "shared_memory_per_block": 97,
    "max_blocks_per_sm": 106,
    "shared_memory_reserved_per_block": 111,
}
"""Numbers of CUdevice_attribute (cuda.h); shared memory per block is the most to opt in to."""
_LIMIT_S = 30


def driver_facts(gpu: str) -> dict[str, int] | None:
    """Ask the driver for the ``ATTRIBUTES`` of a GPU, in a process of its own.

    Args:
        gpu: its UUID, as nvidia-smi writes it.

    Returns:
        The values by name; None where there is no driver, or it does not show this GPU.
    """
    command = [sys.executable, "-I", str(Path(__file__)), gpu]
    try:
        told = subprocess.run(  # noqa: S603 - fixed arguments
            command, capture_output=True, text=True, timeout=_LIMIT_S, check=True
        )
        found: dict[str, int] = json.loads(told.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return found


def ask(library: Any, gpu: str) -> dict[str, int] | None:
    """Ask a loaded libcuda; an attribute that it does not know is left out.

    Args:
        library: as :class:`ctypes.CDLL` loads it.
        gpu: UUID of the GPU.

    Returns:
        The values by name; None where the library shows no such GPU.
    """
    count = ctypes.c_int()
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return None
    for index in range(count.value):
        device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        if library.cuDeviceGet(ctypes.byref(device), index):
            continue
        if library.cuDeviceGetUuid(ctypes.byref(raw), device):
            continue
        if gpu == f"GPU-{uuid.UUID(bytes=bytes(raw))}":
            return _attributes(library, device)
    return None


def _attributes(library: Any, device: ctypes.c_int) -> dict[str, int]:
    found, value = {}, ctypes.c_int()
    for name, number in ATTRIBUTES.items():
        if library.cuDeviceGetAttribute(ctypes.byref(value), number, device) == 0:
            found[name] = value.value
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(ask(ctypes.CDLL("libcuda.so.1"), sys.argv[1])))
