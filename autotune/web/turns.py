"""Turns of the few calls that take a core for seconds: making a plan, rendering a report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from autotune.web.problems import ProblemError

T = TypeVar("T")


class Turns:
    """Lets so many calls run at once; the others wait, and hold no thread meanwhile.

    Those who only read the queue must not wait behind them: the threads are the same for all.
    """

    def __init__(self, at_once: int, waiting: int = 32, patience_s: float = 30.0) -> None:
        """Take how many run, how many may wait, and how many seconds each of these does."""
        self._free, self._patience_s = asyncio.Semaphore(at_once), patience_s
        self._waiting = self._room = waiting

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Run a call in a thread, at its turn.

        Raises:
            ProblemError: too many wait, or the turn does not come in time.
        """
        if self._room <= 0:
            raise self._busy(f"{self._waiting} wait already")
        self._room -= 1
        try:
            async with asyncio.timeout(self._patience_s):
                await self._free.acquire()
        except TimeoutError:
            raise self._busy(f"no turn within {self._patience_s:g} s") from None
        finally:
            self._room += 1
        try:
            return await run_in_threadpool(call, *args)
        finally:
            self._free.release()

    @staticmethod
    def _busy(why: str) -> ProblemError:
        return ProblemError(
            503,
            f"plans and reports of others are being made, {why}; try again",
            {"Retry-After": "5"},
        )
