"""HTTP: the one way to ask a server, with limits and with failure as a value.

A server is a stranger, even one that we started. No redirect is followed: credentials and prompts
go to the host that they were given for. No proxy, password file or cookie is taken from the
environment. Bodies are taken as they come (an encoded one is refused, for it may grow a
thousandfold), up to a limit in bytes and seconds, and decoded as UTF-8. What a server repeats of
the credentials that it was sent is masked before anything reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from autotune.util import secret

Session = aiohttp.ClientSession
BODY_LIMIT = 8 << 20
"""Bytes of an answer. The largest, ``/metrics`` of several engines, has some 100 KiB."""
ERROR_LIMIT = 16 << 10
"""Bytes that are read of the answer to a failed request."""
FAULTS = (aiohttp.ClientError, TimeoutError, OSError, ValueError, EOFError)
"""What a request raises, whatever the server does: ValueError for what is no HTTP."""


@dataclass(frozen=True)
class Reply:
    """An answer: its HTTP status, its text, and its headers by name in lower case."""

    status: int
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)


class UnansweredError(Exception):
    """Nobody answers properly; the text says why."""


class TooLargeError(ValueError):
    """An answer is longer than its limit."""


def open_session(
    timeout_s: float, headers: Mapping[str, str] | None = None, connections: int = 0
) -> Session:
    """A session that sends to one server; ``connections`` at most, 0 for any number.

    ``timeout_s`` are the wall seconds of a request, from its connection to its last byte.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        headers={"Accept-Encoding": "identity", **(headers or {})},
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
    )


@asynccontextmanager
async def request(
    session: Session, method: str, url: str, body: bytes | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send a request; gives the answer once its head is there.

    Raises:
        aiohttp.ClientError, OSError, TimeoutError, ValueError: nobody answers properly
            (:data:`FAULTS`).
    """
    async with session.request(method, url, data=body, allow_redirects=False) as response:
        coding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if coding not in {"", "identity"}:
            raise ValueError("its answer is compressed, which nobody asked for")
        yield response


async def read_body(response: aiohttp.ClientResponse, limit: int, *, cut: bool = False) -> str:
    """The body as text, up to ``limit`` bytes; ``cut`` leaves out what is longer.

    Raises:
        TooLargeError: it is longer.
    """
    taken = bytearray()
    async for chunk in response.content.iter_any():
        taken += chunk
        if len(taken) > limit:
            if not cut:
                raise TooLargeError(f"its answer is longer than {limit} bytes")
            break
    return bytes(taken[:limit]).decode("utf-8", "replace")


def refusal(response: aiohttp.ClientResponse, text: str) -> str:
    """What a status other than 200 says, for people."""
    if 300 <= response.status < 400:
        return f"HTTP {response.status}: it redirects, and no redirect is followed"
    return f"HTTP {response.status}: {text}"


async def _get(url: str, timeout_s: float, headers: Mapping[str, str] | None) -> Reply:
    async with (
        open_session(timeout_s, headers) as session,
        request(session, "GET", url) as response,
    ):
        fine = response.status == 200
        text = await read_body(response, BODY_LIMIT if fine else ERROR_LIMIT, cut=not fine)
    return Reply(response.status, without_secrets(text, headers or {}))


async def fetch_async(
    url: str, timeout_s: float, headers: Mapping[str, str] | None = None
) -> Reply | None:
    """GET ``url``; None if nobody answers properly within so many seconds."""
    try:
        return await _get(url, timeout_s, headers)
    except FAULTS:
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
    except FAULTS as error:
        raise UnansweredError(described(error, headers or {})) from None


def ask(
    method: str,
    url: str,
    timeout_s: float,
    headers: Mapping[str, str],
    body: bytes | None = None,
) -> Reply:
    """Send a request of any method, whose answer may say anything but a redirect.

    Raises:
        UnansweredError: nobody answers properly, with the reason.
    """

    async def asked() -> Reply:
        async with (
            open_session(timeout_s, headers) as session,
            request(session, method, url, body) as response,
        ):
            if 300 <= response.status < 400:
                raise ValueError(refusal(response, ""))
            text = await read_body(response, BODY_LIMIT)
            found = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status, without_secrets(text, headers), found)

    try:
        return asyncio.run(asked())
    except TimeoutError:
        raise UnansweredError(f"no answer within {timeout_s:g} s") from None
    except FAULTS as error:
        raise UnansweredError(described(error, headers)) from None


def described(error: Exception, headers: Mapping[str, str]) -> str:
    """What a request raised, in one line for people; it may quote the server."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return without_secrets(said, headers)


def without_secrets(text: str, headers: Mapping[str, str]) -> str:
    """A server's words, which may repeat what it was sent, without the values of ``headers``."""
    return secret.Mask(secret.of_headers(headers))(text) if headers else text
