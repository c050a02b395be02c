"""What the parent sends to a measuring process. Plain data: it pickles, and imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from autotune.core import MissingEnvironmentError
from autotune.kernels.moe.routing import Routing
from autotune.kernels.moe.shape import MoeShape
from autotune.util.lockfile import Lock

EXIT_DEVICE_ERROR = 70
"""A measuring process ends so when its CUDA context is lost."""
EXIT_RECYCLE = 75
"""It ends so before a request, which is then to be sent again, when it holds too much memory."""
EXIT_HUNG = 1
"""What faulthandler's watchdog ends a process with."""
CANDIDATE_STEP_S = 20.0
"""For loading and capturing a candidate, and again for its samples. On an H200 the slowest took
under a second for both; 20 s leave 1.8 s for each of the 11 calls of a step."""
COMPARISON_STEP_S = 60.0
"""For checking outputs, for capturing a graph, for its replays of a round: 40 calls at most."""
LEAVING_S = 10.0
"""A killed process may take so long to give its GPU back."""
RACE_MARGIN = 1.15
"""Samples this many times the best known median end a candidate's measurement."""
SAMPLES = 5
"""Timed replays of a candidate that stays in the race."""

COLD = 4
"""Calls rotate over weights of so many L2 sizes."""


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
        memory_limit_mib: what a process may hold of resident memory and, through torch, of the
            device's; one above it makes room by ending before its next request.
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
        best_us: the best median known at this M, for the race, as if the device were at its best.
        slow: how many times as long a call takes at the moment; best times are multiplied by it.
        clocks: whether clocks are to be read as well.
        limit_s: the process ends itself when a step takes so long.
    """

    key: str
    m: int
    params: Mapping[str, int]
    best_us: float | None = None
    slow: float = 1.0
    clocks: bool = False
    limit_s: float = CANDIDATE_STEP_S


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
        limit_s: the process ends itself when a step takes so long.
    """

    key: str
    m: int
    params: tuple[Mapping[str, int], ...]
    rounds: int
    seed: int
    check: bool
    limit_s: float = COMPARISON_STEP_S


def calls_per_graph(m: int) -> int:
    """Calls in one CUDA graph: ten, as vLLM's tuner has it; four where a call takes long."""
    return 10 if m <= 512 else 4


def copies_of(weights: int, l2_bytes: int) -> int:
    """How often weights of so many bytes are held: what a call needs has left the L2 since."""
    return max(1, -(-COLD * l2_bytes // weights))


def last_words(folder: str, key: str) -> Path:
    """Where a measuring process says why it ends."""
    return Path(folder) / f"{key}.txt"


def raced_samples(replay_us: Callable[[], float], best_us: float) -> tuple[list[float], bool]:
    """Time a candidate; a slow one is given up early.

    The first sample may have been disturbed, so that only a second as slow ends the race.

    Args:
        replay_us: one timed replay, in µs per call.
        best_us: the best median known.

    Returns:
        The samples, and whether it was given up.
    """
    samples, limit = [replay_us()], RACE_MARGIN * best_us
    if samples[0] > limit:
        samples.append(replay_us())
    raced = min(samples) > limit
    while not raced and len(samples) < SAMPLES:
        samples.append(replay_us())
    return samples, raced


def _is_gone(pid: int) -> bool:
    """Whether a process has ended, or does so within :data:`LEAVING_S`."""
    try:
        process = psutil.Process(pid)
        with suppress(psutil.TimeoutExpired):
            process.wait(LEAVING_S)
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def claim_gpu(setup: GpuSetup) -> tuple[int, Lock]:
    """The first GPU that no other measuring process holds; the lock goes with the process.

    Raises:
        MissingEnvironmentError: if all are held.
    """
    why = ""
    for gpu in setup.gpus:
        lock = Lock(Path(setup.folder) / f"gpu-{gpu}.lock")
        if not lock.acquire():
            continue
        last = lock.note()
        if not last.isdecimal() or int(last) == os.getpid() or _is_gone(int(last)):
            lock.leave(str(os.getpid()))
            return gpu, lock
        # A killed process loses its locks before the driver lets go of it, if it ever does.
        lock.release()
        why = f": process {last} was ended and stays on GPU {gpu}; its driver may need a reset"
    raise MissingEnvironmentError(f"no GPU is free of {len(setup.gpus)}{why}")
