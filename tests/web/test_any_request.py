"""Any request that the OpenAPI document describes, and some that it does not: never a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.web import service as services
from autotune.web.kinds import KINDS, schema_of
from tests.web.conftest import TOKEN, Site


@pytest.fixture(scope="module")
def any_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("any"))
    site.submit("known")
    (site.root / "jobs" / "1").mkdir(parents=True)
    (site.root / "jobs" / "1" / "log.txt").write_text("said\n")
    yield site
    site.close(0)


TEXTS = st.one_of(
    st.sampled_from(["", "0", "1", "gb10", "auto", "-1", "../x", "a\0b", "1%", "2h", "s:/x", "é"]),
    st.text(max_size=12),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=2)),
    max_leaves=4,
)
SETTINGS = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def args_of(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from([*schema_of(kind)["properties"], "another"])
    return st.dictionaries(names, VALUES, max_size=4)


BODIES = st.sampled_from(sorted(KINDS)).flatmap(
    lambda kind: st.fixed_dictionaries(
        {"kind": st.just(kind), "args": args_of(kind)},
        optional={"name": VALUES, "priority": VALUES, "max_time": VALUES, "gpus": VALUES},
    )
)


def check(answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    assert TOKEN not in answer.text
    if answer.status_code >= 400:
        problem = answer.json()
        assert problem["status"] == answer.status_code
        assert problem["detail"]
        assert "\n" not in problem["detail"]
        assert "Traceback" not in answer.text


@SETTINGS
@given(body=st.one_of(BODIES, VALUES))
def test_any_job_is_queued_or_one_line(any_site: Site, body: Any) -> None:
    any_site.service.limits = services.Limits(queued=10_000)
    try:
        text = json.dumps(body).encode()
    except UnicodeEncodeError:
        return
    head = {"Content-Type": "application/json"}
    check(any_site.client.post("/api/v1/jobs", content=text, headers=head))


@SETTINGS
@given(text=st.binary(max_size=200))
def test_any_bytes_are_no_job(any_site: Site, text: bytes) -> None:
    head = {"Content-Type": "application/json"}
    answer = any_site.client.post("/api/v1/jobs", content=text, headers=head)
    assert 400 <= answer.status_code < 500


def operations() -> list[tuple[str, str]]:
    site_paths = [
        *("/jobs", "/jobs/{id}", "/jobs/{id}:cancel", "/jobs/{id}:retry", "/jobs/{id}/log"),
        *("/jobs/{id}/artifacts", "/jobs/{id}/artifacts/{name}", "/studies", "/studies/{name}"),
        *("/studies/{name}/trials", "/studies/{name}/report", "/studies/{name}/compare"),
        *("/devices", "/machine"),
    ]
    return [(m, p) for p in site_paths for m in ("GET", "POST", "DELETE")]


def test_the_operations_below_are_those_of_the_document(any_site: Site) -> None:
    document = any_site.client.get("/openapi.json").json()
    described = {p.replace("job_id", "id") for p in document["paths"] if p.startswith("/api")}
    own = {f"/api/v1{path}" for _, path in operations()}
    slow = {"/api/v1/jobs:validate", "/api/v1/jobs/{id}/events", "/api/v1/doctor"}
    assert described == own | slow


QUERIES = st.dictionaries(
    st.sampled_from(["state", "kind", "limit", "cursor", "offset", "after", "format", "with", "x"]),
    TEXTS,
    max_size=3,
)


@SETTINGS
@given(
    operation=st.sampled_from(operations()),
    number=st.one_of(st.integers(), TEXTS),
    name=TEXTS,
    query=QUERIES,
    head=st.dictionaries(
        st.sampled_from(["Last-Event-ID", "Idempotency-Key", "Range", "Accept", "X-A"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
        max_size=2,
    ),
)
def test_any_request_is_answered_without_an_error_of_ours(
    any_site: Site,
    operation: tuple[str, str],
    number: Any,
    name: str,
    query: dict[str, str],
    head: dict[str, str],
) -> None:
    method, path = operation
    parts = {"{id}": quote(str(number), safe=""), "{name}": quote(name, safe="")}
    for place, value in parts.items():
        path = path.replace(place, value)
    body: dict[str, Any] | None = {} if method == "POST" else None
    answer = any_site.client.request(
        method, f"/api/v1{path}", params=query, headers=head, json=body
    )
    assert answer.status_code < 500, answer.text
    assert TOKEN not in answer.text
