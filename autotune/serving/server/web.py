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


_SHORTEST_SECRET = 4
"""A value such as ``1`` is no secret, and stands everywhere."""


class UnansweredError(Exception):
    """Nobody answers properly; the text says why."""


async def _get(url: str, timeout_s: float, headers: Mapping[str, str] | None) -> Reply:
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    async with (
        aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
        session.get(url) as response,
    ):
        return Reply(response.status, await response.text(errors="replace"))


async def fetch_async(
    url: str, timeout_s: float, headers: Mapping[str, str] | None = None
) -> Reply | None:
    """GET ``url``; None if nobody answers properly within so many seconds."""
    try:
        return await _get(url, timeout_s, headers)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None


def fetch(url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> Reply | None:
    """As :func:`fetch_async`, from code that is not asynchronous."""
    return asyncio.run(fetch_async(url, timeout_s, headers))


def get(url: str, timeout_s: float, headers: Mapping[str, str] | None = None) -> Reply:
    """As :func:`fetch`, but nobody answering is an error.

    Raises:
        UnansweredError: with the reason.
    """
    try:
        return asyncio.run(_get(url, timeout_s, headers))
    except TimeoutError:
        raise UnansweredError(f"no answer within {timeout_s:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise UnansweredError(f"{type(error).__name__}: {error}") from None


def without_secrets(text: str, headers: Mapping[str, str]) -> str:
    """A server's words, which may repeat what it was sent, without the values of ``headers``."""
    for value in headers.values():
        for secret in (value, value.rpartition(" ")[2]):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "***")
    return text
