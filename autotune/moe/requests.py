"""What the parent sends to a measuring process. Plain data: it pickles, and imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from autotune.core import MissingEnvironmentError
from autotune.moe.routing import Routing
from autotune.moe.shape import MoeShape

EXIT_DEVICE_ERROR = 70
"""A measuring process ends so when its CUDA context is lost."""
EXIT_RECYCLE = 75
"""It ends so before a request, which is then to be sent again, when it holds too much memory."""
EXIT_HUNG = 1
"""What faulthandler's watchdog ends a process with."""
CANDIDATE_LIMIT_S = 20.0
"""For one candidate at one M, without its compilation; the slowest seen took under a second."""


@dataclass(frozen=True)
class GpuSetup:
    """What a measuring process prepares once.

    Attributes:
        shape: gives the weights, allocated once and never drawn again.
        routing: how often each expert is chosen.
        seed: of weights, inputs and routings.
        l2_bytes: of the device; calls rotate over weights of at least four times as many.
        gpus: indices of the GPUs that may be used, each by one process.
        triton_cache: the folder that the compile processes fill.
        folder: for locks and last words.
        memory_limit_mib: resident memory plus, on the device, what this process added to it; a
            process above it makes room by ending before its next request.
    """

    shape: MoeShape
    routing: Routing
    seed: int
    l2_bytes: int
    gpus: tuple[int, ...]
    triton_cache: str
    folder: str
    memory_limit_mib: int | None = None


@dataclass(frozen=True)
class Timing:
    """Time one candidate.

    Attributes:
        key: names the request in the last words of a process.
        m: tokens.
        params: the launch parameters.
        best_us: the best median known at this M, for the race.
        limit_s: the process ends itself after so long.
    """

    key: str
    m: int
    params: Mapping[str, int]
    best_us: float | None = None
    limit_s: float = CANDIDATE_LIMIT_S


@dataclass(frozen=True)
class Comparison:
    """Compare candidates side by side.

    Attributes:
        key: names the request in the last words of a process.
        m: tokens.
        params: of each candidate.
        rounds: each with fresh routings.
        seed: of the routings.
        check: compare the outputs with the reference too.
        limit_s: the process ends itself after so long.
    """

    key: str
    m: int
    params: tuple[Mapping[str, int], ...]
    rounds: int
    seed: int
    check: bool
    limit_s: float = 60.0


def calls_per_graph(m: int) -> int:
    """Calls in one CUDA graph: ten, as vLLM's tuner has it; four where a call takes long."""
    return 10 if m <= 512 else 4


def last_words(folder: str, key: str) -> Path:
    """Where a measuring process says why it ends."""
    return Path(folder) / f"{key}.txt"


def claim_gpu(setup: GpuSetup) -> tuple[int, FileLock]:
    """The first GPU that no other measuring process holds; the lock goes with the process.

    Raises:
        MissingEnvironmentError: if all are held.
    """
    for gpu in setup.gpus:
        lock = FileLock(Path(setup.folder) / f"gpu-{gpu}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        return gpu, lock
    raise MissingEnvironmentError(f"no GPU is free of {len(setup.gpus)}")
