"""GPUs: what their files in ``search_spaces/devices`` say, and which ones this machine has."""

from __future__ import annotations

import csv
import difflib
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from autotune.util.resources import data_root
from autotune.util.yamlfile import load_yaml

_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]{0,99}$")]
"""Becomes part of file names."""


_OPTIONAL = {"memory_row_bytes", "memory_flight_bytes", "memory_width_cost"}
"""Figures that a file may leave out; what it gives has a source."""


class Device(BaseModel):
    """A GPU model. Sizes in bytes, bandwidths in GB/s (1e9), clocks in MHz.

    ``memory_bandwidth_gbs`` is what a copy reaches, ``…_peak_gbs`` what the vendor states. Where
    they are known, ``memory_row_bytes`` is what opening a row of the DRAM costs, as bytes that the
    bus could have moved; ``memory_flight_bytes`` what all that a block has in flight costs beside;
    ``memory_width_cost`` what each doubling of a small tile's columns beyond 64 does (a fraction).
    ``tensor_flops_per_sm_per_clock`` is dense, by instruction family (``qmma_fp8``: mma.sync on
    fp8, ``hgmma_bf16``: wgmma on bf16, …). ``unified_memory``: the GPU allocates from the host's
    memory. ``sources`` says of every figure where it comes from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
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
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(  # noqa: S603 - fixed arguments
            command, capture_output=True, text=True, errors="replace", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    rows = csv.reader(shown.stdout.splitlines(), skipinitialspace=True)
    return [row for row in rows if len(row) == len(fields)]


def detect_gpus() -> list[GpuInfo]:
    """The GPUs that nvidia-smi shows."""
    rows = nvidia_smi("name", "uuid", "driver_version", "memory.total", "compute_cap")
    return [GpuInfo(index, *row) for index, row in enumerate(rows)]


def load_devices() -> dict[str, Device]:
    """Every device that comes with the project, by name."""
    folder = data_root() / "search_spaces" / "devices"
    devices = (load_yaml(path, Device) for path in sorted(folder.glob("*.yaml")))
    return {device.name: device for device in devices}


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
        BadInputError: unknown name, a GPU that no file describes, or GPUs named in another way.
        MissingEnvironmentError: ``auto`` where there is no GPU, or none that is visible.
    """
    if ref != "auto":
        return get_device(ref)
    if why := no_gpu(visible):
        raise MissingEnvironmentError(f"--device auto: {why}; name one, such as --device gb10")
    first = _visible(detect_gpus(), visible)[0]
    found = _matching(load_devices(), first.name)
    if found is None:
        raise BadInputError(
            f"--device auto: no file describes {first.name!r}; copy one of "
            "search_spaces/devices, fill in its figures and give its path with --device"
        )
    return found


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
        return "nvidia-smi shows no GPU here"
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


def _visible(gpus: Sequence[GpuInfo], visible: str | None) -> list[GpuInfo]:
    """Those that ``CUDA_VISIBLE_DEVICES`` lists, in its order; without it, or without GPUs, all."""
    if not gpus or visible is None:
        return list(gpus)
    listed = [part.strip() for part in visible.split(",") if part.strip()]
    if any(part.startswith("MIG-") for part in listed):
        raise BadInputError(
            f"CUDA_VISIBLE_DEVICES={visible}: a slice (MIG) has fewer SMs and less memory than the "
            "GPU that a file is for; name the whole GPU, by its index or UUID as nvidia-smi has it"
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
