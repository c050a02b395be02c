"""The OpenAPI document: what FastAPI cannot know of the interface, so that a program needs no more.

Operations have names, answers have schemas, and links say which operation takes what of an answer.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute

from autotune.store.records import JobState
from autotune.web.kinds import ABOUT, KINDS, schema_of
from autotune.web.problems import MEDIA_TYPE

DESCRIPTION = """\
Queue, follow and read tuning jobs. Each job is the command of its kind, with the same results.

Send `Authorization: Bearer TOKEN`, the text of the file that the service names when it starts.

1. `validateJob` says the plan of a job, or why it is refused; it starts nothing and takes seconds.
2. `submitJob` queues it. The links of its answer lead on.
3. `followJob` streams its events until `end`; `getJob` tells how far it came at any time.
4. `listArtifacts` names the files of the job, `getArtifact` gives one: for kernels the file that
   vLLM looks for, `provenance.json` and the report; for servers `best.json`, `serve.sh` and more.
5. `getReport` gives the figures of its study and what was decided, `compareStudies` those of two.

Figures are measured or predicted, and `basis` says which. Every error is a problem document.
"""
_SAID = {
    400: "The body is no JSON object, or a header that decides something is given twice.",
    401: "The token is missing or wrong.",
    403: "The operator of this service has not allowed it, or another web site asks.",
    404: "There is nothing of this number or name.",
    405: "This is not done here.",
    409: "It cannot be done as things stand, such as deleting a job that runs.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    421: "The Host header names another service.",
    422: "A value cannot be used: `field` names it, `detail` says what to do.",
    429: "Too many jobs wait; `Retry-After` says when to try again.",
    503: "Not now: `Retry-After` says when to try again.",
    504: "It took too long.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {
        "description": said,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for code, said in _SAID.items()
}
_NAMES = {
    "submit": "submitJob",
    "validate": "validateJob",
    "jobs": "listJobs",
    "job": "getJob",
    "cancel": "cancelJob",
    "retry": "retryJob",
    "remove": "deleteJob",
    "events": "followJob",
    "log": "getLog",
    "artifacts": "listArtifacts",
    "artifact": "getArtifact",
    "studies": "listStudies",
    "study": "getStudy",
    "report": "getReport",
    "compare": "compareStudies",
    "trials": "listTrials",
    "devices": "listDevices",
    "machine": "getMachine",
    "doctor": "examineMachine",
    "figures": "getMetrics",
}


def operation_id(route: APIRoute) -> str:
    """Name an operation as a program would call it."""
    return _NAMES.get(route.name, route.name)


def _any(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _of(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _or_null(kind: str, description: str) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": description}


_PROGRESS = {
    "type": ["object", "null"],
    "description": "Null before the command has said its plan.",
    "properties": {
        "study": _or_null("string", "The study that holds its results."),
        "basis": _or_null("string", "`measured`, or `predicted` by a cost model."),
        "phase": _text("start, baseline, search or confirm."),
        "at": _text("What is worked on, such as M=64."),
        "done": {"type": "integer", "description": "Steps done, out of `total`."},
        "total": {"type": "integer"},
        "unit": _or_null("string", "What the steps are: trials or boots."),
        "seconds_left": {"type": "integer", "description": "Where it can be told."},
        "best_so_far": _or_null("number", "Times the default, before confirmation."),
        "levels": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Default and best by what is tuned for; not in lists of jobs.",
        },
    },
}
_JOB = _any(
    id={"type": "integer"},
    kind={"enum": list(KINDS)},
    args={"type": "object", "description": "As they were given."},
    state=_of("JobState"),
    reason=_text("Why it is in this state, in one line."),
    exit_code=_or_null("integer", "Of the command: 0 done, 2 refused, 3 something is missing."),
    progress=_PROGRESS,
    command=_text("The same as a command line."),
    created_at={"type": "string", "format": "date-time"},
)
_JOB["properties"] |= {
    "place": _or_null("integer", "In the queue: 1 is next."),
    "name": {"type": "string"},
    "priority": {"type": "integer"},
    "attempt": {"type": "integer", "description": "How often it was started."},
    "gpus": _text("Indices of the GPUs that it may use."),
    "gpus_wanted": {"type": "integer"},
    "max_time_s": _or_null("number", "Seconds after which it is stopped."),
    "started_at": {"type": ["string", "null"], "format": "date-time"},
    "ended_at": {"type": ["string", "null"], "format": "date-time"},
}
_LIST = {"type": "array", "items": {"type": "object"}}
_NEXT = _or_null("string", "The `cursor` of the following page; null at the last.")
_ARTIFACT = _any(name=_text("May hold slashes, which stay as they are."), bytes={"type": "integer"})
_SCHEMAS: dict[str, Any] = {
    "Job": _JOB,
    "Jobs": _any(jobs={"type": "array", "items": _of("Job")}, next=_NEXT),
    "Plan": _any(
        command=_text("The job as a command line."),
        plan={"type": ["object", "null"], "description": "Null for kinds without a dry run."},
        said={"type": "array", "items": {"type": "string"}, "description": "Notes and warnings."},
    ),
    "Artifacts": _any(artifacts={"type": "array", "items": _ARTIFACT}),
    "Studies": _any(studies=_LIST),
    "Study": _any(study={"type": "object"}, searches=_LIST, trials={"type": "integer"}),
    "Report": _any(title={"type": "string"}, basis={"type": "string"}, result={"type": "string"}),
    "Trials": _any(
        trials=_LIST, next=_or_null("integer", "`after` of the following page; null at the last.")
    ),
    "Devices": _any(known=_LIST, here=_LIST),
    "Machine": _any(memory={"type": "object"}, gpus=_LIST),
    "Findings": _any(findings=_LIST),
}
_ANSWERS = {
    "submitJob": "Job",
    "validateJob": "Plan",
    "listJobs": "Jobs",
    "getJob": "Job",
    "cancelJob": "Job",
    "retryJob": "Job",
    "listArtifacts": "Artifacts",
    "listStudies": "Studies",
    "getStudy": "Study",
    "getReport": "Report",
    "compareStudies": "Report",
    "listTrials": "Trials",
    "listDevices": "Devices",
    "getMachine": "Machine",
    "examineMachine": "Findings",
}
_EVENTS = """\
Server-sent events; `data` is JSON, and `id` where to go on (`Last-Event-ID`).

