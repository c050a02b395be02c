"""``autotune doctor``: is everything here, is there room, and does fp8 reach the tensor cores?"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

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
from autotune.kernels.measure.available import cannot_measure
from autotune.kernels.memory import COMPILER, memory_of, process_bytes
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.report.notes import FP16_WARNING
from autotune.kernels.request import STANDARD_LADDER
from autotune.machine.containers import DOCKER, PODMAN
from autotune.machine.devices import Device, GpuInfo, present_gpus
from autotune.machine.environment import environment
from autotune.machine.health import (
    Health,
    clocks_here,
    gpus_here,
    held_here,
    memory_here,
    place_here,
    toolchain_here,
)
from autotune.machine.image_facts import TAKE
from autotune.machine.resident import Resident

PROBE = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)
"""Gemma 4 26B-A4B, compiled once with a small tile."""
MODEL = "gemma-4-26b-a4b"


def diagnose(device: Device, visible: str | None = None) -> list[Health]:
    """Look at the machine, compile one kernel for ``device``, and say what to run next.

    Args:
        device: to check for.
        visible: ``CUDA_VISIBLE_DEVICES``, if set.

    Raises:
        BadInputError: it names GPUs in another way than by index.
    """
    gpus = present_gpus(device, visible)
    need = process_bytes(PROBE, device, STANDARD_LADDER) + COMPILER
    held, large = held_here(gpus)
    found = [gpus_here(), _memory(device, gpus, need), held]
    if gpus:
        found.append(clocks_here(gpus[0]))
    found.append(place_here())
    try:
        kernel = kernel_info()
    except MissingEnvironmentError as error:
        found.append(_without_vllm(error, gpus))
    else:
        found += [toolchain_here()] if gpus else []
        found += [_software(kernel, device, here=bool(gpus)), _probe(device, kernel)]
    return [*found, _next(device, gpus, found, large)]


def _engine() -> str | None:
    """The program that starts containers here; None without one."""
    return next((name for name in (DOCKER, PODMAN) if shutil.which(name)), None)


def _without_vllm(error: MissingEnvironmentError, gpus: Sequence[GpuInfo]) -> Health:
    """Say that vLLM is not here, which is no fault where an image can have it."""
    if gpus and (engine := _engine()):
        text = f"no vLLM here; an image that {engine} starts can have it, and measure"
        return Health("software", "warning", text)
    return Health("software", "error", str(error))


def _memory(device: Device, gpus: Sequence[GpuInfo], need: int) -> Health:
    try:
        return memory_here(memory_of(device, gpus), need)
    except MissingEnvironmentError as error:
        return Health("memory", "error", str(error))


def _software(kernel: KernelInfo, device: Device, *, here: bool) -> Health:
    made = environment()
    cuda = f" (CUDA {made['cuda']})" if made["cuda"] else ""
    text = (
        f"vLLM {kernel.vllm_version}, torch {made['packages']['torch']}{cuda}, Triton "
        f"{kernel.triton_version}: {kernel.path}"
    )
    if not here:
        return Health("software", "ok", f"{text}; no {device.title} to be used here: it predicts")
    lacking = cannot_measure()
    if lacking:
        return Health("software", "warning", f"{text}; {lacking}")
    return Health("software", "ok", text)


def _probe(device: Device, kernel: KernelInfo) -> Health:
    job = CompileJob(PROBE, device.arch, 16, 64, 128, 4, 3, 1, specialise(PROBE, 64))
    with compile_pool(1, kernel) as pool:
        compiled = next(compile_many(pool, [job], kernel, None))
    target = f"sm_{device.arch}"
    if compiled.outcome is not Outcome.OK:
        said = f"the kernel does not compile for {target}: {compiled.message}"
        return Health("fp8", "error", said)
    if fp16_fallback(compiled, PROBE):
        said = FP16_WARNING.format(triton=kernel.triton_version)
        return Health("fp8", "warning", f"{target}: {said} vLLM 0.33 brings Triton 3.8")
    said = f"the fused-MoE kernel compiles for {target}; fp8 uses {compiled.mma_family}"
    return Health("fp8", "ok", said)


def _next(
    device: Device, gpus: Sequence[GpuInfo], found: Sequence[Health], large: Sequence[Resident]
) -> Health:
    """Say what to run, or what to do before."""
    levels = {health.check: health.level for health in found}
    tune = f"autotune moe --device {'auto' if gpus else device.name} --model {MODEL}"
    if "error" in levels.values():
        return Health("next", "next", "mend what fails above, then `autotune doctor` again")
    if gpus and levels["software"] != "ok":
        engine = _engine()
        if engine is None:
            return Health("next", "next", "run this in the environment, or the image, that serves")
        tune = tune.replace(" moe ", f" moe --launcher {engine} --image {TAKE} ")
    if levels["memory"] == "warning":
        first = f"stop {large[0].name} (process {large[0].pid})" if large else "free some memory"
        return Health("next", "next", f"{first}, then `{tune}`")
    how = "" if gpus else ": a prediction, from the real kernel compiled for it"
    return Health("next", "next", f"`{tune}`{how}")
