"""One small HTTP request, with failure as a value."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp


@dataclass(frozen=True)
class Reply:
    """An answer: its HTTP status and its text."""

    status: int
    text: str


async def fetch_async(
    url: str, timeout_s: float, headers: Mapping[str, str] | None = None
) -> Reply | None:
    """GET ``url``; None if nobody answers properly within so many seconds."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(url) as response,
        ):
            return Reply(response.status, await response.text(errors="replace"))
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None


def fetch(url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> Reply | None:
    """As :func:`fetch_async`, from code that is not asynchronous."""
    return asyncio.run(fetch_async(url, timeout_s, headers))