- `job`: a Job, whenever it has changed.
- `attempt`, `plan`, `step`: as the command tells them; a step has `phase`, `at`, `candidate`,
  `outcome` and `value`, the smaller the better.
- `end`: the last one, with the state that the job ended in, or `"deleted"`.
"""
_OTHERS = {
    "followJob": ("text/event-stream", {"type": "string"}, _EVENTS),
    "getLog": ("text/plain", {"type": "string"}, "From `offset` on; go on at `X-Next-Offset`."),
    "getArtifact": ("*/*", {"type": "string", "format": "binary"}, "The file as it is."),
}


def _link(operation: str, description: str, **parameters: str) -> dict[str, Any]:
    return {"operationId": operation, "parameters": parameters, "description": description}


_THIS = "$request.path.job_id"
_STUDY = "$response.body#/progress/study"
_LINKS: dict[str, dict[str, Any]] = {
    "submitJob": {
        "job": _link("getJob", "How far it came.", job_id="$response.body#/id"),
        "events": _link("followJob", "Follow it to its end.", job_id="$response.body#/id"),
        "artifacts": _link("listArtifacts", "Its files.", job_id="$response.body#/id"),
        "cancel": _link("cancelJob", "Stop it.", job_id="$response.body#/id"),
    },
    "getJob": {
        "artifacts": _link("listArtifacts", "Its files.", job_id=_THIS),
        "study": _link("getStudy", "Once there is a plan.", name=_STUDY),
        "report": _link("getReport", "What was found and decided.", name=_STUDY),
    },
    "listArtifacts": {
        "artifact": _link(
            "getArtifact",
            "The first of them; the others likewise.",
            job_id=_THIS,
            name="$response.body#/artifacts/0/name",
        ),
    },
}
_EXAMPLES = {
    "kernels": {
        "summary": "Predict a kernel's configuration for a GB10, on any machine",
        "value": {
            "kind": "moe",
            "args": {"device": "gb10", "batch_sizes": "1,8", "effort": "quick", "predict": True},
        },
    },
    "servers": {
        "summary": "Find how many tokens to draft for a model, on this machine's GPU",
        "value": {
            "kind": "spec",
            "args": {"target": ["org/model"], "drafter": ["ngram"], "gamma": "0-4"},
            "max_time": "4h",
        },
    },
    "file": {
        "summary": "Write a study's file for vLLM into a folder",
        "value": {"kind": "export", "args": {"study": "STUDY", "to": "folder"}},
    },
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _of("NewJob"), "examples": _EXAMPLES}},
    }
}


def install(app: FastAPI) -> None:
    """Have the application answer with the whole document."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = made()
            document["components"] = components(document.get("components", {}))
            document["security"] = [{"token": []}]
            for operations in document["paths"].values():
                for operation in operations.values():
                    _complete(operation)
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(operation: dict[str, Any]) -> None:
    name = operation["operationId"]
    code = next(code for code in ("200", "202", "204") if code in operation["responses"])
    answer = operation["responses"][code]
    answer["description"] = operation["summary"]
    if name in _ANSWERS:
        answer["content"] = {"application/json": {"schema": _of(_ANSWERS[name])}}
    elif name in _OTHERS:
        media, schema, answer["description"] = _OTHERS[name]
        answer["content"] = {media: {"schema": schema}}
    if name == "listTrials":
        answer["content"]["text/csv"] = {"schema": {"type": "string"}}
    if name in _LINKS:
        answer["links"] = _LINKS[name]


