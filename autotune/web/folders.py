"""Where a job's files lie: ``ROOT/jobs/ID/``; what its command writes lies in ``ROOT`` itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.store.records import JobRecord
from autotune.util.edge import EdgeError, parse_json, read_json
from autotune.util.lockfile import Lock

_LAST_BYTES = 8192
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class JobFolder:
    """The files of one job."""

    path: Path

    @classmethod
    def of(cls, root: Path, job_id: int) -> JobFolder:
        """Name the folder of a job."""
        return cls(root / "jobs" / str(job_id))

    @property
    def log(self) -> Path:
        """What the command says on stderr, over all attempts."""
        return self.path / "log.txt"

    @property
    def events(self) -> Path:
        """What the command tells of its steps, over all attempts."""
        return self.path / "events.jsonl"

    def lock(self) -> Lock:
        """Return the lock that the job's process holds."""
        return Lock(self.path / "lock")

    def exit_file(self, attempt: int) -> Path:
        """Name the file with an attempt's exit code."""
        return self.path / f"exit-{attempt}.json"

    def result(self, job: JobRecord) -> Path:
        """Name the file that holds what the command printed to stdout."""
        return self.path / ("result.json" if job.args.get("as_json") else "result.txt")

    def exit_code(self, attempt: int) -> int | None:
        """Read an attempt's exit code; None if it left none."""
        try:
            found = read_json(self.exit_file(attempt), 4096)
            return int(found["exit_code"])
        except (OSError, EdgeError, KeyError, TypeError, ValueError):
            return None

    def pid(self) -> int | None:
        """Return the process that holds the lock, as it says; None if it does not say."""
        try:
            return int(parse_json(self.lock().note())["pid"])
        except (EdgeError, KeyError, TypeError, ValueError):
            return None

    def last_line(self) -> str:
        """Return what the command said last of itself, as it does when it refuses or fails."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        said = [line for line in lines if line.startswith("autotune: ")]
        return said[-1].removeprefix("autotune: ")[:1000] if said else ""

    def tell(self, event: dict[str, Any]) -> None:
        """Add an event of the service's own."""
        with self.events.open("ab") as file:
            file.write(json.dumps(event).encode() + b"\n")

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path, ignore_errors=True)


def size_of(path: Path) -> int:
    """Return a file's bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def lines_from(path: Path, offset: int) -> Iterator[tuple[int, bytes]]:
    """Iterate over the whole lines of a growing file, each with the offset behind it.

    Args:
        path: the file; one that is not there has no lines.
        offset: bytes to pass over; one inside of a line, or past the end, starts again at 0.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if offset > size or offset < 0:
                offset = 0
            if offset:
                file.seek(offset - 1)
                offset = offset if file.read(1) == b"\n" else 0
            file.seek(offset)
            data = file.read(_READ_AT_ONCE)
    except OSError:
        return
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        offset += len(line)
        yield offset, line.rstrip(b"\n")


def event_of(line: bytes) -> dict[str, Any]:
    """Read a line as an event; empty for what is none, such as one cut off by a full disk."""
    try:
        found = parse_json(line)
    except EdgeError:
        return {}
    return found if isinstance(found, dict) else {}
