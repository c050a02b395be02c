"""The variants of vLLM's fused-MoE kernel that are tuned: one row of :data:`VARIANTS` for each.

A variant says how the kernel's operands are stored and scaled. All that constraints, compiler,
measuring process, cost model and exporters must know of one stands in its row; where vLLM's choice
of a backend depends on it, ``kernels/moe/backend.py`` has a rule for its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from autotune.core import BadInputError


class Scheme(StrEnum):
    """How weights and activations are scaled.

    ``CHANNEL``: per-channel weights with per-token activations. ``BLOCK``: weights by blocks,
    activations by groups of the same width. ``NONE``: not quantised.
    """

    NONE = "none"
    TENSOR = "tensor"
    CHANNEL = "channel"
    BLOCK = "block"


@dataclass(frozen=True)
class Variant:
    """One way in which the kernel's operands are stored and scaled.

    Attributes:
        name: of ``--dtype``, as vLLM calls the pair of weights and activations.
        weights: how a shape in a database names the weights.
        selector: vLLM's config dtype, part of the file name; None for none. Source: vLLM
            fused_moe/config.py, ``_get_config_dtype_str``.
        torch: name in torch of the operands' type.
        element: bytes of one value.
        schemes: those that the kernel takes; the first where only sizes are given.
        online: what vLLM makes of a checkpoint of another type while it loads it.
        least_k: the smallest contraction of ``tl.dot``.
        letter: what the names of its tensor-core instructions begin with.
        float8: fp8 operands: vLLM swaps them for small M on sm_90, and Triton before 3.8 widens
            them to fp16 on sm_121.
        largest: value of an activation after quantisation; None without.
        unit: standard deviation of drawn weights; None: outputs of the order of one need
            depth**-0.5, for nothing scales them.
        quant_config: makes vLLM's description of the layer's quantisation from vLLM's module
            ``fused_moe.config``, the scales of w1 and of w2, whether activations are scaled by
            token, and the (n, k) of block scaling; None without.
    """

    name: str
    weights: str
    selector: str | None
    torch: str
    element: int
    schemes: tuple[Scheme, ...]
    online: Scheme
    least_k: int
    letter: str
    float8: bool = False
    largest: float | None = None
    unit: float | None = None
    quant_config: Callable[[Any, Any, Any, bool, tuple[int, int] | None], Any] | None = None

    @property
    def quantised(self) -> bool:
        """Tell whether weights and activations are scaled, which takes kernels of its own."""
        return Scheme.NONE not in self.schemes


def _fp8_config(
    config: Any, w1_scale: Any, w2_scale: Any, by_token: bool, block: tuple[int, int] | None
) -> Any:
    return config.fp8_w8a8_moe_quant_config(
        w1_scale,
        w2_scale,
        per_act_token_quant=by_token,
        block_shape=None if block is None else list(block),
    )


def _int8_config(
    config: Any, w1_scale: Any, w2_scale: Any, by_token: bool, block: tuple[int, int] | None
) -> Any:
    del block
    return config.int8_w8a8_moe_quant_config(
        w1_scale, w2_scale, None, None, per_act_token_quant=by_token
    )


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            name="fp8_w8a8",
            weights="fp8",
            selector="fp8_w8a8",
            torch="float8_e4m3fn",
            element=1,
            schemes=(Scheme.CHANNEL, Scheme.TENSOR, Scheme.BLOCK),
            online=Scheme.TENSOR,
            least_k=32,
            letter="Q",
            float8=True,
            largest=448.0,
            unit=1.0,
            quant_config=_fp8_config,
        ),
        Variant(
            name="int8_w8a8",
            weights="int8",
            selector=None,
            torch="int8",
            element=1,
            schemes=(Scheme.CHANNEL,),
            online=Scheme.CHANNEL,
            least_k=32,
            letter="I",
            largest=127.0,
            unit=40.0,
            quant_config=_int8_config,
        ),
        Variant(
            name="bf16",
            weights="bf16",
            selector=None,
            torch="bfloat16",
            element=2,
            schemes=(Scheme.NONE,),
            online=Scheme.NONE,
            least_k=16,
            letter="H",
        ),
    )
}
"""By the name that ``--dtype`` takes."""


def variant_named(name: str, *more: str) -> Variant:
    """Return the variant of a ``--dtype``.

    Args:
        name: what was given.
        more: other words that the flag takes, for the message.

    Raises:
        BadInputError: there is none of this name.
    """
    if name not in VARIANTS:
        raise BadInputError(f"--dtype {name}: not one of {', '.join((*more, *VARIANTS))}")
    return VARIANTS[name]


def variant_of(weights: str) -> Variant:
    """Return the variant whose weights a stored shape names so.

    Raises:
        BadInputError: there is none.
    """
    known = {variant.weights: variant for variant in VARIANTS.values()}
    if weights not in known:
        raise BadInputError(f"weights of type {weights!r}: not one of {', '.join(known)}")
    return known[weights]
