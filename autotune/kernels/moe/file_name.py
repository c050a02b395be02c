"""What the name of a fused-MoE configuration file says: the shape, the device, the data type.

Source: vLLM fused_moe.py (``get_config_file_name``), config.py (``_get_config_dtype_str``) and
fused_flydsl_moe.py.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from autotune.core import BadInputError
from autotune.kernels.moe.from_model import load_config, model_names, shape_from_config
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import VARIANTS, Scheme
from autotune.machine.devices import Device, get_device, load_devices

_NAME = re.compile(
    r"E=(?P<experts>[1-9]\d*),N=(?P<intermediate>[1-9]\d*),device_name=(?P<device>[^,]+)"
    r"(?:,dtype=(?P<dtype>[^,]+))?"
    r"(?:,block_shape=\[(?P<n>[1-9]\d*), ?(?P<k>[1-9]\d*)\])?"
    r"(?:,backend=(?P<backend>[^,]+))?"
    r"(?P<rest>(?:,[^,]*)*)\.json"
)
ASKED_FOR = ("fp8_w8a8", "fp8_w8a16", "int8_w8a16", "int4_w4a16", "float32")
"""The data types that vLLM asks for; bf16, fp16 and int8_w8a8 have none in the name."""
_MEANT: dict[str | None, str | None] = {
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "float16", "int8_w8a8")),
    "float8": "fp8_w8a8",
    "fp8": "fp8_w8a8",
}
"""What vLLM calls the data types of others' names."""
_VARIANT: dict[str | None, str] = {
    None: "bf16",
    "float8": "fp8_w8a8",
    "fp8_w8a16": "fp8_w8a8",
    "int8_w8a16": "int8_w8a8",
    **{name: name for name in VARIANTS},
}
"""The variant whose layer is meant; with 16-bit activations it is that of 8-bit ones."""
_ARCH = {
    **dict.fromkeys(("A100", "A800", "A30"), 80),
    **dict.fromkeys(("A10", "A40", "A6000", "3090"), 86),
    **dict.fromkeys(("L4", "L20", "L40", "L40S", "4090", "6000_Ada"), 89),
    **dict.fromkeys(("H100", "H200", "H20", "H800", "GH200"), 90),
    **dict.fromkeys(("B200", "GB200"), 100),
    **dict.fromkeys(("B300", "GB300"), 103),
    **dict.fromkeys(("PRO_6000_Blackwell", "5090"), 120),
    "GB10": 121,
}
_SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
"""Per block. CUDA C++ Programming Guide, technical specifications per compute capability."""


@dataclass(frozen=True)
class Limits:
    """What a device gives one block; enough for :mod:`autotune.kernels.moe.constraints`."""

    arch: int
    shared_memory_per_block: int


