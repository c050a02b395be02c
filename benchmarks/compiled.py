"""What candidates took of an SM when they were compiled, kept in a file.

``benchmarks/results/compiled-sm90.csv.gz`` holds registers, spills, shared memory and tensor-core
instruction of both GEMMs, as :mod:`autotune.kernels.compile` read them off the machine code, under
the versions of vLLM and Triton that made it. ``python -m benchmarks.predicted_choice --compile``
adds what is missing.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from autotune.core import BadInputError, Cache, Outcome
from autotune.kernels.compile.job import Compiled, CompileJob, KernelInfo, representative_m
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.moe.shape import MoeShape

_NAMES = ("swap_ab", "shape", "m", "BM", "BN", "BK", "warps", "stages", "gemm")
_FOUND = ("vllm", "triton", "outcome", "registers", "spill_bytes", "shared_bytes", "mma")
Key = tuple[str, ...]


def shape_name(shape: MoeShape) -> str:
    """A shape in one word: the file keeps no JSON."""
    return (
        f"{shape.weight_dtype}-{shape.scheme.value}-e{shape.experts}-n{shape.intermediate}"
        f"-k{shape.hidden}-topk{shape.topk}"
    )


class Kept:
    """The kept results of compiling for sm_90: a stand-in for the compile processes.

    With ``swaps`` those of a vLLM that swaps operands (0.32 and 0.33), else of 0.24.
    """

    def __init__(self, path: Path, *, swaps: bool) -> None:
        self._path, self._swaps = path, swaps
        self._rows: dict[Key, dict[str, str]] = {}
        if path.exists():
            with gzip.open(path, "rt", newline="") as file:
                self._rows = {tuple(r[n] for n in _NAMES): r for r in csv.DictReader(file)}

    def key(self, job: CompileJob) -> Key:
        tile = (job.block_m, job.block_n, job.block_k, job.num_warps, job.num_stages, job.gemm)
        m = representative_m(job.shape, job.specialisation)
        return (str(int(self._swaps)), shape_name(job.shape), *map(str, (m, *tile)))

    def __contains__(self, job: CompileJob) -> bool:
        return self.key(job) in self._rows

    def __getitem__(self, job: CompileJob) -> Compiled:
        row = self._rows.get(self.key(job))
        if row is None:
            raise BadInputError(
                f"{self._path} lacks {' '.join(self.key(job))}; run "
                "python -m benchmarks.predicted_choice --compile under the vLLM of that run"
            )
        return Compiled(
            Outcome(row["outcome"]),
            registers=int(row["registers"]),
            spill_bytes=int(row["spill_bytes"]),
            shared_bytes=int(row["shared_bytes"]),
            instructions={row["mma"]: 1} if row["mma"] else {},
        )

    def versions(self) -> list[str]:
        """Which vLLM and Triton made the rows, of either kind."""
        return sorted({f"vLLM {r['vllm']}, Triton {r['triton']}" for r in self._rows.values()})

    def add(self, job: CompileJob, kernel: KernelInfo, compiled: Compiled) -> None:
        names = dict(zip(_NAMES, self.key(job), strict=True))
        found = {"vllm": kernel.vllm_version, "triton": kernel.triton_version}
        values = {**compiled.summary(), "mma": compiled.mma_family or ""}
        self._rows[self.key(job)] = names | found | {n: str(v) for n, v in values.items()}

    def write(self) -> None:
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, (*_NAMES, *_FOUND), lineterminator="\n")
        table.writeheader()
        table.writerows(row for _, row in sorted(self._rows.items()))
        # No time stamp: the same rows are the same file.
        self._path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


class KeptProcesses(CompileProcesses):
    """Answers what is kept; compiles nothing."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def compile(
        self,
        jobs: Iterable[CompileJob],
        cache: Cache | None,  # noqa: ARG002 - the signature of what it stands for
        **_: Any,
    ) -> Iterator[Compiled]:
        """Answer ``jobs`` in order.

        Raises:
            BadInputError: one is not kept.
        """
        for job in jobs:
            yield self._kept[job]
