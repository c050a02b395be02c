"""The compile processes of a command: one pool, used by measurer, probe and vLLM's defaults."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Self

from autotune.core import Cache, Candidate
from autotune.kernels.compile.job import (
    Compiled,
    CompileJob,
    KernelInfo,
    compile_many,
    compile_pool,
    fp16_fallback,
    specialise,
)
from autotune.kernels.moe.defaults import default_rows
from autotune.kernels.moe.shape import MoeShape
from autotune.measure.pool import WorkerPool

COMPILE_TIMEOUT_S = 120.0
"""Per GEMM. The slowest of the stock grid took 33 s (kernel.md), on a slower machine."""


class CompileProcesses:
    """Compiles kernels in processes that start on entering; it pickles until then."""

    def __init__(self, kernel: KernelInfo, workers: int) -> None:
        """Take what the processes need.

        Args:
            kernel: the one that they load.
            workers: how many processes.
        """
        self._kernel, self._workers = kernel, workers
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        pool = compile_pool(self._workers, self._kernel)
        self._pool: WorkerPool = self._stack.enter_context(pool)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def compile(
        self,
        jobs: Iterable[CompileJob],
        cache: Cache | None,
        *,
        disassemble: bool = True,
        keep: str | None = None,
    ) -> Iterator[Compiled]:
        """Compile ``jobs`` in order; see :func:`autotune.kernels.compile.job.compile_many`."""
        return compile_many(
            self._pool,
            jobs,
            self._kernel,
            cache,
            COMPILE_TIMEOUT_S,
            disassemble=disassemble,
            keep=keep,
        )

    def defaults(self, shape: MoeShape, batch_sizes: Sequence[int]) -> dict[int, Candidate]:
        """Ask vLLM for its defaults; see :func:`autotune.kernels.moe.defaults.default_rows`."""
        return default_rows(self._pool, self._kernel, shape, batch_sizes)

    def widens_fp8(self, shape: MoeShape, arch: int, cache: Cache | None) -> bool:
        """Tell whether this Triton multiplies fp8 as fp16: one kernel, compiled and read.

        Of 64 rows and columns: on sm_90 smaller tiles do so with every Triton.
        """
        if not shape.variant.float8:
            return False
        probe = CompileJob(shape, arch, 64, 64, 128, 4, 3, 1, specialise(shape, 64))
        return fp16_fallback(next(self.compile([probe], cache)), shape)
