"""The body of a compile job, run in a worker process: the launcher, Triton, the disassembler.

The only module of the compile half that imports torch and Triton, and only inside functions.
"""

from __future__ import annotations

import errno
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autotune.core import MissingEnvironmentError, Outcome
from autotune.kernels.compile.kernel_source import load_kernel, swap_ab_rule
from autotune.kernels.moe.variants import Scheme
from autotune.util.programs import run_quietly

if TYPE_CHECKING:
    from autotune.kernels.compile.job import CompileJob

_OPCODE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)
_PTX_MMA = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)((?:\.\w+)*)")
_SWITCHES = ("fp8_w8a8", "int8_w8a8", "int8_w8a16", "int4_w4a16")
"""Variants for which the launcher has a switch; all are off for unquantised weights."""
_COUNTED = ("LDGSTS", "STL", "LDL")
_TOOL_TIMEOUT_S = 60
_LACKING = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}
_LEAST_FREE = 2**20
"""Bytes: with less, a compiler that fails has most likely failed to write its files."""
_KILLED = re.compile(r"ptxas` failed with error code -9\b")
"""Triton's words when ptxas was killed, as a system that is out of memory does."""


@dataclass
class _Worker:
    """What a worker process keeps between jobs."""

    path: Path
    module: ModuleType
    stderr: Path


_worker: list[_Worker] = []


def set_up_worker(path: Path) -> None:
    """Load the kernel once per worker process; keep the compiler's chatter off the terminal.

    Raises:
        MissingEnvironmentError: if torch or Triton cannot be imported, or space or memory is out.
    """
    with _faults_of_the_machine():
        module = load_kernel(path)
        descriptor, name = tempfile.mkstemp(prefix="stderr-")
    sys.stderr.flush()
    os.dup2(descriptor, 2)
    os.close(descriptor)
    _worker.append(_Worker(path, module, Path(name)))


def compile_in_worker(
    job: CompileJob, *, disassemble: bool, keep: str | None = None
) -> dict[str, Any]:
    """Compile one job.

    Args:
        job: what to compile.
        disassemble: count instructions too.
        keep: a Triton cache in which the kernel stays, for a process that will launch it; by
            default nothing stays.

    Returns:
        The fields of :class:`autotune.kernels.compile.job.Compiled`.

    Raises:
        MissingEnvironmentError: space or memory is out, of which no candidate is to blame.
    """
    with _faults_of_the_machine():
        return _compile(job, disassemble, keep)


def _compile(job: CompileJob, disassemble: bool, keep: str | None) -> dict[str, Any]:
    from triton.runtime.errors import OutOfResources  # noqa: PLC0415

    worker = _worker[0]
    os.truncate(worker.stderr, 0)
    cache = keep or tempfile.mkdtemp(prefix="triton-")
    os.environ["TRITON_CACHE_DIR"] = cache
    try:
        kernel = _launch(worker, job)
        if keep is not None:
            return {"outcome": Outcome.OK, "shared_bytes": kernel.metadata.shared}
        return {
            "outcome": Outcome.OK,
            "shared_bytes": kernel.metadata.shared,
            **_read_cubin(kernel.asm, Path(cache), disassemble),
        }
    except OutOfResources as error:
        return {"outcome": Outcome.OUT_OF_RESOURCES, "message": str(error)}
    except (MissingEnvironmentError, MemoryError):
        raise
    # The compiler raises whatever it likes (RuntimeError, CompilationError, PTXASError, IndexError,
    # AssertionError, ...), and each means the same: this candidate does not compile.
    except Exception as error:  # noqa: BLE001
        _check_machine(error, Path(cache))
        outcome = Outcome.CRASH if _KILLED.search(str(error)) else Outcome.COMPILE_ERROR
        return {"outcome": outcome, "message": _explain(error, worker.stderr)}
    finally:
        worker.module.fused_moe_kernel.device_caches.clear()
        if keep is None:
            shutil.rmtree(cache, ignore_errors=True)


@contextmanager
def _faults_of_the_machine() -> Iterator[None]:
    """Within, a lack of space or memory ends the command instead of counting as a failure."""
    try:
        yield
    except MemoryError:
        raise MissingEnvironmentError(
            "a compile process ran out of memory; run the command again with fewer --workers"
        ) from None
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        folder = Path(tempfile.gettempdir()).parent  # the worker's own goes away with it
        raise MissingEnvironmentError(
            f"{folder}: {os.strerror(error.errno)}; free some, or set TMPDIR to another folder, "
            "and run the command again"
        ) from None


