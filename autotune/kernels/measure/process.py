"""In a measuring process: vLLM's ``fused_experts`` on a real GPU, timed and checked.

The only module that runs the kernel. It imports torch, Triton and vLLM inside functions, because
the parent process must never hold a CUDA context. What is timed is what serves: quantise, align,
both GEMMs, activation and sum, in CUDA graphs.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, median_low
from typing import Any

import psutil

from autotune.core import MissingEnvironmentError, Outcome
from autotune.kernels.measure.problem import Problem
from autotune.kernels.measure.requests import (
    EXIT_DEVICE_ERROR,
    EXIT_RECYCLE,
    Comparison,
    GpuSetup,
    Timing,
    calls_per_graph,
    claim_gpu,
    last_words,
    raced_samples,
)

REPLAYS_PER_ROUND = 3
TOLERANCE = 0.04
"""Relative error of an output against float32 arithmetic on the same quantised operands.

bf16 rounding of intermediate results and output gives 0.002 to 0.008; sm_90's wgmma, which sums fp8
products in fewer bits than float32 has, 0.016 (measured on an H200, default candidates).
"""
_MIB = 2**20


@dataclass
class _Worker:
    """What a measuring process keeps between requests."""

    setup: GpuSetup
    gpu: int
    problem: Problem
    kernel: Any
    pool: Any
    stack: ExitStack
    best_us: dict[int, float] = field(default_factory=dict)
    inputs: dict[int, Any] = field(default_factory=dict)
    fresh: bool = True
    """Whether it has answered no request yet."""
    compiled: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})
    """Kernels taken from the shared cache (True) and compiled here (False)."""


_worker: list[_Worker] = []


def set_up(setup: GpuSetup) -> None:
    """Claim a GPU, import vLLM and allocate the weights: once per process.

    Raises:
        MissingEnvironmentError: no GPU is free, or vLLM cannot be imported.
    """
    gpu, lock = claim_gpu(setup)
    with ExitStack() as stack:
        stack.callback(lock.release)  # another try in this process must be able to say why again
        _log_to(Path(setup.folder) / f"gpu-{gpu}.log")
        _worker.append(_prepared(setup, gpu, stack))
        _worker[0].stack = stack.pop_all()


def _log_to(path: Path) -> None:
    """Keep what vLLM logs off the terminal."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _prepared(setup: GpuSetup, gpu: int, stack: ExitStack) -> _Worker:
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts them
    os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    os.environ["TRITON_CACHE_DIR"] = setup.triton_cache
    try:
        import torch  # noqa: PLC0415
        from triton import knobs  # noqa: PLC0415
        from vllm.config import VllmConfig, set_current_vllm_config  # noqa: PLC0415
        from vllm.model_executor.layers.fused_moe import fused_moe  # noqa: PLC0415
    except ImportError as error:
        raise MissingEnvironmentError(f"vLLM for CUDA cannot be imported: {error}") from error
    os.environ["TRITON_CACHE_DIR"] = setup.triton_cache  # vLLM 0.24 may have set its own
    if not torch.cuda.is_available():
        raise MissingEnvironmentError("torch sees no CUDA device; is this a CPU build of torch?")
    stack.enter_context(set_current_vllm_config(VllmConfig()))
    problem = Problem(setup.shape, setup.routing, setup.seed, setup.l2_bytes)
    pool = torch.cuda.graph_pool_handle()
    worker = _Worker(setup, gpu, problem, fused_moe.fused_moe_kernel, pool, stack)

    def count(*_: Any, src: Any, cache_hit: bool, **__: Any) -> None:
        if src.name == worker.kernel.__name__:  # int8's quantiser is a Triton kernel too
            worker.compiled[cache_hit] += 1

    knobs.compilation.listener = count
    return worker


@contextmanager
def _guarded(worker: _Worker, key: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Turn what a candidate does into an outcome, or end the process where the device is lost.

    A hung kernel ends the process ``seconds`` after its step began (:func:`_begin_step`). After a
    CUDA error the context is lost: the process leaves its last words for the parent and goes.
    """
    import torch  # noqa: PLC0415
    from triton.runtime.errors import OutOfResources  # noqa: PLC0415

    result: dict[str, Any] = {"outcome": Outcome.OK}
    _make_room(worker)
    _begin_step(seconds)
    try:
        yield result
        torch.cuda.synchronize()
    except OutOfResources as error:
        result |= {"outcome": Outcome.OUT_OF_RESOURCES, "message": str(error)}
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        result |= {"outcome": Outcome.OUT_OF_MEMORY, "message": str(error).splitlines()[0]}
    except MissingEnvironmentError:
        raise
    # Whatever else a launch raises may have left the context unusable.
    except Exception as error:  # noqa: BLE001
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        last_words(worker.setup.folder, key).write_text(text[:1000])
        os._exit(EXIT_DEVICE_ERROR)
    finally:
        faulthandler.cancel_dump_traceback_later()
        _forget_kernels(worker)
    result |= {"memory": _memory()}


def _begin_step(seconds: float) -> None:
    """End the process if the next step does not end in time; the limit of the last one is off.

    How long a whole request takes depends on the device; that a step hangs does not. The watchdog
    of faulthandler needs neither the interpreter nor the device.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)


