"""``autotune serve`` runs the service until it is told to stop."""

from __future__ import annotations

import importlib.util

import typer

from autotune.cli.common import print_json
from autotune.cli.consoles import err
from autotune.cli.requests import Serve
from autotune.core import MissingEnvironmentError


def serve(request: Serve) -> None:
    """Say where the service is, and run it.

    Raises:
        MissingEnvironmentError: FastAPI or uvicorn are not installed.
    """
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise MissingEnvironmentError(
                f"{package} is not installed; in a clone: pip install '.[serve]'"
            )
    from autotune.web.serve import Place, run  # noqa: PLC0415 - slow import

    def said(place: Place) -> None:
        if request.as_json:
            print_json({"url": place.url, "token_file": str(place.token_file)})
            return
        typer.echo(f"{place.url}   (Ctrl-C ends it)")
        typer.echo(f"log in with the token in {place.token_file}")
        for text in place.warnings:
            err.warn(f"Warning: {text}")

    run(request, said)