@dataclass(frozen=True)
class Named:
    """A name taken apart.

    Attributes:
        experts: E.
        intermediate: N.
        device: as vLLM writes it.
        dtype: what stands after ``dtype=``; None for nothing.
        block_shape: (n, k).
        backend: another kernel than the Triton one; None for that.
        rest: what vLLM never puts into a name.
    """

    experts: int
    intermediate: int
    device: str
    dtype: str | None
    block_shape: tuple[int, int] | None
    backend: str | None
    rest: str

    @property
    def vendor(self) -> str:
        """``nvidia``, ``amd``, ``intel`` or ``unknown``."""
        start = self.device.casefold()
        for vendor, words in (("nvidia", ("nvidia",)), ("amd", ("amd", "radeon"))):
            if start.startswith(words):
                return vendor
        return "intel" if start.startswith("intel") else "unknown"

    @property
    def asked_for(self) -> bool:
        """Whether vLLM ever looks for such a name."""
        if self.rest:
            return False
        return self.backend is not None or self.dtype is None or self.dtype in ASKED_FOR

    @property
    def looked_for(self) -> str | None:
        """The name that vLLM looks for where this one is meant; None for a layer that it has not.

        vLLM folds every device with the word H200 into one, writes a device without spaces and
        slashes and a block shape without spaces, and has no data type for bf16, fp16 and int8.
        """
        if self.rest.strip(",") not in {"", "per_channel_quant=True", "per_channel_quant=False"}:
            return None
        device = re.sub(r"[\s/]+", "_", self.device)
        if "H200" in device.split("_") and self.backend is None:
            device = "NVIDIA_H200"
        device = _as_vllm_writes(device)
        dtype = _MEANT.get(self.dtype, self.dtype)
        if dtype not in {None, *ASKED_FOR} and self.backend is None:
            return None
        parts = [f"E={self.experts}", f"N={self.intermediate}", f"device_name={device}"]
        parts += [f"dtype={dtype}"] if dtype else []
        parts += ["block_shape=[{},{}]".format(*self.block_shape)] if self.block_shape else []
        parts += [f"backend={self.backend}"] if self.backend else []
        return f"{','.join(parts)}.json"

    def never_read(self, name: str) -> str | None:
        """What is wrong with a name that vLLM never looks for; None where it may look for it."""
        meant = self.looked_for
        if self.asked_for and meant == name:
            return None
        what = "written so"
        if not self.asked_for:
            what = f"with dtype={self.dtype}" if not self.rest else f"with ,{self.rest}"
        whose = " (SGLang's)" if self.is_sglangs else ""
        instead = "" if meant in {None, name} else f"; it looks for {meant}"
        return f"vLLM never asks for a name {what}{whose}, so that this file is never read{instead}"

    @property
    def is_sglangs(self) -> bool:
        """Whether SGLang names its files so: a second file for the down projection, more flags."""
        return (self.dtype or "").endswith("_down") or "per_channel_quant" in self.rest

    @property
    def weight_only(self) -> bool:
        """Whether activations are 16-bit while weights are not."""
        return (self.dtype or "").endswith("a16")

    def known_device(self) -> Device | None:
        """The device's own file in ``search_spaces/devices``, if there is one."""
        return _device(self.device)

    def limits(self) -> Device | Limits | None:
        """What the device can hold; None where nobody here knows it."""
        return self.known_device() or self._by_family()

    def _by_family(self) -> Limits | None:
        if self.vendor != "nvidia":
            return None
        for family, arch in _ARCH.items():
            if re.search(rf"(?:^|[_-]){family}(?:[_-]|$)", self.device):
                return Limits(arch, _SHARED_KIB[arch] * 1024)
        return None

    def shape(self, hidden: int, topk: int) -> MoeShape | None:
        """The layer; None for data types of other kernels than ``fused_moe_kernel``.

        With 16-bit activations it is the layer of 8-bit ones, which needs less shared memory.

        Args:
            hidden: K, which no name holds.
            topk: experts per token, likewise.

        Raises:
            BadInputError: sizes that do not go together.
        """
        if self.dtype not in _VARIANT or self.backend is not None:
            return None
        variant = VARIANTS[_VARIANT[self.dtype]]
        return MoeShape(
            experts=self.experts,
            intermediate=self.intermediate,
            hidden=hidden,
            topk=min(topk, self.experts),
            dtype=variant.selector,
            weight_dtype=variant.weights,
            scheme=variant.schemes[0] if self.block_shape is None else Scheme.BLOCK,
            block_shape=self.block_shape,
            global_experts=self.experts,
        )


def assumed_sizes(named: Named) -> tuple[int, int]:
    """Hidden size and top-k, which no name holds: of a preset with these E and N, else usual ones.

    N may be a part of the preset's, as tensor parallelism divides it.
    """
    for experts, intermediate, hidden, topk in _presets():
        if experts == named.experts and intermediate % named.intermediate == 0:
            return hidden, topk
    return 4096, 2 if named.experts <= 16 else 8


@functools.cache
def _as_vllm_writes(device: str) -> str:
    """The name of a known device that is meant by other capitals, dashes or no maker's name."""

    def letters(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.casefold()).removeprefix("nvidia")

    names = (known.vllm_name for known in load_devices().values())
    return next((name for name in names if letters(name) == letters(device)), device)


@functools.cache
def _presets() -> tuple[tuple[int, int, int, int], ...]:
    shapes = [shape_from_config(load_config(name)) for name in model_names()]
    return tuple((s.experts, s.intermediate, s.hidden, s.topk) for s in shapes)


@functools.cache
def _device(name: str) -> Device | None:
    try:
        return get_device(name)
    except BadInputError:
        return None


def parse_name(name: str) -> Named | None:
    """Take a file's name apart; None if it is no such name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    block = (int(found["n"]), int(found["k"])) if found["n"] else None
    return Named(
        experts=int(found["experts"]),
        intermediate=int(found["intermediate"]),
        device=found["device"],
        dtype=found["dtype"],
        block_shape=block,
        backend=found["backend"],
        rest=found["rest"].strip(","),
    )
