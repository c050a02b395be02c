"""The fused-MoE problem: its shape on one rank, and a workload (a shape at M tokens)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

from autotune.core import BadInputError, digest
from autotune.kernels.moe.variants import Scheme, Variant, variant_of

_WORD = re.compile(r"[a-z0-9_]{1,40}")
_MOST = 1_048_576  # far above every model, and the tensors' elements still count in 64 bits


@dataclass(frozen=True)
class MoeShape:
    """One MoE layer on one rank.

    Attributes:
        experts: E, experts held by this rank (w2.shape[0]).
        intermediate: N, width after the gate on this rank (w2.shape[2]).
        hidden: K, the model's hidden size.
        topk: experts per token.
        dtype: vLLM's config dtype, part of the file name; None for bf16 and int8_w8a8.
        weight_dtype: ``weights`` of its variant (``kernels/moe/variants.py``).
        scheme: how it is scaled.
        block_shape: (n, k) of block quantisation, else None.
        global_experts: experts that the router chooses from (more than E under EP).
        gated: whether w1 holds gate and up (2N columns) or N alone.
    """

    experts: int
    intermediate: int
    hidden: int
    topk: int
    dtype: str | None
    weight_dtype: str
    scheme: Scheme
    block_shape: tuple[int, int] | None
    global_experts: int
    gated: bool = True

    def __post_init__(self) -> None:
        variant_of(self.weight_dtype)  # refuses what no kernel here multiplies
        if self.dtype is not None and not _WORD.fullmatch(self.dtype):  # it names a file
            raise BadInputError(f"data type {self.dtype!r}: not such as fp8_w8a8")
        for name in ("experts", "intermediate", "hidden", "topk"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} must be at least 1, not {getattr(self, name)}")
            if getattr(self, name) > _MOST:
                raise BadInputError(f"{name} must be at most {_MOST}, not {getattr(self, name)}")
        if self.topk > self.global_experts:
            raise BadInputError(f"topk {self.topk} is more than {self.global_experts} experts")
        if self.block_shape is not None and self.intermediate % self.block_shape[0]:
            raise BadInputError(
                f"intermediate size {self.intermediate} on this rank is not divisible by the "
                f"quantisation block {self.block_shape[0]}; use a smaller --tp, or --ep"
            )

    @cached_property
    def variant(self) -> Variant:
        """The variant of the kernel that multiplies these weights."""
        return variant_of(self.weight_dtype)

    @property
    def columns(self) -> int:
        """Columns of the first GEMM: gate and up, or up alone."""
        return 2 * self.intermediate if self.gated else self.intermediate

    def config_file_name(self, vllm_name: str) -> str:
        """The name in vLLM of the configuration file on device ``vllm_name``.

        Source: vLLM fused_moe.py, ``get_config_file_name``.
        """
        dtype = f",dtype={self.dtype}" if self.dtype else ""
        block = (
            f",block_shape=[{self.block_shape[0]},{self.block_shape[1]}]"
            if self.block_shape
            else ""
        )
        return f"E={self.experts},N={self.intermediate},device_name={vllm_name}{dtype}{block}.json"

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        values = asdict(self)
        values["block_shape"] = list(self.block_shape) if self.block_shape else None
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Back from :meth:`as_json`."""
        block = values["block_shape"]
        return cls(
            **{
                **values,
                "scheme": Scheme(values["scheme"]),
                "block_shape": tuple(block) if block else None,
            }
        )

    @cached_property
    def key(self) -> str:
        """Identity of the shape."""
        return digest(self.as_json())


@dataclass(frozen=True)
class MoeWorkload:
    """A shape at ``m`` tokens; a :class:`autotune.core.Workload`."""

    shape: MoeShape
    m: int

    def __post_init__(self) -> None:
        if self.m < 1:
            raise BadInputError(f"a batch size must be at least 1, not {self.m}")

    @cached_property
    def key(self) -> str:
        """Identity used in the database."""
        return digest(self.as_json())

    @property
    def label(self) -> str:
        """Such as ``M=64``."""
        return f"M={self.m}"

    def as_json(self) -> dict[str, Any]:
        """Shape and M as JSON values."""
        return {"m": self.m, "shape": self.shape.as_json()}


def is_naive(shape: MoeShape, m: int) -> bool:
    """Whether vLLM skips the sort: one row tile per (token, expert) pair.

    Source: vLLM fused_moe.py, ``_prepare_expert_assignment`` (no expert map, M·topk·4 ≤ E).
    """
    return shape.experts == shape.global_experts and m * shape.topk * 4 <= shape.global_experts