def _memory() -> dict[str, int]:
    """This process's resident memory and the device's used memory, in MiB."""
    return {
        "rss_mib": psutil.Process().memory_info().rss // _MIB,
        "device_mib": _device_bytes() // _MIB,
    }


def _device_bytes() -> int:
    """The device's used memory; what torch holds of it where that is the host's, or is not told.

    ``cudaMemGetInfo`` counts the host's files on unified memory, and is known to fail there.
    """
    import torch  # noqa: PLC0415

    held = int(torch.cuda.memory_reserved())
    try:
        if torch.cuda.get_device_properties(0).is_integrated:
            return held
        free, total = torch.cuda.mem_get_info()
    except (RuntimeError, AttributeError):  # AttributeError: a torch that does not tell
        return held
    return int(total - free)


def _make_room(worker: _Worker) -> None:
    """End the process if it holds more than it may; a new one answers the request.

    Raises:
        MissingEnvironmentError: if it does before its first request, as every new one would.
    """
    limit = worker.setup.memory_limit_mib
    if limit is None:
        return
    held = _held_mib()
    if held > limit and worker.fresh:
        raise MissingEnvironmentError(
            f"--memory-limit: a measuring process holds {held} MiB before its first candidate, "
            f"more than the limit of {limit} MiB; raise it"
        )
    worker.fresh = False
    if held > limit:
        os._exit(EXIT_RECYCLE)


def _held_mib() -> int:
    """What this process alone holds: resident memory, and what torch has taken of the device's.

    The device's used memory would count other processes too, and on unified memory their files.
    """
    import torch  # noqa: PLC0415

    torch.cuda.empty_cache()  # what nothing uses is no reason to end
    return int(psutil.Process().memory_info().rss + torch.cuda.memory_reserved()) // _MIB


def _forget_kernels(worker: _Worker) -> None:
    """Unload what was launched; Triton would keep every kernel for ever.

    Triton before 3.8 has no unloading of its own.
    """
    from triton.compiler.compiler import CompiledKernel  # noqa: PLC0415

    for kernels, keys, *_ in worker.kernel.device_caches.values():
        if not hasattr(CompiledKernel, "__del__"):
            for kernel in kernels.values():
                _unload(kernel)
        kernels.clear()
        keys.clear()


def _unload(kernel: Any) -> None:
    import ctypes  # noqa: PLC0415

    if getattr(kernel, "module", None) is not None:
        ctypes.CDLL("libcuda.so.1").cuModuleUnload(ctypes.c_void_p(kernel.module))
        kernel.module = None


def _is_frozen_pool(error: RuntimeError) -> bool:
    """Whether torch refuses a graph pool because a block in it is still alive.

    Source: torch 2.11, c10/cuda/CUDACachingAllocator.cpp: ``it->second->use_count > 0``.
    """
    return "use_count > 0" in str(error)


class _Graph:
    """A CUDA graph of several calls, each with its own routing."""

    def __init__(self, worker: _Worker, params: Mapping[str, int], inputs: Any) -> None:
        import torch  # noqa: PLC0415
        from vllm.model_executor.layers.fused_moe import override_config  # noqa: PLC0415

        self.calls = len(inputs.calls)
        with override_config(dict(params)):
            worker.problem.run(inputs, 0)  # loads the kernels; a capture may not
            torch.cuda.synchronize()
            try:
                self._capture(worker, inputs)
            except RuntimeError as error:
                if not _is_frozen_pool(error):
                    raise
                # What an earlier capture left alive in the pool is not this candidate's fault.
                worker.pool = torch.cuda.graph_pool_handle()
                self._capture(worker, inputs)
        self.begin = torch.cuda.Event(enable_timing=True)
        self.end = torch.cuda.Event(enable_timing=True)
        self.graph.replay()  # uploads the graph
        torch.cuda.synchronize()

    def _capture(self, worker: _Worker, inputs: Any) -> None:
        import torch  # noqa: PLC0415

        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=worker.pool):
            for call in range(self.calls):
                worker.problem.run(inputs, call)

    def replay_us(self) -> float:
        """One timed replay: µs per call."""
        self.begin.record()
        self.graph.replay()
        self.end.record()
        self.end.synchronize()
        return float(self.begin.elapsed_time(self.end)) * 1000 / self.calls

    def close(self) -> None:
        """Free what the graph holds."""
        self.graph.reset()


def _inputs(worker: _Worker, m: int) -> Any:
    """The inputs of the search at M: the same for every candidate, drawn once."""
    if m not in worker.inputs:
        worker.inputs[m] = worker.problem.inputs(m, calls_per_graph(m), worker.setup.seed)
    return worker.inputs[m]


