"""The application: API, page and gate put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from autotune import __version__
from autotune.util.secret import Secret
from autotune.web import api, document, metrics, pages, problems
from autotune.web.gate import Gate, Names
from autotune.web.service import Service
from autotune.web.token import Doorman

STATIC = Path(__file__).parent / "static"


def make_app(
    service: Service, token: Secret, names: Names, now: Callable[[], float] = time.time
) -> Gate:
    """Make the whole application.

    Args:
        service: what it offers.
        token: of those who may ask.
        names: the hosts that a request may name.
        now: tells Unix seconds.
    """
    app = FastAPI(
        title="autotune",
        version=__version__,
        description=document.DESCRIPTION,
        generate_unique_id_function=document.operation_id,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    doorman = Doorman(token, now, service.root / ".sessions")
    views = pages.Views(service)
    problems.install(app, views.problem)
    app.include_router(api.router(service))
    _probes(app, service)
    pages.install(app, views, doorman)
    app.mount("/static", StaticFiles(directory=STATIC))
    document.install(app)
    return Gate(app, names, doorman)


def _probes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", summary="The process answers")
    async def healthz() -> JSONResponse:
        return JSONResponse({"status": "ok", "version": __version__})

    @app.get("/readyz", summary="Jobs are run and stored")
    async def readyz() -> JSONResponse:
        ready = service.runner.is_well() and not service.stopping
        return JSONResponse({"status": "ok" if ready else "waits"}, 200 if ready else 503)

    @app.get("/metrics", summary="Figures for Prometheus")
    def figures() -> Response:
        text = metrics.metrics(service)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
