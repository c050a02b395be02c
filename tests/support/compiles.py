"""The compiles that tests compare the constraints with, and the table of what came of them.

``make compile-tables`` compiles them all and writes the table; it is due when Triton or the kernel
changes, and takes about five minutes.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.core import Outcome
from autotune.kernels.compile.job import (
    Compiled,
    CompileJob,
    KernelInfo,
    compile_many,
    compile_pool,
    kernel_info,
    specialise,
)
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import Scheme

DATA = Path(__file__).parents[1] / "data"
PARAMETERS = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "num_warps", "num_stages")
STOCK = (
    (16, 32, 64, 128, 256), (32, 64, 128, 256), (64, 128, 256), (4, 8), (2, 3, 4, 5),
)  # fmt: skip
KINDS = ("channel", "tensor", "block", "int8", "bf16")
ARCHS = (121, 90, 100)
EXTREMES = (
    (8, 64, 64, 4, 2), (16, 8, 64, 4, 2), (16, 16, 512, 4, 2), (32, 64, 64, 1, 3),
    (64, 64, 64, 2, 3), (64, 64, 64, 16, 3), (64, 64, 64, 32, 3), (64, 64, 64, 4, 1),
    (64, 64, 64, 4, 8), (16, 64, 32, 4, 2), (16, 64, 16, 4, 2), (16, 64, 8, 4, 2),
    (48, 64, 64, 4, 2), (16, 64, 64, 3, 2),
)  # fmt: skip
"""What the ``wide`` space may hold: candidates on both sides of what Triton accepts."""
COMPILE_S = 60.0


def shape(kind: str) -> MoeShape:
    """Gemma 4 26B-A4B; with blocks, the width rounded to them."""
    dtype, weights, scheme, block = {
        "channel": ("fp8_w8a8", "fp8", Scheme.CHANNEL, None),
        "tensor": ("fp8_w8a8", "fp8", Scheme.TENSOR, None),
        "block": ("fp8_w8a8", "fp8", Scheme.BLOCK, (128, 128)),
        "int8": (None, "int8", Scheme.CHANNEL, None),
        "bf16": (None, "bf16", Scheme.NONE, None),
    }[kind]
    return MoeShape(
        experts=128, intermediate=768 if block else 704, hidden=2816, topk=8, dtype=dtype,
        weight_dtype=weights, scheme=scheme, block_shape=block, global_experts=128,
    )  # fmt: skip


def params(*values: int) -> dict[str, int]:
    return dict(zip(PARAMETERS, values, strict=True))


def job(kind: str, arch: int, candidate: tuple[int, ...], gemm: int = 1, m: int = 64) -> CompileJob:
    block_m, block_n, block_k, warps, stages = candidate
    return CompileJob(
        shape=shape(kind),
        arch=arch,
        block_m=block_m,
        block_n=block_n,
        block_k=block_k,
        num_warps=warps,
        num_stages=stages,
        gemm=1 if gemm == 1 else 2,
        specialisation=specialise(shape(kind), m),
    )


@dataclass(frozen=True)
class Case:
    """One compile by its name in the table."""

    kind: str
    arch: int
    gemm: int
    m: int
    candidate: tuple[int, ...]

    @property
    def key(self) -> str:
        tile = "/".join(map(str, self.candidate))
        return f"{self.kind} sm_{self.arch} gemm {self.gemm} M={self.m} {tile}"

    @property
    def job(self) -> CompileJob:
        return job(self.kind, self.arch, self.candidate, self.gemm, self.m)


def sample() -> list[Case]:
    """Corners of the stock grid and a seeded draw from inside it.

    Tiles over 128 x 128 take seconds each and are left to the corners.
    """
    draw = random.Random(20)
    grid = [c for c in itertools.product(*STOCK) if c[0] * c[1] <= 128 * 128]
    corners = [
        (16, 32, 64, 8, 2), (16, 32, 256, 4, 5), (16, 256, 256, 8, 5), (256, 32, 64, 4, 2),
        (256, 64, 256, 8, 3), (32, 256, 128, 4, 4),
    ]  # fmt: skip
    chosen: list[Case] = []
    batch_sizes = itertools.cycle((1, 7, 8, 64, 1024))
    for kind, arch in itertools.product(KINDS, ARCHS):
        most = 20 if kind in ("channel", "tensor", "block") and arch != 100 else 8
        for index, candidate in enumerate([*corners, *draw.sample(grid, most)]):
            chosen.append(Case(kind, arch, 1 + index % 2, next(batch_sizes), candidate))
    return chosen


def extremes() -> list[Case]:
    return [
        Case(kind, arch, 1, 64, candidate)
        for arch, kind, candidate in itertools.product((121, 90), ("channel", "bf16"), EXTREMES)
    ]


def few(cases: Sequence[Case], count: int | None, seed: int) -> list[Case]:
    """A seeded draw of ``count`` cases, of all where it is None.

    Every kind on every architecture is drawn once before any is drawn a second time.
    """
    shuffled = random.Random(seed).sample(cases, len(cases))
    seen: dict[tuple[str, int], int] = {}

    def turn(case: Case) -> int:
        what = (case.kind, case.arch)
        seen[what] = seen.get(what, 0) + 1
        return seen[what]

    return sorted(shuffled, key=turn)[:count]


def compiled(cases: Iterable[Case], kernel: KernelInfo, workers: int) -> Iterator[Compiled]:
    """The results of the compiles in their order."""
    jobs = [case.job for case in cases]
    with compile_pool(workers, kernel) as pool:
        yield from compile_many(pool, jobs, kernel, None, COMPILE_S, disassemble=False)


# --------------------------------------------------------------------------- the table


def path_of(triton_version: str) -> Path:
    return DATA / f"shared-memory-{triton_version}.json"


def size(found: Compiled) -> int | None:
    """Bytes of shared memory; None where Triton refuses the candidate."""
    return found.shared_bytes if found.outcome is Outcome.OK else None


def recorded(kernel: KernelInfo) -> dict[str, Any]:
    """Read the table of the installed Triton.

    Raises:
        AssertionError: there is none, or it is of another kernel.
    """
    path, due = path_of(kernel.triton_version), "`make compile-tables` makes it"
    assert path.is_file(), f"no table for Triton {kernel.triton_version}; {due}"
    table: dict[str, Any] = json.loads(path.read_text())
    assert table["kernel"] == kernel.sha256, f"{path} is of another fused_moe.py; {due}"
    return table


def record() -> None:
    """Compile all cases and write the table."""
    kernel, cases = kernel_info(), [*sample(), *extremes()]
    sizes: dict[str, int | None] = {}
    for case, found in zip(cases, compiled(cases, kernel, os.cpu_count() or 1), strict=True):
        assert found.outcome in (Outcome.OK, Outcome.COMPILE_ERROR), (case.key, found.message)
        sizes[case.key] = size(found)
        print(f"{len(sizes)}/{len(cases)} {case.key}: {sizes[case.key]}", flush=True)  # noqa: T201
    about = {"triton": kernel.triton_version, "vllm": kernel.vllm_version, "kernel": kernel.sha256}
    path = path_of(kernel.triton_version)
    path.write_text(json.dumps({**about, "shared_bytes": sizes}, indent=1) + "\n")


if __name__ == "__main__":
    record()
