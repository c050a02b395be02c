"""``/api/v1``: jobs, studies and devices for programs; see ``docs/how-to/run-the-service.md``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response

from autotune.cli.machine import device_asked_for, known_devices
from autotune.core import BadInputError
from autotune.kind import get as get_kind
from autotune.machine.environment import visible_gpus
from autotune.report.beside import beside
from autotune.report.page import Page
from autotune.store.foreign import reading_back
from autotune.store.records import JobRecord, JobState, StudyDetail
from autotune.util import secret
from autotune.web import stream
from autotune.web.document import BODY, ERRORS, operation_id
from autotune.web.folders import JobFolder
from autotune.web.gate import WELCOME
from autotune.web.problems import ProblemError
from autotune.web.service import Service

PREFIX = "/api/v1"
MOST = 2**53
_EMPTY = {"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}}
SANDBOX = {"Content-Security-Policy": "sandbox allow-scripts allow-downloads"}
_TEXT_TYPES = {".json", ".md", ".txt", ".log", ".jsonl", ".sh", ".yaml", ".csv"}


def router(service: Service) -> APIRouter:
    """Make the routes."""
    routes = APIRouter(prefix=PREFIX, responses=ERRORS, generate_unique_id_function=operation_id)
    _job_routes(routes, service)
    _job_actions(routes, service)
    _file_routes(routes, service)
    _study_routes(routes, service)
    _machine_routes(routes, service)
    return routes


def _checked(job_id: int) -> int:
    if not 0 < job_id < MOST:
        raise ProblemError(404, f"no job {job_id}")
    return job_id


def _job_routes(routes: APIRouter, service: Service) -> None:
    @routes.post("/jobs", status_code=202, openapi_extra=BODY, summary="Queue a job")
    async def submit(
        request: Request, idempotency_key: Annotated[str | None, Header()] = None
    ) -> JSONResponse:
        body = service.read_body(await request.body())
        job = await service.submit(body, idempotency_key)
        shown = await run_in_threadpool(service.shown, job)
        return JSONResponse(shown, 202, {"Location": f"{PREFIX}/jobs/{job.id}"})

    @routes.post("/jobs:validate", openapi_extra=BODY, summary="Say the plan, start nothing")
    async def validate(request: Request) -> JSONResponse:
        body = service.read_body(await request.body())
        return JSONResponse(await service.validate(body))

    @routes.get("/jobs", summary="List jobs, the newest first")
    def jobs(
        state: Annotated[list[JobState] | None, Query()] = None,
        kind: Annotated[list[str] | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    ) -> JSONResponse:
        return JSONResponse(page_of_jobs(service, state, kind, limit, cursor))

    @routes.get("/jobs/{job_id}", summary="A job")
    def job(job_id: int) -> JSONResponse:
        return JSONResponse(service.shown(service.get(_checked(job_id))))


def page_of_jobs(
    service: Service,
    states: list[JobState] | None,
    kinds: list[str] | None,
    limit: int,
    cursor: str | None,
) -> dict[str, Any]:
    """List jobs and the cursor of the next page.

    Raises:
        ProblemError: the cursor is none of ours.
    """
    if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 16):
        raise ProblemError(422, "cursor: not one that this service gave")
    before = None if cursor is None else int(cursor)
    found = service.jobs.page(states or (), kinds or (), before, limit + 1)
    shown = found[:limit]
    return {
        "jobs": [service.shown(job, briefly=True) for job in shown],
        "next": str(shown[-1].id) if len(found) > limit else None,
    }


def _job_actions(routes: APIRouter, service: Service) -> None:
    def act(action: Callable[[int], JobRecord], job_id: int) -> JSONResponse:
        return JSONResponse(service.shown(action(_checked(job_id))), 202)

    @routes.post("/jobs/{job_id}:cancel", status_code=202, openapi_extra=_EMPTY)
    def cancel(job_id: int) -> JSONResponse:
        """Stop a job as Ctrl-C does; what was measured is saved."""
        return act(service.cancel, job_id)

    @routes.post("/jobs/{job_id}:retry", status_code=202, openapi_extra=_EMPTY)
    def retry(job_id: int) -> JSONResponse:
        """Queue a job that has ended once more; it goes on from what is stored."""
        return act(service.retry, job_id)

    @routes.delete("/jobs/{job_id}", status_code=204)
    def remove(job_id: int) -> Response:
        """Forget a job that has ended, with its log; its study and files stay."""
        service.remove(_checked(job_id))
        return Response(status_code=204)


def _welcome(request: Request) -> Callable[[], bool]:
    """Return what tells whether the session of a request goes on; with the token it does."""
    told: Callable[[], bool] = request.scope.get(WELCOME, lambda: True)
    return told


def _file_routes(routes: APIRouter, service: Service) -> None:
    @routes.get("/jobs/{job_id}/events", summary="Follow a job (server-sent events)")
    def events(
        request: Request,
        job_id: int,
        last_event_id: Annotated[str | None, Header()] = None,
        tail: Annotated[int | None, Query(ge=0, le=MOST)] = None,
    ) -> Response:
        service.get(_checked(job_id))
        offset = last_event_id or "0"
        is_ours = offset.isascii() and offset.isdecimal() and len(offset) < 16
        start = int(offset) if is_ours else 0
        lines = stream.events(service, job_id, start, tail, _welcome(request))
        return stream.response(service, lines, "text/event-stream")

    @routes.get("/jobs/{job_id}/log", summary="What the command says")
    def log(
        request: Request,
        job_id: int,
        offset: Annotated[int, Query(ge=0, le=MOST)] = 0,
        follow: bool = False,
    ) -> Response:
        service.get(_checked(job_id))
        if follow:
            parts = stream.log(service, job_id, offset, _welcome(request))
            return stream.response(service, parts, "text/plain; charset=utf-8")
        path = JobFolder.of(service.root, job_id).log
        data = stream.read_from(path, offset, service.limits.log_chunk)
        headers = {"X-Next-Offset": str(offset + len(data))}
        return Response(data, 200, headers, "text/plain; charset=utf-8")

    @routes.get("/jobs/{job_id}/artifacts", summary="Names of a job's files")
    def artifacts(job_id: int) -> JSONResponse:
        found = service.artifacts(service.get(_checked(job_id)))
        listed = [{"name": name, "bytes": path.stat().st_size} for name, path in found.items()]
        return JSONResponse({"artifacts": listed})

    @routes.get("/jobs/{job_id}/artifacts/{name:path}", summary="A file of a job")
    def artifact(job_id: int, name: str) -> Response:
        path = service.artifacts(service.get(_checked(job_id))).get(name)
        if path is None:
            raise ProblemError(404, f"job {job_id} has no file of this name")
        return file_response(path)


def file_response(path: Path) -> Response:
    """Send a file so that nothing in it acts in the name of this service."""
    if path.suffix == ".html":
        # Its own policy names its scripts; sandboxed, it is of no site and has no cookies.
        return FileResponse(path, headers=SANDBOX, media_type="text/html; charset=utf-8")
    media = "application/json" if path.suffix == ".json" else "text/plain; charset=utf-8"
    if path.suffix not in _TEXT_TYPES:
        media = "application/octet-stream"
    return FileResponse(
        path, media_type=media, filename=path.name, content_disposition_type="attachment"
    )


def _study_routes(routes: APIRouter, service: Service) -> None:
    store = service.store

    @routes.get("/studies", summary="List studies")
    def studies() -> JSONResponse:
        found = store.list_studies()
        return JSONResponse({"studies": [{**s.as_json(), "trials": s.trials} for s in found]})

    @routes.get("/studies/{name}", summary="A study: its searches, runs, verdicts")
    def study(name: str) -> JSONResponse:
        detail = study_of(service, name)
        verdicts = {s.id: store.verdicts(s) for s in detail.searches}
        latest = {str(search): found[0] for search, found in verdicts.items() if found}
        return JSONResponse({**detail.as_json(), "trials": detail.trials, "verdicts": latest})

    @routes.get("/studies/{name}/report", summary="The report of a study, as JSON")
    async def report(name: str) -> JSONResponse:
        made = await service.plans.run(_as_json, page_of_study, service, name)
        return JSONResponse(secret.masked(made))

    @routes.get("/studies/{name}/compare", summary="Two studies of one kind, beside each other")
    async def compare(name: str, other: Annotated[str, Query(alias="with")]) -> JSONResponse:
        made = await service.plans.run(_as_json, compared, service, name, other)
        return JSONResponse(secret.masked(made))

    @routes.get("/studies/{name}/trials", summary="Trials of a study, as JSON or CSV")
    async def trials(
        name: str,
        after: Annotated[int, Query(ge=0, le=MOST)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 500,
        format: Annotated[str, Query(pattern="^(json|csv)$")] = "json",  # noqa: A002
    ) -> Response:
        await run_in_threadpool(study_of, service, name)
        if format == "csv":
            table = await service.plans.run(_csv, service, name)
            return Response(table, media_type="text/csv; charset=utf-8")
        rows = await run_in_threadpool(store.trial_page, name, after, limit)
        following = rows[-1]["id"] if len(rows) == limit else None
        return JSONResponse(secret.masked({"trials": rows, "next": following}))


def study_of(service: Service, name: str) -> StudyDetail:
    """Return a study.

    Raises:
        ProblemError: there is none of this name.
    """
    found = service.store.find_study(name)
    if found is None:
        raise ProblemError(404, f"no study {name!r}")
    return found


def page_of_study(service: Service, name: str) -> Page:
    """Make the page of a study.

    Raises:
        ProblemError: there is no such study, or nothing in it to show yet.
    """
    detail = study_of(service, name)
    try:
        with reading_back(service.runner.settings.db, name):
            return get_kind(detail.study.kind).page(service.store, name, out=service.root)
    except BadInputError as error:
        raise ProblemError(409, str(error)) from None


def compared(service: Service, name: str, other: str) -> Page:
    """Make the page that lays two studies beside each other.

    Raises:
        ProblemError: one is not there, has nothing to show, or they are of two kinds.
    """
    pages = [page_of_study(service, one) for one in (name, other)]
    kinds = [service.store.get_study(one).study.kind for one in (name, other)]
    if kinds[0] != kinds[1]:
        raise ProblemError(
            422,
            f"with: {other!r} is a study of {kinds[1]}, {name!r} of {kinds[0]}; take one of a kind",
        )
    return beside(*pages)


def _as_json(make: Callable[..., Page], *args: Any) -> dict[str, Any]:
    from autotune.report.render import to_json  # noqa: PLC0415 - slow import

    return to_json(make(*args))


def _csv(service: Service, name: str) -> bytes:
    from autotune.store.frames import frame_file, trials_frame  # noqa: PLC0415 - slow import

    return frame_file(trials_frame(service.store, name), Path("trials.csv"))


def _machine_routes(routes: APIRouter, service: Service) -> None:
    @routes.get("/devices", summary="What can be tuned for, and what is here")
    def devices() -> JSONResponse:
        return JSONResponse(known_devices())

    @routes.get("/machine", summary="Memory and clocks of this machine, now")
    def machine() -> JSONResponse:
        return JSONResponse(service.machine())

    @routes.get("/doctor", summary="How this machine stands, and what to run next")
    async def doctor(device: str | None = None) -> JSONResponse:
        return JSONResponse({"findings": await service.plans.run(diagnosed, device)})


def diagnosed(name: str | None) -> list[dict[str, Any]]:
    """Tell as ``autotune doctor --json`` does."""
    from autotune.kernels.check.doctor import diagnose  # noqa: PLC0415 - slow import

    if name is not None and (name.endswith((".yaml", ".yml")) or "/" in name):
        raise ProblemError(422, "device: a name, as /devices lists it")
    visible = visible_gpus()
    device = device_asked_for(name, visible)
    return [finding.as_json() for finding in diagnose(device, visible)]
