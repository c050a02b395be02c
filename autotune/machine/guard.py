"""Keeps a machine with unified memory alive: ends our processes before its memory runs out.

On a DGX Spark the GPU allocates from the host's memory. When that runs out, nothing is killed: the
machine hangs until the plug is pulled (NVIDIA open-gpu-kernel-modules #1358, vLLM #46307), and a
container's ``--memory`` does not count what the GPU holds (vLLM #54200). So the guard reads
MemAvailable four times a second while anything of ours runs and kills in time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from autotune.core import AutotuneError, MissingEnvironmentError
from autotune.machine.environment import meminfo_file
from autotune.machine.memory import meminfo

GIB = 2**30
RESERVE = 8 * GIB
"""Bytes that a plan leaves to the host: what needs more than MemAvailable less this is refused."""
PERIOD_S = 0.25
_STILL = GIB // 4
"""Bytes by which MemAvailable moves within a second though nothing starts or ends."""
RECOVERY_S = 30.0
"""Within this time what was killed has given its memory back, or somebody else holds it."""


@dataclass(frozen=True)
class Floors:
    """Bytes of MemAvailable below which processes end.

    Attributes:
        measuring: ends measuring processes and servers.
        everything: ends every process that this one started.
    """

    measuring: int = 6 * GIB
    everything: int = 4 * GIB

    def __post_init__(self) -> None:
        if not 0 <= self.everything <= self.measuring:
            raise ValueError(f"floors out of order: {self.everything} above {self.measuring}")


@dataclass(frozen=True)
class Fall:
    """One time that memory fell below a floor: bytes available, and the floor in bytes."""

    available: int
    floor: int

    def __str__(self) -> str:
        return (
            f"ended because {self.available / GIB:.1f} GiB of the host's memory were left, below "
            f"the floor of {self.floor / GIB:.1f} GiB"
        )


Ender = Callable[[], "subprocess.Popen[bytes] | None"]
"""Kills processes at once; gives the command that does so where one has to be started for it."""


@dataclass(eq=False)
class Watched:
    """Processes under guard. ``fall`` says why the guard ended them; None while it has not."""

    label: str
    end: Ender
    fall: Fall | None = None

    def take(self) -> Fall | None:
        """Return the fall and forget it: what is started next is not to blame for it."""
        fall, self.fall = self.fall, None
        return fall


class MemoryGuard:
    """Watches MemAvailable from a thread and kills watched process trees below the floors.

    Use it as a context manager around the work, and :meth:`watch` around each process tree.
    """

    def __init__(
        self,
        floors: Floors | None = None,
        *,
        source: Path | None = None,
        period_s: float = PERIOD_S,
        clock: Callable[[], float] = time.monotonic,
        root: int | None = None,
    ) -> None:
        """Take the floors; nothing is read yet.

        Args:
            floors: when to kill; the defaults suit a machine of 128 GB.
            source: a file like ``/proc/meminfo``; this machine's by default.
            period_s: seconds between two readings.
            clock: seconds, monotonic.
            root: the process whose children end at the lower floor; this one by default.
        """
        self.floors = floors or Floors()
        self._source, self._period_s, self._clock = source or meminfo_file(), period_s, clock
        self._root = os.getpid() if root is None else root
        self._watched: list[Watched] = []
        self._enders: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-guard", daemon=True)
        self._last: tuple[float, int] | None = None
        self.lowest: int | None = None
        """The smallest MemAvailable seen so far, in bytes."""
        self.error: str | None = None
        """Why the guard stopped watching; everything of ours was ended then."""
        self.ended: Fall | None = None
        """The fall below the lower floor, which ended everything that this process started."""

    def __enter__(self) -> Self:
        """Read once, in this thread, so that a machine that cannot be watched fails here.

        Raises:
            MissingEnvironmentError: the source cannot be read.
        """
        self.check()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()
        for ender in self._enders:
            with contextlib.suppress(subprocess.TimeoutExpired):
                ender.wait(RECOVERY_S)

    @property
    def watches(self) -> bool:
        """Tell whether anything is read at all; where memory is not unified, nothing is."""
        return self._thread.is_alive()

    @contextlib.contextmanager
    def watch(self, label: str, end: Ender) -> Iterator[Watched]:
        """Guard processes until the block ends.

        Args:
            label: for people, such as ``the server``.
            end: kills them, and all that they started; called from another thread, and again while
                they hold the memory.
        """
        watched = Watched(label, end)
        with self._lock:
            self._watched.append(watched)
        try:
            yield watched
        finally:
            with self._lock:
                self._watched.remove(watched)

    def available(self) -> int:
        """Read MemAvailable, in bytes.

        Raises:
            MissingEnvironmentError: the source cannot be read, or does not tell it.
        """
        available = meminfo(self._source).get("MemAvailable")
        if available is None:
            raise MissingEnvironmentError(f"{self._source}: does not tell MemAvailable")
        return available

    def check(self) -> Fall | None:
        """Read MemAvailable once and act on it; give the fall, or None above the floors.

        Raises:
            MissingEnvironmentError: the source cannot be read, or does not tell MemAvailable.
        """
        available = self.available()
        late = self._loss_while_late(available)
        self.lowest = available if self.lowest is None else min(self.lowest, available)
        if available < self.floors.everything:
            return self._end(Fall(available, self.floors.everything), everything=True)
        if available < self.floors.measuring + late:
            return self._end(Fall(available, self.floors.measuring), everything=False)
        return None

    def has_room(self, need: int, within_s: float | None = None) -> bool:
        """Tell whether ``need`` bytes and the reserve are available, now or within so many seconds.

        By default within the time that killed processes take to give their memory back.
        True where nothing is watched.

        Raises:
            MissingEnvironmentError: the source cannot be read.
        """
        end = time.monotonic() + (RECOVERY_S if within_s is None else within_s)
        while self.watches and self.available() < need + RESERVE:
            if time.monotonic() >= end:
                return False
            time.sleep(self._period_s)
        return True

    def settle(self, within_s: float | None = None) -> None:
        """Wait until MemAvailable stands still, or so many seconds; not where nothing is watched.

        Raises:
            MissingEnvironmentError: the source cannot be read.
        """
        end = time.monotonic() + (RECOVERY_S if within_s is None else within_s)
        before = -_STILL
        while self.watches and time.monotonic() < end:
            now = self.available()
            if abs(now - before) < _STILL:
                return
            before = now
            time.sleep(4 * self._period_s)

    def raise_if_ended(self) -> None:
        """End the command where the guard has ended all that it had started.

        Raises:
            MissingEnvironmentError: it has.
        """
        if self.error is not None:
            raise MissingEnvironmentError(
                f"the host's memory could not be watched any more: {self.error}; all that was "
                "started was ended. What was measured is kept"
            )
        if self.ended is not None:
            raise MissingEnvironmentError(
                f"everything that was started was {self.ended}; find what else uses the memory "
                "(`autotune doctor`). What was measured is kept, and the same command goes on"
            )

    def _loss_while_late(self, available: int) -> int:
        """Bytes that may go before the next reading, beyond what the floors allow for.

        The floors leave room for one period. A machine that is short of memory wakes this thread
        late, and then as much again may be gone at the next reading.
        """
        now, last = self._clock(), self._last
        self._last = (now, available)
        if last is None:
            return 0
        gap, lost = now - last[0], last[1] - available
        return max(0, lost) if gap > 2 * self._period_s else 0

    def _end(self, fall: Fall, *, everything: bool) -> Fall:
        if everything:
            self.ended = self.ended or fall
        with self._lock:
            watched = list(self._watched)
        for one in watched:
            one.fall = one.fall or fall
            if (ender := one.end()) is not None:
                self._enders.append(ender)
        spared = {ender.pid for ender in self._enders}
        if everything:
            for child in psutil.Process(self._root).children():
                if child.pid not in spared and not _is_tracker(child):
                    kill_tree(child.pid)
        return fall

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                self.check()
            except Exception as error:  # noqa: BLE001 - unwatched, nothing of ours may go on
                self.error = str(error)
                self._end(Fall(0, self.floors.everything), everything=True)
                return


@contextlib.contextmanager
def guarded(unified: bool, guard: MemoryGuard | None = None) -> Iterator[MemoryGuard]:
    """Guard the work within where memory is unified; elsewhere the guard watches nothing.

    Args:
        unified: whether the GPU allocates from the host's memory.
        guard: takes the place of the usual one.

    Raises:
        MissingEnvironmentError: the memory cannot be watched, or the guard had to end everything.
    """
    guard = guard or MemoryGuard()
    if not unified:
        yield guard
        return
    with guard:
        try:
            yield guard
        except AutotuneError:
            guard.raise_if_ended()  # whatever failed since then failed for that
            raise


def _is_tracker(process: psutil.Process) -> bool:
    """Whether it is what multiprocessing needs to start anything again; it holds nothing."""
    with contextlib.suppress(psutil.Error):
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    return False


def kill_tree(root: int) -> None:
    """Kill a process and all that it started, the root last so that it can adopt no new ones."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        for child in reversed(process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(signal.SIGKILL)
        process.send_signal(signal.SIGKILL)


def prefer_for_oom_kill() -> None:
    """Let the kernel's OOM killer take this process, and what it starts, before any other.

    Source: proc_pid_oom_score_adj(5). Raising one's own score needs no privilege.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
