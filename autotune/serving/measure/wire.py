"""A wire to a server that serves: loads go out, times and counters come back.

Everything that is measured of a server passes through here. Tests put a formula in its place.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from autotune.serving.measure.client import Load, run_load, run_load_async
from autotune.serving.measure.metrics import Peak, ServerMetrics, server_metrics, watch_peak
from autotune.serving.measure.timing import LoadResult
from autotune.serving.server.server import Server
from autotune.serving.server.web import Reply, ask

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

    def post(self, path: str, body: Mapping[str, Any], timeout_s: float) -> Reply:
        """Ask for something that is no stream.

        Raises:
            UnansweredError: nobody answers properly.
        """
        headers = {"Content-Type": "application/json", **self.server.headers}
        sent = json.dumps(body).encode()
        return ask("POST", f"{self.server.url}{path}", timeout_s, headers, sent)

    def metrics(self) -> ServerMetrics | None:
        """Read the counters; None where the server has none."""
        return server_metrics(self.server.url, self.server.headers)

    async def _watched(self, load: Load) -> tuple[LoadResult, Peak]:
        async with watch_peak(self.server.url, _EVERY_S) as peak:
            result = await run_load_async(load)
        return result, peak
