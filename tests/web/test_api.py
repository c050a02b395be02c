"""The interface for programs, against a service in this process with jobs that are made up."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from autotune.web import runner, stream
from autotune.web import service as services
from autotune.web.kinds import KINDS, OURS
from autotune.web.runner import Settings
from autotune.web.turns import Turns
from tests.support.synthetic_service import TOTAL, hold, release
from tests.web.conftest import Site

API = "/api/v1"


def test_a_job_from_the_request_to_its_files(running: Site) -> None:
    queued = running.submit(name="first", priority=3)
    assert queued["command"] == "autotune moe --device gb10 --study s"
    job = running.wait(queued["id"])
    assert (job["state"], job["exit_code"], job["name"]) == ("SUCCEEDED", 0, "first")
    progress = job["progress"]
    assert (progress["done"], progress["total"], progress["basis"]) == (TOTAL, TOTAL, "predicted")
    assert progress["best_so_far"] > 1
    assert [level["at"] for level in progress["levels"]] == ["M=1", "M=24"]
    base = f"{API}/jobs/{job['id']}"
    names = [a["name"] for a in running.client.get(f"{base}/artifacts").json()["artifacts"]]
    assert names == ["result.txt", "log.txt", "events.jsonl", "winners.json"]
    kept = running.client.get(f"{base}/artifacts/winners.json")
    assert kept.json() == {"done": True}
    assert kept.headers["content-disposition"].startswith("attachment")
    log = running.client.get(f"{base}/log")
    assert (log.text, log.headers["x-next-offset"]) == ("autotune: begins\n", "17")
    assert running.client.get(f"{base}/log?offset=10").text == "begins\n"
    assert running.client.get(f"{base}/log?offset=10&follow=true").text == "begins\n"
    trials = running.client.get(f"{API}/studies/s/trials?limit=50").json()
    rest = running.client.get(f"{API}/studies/s/trials?after={trials['next']}").json()
    assert (len(trials["trials"]), len(rest["trials"])) == (50, TOTAL - 50)
    assert rest["next"] is None
    table = running.client.get(f"{API}/studies/s/trials?format=csv").text
    assert len(table.splitlines()) == TOTAL + 1
    listed = running.client.get(f"{API}/studies").json()["studies"]
    assert [(s["study"]["name"], s["trials"]) for s in listed] == [("s", TOTAL)]
    assert running.client.get(f"{API}/studies/s").json()["study"]["kind"] == "moe"
    assert running.client.get(f"{API}/studies/none").status_code == 404


def events_of(text: str) -> list[tuple[str, str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        if fields:
            found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
    return found


def test_an_export_lists_the_files_that_it_wrote(site: Site) -> None:
    body = {"kind": "export", "args": {"study": "s", "to": "folder"}}
    job = site.client.post(f"{API}/jobs", json=body).json()["id"]
    (site.root / "s" / "export").mkdir(parents=True)
    (site.root / "s" / "export" / "E=8.json").write_text("{}")
    listed = site.client.get(f"{API}/jobs/{job}/artifacts").json()["artifacts"]
    assert listed == [{"name": "export/E=8.json", "bytes": 2}]
    assert site.client.get(f"{API}/jobs/{job}/artifacts/export/E=8.json").json() == {}


def test_events_are_resumed_where_a_reader_was(running: Site) -> None:
    job = running.submit()
    whole = events_of(running.client.get(f"{API}/jobs/{job['id']}/events").text)
    steps = [(place, event) for place, kind, event in whole if kind == "step"]
    assert len(steps) == TOTAL
    assert whole[-1][1:] == ("end", "SUCCEEDED")
    assert [e for _, kind, e in whole if kind == "job"][-1]["state"] == "SUCCEEDED"
    for last, place in ((steps[39][0], 40), ("999999999", 0), ("7", 0), ("x", 0)):
        again = running.client.get(
            f"{API}/jobs/{job['id']}/events", headers={"Last-Event-ID": last}
        )
        seen = [event for _, kind, event in events_of(again.text) if kind == "step"]
        assert seen == [event for _, event in steps[place:]]
    few = events_of(running.client.get(f"{API}/jobs/{job['id']}/events?tail=1000").text)
    assert 0 < sum(kind == "step" for _, kind, _ in few) < 10


def test_a_real_command_ends_in_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the service starts it, with nothing made up."""
    monkeypatch.setattr(runner, "subprocess", subprocess)
    site = Site(tmp_path, program=Settings.program)
    site.runner.start()
    (tmp_path / "E=8,N=256.json").write_text('{"1": {}}')
    body = {"kind": "verify", "args": {"files": ["E=8,N=256.json"]}}
    job = site.wait(site.client.post(f"{API}/jobs", json=body).json()["id"])
    assert (job["state"], job["exit_code"]) == ("SUCCEEDED", 1)  # what it flags is its answer
    told = site.client.get(f"{API}/jobs/{job['id']}/artifacts/result.txt").text
    assert "E=8,N=256.json" in told
    assert "error" in told
    site.close()


