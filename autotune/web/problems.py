"""Errors as RFC 9457 problem documents, each with the line that the command line would print."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from autotune.core import AutotuneError, ExitCode
from autotune.util.secret import mask
from autotune.web.policy import ForbiddenError

MEDIA_TYPE = "application/problem+json"
E = TypeVar("E", bound=Exception)
_FLAG = re.compile(r"--([a-z][a-z0-9-]*)|argument '([a-z_]+)'|^no (device) '")


class ProblemError(Exception):
    """Ends a request with a problem document."""

    def __init__(
        self, status: int, detail: str, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        """Take what the document says; ``more`` are further members of it."""
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers, more


def document(status: int, detail: str, **more: Any) -> dict[str, Any]:
    """Write a problem document: ``detail`` is one line, whatever of the request stands in it."""
    title = HTTPStatus(status).phrase
    line = mask(" ".join(part.strip() for part in detail.splitlines()))
    line = "".join(c if c.isprintable() else "?" for c in line)
    return {"type": "about:blank", "title": title, "status": status, "detail": line, **more}


def response(error: ProblemError) -> Response:
    """Answer with a problem."""
    body = document(error.status, error.detail, **error.more)
    return Response(json.dumps(body), error.status, error.headers, MEDIA_TYPE)


def field_of(message: str) -> str | None:
    """Return the field of a request that a refusal is about; None where it names none."""
    found = _FLAG.search(message)
    return (found[1] or found[2] or found[3]).replace("-", "_") if found else None


def of(error: AutotuneError) -> ProblemError:
    """Make the problem of what ends a command."""
    if isinstance(error, ForbiddenError):
        return ProblemError(403, str(error), field=field_of(str(error)))
    if error.exit_code == ExitCode.BAD_INPUT:
        return ProblemError(422, str(error), field=field_of(str(error)))
    return ProblemError(503, str(error), {"Retry-After": "5"})


def install(app: FastAPI, page: Callable[[ProblemError], Response]) -> None:
    """Have the application answer every error so, and a browser with a page that says it."""

    def answer(request: Request, problem: ProblemError) -> Response:
        of_api = request.url.path.startswith("/api/")
        reads = "text/html" in request.headers.get("Accept", "")
        return page(problem) if reads and not of_api else response(problem)

    def add(kind: type[E], problem: Callable[[E], ProblemError]) -> None:
        async def handler(request: Request, error: Any) -> Response:
            return answer(request, problem(error))

        app.add_exception_handler(kind, handler)

    def refused(error: RequestValidationError) -> ProblemError:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return ProblemError(422, f"{where}: {first['msg']}")

    add(ProblemError, lambda error: error)
    add(AutotuneError, of)
    add(HTTPException, lambda e: ProblemError(e.status_code, str(e.detail), dict(e.headers or {})))
    add(RequestValidationError, refused)
    text = "an error of the service; its log has the traceback"
    add(Exception, lambda _: ProblemError(500, text))
