"""What runs on a node: the measurer with its servers, its part of the log, and the watch.

Nothing here knows Ray; ``actors.py`` makes actors of it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from autotune.cluster.crew import Seat
from autotune.core import Candidate, Group, Job, Measurement, MissingEnvironmentError, Part
from autotune.machine.gpu_lock import hold_gpus, lock_folders
from autotune.machine.guard import MemoryGuard, kill_tree
from autotune.serving.cluster.launcher import GroupLauncher
from autotune.serving.measure.measurer import ServingMeasurer
from autotune.util import secret

_CHUNK = 1 << 20
_WORKER = re.compile(r"(ray::)?(RayWorkerProc|RayWorkerWrapper|VLLM::)")
"""How vLLM's Ray executor titles its workers (0.24: the wrapper, 0.33: the process)."""


def place_json(seats: Sequence[Seat]) -> dict[str, Any]:
    """What every row stores of where it was measured."""
    return {
        "name": " + ".join(seat.name for seat in seats),
        "hosts": [seat.host for seat in seats],
        "nodes": [seat.node for seat in seats],
        "gpus": [seat.uuid for seat in seats],
    }


class LogTail:
    """What was written in a folder since the last look."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told: dict[str, tuple[int, int]] = {}

    def news(self) -> list[tuple[str, int, bytes]]:
        """Give name, offset and bytes of what is new, a MiB of a file at most.

        An offset of 0 begins a file anew: each attempt at a boot does.
        """
        found = []
        for path in sorted(self._folder.glob("*.log")):
            with contextlib.suppress(OSError), path.open("rb") as file:
                state = os.fstat(file.fileno())
                inode, offset = self._told.get(path.name, (state.st_ino, 0))
                offset = 0 if inode != state.st_ino or state.st_size < offset else offset
                file.seek(offset)
                if chunk := file.read(_CHUNK):
                    self._told[path.name] = (state.st_ino, offset + len(chunk))
                    found.append((path.name, offset, chunk))
        return found


def leave_threads() -> None:
    """Leave the number of threads to the server, unless the node was started with one.

    Ray gives each worker as many as it has CPUs, and a server started without Ray has all.
    """
    with contextlib.suppress(psutil.Error):
        if "OMP_NUM_THREADS" not in psutil.Process(os.getppid()).environ():
            os.environ.pop("OMP_NUM_THREADS", None)


class NodeMeasurer:
    """A measurer measures on the node on which it is made, until its process ends."""

    def __init__(
        self,
        measurer: ServingMeasurer,
        seats: Sequence[Seat],
        secrets: Mapping[str, str],
        group: tuple[str, str, Sequence[int]] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Take what it needs; :meth:`hold` takes the GPUs.

        Args:
            measurer: as it was made where the command runs.
            seats: of its GPUs, its own first.
            secrets: variables that its flags refer to.
            group: id, address of the cluster, and bundles in order, for a server of several GPUs.
            folder: to which paths of the command are relative; None where none is.
        """
        self._folder = folder
        os.environ.update(secrets)
        secret.remember_environment(secrets)
        self._stack, self._seats = ExitStack(), seats
        made = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="autotune-node-"))
        logs, plugin = Path(made, "logs"), Path(made, "plugin")
        logs.mkdir()
        plugin.mkdir()
        launcher = measurer.launcher
        if group is not None and isinstance(launcher, GroupLauncher):
            launcher = launcher.within(*group, plugin)
            if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # Ray's, for an actor without a GPU
                del os.environ["CUDA_VISIBLE_DEVICES"]
        leave_threads()
        self._measurer, self._tail = measurer.moved(logs, launcher), LogTail(logs)

    def hold(self) -> None:
        """Hold the GPUs of this node.

        Raises:
            MissingEnvironmentError: somebody else measures on one, or the folder is not there.
        """
        if self._folder is not None:
            try:
                os.chdir(self._folder)
            except OSError as error:
                raise MissingEnvironmentError(
                    f"--ray: {platform.node()} has no folder {self._folder} ({error.strerror}), "
                    "and paths of the command are relative to it; give full paths"
                ) from None
        mine = [seat for seat in self._seats if seat.node == self._seats[0].node]
        self._stack.enter_context(held(mine))

    def measure(self, jobs: Sequence[Job]) -> Iterator[Measurement | Part]:
        """Yield what comes of the jobs of one server, with the place of each measurement."""
        for event in self._measurer.measure(jobs):
            yield self._placed(event) if isinstance(event, Measurement) else event

    def compare(
        self, group: Group, *, check: bool
    ) -> Iterator[dict[Candidate, Measurement] | Part]:
        """Yield what comes of servers that are up at once here."""
        for event in self._measurer.compare([group], check=check):
            if isinstance(event, Part):
                yield event
            else:
                yield {candidate: self._placed(found) for candidate, found in event.items()}

    def _placed(self, found: Measurement) -> Measurement:
        return replace(found, details={**found.details, "place": place_json(self._seats)})

    def log_news(self) -> list[tuple[str, int, bytes]]:
        """Give what servers have written since the last look; see :meth:`LogTail.news`."""
        return self._tail.news()

    def close(self) -> None:
        """Give the GPUs back."""
        self._stack.close()


def held(seats: Sequence[Seat]) -> contextlib.AbstractContextManager[None]:
    """Hold the locks of GPUs of this machine: no other command of ours measures there.

    Raises:
        MissingEnvironmentError: one does.
    """
    uuids = {s.gpu: s.uuid for s in seats if s.gpu is not None and s.uuid is not None}
    return hold_gpus(uuids, lock_folders(), uuids)


class Watch:
    """Guards the memory of a node on which a server has workers that vLLM started by Ray.

    They are no children of the server's process, and may be on another node than that one.
    """

    def __init__(self, seats: Sequence[Seat], *, unified: bool, raylet: int | None = None) -> None:
        """Take what it needs; :meth:`hold` takes the GPUs.

        Args:
            seats: of this node; without any, no lock is held.
            unified: whether its GPU allocates from the host's memory.
            raylet: the process that starts Ray's workers here; our own parent by default.
        """
        self._stack, self._guard = ExitStack(), MemoryGuard()
        self._seats, self._unified = seats, unified
        self._raylet = raylet or os.getppid()
        self._before = set(self._workers())

    def hold(self) -> None:
        """Hold the GPUs, and begin to watch where memory is unified.

        Raises:
            MissingEnvironmentError: somebody else measures here, or the memory cannot be read.
        """
        self._stack.enter_context(held(self._seats))
        if self._unified:
            self._stack.enter_context(self._guard)
        self._seen = self._stack.enter_context(self._guard.watch("vLLM's workers", self.end))

    def end(self) -> None:
        """Kill vLLM's workers that Ray has started here since we are here."""
        for worker in self._workers():
            if worker not in self._before:
                kill_tree(worker.pid)

    def _workers(self) -> list[psutil.Process]:
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._raylet).children():
                with contextlib.suppress(psutil.Error):
                    if _WORKER.match(" ".join(child.cmdline())):
                        found.append(child)
        return found

    def take_fall(self) -> str | None:
        """Tell why the workers were ended, and forget it; None where they were not."""
        fall = self._seen.take()
        return None if fall is None else f"{platform.node()}: {fall}"

    def close(self) -> None:
        """Watch no longer."""
        self._stack.close()
