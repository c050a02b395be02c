"""Whether processes are there."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def gone(pids: list[int], within_s: float = 30.0) -> bool:
    end = time.monotonic() + within_s
    while left := [pid for pid in pids if alive(pid)]:
        if time.monotonic() >= end:
            break
        time.sleep(0.05)
    return not left


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], object], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