def _check_machine(error: Exception, cache: Path) -> None:
    """Raise what is the machine's fault, in the words of the system."""
    if isinstance(error, OSError) and error.errno in _LACKING:
        raise error
    if shutil.disk_usage(cache).free < _LEAST_FREE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _explain(error: Exception, stderr: Path) -> str:
    """The last line of the exception, and the first errors that MLIR or ptxas printed."""
    text = stderr.read_text(errors="replace")
    printed = [line.strip() for line in text.splitlines() if "error:" in line][:2]
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return " | ".join([f"{type(error).__name__}: {lines[-1].strip()}", *printed])[:1000]


# ------------------------------------------------------------------------------------------
# The launch.


class _Driver:
    """All that Triton's compiler asks of a driver."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget  # noqa: PLC0415

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int = 0) -> int:
        return device


class _Compiling:
    """Stands in for the kernel: a launch compiles and keeps the result."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: Any = None

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            self.compiled = self.kernel.warmup(*args, grid=(1,), **options)

        return launch


def _launch(worker: _Worker, job: CompileJob) -> Any:
    """Run vLLM's launcher; gives Triton's compiled kernel."""
    from triton.runtime.driver import driver  # noqa: PLC0415

    driver.set_active(_Driver(job.arch))
    module = worker.module
    module.enable_swap_ab = swap_ab_rule(worker.path, job.arch)  # type: ignore[attr-defined]
    launcher = getattr(module, "invoke_fused_moe_triton_kernel", None)
    if launcher is None:
        raise MissingEnvironmentError(f"{worker.path} has no invoke_fused_moe_triton_kernel")
    kernel = module.fused_moe_kernel
    stand_in = _Compiling(kernel)
    module.fused_moe_kernel = stand_in  # type: ignore[attr-defined]
    try:
        launcher(**_matching(launcher, launch_arguments(job)))
    finally:
        module.fused_moe_kernel = kernel  # type: ignore[attr-defined]
    return stand_in.compiled


def _matching(launcher: Callable[..., object], known: dict[str, Any]) -> dict[str, Any]:
    """The arguments that this version's launcher takes; what it alone knows is off."""
    return {
        name: known.get(name, False)
        for name, parameter in inspect.signature(launcher).parameters.items()
        if name in known or parameter.default is inspect.Parameter.empty
    }


