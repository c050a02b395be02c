"""GPUs: what their files in ``search_spaces/devices`` say, and which ones this machine has."""

from __future__ import annotations

import csv
import difflib
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.machine.driver import ATTRIBUTES, driver_facts
from autotune.util.programs import run_quietly
from autotune.util.resources import data_root
from autotune.util.yamlfile import load_yaml

_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]{0,99}$")]
"""Becomes part of file names."""


_OPTIONAL = {"memory_row_bytes", "memory_flight_bytes", "memory_width_cost"}
"""Figures that a file may leave out; what it gives has a source."""
_FROM_DRIVER = "read from the driver of the GPU"
_ALIKE = {90: "h100", 100: "b200", 103: "b200", 120: "rtx-pro-6000", 121: "gb10"}
"""By compute capability, whose tensor cores a GPU without a file has."""
_MMA = {
    80: {"hmma_bf16": 2048.0, "imma_int8": 4096.0},
    86: {"hmma_bf16": 1024.0, "imma_int8": 2048.0},
    87: {"hmma_bf16": 2048.0, "imma_int8": 4096.0},
    89: {"qmma_fp8": 2048.0, "hmma_bf16": 1024.0, "imma_int8": 2048.0},
}
"""The same where no file has them: dense rates of the data sheets of A100, A10, AGX Orin
and L40S over their SMs and boost clocks, rounded to powers of two (a GeForce may have half)."""
_COPY_SHARE = 0.85
"""What a copy is assumed to reach of the bus, until one is measured; 0.80 to 0.90 elsewhere."""
_SLICE = (
    "a slice (MIG) has fewer SMs and less memory than the GPU under whose name vLLM looks its file "
    "up"
)
"""vLLM 0.32, platforms/cuda.py: ``get_device_name`` asks NVML for the physical GPU."""
_AMD = Path("/dev/kfd")
"""Is there where Linux drives an AMD GPU for computing."""


class Device(BaseModel):
    """A GPU model. Sizes in bytes, bandwidths in GB/s (1e9), clocks in MHz.

    ``memory_bandwidth_gbs`` is what a copy reaches, ``…_peak_gbs`` what the vendor states. Where
    they are known, ``memory_row_bytes`` is what opening a row of the DRAM costs, as bytes that the
    bus could have moved; ``memory_flight_bytes`` what all that a block has in flight costs beside;
    ``memory_width_cost`` what each doubling of a tile's columns beyond 32 does (a fraction).
    ``tensor_flops_per_sm_per_clock`` is dense, by instruction family (``qmma_fp8``: mma.sync on
    fp8, ``hgmma_bf16``: wgmma on bf16, …). ``unified_memory``: the GPU allocates from the host's
    memory. ``sources`` says of every figure where it comes from.
    """

    # Deferred: measuring processes import this class and read no device.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)
    name: _FileName
    title: str
    vllm_name: _FileName
    gpu_names: list[str]
    compute_capability: str
    sm_count: PositiveInt
    shared_memory_per_block: PositiveInt
    shared_memory_per_sm: PositiveInt
    shared_memory_reserved_per_block: PositiveInt
    registers_per_sm: PositiveInt
    max_registers_per_thread: PositiveInt
    max_threads_per_sm: PositiveInt
    max_blocks_per_sm: PositiveInt
    l2_bytes: PositiveInt
    memory_bandwidth_gbs: PositiveFloat
    memory_bandwidth_peak_gbs: PositiveFloat
    memory_row_bytes: NonNegativeFloat = 0.0
    memory_flight_bytes: NonNegativeFloat = 0.0
    memory_width_cost: NonNegativeFloat = 0.0
    boost_clock_mhz: PositiveFloat
    unified_memory: bool = False
    tensor_flops_per_sm_per_clock: dict[str, PositiveFloat]
    sources: dict[str, str]

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Device:
        words = {"name", "title", "vllm_name", "gpu_names", "unified_memory", "sources"}
        needed = set(type(self).model_fields) - words - (_OPTIONAL - self.model_fields_set)
        missing = sorted(needed - set(self.sources))
        if missing:
            raise ValueError(f"no source given for {missing[0]}")
        if "hmma_bf16" not in self.tensor_flops_per_sm_per_clock:
            raise ValueError("tensor_flops_per_sm_per_clock needs hmma_bf16, which every GPU has")
        major, _, minor = self.compute_capability.partition(".")
        if not (major.isdecimal() and minor.isdecimal()):
            raise ValueError(f"compute_capability {self.compute_capability!r} is not like '12.1'")
        return self

    @property
    def read_gbs(self) -> float:
        """The rate of reading weights, in GB/s, before what ``memory_row_bytes`` takes of it."""
        whole = self.memory_bandwidth_peak_gbs
        return whole if self.memory_row_bytes else self.memory_bandwidth_gbs

    @property
    def from_driver(self) -> bool:
        """Whether no file describes it: its figures are those of the GPU that was here."""
        return self.sources["sm_count"] == _FROM_DRIVER

    @property
    def arch(self) -> int:
        """Compute capability as Triton writes it: 121 for 12.1."""
        return int(self.compute_capability.replace(".", ""))


