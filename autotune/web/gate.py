"""The gate before every request: who asks, from which site, how much, and in which form.

An ASGI middleware that trusts no header but by its value: forwarded addresses and methods in
headers mean nothing here.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autotune.web.problems import ProblemError, response
from autotune.web.token import COOKIE, Doorman

BODY_LIMIT = 1 << 20
BODY_S = 20.0
"""Seconds that a client may take for the next part of its body."""
OPEN = frozenset({"/healthz", "/readyz", "/login", "/openapi.json", "/favicon.ico"})
OPEN_FOLDER = "/static/"
WELCOME = "autotune.welcome"
"""In the scope of a request with a cookie: tells whether its session goes on."""
_SAFE = frozenset({"GET", "HEAD"})
_FORM = "/login"
_HTTP_PORT = 80
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with none, a form of ours says Origin: null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer that does not say otherwise."""


@dataclass(frozen=True)
class Names:
    """The hosts that a request may name.

    Attributes:
        port: of this service.
        names: in lower case.
        any_address: also every IP address: no other site can make a browser name one as its own.
    """

    port: int
    names: frozenset[str]
    any_address: bool = False

    def knows(self, host: str) -> bool:
        """Tell whether a ``Host`` header is about this service."""
        name, port = _split(host)
        if port != str(self.port) and not (port == "" and self.port == _HTTP_PORT):
            return False
        if name in self.names:
            return True
        return self.any_address and _is_address(name)

    def knows_origin(self, origin: str) -> bool:
        """Tell whether an ``Origin`` header names this service."""
        scheme, _, host = origin.lower().partition("://")
        return scheme in {"http", "https"} and self.knows(host)


def _split(host: str) -> tuple[str, str]:
    host = host.lower()
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        return name, rest.removeprefix(":")
    name, _, port = host.partition(":")
    return name, port


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Gate:
    """Lets in what may come in; see the module."""

    def __init__(self, app: ASGIApp, names: Names, doorman: Doorman) -> None:
        """Stand before ``app``."""
        self._app, self._names, self._doorman = app, names, doorman

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here
        dressed = _with_headers(send)
        try:
            headers = _single(scope["headers"])
            self._check_site(scope, headers)
            self._check_caller(scope, headers)
            _check_form(scope, headers)
            await self._app(scope, _limited(receive, headers), dressed)
        except ProblemError as refused:
            answer = response(refused)
            answer.headers["Connection"] = "close"
            await answer(scope, receive, dressed)

    def _check_site(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if not self._names.knows(headers.get("host", "")):
            raise ProblemError(
                421, "this Host is not one of this service; --host-name NAME adds one"
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None and not self._names.knows_origin(origin):
            raise ProblemError(403, "another web site asks")
        if site not in {"same-origin", "none"}:
            # A link on another page may lead here; anything that reads or changes may not.
            mode = headers.get("sec-fetch-mode")
            if scope["method"] not in _SAFE or mode != "navigate":
                raise ProblemError(403, "another web site asks")

    def _check_caller(self, scope: Scope, headers: Mapping[str, str]) -> None:
        path = scope["path"]
        if path in OPEN or path.startswith(OPEN_FOLDER):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._doorman.knows(given.strip()):
            return
        cookie = _cookie(headers.get("cookie", ""))
        if self._doorman.accepts(cookie):
            scope[WELCOME] = lambda: self._doorman.accepts(cookie)
            return
        if scope["method"] in _SAFE and "text/html" in headers.get("accept", ""):
            raise ProblemError(303, "log in first", {"Location": "/login"})
        raise ProblemError(
            401,
            "the token is missing or wrong: send Authorization: Bearer TOKEN",
            {"WWW-Authenticate": 'Bearer realm="autotune"'},
        )


def _single(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by name; one that decides something and comes twice is refused."""
    found: dict[str, str] = {}
    for name, value in raw:
        key = name.decode("latin-1").lower()
        if key in found and key in _DECIDES:
            raise ProblemError(400, f"{key}: is given twice")
        found[key] = (
            f"{found[key]}; {value.decode('latin-1')}"
            if key in found
            else (value.decode("latin-1"))
        )
    return found


_DECIDES = frozenset(
    {"host", "origin", "authorization", "content-type", "content-length", "idempotency-key"}
    | {"sec-fetch-site", "sec-fetch-mode", "last-event-id"}
)


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _check_form(scope: Scope, headers: Mapping[str, str]) -> None:
    """Demand what no form of another site can send."""
    if scope["method"] not in _SAFE | {"POST", "DELETE"}:
        raise ProblemError(
            405, f"{scope['method']}: not here", {"Allow": "GET, HEAD, POST, DELETE"}
        )
    if scope["method"] != "POST":
        return
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    wanted = "application/x-www-form-urlencoded" if scope["path"] == _FORM else "application/json"
    if media != wanted:
        raise ProblemError(415, f"send Content-Type: {wanted}")


def _limited(receive: Receive, headers: Mapping[str, str]) -> Receive:
    """Take a body of a size, at a pace."""
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > BODY_LIMIT:
        raise ProblemError(413, f"a body has up to {BODY_LIMIT} bytes")
    taken, whole = 0, False

    async def limited() -> Message:
        nonlocal taken, whole
        if whole:
            return await receive()  # waits for the client to go
        try:
            message = await asyncio.wait_for(receive(), BODY_S)
        except TimeoutError:
            raise ProblemError(408, f"no more of the body within {BODY_S:g} s") from None
        taken += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if taken > BODY_LIMIT:
            raise ProblemError(413, f"a body has up to {BODY_LIMIT} bytes")
        return message

    return limited


def _with_headers(send: Send) -> Send:
    async def dressed(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return dressed
