"""A wire to a server that serves: loads go out, times and counters come back.

Everything that is measured of a server passes through here. Tests put a formula in its place.
"""

from __future__ import annotations

import asyncio

from autotune.serving.measure.client import Load, run_load, run_load_async
from autotune.serving.measure.metrics import Peak, ServerMetrics, server_metrics, watch_peak
from autotune.serving.measure.timing import LoadResult
from autotune.serving.server.server import Server

_EVERY_S = 0.05


class Wire:
    """Speaks HTTP with ``server``."""

    def __init__(self, server: Server) -> None:
        """Take the server; nothing is sent yet."""
        self.server = server

    def load(self, load: Load) -> LoadResult:
        """Send a load and wait for all answers."""
        return run_load(load)

    def watched(self, load: Load) -> tuple[LoadResult, Peak]:
        """Send a load and look at the server's gauges meanwhile."""
        return asyncio.run(self._watched(load))

    def metrics(self) -> ServerMetrics | None:
        """Read the counters; None where the server has none."""
        return server_metrics(self.server.url, headers=self.server.headers)

    async def _watched(self, load: Load) -> tuple[LoadResult, Peak]:
        async with watch_peak(self.server.url, _EVERY_S) as peak:
            result = await run_load_async(load)
        return result, peak
