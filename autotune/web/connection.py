"""A connection of a stranger: its head has a size and a time.

h11 parses in Python and takes up to 64 KiB of a head; httptools, which uvicorn prefers, takes any
number of headers. uvicorn waits for a head for ever, and so many connections as may be open would
then keep everybody else out.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 20.0
"""Seconds from a connection, or the answer before, to the end of the next request's head."""
_LOOK_S = 1.0


class Connection(H11Protocol):
    """A connection that is closed when its peer takes too long to ask."""

    _quiet_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._quiet_since = self.loop.time()
        self.loop.call_later(_LOOK_S, self._look)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._quiet_since = self.loop.time()

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        is_waited_for = self.cycle is None or self.cycle.response_complete
        if is_waited_for and self.loop.time() - self._quiet_since > HEAD_S:
            self.transport.abort()
            return
        self.loop.call_later(_LOOK_S, self._look)
