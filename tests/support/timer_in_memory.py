"""The measurer of kernels with its measuring processes in memory: races, failures, comparisons."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable
from typing import Self, TypeVar
from unittest.mock import patch

from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.requests import GpuSetup
from autotune.measure.pool import TaskResult, TaskStatus, WorkerPool
from tests import fake_kernel

Value = TypeVar("Value")
Item = TypeVar("Item")


class _Exit(BaseException):
    """Stands for the end of a process."""


def _exit(status: int) -> None:
    raise _Exit(status)


class PoolInMemory(WorkerPool):
    """Runs a task when its result is asked for; ``os._exit`` ends the task alone."""

    def __init__(self) -> None:
        """There are no workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def kill_workers(self) -> None:
        raise AssertionError("nothing runs that could be killed")

    def map_ordered(
        self, function: Callable[[Item], Value], items: Iterable[Item], timeout_s: float
    ) -> Generator[TaskResult[Value], None, None]:
        for item in items:
            yield self._run(function, item)

    def start(
        self, function: Callable[[Item], Value], item: Item, timeout_s: float
    ) -> Callable[[], TaskResult[Value]]:
        return lambda: self._run(function, item)

    @staticmethod
    def _run(function: Callable[[Item], Value], item: Item) -> TaskResult[Value]:
        with patch.object(os, "_exit", _exit), patch.object(time, "sleep", lambda _: None):
            try:
                return TaskResult(TaskStatus.OK, function(item))
            except _Exit as end:
                (status,) = end.args
                said = f"worker exited with status {status}"
                return TaskResult(TaskStatus.CRASH, message=said, exit_code=status)


class TimerInMemory(GpuMeasurer):
    """Calls the functions of its kernel module, which rely on ``tests.fake_kernel``, here."""

    def _pool_of(self, purpose: str, setup: GpuSetup) -> WorkerPool:
        del purpose
        fake_kernel.set_up_here(setup)
        return PoolInMemory()
