"""What worker processes are given to do, and how they end: a module that they import fast."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def double(number: int) -> int:
    return 2 * number


def slow_if_first(number: int) -> int:
    time.sleep(0.5 if number == 0 else 0)
    return number


def hang(path: str) -> None:
    """Leave the pids of this process and of its child, then never return."""
    child = subprocess.Popen(["sleep", "1000"])
    whole = Path(f"{path}.new")
    whole.write_text(f"{os.getpid()} {child.pid}")
    whole.rename(path)
    while True:
        time.sleep(100)


def touch_and_sleep(path: str) -> None:
    Path(path).touch()
    time.sleep(300)


def misbehave(how: str) -> str:
    if how == "abort":
        os.abort()
    if how == "exit":
        os._exit(7)
    if how == "sys.exit":
        sys.exit(3)
    if how == "raise":
        raise KeyError("the reason")
    if how == "timeout":
        raise TimeoutError("my own")
    return how


def pid(_: object) -> int:
    return os.getpid()


def oom_score(_: object) -> str:
    return Path("/proc/self/oom_score_adj").read_text().strip()


def leave_litter(_: object) -> str:
    with tempfile.NamedTemporaryFile(delete=False) as file:
        return file.name


_ready: list[str] = []


def make_ready(word: str) -> None:
    if word == "fail":
        raise RuntimeError("cannot start")
    _ready.append(word)


def readiness(_: object) -> list[str]:
    return _ready


def gone(process: int) -> bool:
    """No such process, not even a zombie."""
    return not Path(f"/proc/{process}").exists()


def dead(process: int) -> bool:
    """Gone, or a zombie of somebody who has not reaped it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition: Callable[[], Any], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def sleep_half(number: int) -> int:
    time.sleep(0.5)
    return number


def wait_at_the_gate(folder: str) -> str:
    """Say that we began, and go on when somebody opens."""
    (Path(folder) / "began").touch()
    assert wait_for((Path(folder) / "gate").exists, 60)
    return "through"