@dataclass(frozen=True)
class GpuInfo:
    """A GPU of this machine, as nvidia-smi names it; ``index`` counts in the order of the bus."""

    index: int
    name: str
    uuid: str
    driver: str
    memory_mib: str
    compute_capability: str

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def nvidia_smi(*fields: str) -> list[list[str]]:
    """The fields of every GPU as ``nvidia-smi --query-gpu`` tells them, in the order of the bus.

    None when it is absent, fails or hangs.
    """
    lines = lines_of_nvidia_smi("gpu", fields, "csv,noheader,nounits")
    return [row for row in csv.reader(lines, skipinitialspace=True) if len(row) == len(fields)]


def lines_of_nvidia_smi(what: str, fields: Sequence[str], form: str) -> list[str]:
    """Return what ``nvidia-smi --query-WHAT`` says; nothing where it is absent, fails or hangs."""
    try:
        command = ["nvidia-smi", f"--query-{what}={','.join(fields)}", f"--format={form}"]
        ran = run_quietly(command, 20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return ran.stdout.splitlines() if ran.returncode == 0 else []


def detect_gpus() -> list[GpuInfo]:
    """The GPUs that nvidia-smi shows."""
    rows = nvidia_smi("name", "uuid", "driver_version", "memory.total", "compute_cap")
    return [GpuInfo(index, *row) for index, row in enumerate(rows)]


def load_devices() -> dict[str, Device]:
    """Every device that comes with the project, by name."""
    return {device.name: device for device in _shipped()}


@cache
def _shipped() -> tuple[Device, ...]:
    """A service asks with each job, and what comes with the project does not change meanwhile."""
    folder = data_root() / "search_spaces" / "devices"
    return tuple(load_yaml(path, Device) for path in sorted(folder.glob("*.yaml")))


def device_named(name: str) -> Device | None:
    """The device whose file names this GPU, by any of its names; None where no file does."""
    return _matching(load_devices(), name)


def _matching(devices: dict[str, Device], name: str) -> Device | None:
    wanted = name.casefold().replace("_", " ")
    for device in devices.values():
        names = [device.name, device.vllm_name, device.title, *device.gpu_names]
        if wanted in (n.casefold().replace("_", " ") for n in names):
            return device
    return None


def get_device(ref: str) -> Device:
    """A device by its name, vLLM's name for it, its GPU name, or the path of a YAML file.

    Raises:
        BadInputError: unknown, with what is known; or a malformed file.
    """
    if ref.endswith((".yaml", ".yml")):
        return load_yaml(Path(ref), Device)
    devices = load_devices()
    found = _matching(devices, ref)
    if found is not None:
        return found
    close = difflib.get_close_matches(ref.casefold(), devices, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise BadInputError(
        f"no device {ref!r}; {hint}known: {', '.join(devices)}, or the path of a .yaml file"
    )


def resolve_device(ref: str, visible: str | None = None) -> Device:
    """Like :func:`get_device`, where ``auto`` is the first GPU that CUDA would use here.

    Args:
        ref: see :func:`get_device`, or ``auto``.
        visible: ``CUDA_VISIBLE_DEVICES``, if set.

    Raises:
        BadInputError: unknown name, GPUs named in another way, or a GPU that neither a file nor
            its driver describes.
        MissingEnvironmentError: ``auto`` where there is no GPU, or none that is visible.
    """
    if ref != "auto":
        return get_device(ref)
    if why := no_gpu(visible):
        raise MissingEnvironmentError(f"--device auto: {why}; name one, such as --device gb10")
    first = _visible(detect_gpus(), visible)[0]
    return _matching(load_devices(), first.name) or described(first, driver_facts(first.uuid))


def described(gpu: GpuInfo, facts: Mapping[str, int] | None) -> Device:
    """Describe a GPU that no file describes.

    Args:
        gpu: as nvidia-smi names it.
        facts: as :func:`autotune.machine.driver.driver_facts` tells them.

    Raises:
        BadInputError: the driver lacks a figure, or vLLM's kernel does not run on such a GPU.
    """
    told = dict(facts or {})
    major, minor = told.pop("capability_major", 0), told.pop("capability_minor", 0)
    peak = 2 * told.pop("memory_clock_khz", 0) * told.pop("memory_bus_bits", 0) / 8e6
    boost, integrated = told.pop("boost_clock_khz", 0) / 1e3, told.pop("integrated", 0)
    if major and major < 8:
        raise BadInputError(
            f"--device auto: {gpu.name} has compute capability {major}.{minor}; vLLM's fused-MoE "
            "kernel is tuned for 8.0 and newer, which have bf16"
        )
    alike = _ALIKE.get(arch := 10 * major + minor)
    mma = get_device(alike).tensor_flops_per_sm_per_clock if alike else _MMA.get(arch)
    complete = peak and boost and all(told.get(n) for n in ATTRIBUTES if n in Device.model_fields)
    if mma is None or not complete:
        unknown = f"says it is sm_{arch}, unknown here"
        lacks = unknown if major and mma is None else "does not tell what it is made of"
        raise BadInputError(
            f"--device auto: no file describes {gpu.name!r}, and the driver {lacks}; copy one of "
            "search_spaces/devices, fill in its figures and give its path with --device"
        )
    figures = {
        **told,
        "compute_capability": f"{major}.{minor}",
        "boost_clock_mhz": boost,
        "memory_bandwidth_peak_gbs": peak,
    }
    return Device.model_validate(
        figures
        | {
            "name": re.sub(r"[^a-z0-9.+]+", "-", gpu.name.casefold()).strip("-"),
            "title": gpu.name,
            "vllm_name": name_in_vllm(gpu.name),
            "gpu_names": [gpu.name],
            "max_registers_per_thread": 255,
            "memory_bandwidth_gbs": _COPY_SHARE * peak,
            "unified_memory": bool(integrated),
            "tensor_flops_per_sm_per_clock": mma,
            "sources": dict.fromkeys(figures, _FROM_DRIVER)
            | {
                "max_registers_per_thread": "CUDA C++ Programming Guide, all since 3.5",
                "memory_bandwidth_gbs": f"assumed: {_COPY_SHARE:.0%} of what the bus can move",
                "tensor_flops_per_sm_per_clock": "assumed: as its compute capability has them",
            },
        }
    )


def name_in_vllm(gpu: str) -> str:
    """Return how vLLM writes a GPU's name in the name of a file (``get_config_file_name``)."""
    name = re.sub(r"[\s/]+", "_", gpu)
    return "NVIDIA_H200" if "H200" in name.split("_") else name


def no_gpu(visible: str | None) -> str | None:
    """Why CUDA would use no GPU of this machine; None if it would.

    Args:
        visible: ``CUDA_VISIBLE_DEVICES``, if set.

    Raises:
        BadInputError: it names GPUs in another way than by index or UUID.
    """
    here = detect_gpus()
    if _visible(here, visible):
        return None
    if not here:
        amd = "; an AMD GPU is here, and only NVIDIA's can be measured or predicted"
        return f"nvidia-smi shows no GPU here{amd if _AMD.exists() else ''}"
    return f"CUDA_VISIBLE_DEVICES={visible} leaves none of the {len(here)} that nvidia-smi shows"


def present_gpus(device: Device, visible: str | None = None) -> tuple[GpuInfo, ...]:
    """The GPUs of this machine that are the device, in the order of the bus.

    Args:
        device: which.
        visible: ``CUDA_VISIBLE_DEVICES``; only the GPUs that it lists count.

    Raises:
        BadInputError: it names GPUs in another way.
    """
    gpus = [gpu for gpu in detect_gpus() if _matching({device.name: device}, gpu.name) is not None]
    return tuple(sorted(_visible(gpus, visible), key=lambda gpu: gpu.index))


def refuse_slices(gpus: Sequence[GpuInfo]) -> None:
    """Refuse to measure on GPUs in MIG mode, of which CUDA shows only the first slice.

    Raises:
        MissingEnvironmentError: one of them is.
    """
    modes = nvidia_smi("mig.mode.current")
    for gpu in gpus:
        if modes[gpu.index : gpu.index + 1] == [["Enabled"]]:
            raise MissingEnvironmentError(
                f"GPU {gpu.index} ({gpu.name}) is divided, and {_SLICE}: end its MIG mode "
                f"(`nvidia-smi -i {gpu.index} -mig 0`), or hide it with CUDA_VISIBLE_DEVICES"
            )


def _visible(gpus: Sequence[GpuInfo], visible: str | None) -> list[GpuInfo]:
    """Those that ``CUDA_VISIBLE_DEVICES`` lists, in its order; without it, or without GPUs, all."""
    if not gpus or visible is None:
        return list(gpus)
    listed = [part.strip() for part in visible.split(",") if part.strip()]
    if any(part.startswith("MIG-") for part in listed):
        raise BadInputError(
            f"CUDA_VISIBLE_DEVICES={visible}: {_SLICE}; name a whole GPU, by its index or UUID as "
            "nvidia-smi has it"
        )
    if not all(part.isdecimal() or part.startswith("GPU-") for part in listed):
        raise BadInputError(
            f"CUDA_VISIBLE_DEVICES={visible}: expected indices as nvidia-smi counts them, such as "
            "0, or UUIDs, such as GPU-…"
        )
    found = [gpu for part in listed for gpu in gpus if _is_named(gpu, part)]
    return list(dict.fromkeys(found))


def _is_named(gpu: GpuInfo, part: str) -> bool:
    """Whether a part of ``CUDA_VISIBLE_DEVICES`` means a GPU: its index, or how its UUID begins."""
    return part == str(gpu.index) if part.isdecimal() else gpu.uuid.startswith(part)
