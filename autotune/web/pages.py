"""The page for people: every view is rendered here, and works on the interface for programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

import jinja2
from fastapi import FastAPI, Query, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from autotune import __version__
from autotune.cli.machine import known_devices
from autotune.report.page import Page
from autotune.store.records import JobState
from autotune.util import secret
from autotune.util.words import counted
from autotune.web import api
from autotune.web.forms import form
from autotune.web.kinds import ABOUT, KINDS
from autotune.web.problems import ProblemError, document
from autotune.web.service import Service
from autotune.web.token import COOKIE, COOKIE_S, Doorman

_ROWS = 50
_LOGIN_BYTES = 4096


class Views:
    """Renders the views."""

    def __init__(self, service: Service) -> None:
        """Take what the views show."""
        self.service = service
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(times=_times, counted=counted)
        self._environment.globals.update(version=__version__, kinds=ABOUT)

    def render(self, template: str, status: int = 200, **values: Any) -> Response:
        """Answer with a view."""
        return HTMLResponse(self._environment.get_template(template).render(**values), status)

    def problem(self, error: ProblemError) -> Response:
        """Show what ended a request."""
        found = document(error.status, error.detail)
        answer = self.render(
            "problem.html", error.status, title=found["title"], detail=found["detail"]
        )
        answer.headers.update(error.headers or {})
        return answer

    def jobs(self, state: str | None = None, cursor: str | None = None) -> Response:
        """Show the list of jobs."""
        states = [JobState(state)] if state in set(JobState) else []
        page = api.page_of_jobs(self.service, states, None, _ROWS, cursor)
        counts = self.service.jobs.counts()
        return self.render(
            "jobs.html", page=page, counts=counts, state=state, states=list(JobState)
        )

    def new(self, kind: str, request: Request) -> Response:
        """Show the form of a kind of job."""
        if kind not in KINDS:
            raise ProblemError(404, f"no kind {kind!r} of jobs")
        panels = form(kind, request.query_params)
        return self.render("new.html", kind=kind, about=ABOUT[kind], panels=panels)

    def job(self, job_id: int) -> Response:
        """Show a job."""
        job = self.service.shown(self.service.get(job_id))
        return self.render("job.html", job=job)

    def studies(self) -> Response:
        """Show the list of studies."""
        return self.render("studies.html", studies=self.service.store.list_studies())

    def study(self, name: str) -> Response:
        """Show a study."""
        detail = api.study_of(self.service, name)
        others = [
            one.study.name
            for one in self.service.store.list_studies()
            if one.study.kind == detail.study.kind and one.study.name != name
        ]
        return self.render("study.html", detail=detail, others=others)

    def devices(self) -> Response:
        """Show the devices."""
        return self.render("devices.html", **known_devices())

    def report(self, name: str) -> Response:
        """Show the report of a study, as ``autotune report`` writes it."""
        return _sandboxed(api.page_of_study(self.service, name))

    def compare(self, name: str, other: str) -> Response:
        """Show two studies beside each other."""
        return _sandboxed(api.compared(self.service, name, other))


def _sandboxed(page: Page) -> Response:
    from autotune.report.render import to_html  # noqa: PLC0415 - slow import

    return HTMLResponse(secret.mask(to_html(page)), headers=api.SANDBOX)


def install(app: FastAPI, views: Views, doorman: Doorman) -> None:
    """Add the views to the application."""
    _log_in(app, views, doorman)

    # Plain methods, which FastAPI runs in threads.
    app.get("/", include_in_schema=False)(views.jobs)
    app.get("/new/{kind}", include_in_schema=False)(views.new)
    app.get("/jobs/{job_id}", include_in_schema=False)(views.job)
    app.get("/studies", include_in_schema=False)(views.studies)
    app.get("/studies/{name}", include_in_schema=False)(views.study)
    app.get("/devices", include_in_schema=False)(views.devices)

    @app.get("/studies/{name}/report", include_in_schema=False)
    async def report(name: str) -> Response:
        return await views.service.plans.run(views.report, name)

    @app.get("/studies/{name}/compare", include_in_schema=False)
    async def compare(name: str, other: Annotated[str, Query(alias="with")]) -> Response:
        return await views.service.plans.run(views.compare, name, other)


def _log_in(app: FastAPI, views: Views, doorman: Doorman) -> None:
    @app.get("/login", include_in_schema=False)
    def asked() -> Response:
        return views.render("login.html", wrong=False)

    @app.post("/login", include_in_schema=False)
    async def given(request: Request) -> Response:
        body = (await request.body())[:_LOGIN_BYTES].decode("utf-8", "replace")
        token = _token_of(body)
        if not doorman.knows(token):
            return views.render("login.html", 401, wrong=True)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE, doorman.cookie(), max_age=COOKIE_S, httponly=True, samesite="strict"
        )
        return answer

    @app.get("/logout", include_in_schema=False)
    def left() -> Response:
        doorman.log_out()
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer


def _token_of(form: str) -> str:
    """The token of a login form; empty for a form that is none of ours."""
    try:
        return parse_qs(form, max_num_fields=5).get("token", [""])[0].strip()
    except ValueError:
        return ""


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}×"
