"""optuna-dashboard on this machine alone, over a mirror of stored studies."""

from __future__ import annotations

import errno
import importlib.util
import os
from pathlib import Path
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.report.optuna_mirror import open_mirror

HOST = "127.0.0.1"
"""The dashboard can delete studies and asks nobody who they are: never another interface."""


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

    app = optuna_dashboard.wsgi(open_mirror(storage))
    try:
        return make_server(HOST, port, app, DashboardServer, _Quiet)
    except OSError as error:
        if error.errno not in {errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL}:
            raise
        raise BadInputError(
            f"port {port} of {HOST}: {os.strerror(error.errno)}; name another with --port, "
            "0 takes a free one"
        ) from None
