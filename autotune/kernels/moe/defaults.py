"""vLLM's default heuristics, asked of vLLM's own code: the incumbent of every M."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from autotune.core import Candidate, MissingEnvironmentError
from autotune.kernels.compile.job import KernelInfo
from autotune.kernels.compile.kernel_source import load_kernel
from autotune.kernels.config_file import FIELDS
from autotune.kernels.moe.shape import MoeShape
from autotune.measure.pool import TaskStatus, WorkerPool


@dataclass(frozen=True)
class _Question:
    path: Path
    shape: MoeShape
    batch_sizes: tuple[int, ...]


def _answer(question: _Question) -> dict[int, dict[str, int]]:
    """In a worker: run ``get_default_config`` of the installed kernel file."""
    module = load_kernel(question.path)
    # The stubs are mocks, and a mock is true: say what holds on any CUDA device without the
    # batch-invariant mode (which ignores configuration files altogether).
    vars(module).update(
        envs=SimpleNamespace(VLLM_BATCH_INVARIANT=False),
        current_platform=SimpleNamespace(is_rocm=lambda: False),
    )
    shape = question.shape
    block = list(shape.block_shape) if shape.block_shape else None
    rows = {}
    for m in question.batch_sizes:
        row = module.get_default_config(
            m, shape.experts, shape.intermediate, shape.hidden, shape.topk, shape.dtype, block
        )
        rows[m] = {name: int(row[name]) for name in FIELDS}
    return rows


def default_rows(
    pool: WorkerPool, kernel: KernelInfo, shape: MoeShape, batch_sizes: Sequence[int]
) -> dict[int, Candidate]:
    """What vLLM uses at each M when no file is found.

    Source: vLLM fused_moe.py, ``get_default_config``, executed, not copied.

    Raises:
        MissingEnvironmentError: if the installed vLLM cannot be asked.
    """
    question = _Question(kernel.path, shape, tuple(batch_sizes))
    result = next(pool.map_ordered(_answer, [question], timeout_s=120))
    if result.status is not TaskStatus.OK or result.value is None:
        raise MissingEnvironmentError(
            f"{kernel.path}: cannot ask vLLM for its defaults: {result.message}"
        )
    return {m: Candidate.of(row) for m, row in result.value.items()}
