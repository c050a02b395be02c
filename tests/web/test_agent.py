"""A program that knows an address, a token and the OpenAPI document, and takes a file home."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from jsonschema import Draft202012Validator

from tests.support.synthetic_service import TOTAL
from tests.web.served import REAL, REPOSITORY, SYNTHETIC, Served

pytestmark = pytest.mark.kill


@dataclass
class Answer:
    """What came, with what was asked, as runtime expressions of OpenAPI see both."""

    operation: dict[str, Any]
    asked: dict[str, Any]
    status: int
    media: str
    data: Any = None
    text: str = ""

    def value(self, expression: str) -> Any:
        if expression.startswith("$request.path."):
            return self.asked[expression.removeprefix("$request.path.")]
        found = self.data
        for part in expression.removeprefix("$response.body#/").split("/"):
            found = found[int(part)] if isinstance(found, list) else found[part]
        return found


@dataclass
class Agent:
    """Knows no path: operations, links and schemas are those of the document."""

    url: str
    token: str
    document: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with urllib.request.urlopen(f"{self.url}/openapi.json", timeout=60) as answer:
            self.document = json.load(answer)
        (scheme,) = self.document["security"]
        described = self.document["components"]["securitySchemes"][next(iter(scheme))]
        assert (described["type"], described["scheme"]) == ("http", "bearer")

    def operation(self, name: str) -> tuple[str, str, dict[str, Any]]:
        for path, methods in self.document["paths"].items():
            for method, operation in methods.items():
                if operation["operationId"] == name:
                    return method.upper(), path, operation
        raise AssertionError(f"no operation {name}")

    def check(self, value: Any, schema: dict[str, Any]) -> None:
        whole = {**schema, "components": self.document["components"]}
        errors = [error.message for error in Draft202012Validator(whole).iter_errors(value)]
        assert errors == [], errors

    def open(self, name: str, given: dict[str, Any], body: Any) -> Any:
        method, path, operation = self.operation(name)
        query = {}
        for parameter in operation.get("parameters", []):
            value = given.get(parameter["name"])
            assert value is not None or not parameter["required"], parameter
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", quote(str(value), safe="/"))
            elif parameter["in"] == "query" and value is not None:
                query[parameter["name"]] = value
        data = None if method == "GET" else json.dumps(body or {}).encode()
        head = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        where = f"{self.url}{path}?{urlencode(query)}"
        return urllib.request.urlopen(
            urllib.request.Request(where, data, head, method=method), timeout=120
        )

    def call(self, operation_id: str, body: Any = None, **given: Any) -> Answer:
        operation = self.operation(operation_id)[2]
        try:
            with self.open(operation_id, given, body) as reply:
                status, media, data = reply.status, reply.headers.get_content_type(), reply.read()
        except urllib.error.HTTPError as error:
            status, media, data = error.code, error.headers.get_content_type(), error.read()
        contents = operation["responses"][str(status)].get("content", {})
        described = contents.get(media) or contents["*/*"]
        found = json.loads(data) if "json" in media else None
        if "*/*" not in contents and found is not None:
            self.check(found, described["schema"])
        return Answer(operation, given, status, media, found, data.decode("utf-8", "replace"))

    def follow(self, answer: Answer, name: str) -> Answer:
        link = answer.operation["responses"][str(answer.status)]["links"][name]
        given = {key: answer.value(text) for key, text in link["parameters"].items()}
        return self.call(link["operationId"], **given)

    def events(self, answer: Answer, name: str) -> Iterator[tuple[str, Any]]:
        link = answer.operation["responses"][str(answer.status)]["links"][name]
        operation = self.operation(link["operationId"])[2]
        assert "text/event-stream" in operation["responses"]["200"]["content"]
        given = {key: answer.value(text) for key, text in link["parameters"].items()}
        kind = ""
        with self.open(link["operationId"], given, None) as lines:
            for line in lines:
                head, _, value = line.decode().rstrip("\n").partition(": ")
                if head == "event":
                    kind = value
                elif head == "data":
                    yield kind, json.loads(value)


def walk(agent: Agent, body: dict[str, Any]) -> dict[str, str]:
    """Submit, follow, read and fetch; gives the job's files by name."""
    agent.check(body, {"$ref": "#/components/schemas/NewJob"})
    queued = agent.call("submitJob", body)
    assert queued.status == 202
    events = list(agent.events(queued, "events"))
    assert events[-1] == ("end", "SUCCEEDED"), events[-1]
    last = [data for kind, data in events if kind == "job"][-1]
    agent.check(last, {"$ref": "#/components/schemas/Job"})
    steps = [data for kind, data in events if kind == "step"]
    assert {"phase", "at", "candidate", "outcome", "value"} <= steps[0].keys()
    job = agent.follow(queued, "job")
    assert job.data["progress"]["done"] == job.data["progress"]["total"] == len(steps)
    assert agent.follow(job, "study").data["trials"] == len(steps)
    rows = agent.call("listTrials", name=job.data["progress"]["study"], limit=1000)
    assert (len(rows.data["trials"]), rows.data["next"]) == (len(steps), None)
    files = agent.follow(job, "artifacts")
    assert agent.follow(files, "artifact").status == 200
    names = [one["name"] for one in files.data["artifacts"]]
    return {
        name: agent.call("getArtifact", job_id=job.asked["job_id"], name=name).text
        for name in names
    }


