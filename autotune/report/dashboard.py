"""optuna-dashboard on this machine alone, over a mirror of stored studies."""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.report.optuna_mirror import open_mirror

HOST = "127.0.0.1"
"""The dashboard can delete studies and asks nobody who they are: never another interface."""
_HTTP_PORT = 80


class DashboardServer(ThreadingMixIn, WSGIServer):
    """Serves until interrupted; a page that is still loading does not hold the others up."""

    daemon_threads = True

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/dashboard/"


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are nobody's concern."""


class LocalOnly:
    """Lets in what a browser asks for under the address that we print, and nothing else.

    A page of another site can reach 127.0.0.1: by a name of its own that it has resolve there
    (``Host`` then names that site), or by a request across sites (``Origin`` names it).
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._hosts: frozenset[str] = frozenset()

    def allow(self, port: int) -> None:
        """Answer for this port of this machine."""
        names = (HOST, "localhost")
        bare = frozenset(names) if port == _HTTP_PORT else frozenset()
        self._hosts = frozenset(f"{name}:{port}" for name in names) | bare

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer one request, as WSGI has it."""
        if self._is_ours(environ):
            return self._app(environ, start_response)
        words = b"only for this machine, at the address that autotune prints\n"
        head = [("Content-Type", "text/plain"), ("Content-Length", str(len(words)))]
        start_response("403 Forbidden", head)
        return [words]

    def _is_ours(self, environ: Mapping[str, Any]) -> bool:
        origin = environ.get("HTTP_ORIGIN")
        if environ.get("HTTP_HOST", "").lower() not in self._hosts:
            return False
        if environ.get("HTTP_SEC_FETCH_SITE", "none") not in {"same-origin", "none"}:
            # A link on another page may lead here; anything that changes something may not.
            reads = environ.get("REQUEST_METHOD") in {"GET", "HEAD"}
            return reads and environ.get("HTTP_SEC_FETCH_MODE") == "navigate"
        return origin is None or origin.lower() in {f"http://{host}" for host in self._hosts}


def check_installed() -> None:
    """Look before the work for the package that shows it.

    Raises:
        MissingEnvironmentError: optuna-dashboard is not installed.
    """
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise MissingEnvironmentError(
            "optuna-dashboard is not installed; in a clone: pip install '.[dashboard]'"
        )


def dashboard_server(storage: Path, port: int) -> DashboardServer:
    """Listen on ``port`` of 127.0.0.1; 0 takes a free one.

    Args:
        storage: a file written by :func:`autotune.report.optuna_mirror.mirror`.
        port: TCP port.

    Raises:
        BadInputError: the port is taken, or not ours to take.
        MissingEnvironmentError: optuna-dashboard is not installed.
    """
    check_installed()
    import optuna_dashboard  # type: ignore[import-untyped,import-not-found,unused-ignore] # noqa: PLC0415

    app = LocalOnly(optuna_dashboard.wsgi(open_mirror(storage)))
    try:
        server = make_server(HOST, port, app, DashboardServer, _Quiet)
        app.allow(server.server_port)
        return server
    except OSError as error:
        if error.errno not in {errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL}:
            raise
        raise BadInputError(
            f"port {port} of {HOST}: {os.strerror(error.errno)}; name another with --port, "
            "0 takes a free one"
        ) from None