def test_a_refused_job_fails_with_the_line_of_the_command_line(running: Site) -> None:
    job = running.wait(running.submit(study="refused")["id"])
    assert (job["state"], job["exit_code"]) == ("FAILED", 2)
    assert job["reason"] == "no device 'x'; did you mean gb10?"


def test_cancel_saves_and_retry_goes_on(running: Site) -> None:
    hold(running.root, 6)
    job = running.submit()
    running.wait(job["id"], lambda j: (j["progress"] or {}).get("done", 0) > 5)
    stopping = running.client.post(f"{API}/jobs/{job['id']}:cancel", json={}).json()
    assert stopping["state"] == "STOPPING"
    cancelled = running.wait(job["id"])
    release(running.root)
    assert (cancelled["state"], cancelled["exit_code"]) == ("CANCELLED", 130)
    done = cancelled["progress"]["done"]
    assert 5 < done < TOTAL
    again = running.client.post(f"{API}/jobs/{job['id']}:retry", json={}).json()
    assert (again["state"], again["reason"]) == ("QUEUED", "")
    finished = running.wait(job["id"])
    assert (finished["state"], finished["attempt"]) == ("SUCCEEDED", 2)
    assert finished["progress"]["known_before"] >= done - 2
    assert finished["progress"]["done"] == TOTAL
    rows = running.client.get(f"{API}/studies/s/trials?limit=1000").json()["trials"]
    assert len({(r["workload"], r["phase"], r["sequence"]) for r in rows}) == len(rows) == TOTAL


def test_a_job_stops_at_its_time(running: Site) -> None:
    hold(running.root, 1)
    job = running.wait(running.submit(max_time="1s")["id"])
    assert (job["state"], job["reason"][:19]) == ("CANCELLED", "stopped at max_time")


def test_a_log_without_end_ends_the_job(tmp_path: Path) -> None:
    site = Site(tmp_path, most_log=5)
    site.runner.start()
    hold(site.root, 1)
    job = site.wait(site.submit()["id"])
    assert (job["state"], "log" in job["reason"]) == ("FAILED", True)
    site.close()


def test_what_waits_is_cancelled_without_a_start(site: Site) -> None:
    first, second = site.submit("a"), site.submit("b", priority=1)
    assert [site.job(job["id"])["place"] for job in (first, second)] == [2, 1]
    cancelled = site.client.post(f"{API}/jobs/{first['id']}:cancel", json={}).json()
    assert (cancelled["state"], cancelled["attempt"]) == ("CANCELLED", 0)
    assert site.client.post(f"{API}/jobs/{second['id']}:retry", json={}).status_code == 409
    assert site.client.delete(f"{API}/jobs/{second['id']}").status_code == 409
    assert site.client.delete(f"{API}/jobs/{first['id']}").status_code == 204
    assert site.client.get(f"{API}/jobs/{first['id']}").status_code == 404
    assert site.client.post(f"{API}/jobs/{first['id']}:cancel", json={}).status_code == 404
    third = site.submit("c")
    assert third["id"] == 3  # a number never comes back


def test_a_repeated_request_gives_the_same_job(site: Site) -> None:
    body = {"kind": "moe", "args": {"device": "gb10"}}
    key = {"Idempotency-Key": "k"}
    first = site.client.post(f"{API}/jobs", json=body, headers=key)
    again = site.client.post(f"{API}/jobs", json=body, headers=key)
    assert (first.json()["id"], again.status_code) == (again.json()["id"], 202)
    assert first.headers["location"] == f"{API}/jobs/{first.json()['id']}"
    other = site.client.post(f"{API}/jobs", json=body | {"priority": 1}, headers=key)
    assert (other.status_code, "was used for another job" in other.json()["detail"]) == (422, True)
    assert site.client.post(f"{API}/jobs", json=body).json()["id"] != first.json()["id"]
    long = site.client.post(f"{API}/jobs", json=body, headers={"Idempotency-Key": "k" * 201})
    assert long.status_code == 400