def time_candidate(request: Timing) -> dict[str, Any]:
    """Time one candidate at one M.

    Returns:
        ``outcome``; ``samples`` in µs per call, one a replay; ``raced`` if it was given up as too
        slow; ``clocks`` where they were asked for; ``memory``; ``compiled_here``, kernels that the
        shared cache did not hold; ``gpu``, the index of the GPU.
    """
    worker = _worker[0]
    before, begin = worker.compiled[False], time.perf_counter()
    with _guarded(worker, request.key, request.limit_s) as result:
        graph = _Graph(worker, request.params, _inputs(worker, request.m))
        _begin_step(request.limit_s)
        best = min(worker.best_us.get(request.m, float("inf")), request.best_us or float("inf"))
        samples, raced = raced_samples(graph.replay_us, best * request.slow)
        worker.best_us[request.m] = min(best, median_low(samples) / request.slow)
        result |= {"samples": samples, "raced": raced}
        if request.clocks:
            result["clocks"] = _clocks()
        graph.close()
    result["compiled_here"] = worker.compiled[False] - before
    result["gpu_seconds"] = time.perf_counter() - begin
    result["gpu"] = worker.gpu
    return result


def compare(request: Comparison) -> dict[str, Any]:
    """Time candidates side by side, round by round, each round with fresh routings.

    Returns:
        ``samples``: of each candidate, one value a round (median of its replays, µs per call);
        ``errors``: of each candidate, relative error against the reference, or None where the
        check was not asked for; ``clocks`` before and after; ``memory``; ``gpu``, the index of the
        GPU.
    """
    worker = _worker[0]
    with _guarded(worker, request.key, request.limit_s) as result:
        before = _clocks()
        errors = _errors(worker, request) if request.check else [None] * len(request.params)
        inputs = worker.problem.inputs(request.m, calls_per_graph(request.m), request.seed)
        graphs = []
        for params in request.params:
            _begin_step(request.limit_s)
            graphs.append(_Graph(worker, params, inputs))
        samples: list[list[float]] = [[] for _ in graphs]
        for turn in range(request.rounds):
            worker.problem.redraw(inputs, request.seed + 1 + turn)
            # Rotated, so that no candidate always follows the same one.
            for offset in range(len(graphs)):
                _begin_step(request.limit_s)
                index = (turn + offset) % len(graphs)
                graphs[index].replay_us()
                replays = [graphs[index].replay_us() for _ in range(REPLAYS_PER_ROUND)]
                samples[index].append(median(replays))
        for graph in graphs:
            graph.close()
        result |= {"samples": samples, "errors": errors, "clocks": [before, _clocks()]}
    return result | {"tolerance": TOLERANCE, "gpu": worker.gpu}


def _errors(worker: _Worker, request: Comparison) -> list[float | None]:
    """Relative error of each candidate's output; infinite where it is not finite."""
    from vllm.model_executor.layers.fused_moe import override_config  # noqa: PLC0415

    problem = worker.problem
    inputs = problem.inputs(request.m, 1, request.seed + 100_003)
    expected = problem.reference(inputs, 0)
    errors: list[float | None] = []
    for params in request.params:
        _begin_step(request.limit_s)
        with override_config(dict(params)), problem.poisoned():
            found = problem.run(inputs, 0).float()
        error = float((found - expected).norm() / expected.norm())
        errors.append(error if error == error else float("inf"))  # noqa: PLR0124 - NaN
    return errors


def _clocks() -> dict[str, float]:
    """SM clock in MHz, temperature in °C and power in mW, as far as NVML tells them."""
    import torch  # noqa: PLC0415

    read = {
        "sm_mhz": torch.cuda.clock_rate,
        "temperature_c": torch.cuda.temperature,
        "power_mw": torch.cuda.power_draw,
    }
    found: dict[str, float] = {}
    for name, reading in read.items():
        try:
            found[name] = float(reading(0))
        except (RuntimeError, ModuleNotFoundError, OSError):
            continue
        # NVML's own exceptions derive from Exception alone; a reading that fails is left out.
        except Exception as error:
            if type(error).__name__.startswith("NVML"):
                continue
            raise
    return found


def device_facts(_: int) -> dict[str, Any]:
    """What the measuring process runs on: versions, GPU, and its measured ceilings.

    ``copy_gbs`` counts bytes read plus bytes written; ``bf16_tflops`` is a product of two random
    8192 x 8192 matrices.
    """
    import torch  # noqa: PLC0415
    import triton  # noqa: PLC0415
    import vllm  # noqa: PLC0415
    from triton.testing import do_bench  # noqa: PLC0415

    properties = torch.cuda.get_device_properties(0)
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copy_ms = do_bench(lambda: target.copy_(source), return_mode="median")
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_ms = do_bench(lambda: a @ b, return_mode="median")
    return {
        "gpu": properties.name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "vllm": vllm.__version__,
        "copy_gbs": 2 * 2**30 / copy_ms / 1e6,
        "bf16_tflops": 2 * 8192**3 / product_ms / 1e9,
        "clocks": _clocks(),
        "memory": _memory(),
    }


def ready(_: None) -> None:
    """Nothing but the set-up."""