def components(found: dict[str, Any]) -> dict[str, Any]:
    """Add our schemas to those that FastAPI found."""
    states = {"type": "string", "enum": list(JobState), "description": str(JobState.__doc__)}
    schemas: dict[str, Any] = {**found.get("schemas", {}), **_SCHEMAS, "JobState": states}
    choices = []
    for kind in KINDS:
        args = schema_of(kind)
        schemas.update(args.pop("$defs", {}))
        schemas[f"{kind.title()}Args"] = args
        choices.append(
            {
                "type": "object",
                "title": f"A job of kind {kind}",
                "description": ABOUT[kind],
                "properties": {
                    "kind": {"const": kind},
                    "args": _of(f"{kind.title()}Args"),
                    **_COMMON,
                },
                "required": ["kind", "args"],
                "additionalProperties": False,
            }
        )
    schemas["NewJob"] = {"oneOf": choices}
    schemas["Problem"] = _PROBLEM
    token = {"type": "http", "scheme": "bearer", "description": "The token of the service."}
    return {**found, "schemas": schemas, "securitySchemes": {"token": token}}


_COMMON: dict[str, Any] = {
    "name": {"type": "string", "maxLength": 100, "description": "For people."},
    "priority": {
        "type": "integer",
        "minimum": -100,
        "maximum": 100,
        "default": 0,
        "description": "Higher starts sooner.",
    },
    "max_time": {
        "type": "string",
        "examples": ["90s", "2h"],
        "description": "Stop the job after so long; what was measured is saved.",
    },
    "gpus": {"type": "integer", "minimum": 0, "description": "GPUs to keep for it."},
}
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What, where, what to do, in one line."},
        "field": {"type": ["string", "null"], "description": "The field of args that it is about."},
        "exit_code": {"type": "integer", "description": "What the command line would return."},
        "said": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["type", "title", "status", "detail"],
}
