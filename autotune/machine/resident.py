"""Who holds the memory of a machine on which host and GPU share it."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil

from autotune.core import MissingEnvironmentError
from autotune.machine.environment import computing, container, memory_of_processes
from autotune.machine.guard import GIB, RESERVE, MemoryGuard

_MIB = 2**20
LEAST = GIB
"""Bytes below which a program is not worth naming."""
_NAMED = 3
_LAUNCHERS = ("vllm", "sglang", "llama-server", "ollama", "trtllm-serve")
"""Programs that serve models, by a word of their command line."""


@dataclass(frozen=True)
class Resident:
    """A program with its children: the process that began it, and the bytes that all hold."""

    pid: int
    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid}) holds {self.size / GIB:.1f} GiB"


def residents(least: int = LEAST) -> list[Resident]:
    """List the programs that hold the most memory, the largest first, without this one.

    On the host, and on the GPU as nvidia-smi tells it: with unified memory the two are of one
    memory, and what a GPU holds is in no process's resident memory. Shared pages count for each.

    Args:
        least: bytes; programs that hold less are left out.
    """
    on_gpu = {pid: mib * _MIB for pid, mib in memory_of_processes().items()}
    sizes: dict[int, int] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            sizes[process.pid] = process.memory_info().rss
    ours = {os.getpid(), *(child.pid for child in _family(os.getpid()))}
    found: dict[int, int] = {}
    for pid in {*sizes, *on_gpu} - ours:
        root = _program_of(pid)
        found[root] = found.get(root, 0) + sizes.get(pid, 0) + on_gpu.get(pid, 0)
    named = computing()
    large = [
        Resident(pid, _name_of(pid) or named.get(pid) or "a program", size)
        for pid, size in found.items()
        if size >= least
    ]
    return sorted(large, key=lambda one: (-one.size, one.pid))


def who_holds(found: Iterable[Resident]) -> str:
    """Say it in a clause, for a refusal."""
    named = [str(one) for one in list(found)[:_NAMED]]
    if named:
        return ", ".join(named)
    if container() is not None:
        return "who holds the rest is not seen from within a container: look on the host"
    return "no single program holds much of the rest"


def shortage(what: str, need: int, available: int) -> str:
    """Say that there is too little memory for something, and who holds what is missing.

    Args:
        what: a noun, with which the sentence begins.
        need: bytes.
        available: bytes of MemAvailable.
    """
    return (
        f"{what} takes about {need / GIB:.1f} GiB of the memory that host and GPU share, and "
        f"{available / GIB:.1f} GiB are available, of which {RESERVE // GIB} stay with the host so "
        f"that it does not hang: {who_holds(residents())}"
    )


def wait_for_room(guard: MemoryGuard, what: str, need: int) -> None:
    """Wait, in the middle of a command, until there is room; see :meth:`MemoryGuard.has_room`.

    Args:
        guard: of this machine.
        what: needs it: a noun, with which the refusal begins.
        need: bytes, beside the reserve.

    Raises:
        MissingEnvironmentError: there is none.
    """
    if not guard.has_room(need):
        said = shortage(what, need, guard.available())
        raise MissingEnvironmentError(
            f"{said}; what was measured is kept, and the same command goes on"
        )


def _family(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def _program_of(pid: int) -> int:
    """The process that began the program: the outermost that serves a model, or the process."""
    root = pid
    for process in _upwards(pid):
        if _serves(process):
            root = process.pid
    return root


def _upwards(pid: int) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        yield process
        yield from process.parents()


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def _serves(process: psutil.Process) -> bool:
    words = [os.path.basename(word) for word in _words(process)]  # noqa: PTH119 - words, not paths
    return "docker" not in words[:1] and any(word in _LAUNCHERS for word in words[:3])


def _name_of(pid: int) -> str | None:
    """What a process is called; None where it is not seen, as from within a container."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        words = _words(process)
        if _serves(process) and "serve" in words[:4]:
            model = next((w for w in words[words.index("serve") + 1 :] if w[:1] != "-"), "")
            return shlex.join(["vllm", "serve", model] if model else ["vllm", "serve"])
        return str(process.name())
    return None
