"""``autotune doctor``: is everything here, and does fp8 reach the fp8 tensor cores?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from autotune.core import MissingEnvironmentError, Outcome
from autotune.kernels.compile.job import (
    CompileJob,
    KernelInfo,
    compile_many,
    compile_pool,
    fp16_fallback,
    kernel_info,
    specialise,
)
from autotune.kernels.export.write import FP16_WARNING
from autotune.kernels.measure.available import cannot_measure
from autotune.kernels.moe.shape import MoeShape, Scheme
from autotune.machine.devices import Device, detect_gpus, present_gpus

PROBE = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)
"""Gemma 4 26B-A4B, compiled once with a small tile."""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    level: Literal["ok", "warning", "error"]
    text: str

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def diagnose(device: Device, visible: str | None = None) -> list[Finding]:
    """Look at the machine and compile one kernel for ``device``.

    Args:
        device: to check for.
        visible: ``CUDA_VISIBLE_DEVICES``, if set.

    Raises:
        BadInputError: it names GPUs in another way than by index.
    """
    gpus = ", ".join(f"{gpu.name}, driver {gpu.driver}" for gpu in detect_gpus())
    findings = [Finding("ok", f"GPUs: {gpus or 'none that nvidia-smi shows'}")]
    if not present_gpus(device, visible):
        findings.append(Finding("ok", f"no {device.title} to be used here: predicted mode"))
    elif lacking := cannot_measure():
        findings.append(Finding("warning", f"{device.title} is here, but {lacking}"))
    try:
        kernel = kernel_info()
    except MissingEnvironmentError as error:
        return [*findings, Finding("error", str(error))]
    findings.append(
        Finding("ok", f"vLLM {kernel.vllm_version}, Triton {kernel.triton_version}: {kernel.path}")
    )
    return [*findings, _probe(device, kernel)]


def _probe(device: Device, kernel: KernelInfo) -> Finding:
    job = CompileJob(PROBE, device.arch, 16, 64, 128, 4, 3, 1, specialise(PROBE, 64))
    with compile_pool(1, kernel) as pool:
        compiled = next(compile_many(pool, [job], kernel, None))
    target = f"sm_{device.arch}"
    if compiled.outcome is not Outcome.OK:
        return Finding("error", f"the kernel does not compile for {target}: {compiled.message}")
    if fp16_fallback(compiled, PROBE):
        return Finding("warning", f"{target}: {FP16_WARNING.format(triton=kernel.triton_version)}")
    return Finding(
        "ok", f"the fused-MoE kernel compiles for {target}; fp8 uses {compiled.mma_family}"
    )