def test_jobs_are_listed_page_by_page(site: Site) -> None:
    made = [site.submit(f"s{n}")["id"] for n in range(5)]
    site.client.post(f"{API}/jobs/{made[0]}:cancel", json={})
    seen, cursor = [], None
    while True:
        more = f"&cursor={cursor}" if cursor else ""
        page = site.client.get(f"{API}/jobs?limit=2{more}").json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == made[::-1]
    queued = site.client.get(f"{API}/jobs?state=QUEUED&state=RUNNING").json()["jobs"]
    assert [job["id"] for job in queued] == made[:0:-1]
    assert site.client.get(f"{API}/jobs?kind=spec").json()["jobs"] == []
    for wrong in ("state=DONE", "limit=0", "limit=x", "cursor=x", "cursor=-1"):
        answer = site.client.get(f"{API}/jobs?{wrong}")
        assert (answer.status_code, answer.headers["content-type"]) == (
            422,
            "application/problem+json",
        )


WRONG: list[tuple[Any, int, str]] = [
    ({}, 422, "kind: expected one of moe"),
    ([], 400, "no JSON object"),
    ({"kind": "rm", "args": {}}, 422, "kind: expected one of"),
    ({"kind": "moe", "args": []}, 422, "args: expected an object"),
    ({"kind": "moe", "args": {}}, 422, "Missing option '--device'."),
    ({"kind": "moe", "args": {"device": "gb10", "tp": "x"}}, 422, "Invalid value for '--tp'"),
    ({"kind": "moe", "args": {"device": "gb10", "db": "x"}}, 422, "No such option: --db"),
    ({"kind": "moe", "args": {"device": "gb10"}, "shell": "x"}, 422, "shell: unknown"),
    ({"kind": "moe", "args": {}, "a\nb\x1b[2J": "x"}, 422, "a b?[2J: unknown"),
    ({"kind": "moe", "args": {"device": "gb10"}, "priority": 1e3}, 422, "priority: expected"),
    ({"kind": "moe", "args": {"device": "gb10"}, "priority": True}, 422, "priority: expected"),
    ({"kind": "moe", "args": {"device": "gb10"}, "name": "a\nb"}, 422, "name: expected a line"),
    ({"kind": "moe", "args": {"device": "gb10"}, "max_time": 5}, 422, "max_time 5: expected"),
    ({"kind": "moe", "args": {"device": "gb10"}, "gpus": 9}, 422, "gpus: expected"),
]


@pytest.mark.parametrize(("body", "status", "said"), WRONG, ids=str)
def test_a_wrong_job_is_one_line(site: Site, body: Any, status: int, said: str) -> None:
    for call in ("jobs", "jobs:validate"):
        answer = site.client.post(f"{API}/{call}", json=body)
        problem = answer.json()
        assert (answer.status_code, problem["status"]) == (status, status)
        assert said in problem["detail"]
        assert "\n" not in problem["detail"]
    assert site.store.jobs().page() == []


def test_a_refusal_names_the_field(site: Site) -> None:
    body = {"kind": "moe", "args": {"device": "gb10", "batch_sizes": "0"}}
    assert site.client.post(f"{API}/jobs", json=body).json()["field"] == "batch_sizes"
    body = {"kind": "verify", "args": {}}
    assert site.client.post(f"{API}/jobs", json=body).json()["field"] == "files"


NEVER: list[tuple[str, dict[str, Any], int, str]] = [
    ("moe", {"device": "auto"}, 409, "--device auto: nvidia-smi shows no GPU here"),
    ("moe", {"device": "gb10", "tp": 3}, 422, "--tp 3 does not divide"),
    ("moe", {"device": "gb10", "space": "none.yaml"}, 422, "none.yaml: cannot be read"),
    ("moe", {"device": "gb10", "study": "theirs"}, 422, "was made with another device"),
    ("spec", {"target": "none", "drafter": "ngram"}, 422, "no such folder, and not a hub id"),
    ("spec", {"target": ["none", "nor"], "drafter": "ngram"}, 422, "no such folder"),
    ("spec", {"target": "a/b", "set": "x=1", "drafter": "none", "gamma": "a"}, 422, "--gamma a"),
]