def launch_arguments(job: CompileJob, m: int | None = None) -> dict[str, Any]:
    """Arguments of vLLM's ``invoke_fused_moe_triton_kernel`` as vLLM itself gives them.

    Args:
        job: what to compile.
        m: the tokens; by default the fewest with the job's specialisation.
    """
    import torch  # noqa: PLC0415
    import triton.language as tl  # noqa: PLC0415

    from autotune.kernels.compile.job import representative_m  # noqa: PLC0415

    def meta(*size: int, dtype: Any) -> Any:
        return torch.empty(size, dtype=dtype, device="meta")

    shape = job.shape
    m = representative_m(shape, job.specialisation) if m is None else m
    down = (shape.intermediate, shape.hidden)
    depth, columns = (shape.hidden, shape.columns) if job.gemm == 1 else down
    rows, topk = (m, shape.topk) if job.gemm == 1 else (m * shape.topk, 1)
    operand = getattr(torch, shape.variant.torch)
    a_scale, b_scale = _scale_sizes(job, rows, depth, columns)
    tokens = m * shape.topk
    padded = tokens + shape.global_experts * (job.block_m - 1)
    if tokens < shape.global_experts:
        padded = min(padded, tokens * job.block_m)
    naive = job.specialisation.naive
    blocks = tokens if naive else -(-padded // job.block_m)
    return {
        "A": meta(rows, depth, dtype=operand),
        "B": meta(shape.experts, columns, depth, dtype=operand),
        "C": meta(m, shape.topk, columns, dtype=torch.bfloat16),
        "A_scale": None if a_scale is None else meta(*a_scale, dtype=torch.float32),
        "B_scale": None if b_scale is None else meta(*b_scale, dtype=torch.float32),
        # fused_experts gives them to both GEMMs; the first does not read them.
        "topk_weights": meta(m, shape.topk, dtype=torch.float32),
        "sorted_token_ids": None if naive else meta(padded, dtype=torch.int32),
        "expert_ids": meta(blocks, dtype=torch.int32),
        "num_tokens_post_padded": meta(1, dtype=torch.int32),
        "mul_routed_weight": job.gemm == 2,
        "top_k": topk,
        "config": {
            "BLOCK_SIZE_M": job.block_m,
            "BLOCK_SIZE_N": job.block_n,
            "BLOCK_SIZE_K": job.block_k,
            "GROUP_SIZE_M": job.group_m,
            "num_warps": job.num_warps,
            "num_stages": job.num_stages,
        },
        "compute_type": tl.bfloat16,
        **{f"use_{name}": name == shape.variant.name for name in _SWITCHES},
        "per_channel_quant": shape.scheme is Scheme.CHANNEL,
        "block_shape": None if shape.block_shape is None else list(shape.block_shape),
        "B_bias": None,
    }


def _scale_sizes(
    job: CompileJob, rows: int, depth: int, columns: int
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """Sizes of the scales of activations and weights (``moe_kernel_quantize_input``)."""
    experts = job.shape.experts
    if job.shape.block_shape is not None:
        block_n, block_k = job.shape.block_shape
        groups = -(-depth // block_k)
        return (rows, groups), (experts, -(-columns // block_n), groups)
    if job.shape.scheme is Scheme.CHANNEL:
        return (rows, 1), (experts, columns, 1)
    if job.shape.scheme is Scheme.TENSOR:
        return (1,), (experts,)
    return None, None


# ------------------------------------------------------------------------------------------
# The machine code.


def _read_cubin(asm: Mapping[str, Any], folder: Path, disassemble: bool) -> dict[str, Any]:
    """Registers, spills and instruction counts, with the tools in Triton's wheel."""
    from triton import knobs  # noqa: PLC0415

    file = folder / "kernel.cubin"
    file.write_bytes(asm["cubin"])
    flags = ["-sass", "-res-usage"] if disassemble else ["-res-usage"]
    try:
        tool = knobs.nvidia.cuobjdump.path
        run = run_quietly([tool, *flags, str(file)], _TOOL_TIMEOUT_S)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        return {"message": f"the machine code was not read: {error}"}
    usage = {name: int(value) for name, value in re.findall(r"\b([A-Z]+):(\d+)", run.stdout)}
    if "REG" not in usage:
        last = (run.stderr or run.stdout).strip().splitlines()[-1:]
        return {"message": f"cuobjdump could not read the machine code: {' '.join(last)}"}
    return {
        "registers": usage["REG"],
        "spill_bytes": max(usage.get("STACK", 0), usage.get("LOCAL", 0)),
        "instructions": instructions(run.stdout, asm["ptx"]) if disassemble else {},
    }


def instructions(sass: str, ptx: str) -> dict[str, int]:
    """What is counted in the machine code; of PTX, its tensor-core families where that is unread.

    The disassembler in Triton 3.6 does not know sm_121.
    """
    counts = count_instructions(sass)
    return counts if counts["total"] else counts | count_families(ptx)


def count_families(ptx: str) -> dict[str, int]:
    """Tensor-core instructions in PTX, under the names that they have in machine code."""
    prefix = {"mma.sync": "", "wgmma.mma_async": "", "tcgen05.mma": "UTC"}
    suffix = {"mma.sync": "MMA", "wgmma.mma_async": "GMMA", "tcgen05.mma": "MMA"}
    letter = {
        "e4m3": "Q",
        "e5m2": "Q",
        "s8": "I",
        "f16": "H",
        "bf16": "H",
        "f8f6f4": "Q",
        "i8": "I",
    }
    counts: Counter[str] = Counter()
    for kind, modifiers in _PTX_MMA.findall(ptx):
        operands = [letter[part] for part in modifiers.split(".") if part in letter]
        counts[prefix[kind] + (operands[0] if operands else "H") + suffix[kind]] += 1
    return dict(counts)


def count_instructions(sass: str) -> dict[str, int]:
    """Opcodes in the output of ``cuobjdump -sass``: tensor-core families, memory traffic, all."""
    opcodes = Counter(_OPCODE.findall(sass))
    kept = {name: n for name, n in opcodes.items() if "MMA" in name or name in _COUNTED}
    return {"total": opcodes.total(), **dict.fromkeys(_COUNTED, 0), **kept}
