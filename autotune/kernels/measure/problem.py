"""Weights, inputs and the float32 reference of one MoE layer, on the current CUDA device.

Only imported in a measuring process. Sizes: E experts here, N intermediate, K hidden, m tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from autotune.kernels.measure.requests import copies_of
from autotune.kernels.moe.routing import Routing
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import Scheme


@dataclass
class Inputs:
    """Tokens and their routings: ``x`` [m, K] bf16; each call has ids and weights [m, topk]."""

    x: torch.Tensor
    calls: list[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class _Weights:
    """Of one copy: w1 [E, 2N, K] (N without a gate), w2 [E, K, N], and what dequantises them."""

    w1: torch.Tensor
    w2: torch.Tensor
    w1_scale: torch.Tensor | None
    w2_scale: torch.Tensor | None
    config: Any


class Problem:
    """One MoE layer. Weights are drawn once; small ones in several copies, used in turn."""

    def __init__(self, shape: MoeShape, routing: Routing, seed: int, l2_bytes: int) -> None:
        """Draw the weights.

        Args:
            shape: the layer on this rank.
            routing: how often each expert is chosen.
            seed: of the weights.
            l2_bytes: of the device.
        """
        from vllm.model_executor.layers.fused_moe import MoEActivation  # noqa: PLC0415

        self.shape = shape
        self._dtype: torch.dtype = getattr(torch, shape.variant.torch)
        self._generator = torch.Generator(device="cuda").manual_seed(seed)
        self._activation = MoEActivation.SILU if shape.gated else MoEActivation.SILU_NO_MUL
        log_weights = torch.tensor(routing.weights(shape.global_experts)).log()
        # Experts of like frequency are not neighbours in memory.
        order = torch.randperm(shape.global_experts, generator=torch.Generator().manual_seed(seed))
        self._log_weights = log_weights[order].cuda()
        self._expert_map: torch.Tensor | None = None
        if shape.experts != shape.global_experts:
            ids = torch.arange(shape.global_experts, dtype=torch.int32, device="cuda")
            self._expert_map = torch.where(ids < shape.experts, ids, -1).int()
        first = self._draw()
        size = first.w1.nbytes + first.w2.nbytes
        more = copies_of(size, l2_bytes) - 1
        self._weights = [first, *(self._draw() for _ in range(more))]

    def _draw(self) -> _Weights:
        shape = self.shape
        w1, w1_scale = self._operand(shape.columns, shape.hidden)
        w2, w2_scale = self._operand(shape.hidden, shape.intermediate)
        return _Weights(w1, w2, w1_scale, w2_scale, self._quantisation(w1_scale, w2_scale))

    def _operand(self, rows: int, depth: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weights [E, rows, depth] and their scales; outputs are then of the order of one."""
        shape, experts = self.shape, self.shape.experts
        weights = torch.empty(experts, rows, depth, dtype=self._dtype, device="cuda")
        unit = shape.variant.unit or depth**-0.5
        for expert in range(experts):  # one at a time: float32 of all would be four times as much
            weights[expert] = self._normal(rows, depth).mul_(unit).to(weights.dtype)
        if shape.scheme is Scheme.NONE:
            return weights, None
        sizes: tuple[int, ...] = {
            Scheme.TENSOR: (experts,),
            Scheme.CHANNEL: (experts, rows, 1),
        }.get(shape.scheme, ())
        if shape.block_shape is not None:
            block_n, block_k = shape.block_shape
            sizes = (experts, -(-rows // block_n), -(-depth // block_k))
        spread = 0.5 + torch.rand(sizes, generator=self._generator, device="cuda")
        return weights, spread * depth**-0.5 / unit

    def _normal(self, *size: int) -> torch.Tensor:
        return torch.randn(size, generator=self._generator, device="cuda")

    def _quantisation(self, w1_scale: torch.Tensor | None, w2_scale: torch.Tensor | None) -> Any:
        from vllm.model_executor.layers.fused_moe import config  # noqa: PLC0415

        shape, make = self.shape, self.shape.variant.quant_config
        by_token = shape.scheme is Scheme.CHANNEL
        return make and make(config, w1_scale, w2_scale, by_token, shape.block_shape)

    def inputs(self, m: int, calls: int, seed: int) -> Inputs:
        """Tokens, and a routing for each call, in tensors of their own (alignment is a hint)."""
        generator = torch.Generator(device="cuda").manual_seed(seed)
        x = torch.randn(m, self.shape.hidden, generator=generator, device="cuda").bfloat16()
        drawn = [
            (
                torch.empty(m, self.shape.topk, dtype=torch.int32, device="cuda"),
                torch.empty(m, self.shape.topk, dtype=torch.float32, device="cuda"),
            )
            for _ in range(calls)
        ]
        inputs = Inputs(x, drawn)
        self.redraw(inputs, seed)
        return inputs

    def redraw(self, inputs: Inputs, seed: int) -> None:
        """New routings in place, where captured graphs read them.

        Distinct experts per token with the wanted frequencies: the Gumbel top-k trick (Kool, van
        Hoof and Welling 2019, arXiv:1903.06059).
        """
        generator = torch.Generator(device="cuda").manual_seed(seed)
        size = (inputs.x.shape[0], self.shape.global_experts)
        for ids, weights in inputs.calls:
            noise = torch.empty(size, device="cuda").exponential_(generator=generator).log_().neg_()
            top = (self._log_weights + noise).topk(self.shape.topk)
            ids.copy_(top.indices)
            logits = torch.randn(top.indices.shape, generator=generator, device="cuda")
            weights.copy_(logits.softmax(-1))

    def run(self, inputs: Inputs, call: int) -> torch.Tensor:
        """One call of ``fused_experts``: [m, K] bf16."""
        from vllm.model_executor.layers.fused_moe.fused_moe import (  # noqa: PLC0415
            fused_experts,
        )

        weights = self._weights[call % len(self._weights)]
        ids, routed = inputs.calls[call]
        output: torch.Tensor = fused_experts(
            inputs.x,
            weights.w1,
            weights.w2,
            routed,
            ids,
            activation=self._activation,
            global_num_experts=self.shape.global_experts,
            expert_map=self._expert_map,
            quant_config=weights.config,
        )
        return output

    @contextmanager
    def poisoned(self) -> Iterator[None]:
        """Within, new tensors are full of NaN (integers: their greatest value)."""
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)

    def reference(self, inputs: Inputs, call: int) -> torch.Tensor:
        """The layer's output [m, K] in float32 arithmetic.

        Operands are quantised and intermediate results rounded to bf16 where vLLM does so; products
        and sums are float32.
        """
        weights = self._weights[call % len(self._weights)]
        ids, routed = inputs.calls[call]
        x = self._requantised(inputs.x.float())
        tokens = torch.arange(x.shape[0], device="cuda").repeat_interleave(self.shape.topk)
        pairs = ids.flatten().long()
        up = self._grouped(x[tokens], pairs, weights.w1, weights.w1_scale)
        up = up.bfloat16().float()
        if self.shape.gated:
            gate, value = up.chunk(2, dim=-1)
            hidden = torch.nn.functional.silu(gate).bfloat16().float() * value
        else:
            hidden = torch.nn.functional.silu(up)
        hidden = self._requantised(hidden.bfloat16().float())
        down = self._grouped(hidden, pairs, weights.w2, weights.w2_scale)
        down = (down * routed.flatten()[:, None]).bfloat16().float()
        local = pairs < self.shape.experts
        down = torch.where(local[:, None], down, 0.0)
        return down.view(x.shape[0], self.shape.topk, -1).sum(1)

    def _grouped(
        self,
        rows: torch.Tensor,
        experts: torch.Tensor,
        weights: torch.Tensor,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        """Each row times the transposed weights of its expert."""
        result = torch.zeros(rows.shape[0], weights.shape[1], device="cuda")
        for expert in range(self.shape.experts):
            chosen = (experts == expert).nonzero().squeeze(1)
            if len(chosen):
                full = self._dequantised(weights[expert].float(), scale, expert)
                result[chosen] = rows[chosen] @ full.T
        return result

    def _dequantised(
        self, weights: torch.Tensor, scale: torch.Tensor | None, expert: int
    ) -> torch.Tensor:
        if scale is None:
            return weights
        own = scale[expert]
        if self.shape.block_shape is not None:
            block_n, block_k = self.shape.block_shape
            own = own.repeat_interleave(block_n, 0)[: weights.shape[0]]
            own = own.repeat_interleave(block_k, 1)[:, : weights.shape[1]]
        return weights * own

    def _requantised(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [rows, depth] after quantisation as in vLLM, back in float32."""
        shape = self.shape
        if shape.scheme is Scheme.NONE:
            return x
        if shape.block_shape is not None:
            return self._requantised_by_group(x, shape.block_shape[1])
        largest = (
            x.abs().amax(-1, keepdim=True) if shape.scheme is Scheme.CHANNEL else x.abs().max()
        )
        top = shape.variant.largest or 1.0
        scale = largest.clamp(min=1e-10) / top
        return self._rounded(x / scale, top) * scale

    def _requantised_by_group(self, x: torch.Tensor, group: int) -> torch.Tensor:
        """``x`` [rows, depth], quantised by vLLM's own code, back in float32.

        vLLM rounds the scales to powers of two where DeepGEMM wants them so, whichever kernel runs
        (``is_deep_gemm_e8m0_used``, on by default in 0.33): another grid, and so another result.
        """
        from vllm.model_executor.layers.quantization.utils.fp8_utils import (  # noqa: PLC0415
            per_token_group_quant_fp8,
        )

        quantised, scale = per_token_group_quant_fp8(x.bfloat16().contiguous(), group)
        return (quantised.float().unflatten(1, (-1, group)) * scale.float()[..., None]).flatten(1)

    def _rounded(self, x: torch.Tensor, top: float) -> torch.Tensor:
        whole = x if self._dtype.is_floating_point else x.round()
        return whole.clamp(-top, top).to(self._dtype).float()