@pytest.mark.parametrize(("kind", "args", "status", "said"), NEVER, ids=str)
def test_what_no_moment_makes_right_is_not_queued(
    site: Site, kind: str, args: dict[str, Any], status: int, said: str
) -> None:
    site.store.study("theirs", "moe", {"device": "h100"})
    answer = site.client.post(f"{API}/jobs", json={"kind": kind, "args": args})
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    assert site.store.jobs().page() == []


def test_what_a_later_moment_may_make_right_is_queued(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any) -> None:
        raise AssertionError("the hub is not asked while a request waits")

    monkeypatch.setattr("autotune.kernels.moe.from_model.hub_file", asked)
    monkeypatch.setattr("autotune.serving.pair.checkpoint.hub_file", asked)
    for kind, args in (
        ("moe", {"device": "gb10", "model": "of/the-hub"}),
        ("moe", {"device": "gb10", "first": "from-an-earlier-job"}),
        ("spec", {"target": "of/the-hub", "drafter": "ngram"}),
        ("spec", {"target": ["none", "of/the-hub"], "drafter": "ngram"}),
        ("spec", {"target": "of/the-hub", "gamma": "0", "moe_config": "default,from-a-job"}),
    ):
        answer = site.client.post(f"{API}/jobs", json={"kind": kind, "args": args})
        assert answer.status_code == 202, answer.text


def test_a_repeated_request_is_not_looked_at_again(site: Site) -> None:
    body = {"kind": "moe", "args": {"device": "gb10", "study": "s"}}
    key = {"Idempotency-Key": "k"}
    first = site.client.post(f"{API}/jobs", json=body, headers=key).json()["id"]
    site.store.study("s", "moe", {"device": "h100"})
    assert site.client.post(f"{API}/jobs", json=body, headers=key).json()["id"] == first
    assert site.client.post(f"{API}/jobs", json=body).status_code == 422


def test_few_expensive_calls_run_at_once_and_the_others_hold_no_thread() -> None:
    running, most, go = [], [], threading.Event()

    def call(number: int) -> int:
        running.append(number)
        most.append(len(running))
        go.wait(60)
        running.remove(number)
        return number

    async def calls() -> list[Any]:
        turns, impatient = Turns(2, waiting=3), Turns(1, patience_s=0.01)
        first = [asyncio.create_task(turns.run(call, n)) for n in range(6)]
        short = [asyncio.create_task(impatient.run(call, n)) for n in (8, 9)]
        await asyncio.wait(short, return_when=asyncio.FIRST_COMPLETED)
        with anyio.fail_after(60):
            while len(running) < 3:  # a thread that is had need not have begun
                await asyncio.sleep(0.001)
        assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 3
        go.set()
        return await asyncio.gather(*first, *short, return_exceptions=True)

    *done, full, left, late = asyncio.run(calls())
    assert (done, left, max(most)) == ([0, 1, 2, 3, 4], 8, 3)
    assert (full.status, "3 wait already" in full.detail) == (503, True)
    assert (late.status, "no turn within 0.01 s" in late.detail) == (503, True)


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b'{"a": NaN}', b"[" * 100_000, b"\xff"])
def test_what_is_no_json_is_one_line(site: Site, text: bytes) -> None:
    head = {"Content-Type": "application/json"}
    answer = site.client.post(f"{API}/jobs", content=text, headers=head)
    assert (answer.status_code, answer.json()["title"]) == (400, "Bad Request")


def test_too_many_jobs_are_refused(site: Site) -> None:
    site.service.limits = services.Limits(queued=1)
    site.submit("a")
    answer = site.client.post(f"{API}/jobs", json={"kind": "moe", "args": {"device": "gb10"}})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")


def test_too_many_streams_are_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    job = site.submit()
    site.service.limits = services.Limits(streams=0)
    answer = site.client.get(f"{API}/jobs/{job['id']}/events")
    assert (answer.status_code, "too many streams" in answer.json()["detail"]) == (503, True)
    assert site.service.streams == 0


