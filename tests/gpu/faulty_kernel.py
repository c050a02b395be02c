"""The real kernel module, with candidates that really do what a bad one may do to a GPU."""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl

from autotune.kernels.measure import process as kernel
from autotune.kernels.measure.process import compare, device_facts, ready, time_candidate
from autotune.kernels.measure.requests import GpuSetup
from tests.fake_kernel import HANGS, LOSES_DEVICE, NOT_A_NUMBER, OUT_OF_MEMORY, SEGFAULTS, WRONG

__all__ = ["compare", "device_facts", "ready", "set_up", "time_candidate"]


@triton.jit
def _write_far_away(pointer):  # type: ignore[no-untyped-def]
    tl.store(pointer + (1 << 44), 1.0)


def set_up(setup: GpuSetup) -> None:
    from vllm.model_executor.layers.fused_moe import get_config

    kernel.set_up(setup)
    problem = kernel._worker[0].problem
    run = problem.run

    def faulty(inputs: Any, call: int) -> Any:
        kind = get_config()["GROUP_SIZE_M"]
        if kind == HANGS:
            torch.cuda._sleep(10**15)
        if kind == LOSES_DEVICE:
            _write_far_away[(1,)](torch.zeros(1, device="cuda"))
        if kind == SEGFAULTS:
            os.abort()
        if kind == OUT_OF_MEMORY:
            torch.empty(2**45, dtype=torch.uint8, device="cuda")
        output = run(inputs, call)
        if kind == WRONG:
            output *= 1.1
        if kind == NOT_A_NUMBER:
            output[0, 0].fill_(float("nan"))  # an assignment copies from the host: no capture may
        return output

    problem.run = faulty  # type: ignore[method-assign]
