"""An emulated machine on which host and GPU share one memory: a file in place of /proc/meminfo.

A process eats by leaving a file with its id in a folder; what it has eaten comes back when it is
dead, and only then. Nothing of the real memory is touched.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tests.support.processes import alive

if TYPE_CHECKING:  # measuring processes import this module: half their start would be pytest's
    import pytest

NAME = "AUTOTUNE_MEMINFO"
_TICK_S = 0.02


def eat(gib_per_s: float, most_gib: float = 1e9) -> None:
    """In a process on the box: take so much of its memory, until dead."""
    folder = Path(os.environ[NAME]).parent / "eaters"
    new = folder / f".{os.getpid()}"
    new.write_text(f"{gib_per_s} {most_gib}")
    new.rename(folder / str(os.getpid()))


class Box:
    """The machine. ``lowest`` is the least that was available so far, in GiB."""

    def __init__(self, folder: Path, free_gib: float = 110, total_gib: float = 121.7) -> None:
        self.file, self._eaters = folder / "meminfo", folder / "eaters"
        self._eaters.mkdir()
        self.free, self.total, self.lowest = free_gib, total_gib, free_gib
        self._held: dict[Path, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._tell()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def install(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Self:
        """Let this process and its children see the box, and a GB10 in it."""
        monkeypatch.setenv(NAME, str(self.file))
        program = folder / "nvidia-smi"
        program.write_text(
            "#!/bin/sh\ncase $1 in\n"
            "*=name,uuid,*) echo 'NVIDIA GB10, GPU-0, 595.58.03, [N/A], 12.1';;\n"
            "*=name,memory*) echo 'NVIDIA GB10, [N/A], [N/A]';;\n"
            "*=uuid,util*) echo 'GPU-0, 0';;\n*) exit 1;;\nesac\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        return self

    def available(self) -> float:
        """GiB of MemAvailable, as the file tells it now."""
        return max(0.0, self.free - sum(self._held.values()))

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(_TICK_S):
            now = time.monotonic()
            for path in self._eaters.glob("[0-9]*"):
                if alive(int(path.name)):
                    rate, most = map(float, path.read_text().split())
                    self._held[path] = min(most, self._held.get(path, 0.0) + rate * (now - last))
                else:
                    path.unlink()
                    self._held.pop(path, None)
            last = now
            self._tell()

    def _tell(self) -> None:
        available = self.available()
        self.lowest = min(self.lowest, available)
        new = self.file.with_suffix(".new")
        kib = (int(gib * 2**20) for gib in (self.total, available))
        new.write_text("MemTotal: {} kB\nMemAvailable: {} kB\n".format(*kib))
        new.replace(self.file)