def test_a_stream_of_a_service_that_stops_ends(site: Site) -> None:
    job = site.submit()
    site.service.stopping = True
    assert site.client.get(f"{API}/jobs/{job['id']}/events").text == ""
    assert site.client.get("/readyz").status_code == 503
    assert stream.LOOK_S <= 1


def test_the_plan_is_what_the_command_line_says(site: Site) -> None:
    body = {"kind": "moe", "args": {"device": "gb10", "batch_sizes": "1,8", "predict": True}}
    answer = site.client.post(f"{API}/jobs:validate", json=body).json()
    assert answer["command"] == "autotune moe --device gb10 --batch-sizes 1,8 --predict"
    assert answer["plan"]["batch_sizes"] == [1, 8]
    assert any("Plan " in line for line in answer["said"])
    body = {"kind": "moe", "args": {"device": "gb11"}}
    refused = site.client.post(f"{API}/jobs:validate", json=body)
    assert (refused.status_code, refused.json()["exit_code"]) == (422, 2)
    assert refused.json()["detail"].startswith("no device 'gb11'; did you mean gb10?")
    assert refused.json()["field"] == "device"
    queued = site.client.post(f"{API}/jobs", json=body)
    assert (queued.status_code, queued.json()) == (422, refused.json())
    files = {"kind": "files", "args": {"model": "gemma-4-26b-a4b", "device": "gb10"}}
    assert site.client.post(f"{API}/jobs:validate", json=files).json()["plan"] is None
    assert site.store.jobs().page() == []


def test_the_document_holds_the_schemas_of_the_requests(site: Site) -> None:
    document = site.stranger().get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for kind, request in KINDS.items():
        args = schemas[f"{kind.title()}Args"]
        assert args["properties"].keys() == request.model_fields.keys() - OURS - {"command"}
        assert not args["additionalProperties"]
    assert len(schemas["NewJob"]["oneOf"]) == len(KINDS)
    assert "/api/v1/jobs:validate" in document["paths"]


def test_every_operation_says_what_it_answers_and_every_link_leads_somewhere(site: Site) -> None:
    document = site.stranger().get("/openapi.json").json()
    listed = [one for path in document["paths"].values() for one in path.values()]
    operations = {one["operationId"]: one for one in listed}
    assert len(operations) == len(listed)
    links = 0
    for name, one in operations.items():
        (code,) = one["responses"].keys() & {"200", "202", "204"}
        answer = one["responses"][code]
        for content in answer.get("content", {}).values():
            assert content["schema"] or name in {"healthz", "readyz", "getMetrics"}, name
        assert answer["description"] != "Successful Response", name
        for link in answer.get("links", {}).values():
            wanted = {p["name"] for p in operations[link["operationId"]]["parameters"]}
            assert link["parameters"].keys() <= wanted
            links += 1
    assert links > 5
    schemas = document["components"]["schemas"]
    shown = site.submit()
    assert shown.keys() == schemas["Job"]["properties"].keys() | {"idempotency_key", "stop"}


def test_probes_and_figures(running: Site) -> None:
    assert running.stranger().get("/healthz").json()["status"] == "ok"
    assert running.stranger().get("/readyz").status_code == 200
    running.wait(running.submit()["id"])
    text = running.client.get("/metrics").text
    assert 'autotune_jobs{state="SUCCEEDED"} 1.0' in text
    counted = [line for line in text.splitlines() if line.startswith("autotune_trials_total{")]
    assert sum(float(line.split()[-1]) for line in counted) == TOTAL


def test_devices(site: Site) -> None:
    known = site.client.get(f"{API}/devices").json()["known"]
    assert "gb10" in {device["name"] for device in known}
    assert site.client.get(f"{API}/doctor?device=../x.yaml").status_code == 422


def test_a_database_that_stays_locked_is_said_and_passes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autotune.core import MissingEnvironmentError

    def locked(*_: Any) -> None:
        raise MissingEnvironmentError("a.db: stayed locked by another process")

    monkeypatch.setattr(site.service.jobs, "add", locked)
    answer = site.client.post(f"{API}/jobs", json={"kind": "moe", "args": {"device": "gb10"}})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "stayed locked" in answer.json()["detail"]