def example(agent: Agent, name: str) -> dict[str, Any]:
    """A job as the document shows one."""
    body = agent.operation("submitJob")[2]["requestBody"]["content"]["application/json"]
    value: dict[str, Any] = body["examples"][name]["value"]
    return value


def test_a_program_finds_its_way_by_the_document_alone(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    served = Served(tmp_path / "root", SYNTHETIC)
    try:
        agent = Agent(served.url, served.token)
        body = example(agent, "kernels")
        for every in agent.operation("submitJob")[2]["requestBody"]["content"].values():
            for one in every["examples"].values():
                agent.check(one["value"], every["schema"])
        wrong = agent.call("submitJob", {"kind": "moe", "args": {"device": "gb11"}})
        assert (wrong.status, wrong.media) == (422, "application/problem+json")
        assert "did you mean gb10?" in wrong.data["detail"]
        files = walk(agent, body | {"args": body["args"] | {"study": "by the document"}})
        assert json.loads(files["winners.json"]) == {"done": True}
        for name in ("listJobs", "listStudies", "listDevices", "getMachine"):
            assert agent.call(name).status == 200
        assert len(agent.call("listTrials", name="by the document").data["trials"]) == TOTAL
        long = agent.call("submitJob", body | {"args": body["args"] | {"study": "stopped"}})
        assert agent.follow(long, "cancel").status == 202
        assert agent.call("getJob", job_id=99).status == 404
    finally:
        served.stop()


@pytest.mark.nightly
@pytest.mark.compile
def test_a_program_takes_a_predicted_file_home(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    space = (REPOSITORY / "tests" / "data" / "small-space.yaml").read_text()
    few = space.replace("[16, 32]", "[16]").replace("[32, 64]", "[64]")
    (tmp_path / "root" / "small.yaml").write_text(few.replace("[2, 3, 4, 5]", "[2, 3]"))
    served = Served(tmp_path / "root", REAL)
    try:
        agent = Agent(served.url, served.token)
        body = example(agent, "kernels")
        body["args"] |= {"batch_sizes": "1", "space": "small.yaml", "study": "walk"}
        plan = agent.call("validateJob", body)
        assert (plan.status, plan.data["plan"]["batch_sizes"]) == (200, [1])
        files = walk(agent, body)
        (name,) = [one for one in files if "device_name=NVIDIA_GB10" in one]
        assert json.loads(files[name])["1"]["BLOCK_SIZE_N"] > 0
        job = agent.call("getJob", job_id=1)
        report = agent.follow(job, "report").data
        assert report["basis"] == "predicted"
    finally:
        served.stop()
