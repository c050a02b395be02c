"""Who may come in: a test for each line of docs/explanation/service-threats.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cli import requests
from autotune.core import BadInputError
from autotune.store.records import JobState
from autotune.util.request import Request, extra
from autotune.util.secret import Secret
from autotune.web import stream
from autotune.web.gate import BODY_LIMIT, Names
from autotune.web.kinds import KINDS, OURS, parse
from autotune.web.policy import ForbiddenError, Policy, parse_allow
from autotune.web.token import COOKIE, COOKIE_S, Doorman, make_token, read_token
from tests.web.conftest import TOKEN, Site

API = "/api/v1"
BODY = {"kind": "moe", "args": {"device": "gb10"}}


# ---------------------------------------------------------------------------------- who asks


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer "},
        {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1"},
        {"Cookie": f"{COOKIE}=9999999999.x.y"},
        {"Cookie": f"{COOKIE}={TOKEN}"},
        {"Cookie": f"{COOKIE}="},
    ],
    ids=str,
)
def test_nothing_is_done_or_told_without_the_token(site: Site, headers: dict[str, str]) -> None:
    site.submit()
    stranger = site.stranger()
    for method, path in (
        ("GET", f"{API}/jobs"),
        ("GET", f"{API}/jobs/1/log"),
        ("GET", "/metrics"),
        ("POST", f"{API}/jobs"),
        ("POST", f"{API}/jobs/1:cancel"),
        ("DELETE", f"{API}/jobs/1"),
    ):
        json = BODY if method == "POST" else None
        answer = stranger.request(method, path, json=json, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert TOKEN not in answer.text
    assert [job.state for job in site.store.jobs().page()] == ["QUEUED"]


def test_the_token_stands_in_no_url(site: Site) -> None:
    answer = site.stranger().get(f"{API}/jobs?token={TOKEN}&access_token={TOKEN}")
    assert answer.status_code == 401


def test_a_cookie_is_ours_and_ends(tmp_path: Path) -> None:
    now, place = 1e9, tmp_path / "sessions"
    doorman = Doorman(Secret(TOKEN), lambda: now, place)
    cookie = doorman.cookie()
    assert doorman.accepts(cookie)
    assert TOKEN not in cookie
    until, nonce, signature = cookie.split(".")
    assert not doorman.accepts(f"{int(until) + 1}.{nonce}.{signature}")
    assert not Doorman(Secret(f"{TOKEN}2"), lambda: now, place).accepts(cookie)
    assert Doorman(Secret(TOKEN), lambda: now, place).accepts(cookie), "a restart ends no session"
    assert place.stat().st_mode & 0o777 == 0o600
    now += COOKIE_S + 1
    assert not doorman.accepts(cookie)


def test_a_kept_cookie_is_worth_nothing_after_logging_out(site: Site) -> None:
    browser = site.stranger()
    given = browser.post(
        "/login",
        content=f"token={TOKEN}",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    kept = {"Cookie": f"{COOKIE}={given.cookies[COOKIE]}"}
    assert site.stranger().get(f"{API}/jobs", headers=kept).status_code == 200
    assert site.stranger().get("/logout").status_code == 401, "a stranger ends no session"
    assert site.stranger().get(f"{API}/jobs", headers=kept).status_code == 200
    assert site.stranger().get("/logout", headers=kept).status_code == 303
    assert site.stranger().get(f"{API}/jobs", headers=kept).status_code == 401
    assert site.client.get(f"{API}/jobs").status_code == 200, "the token itself stays good"


class Leaving(Doorman):
    """Its session ends while a stream is open."""

    asked = 0

    def accepts(self, cookie: str) -> bool:
        self.asked += 1
        if self.asked == 4:
            self.log_out()
        return super().accepts(cookie)


@pytest.mark.parametrize("what", ["events", "log?follow=true"])
def test_a_stream_ends_with_its_session(
    site: Site, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, doorman = site.submit(), Leaving(Secret(TOKEN), lambda: 1e9, site.root / ".others")
    monkeypatch.setattr(site.app, "_doorman", doorman)
    monkeypatch.setattr(stream, "LOOK_S", 0.01)
    kept, path = {"Cookie": f"{COOKIE}={doorman.cookie()}"}, f"{API}/jobs/{job['id']}/{what}"
    answer = site.stranger().get(path, headers=kept)  # of a job that waits: nothing else ends it
    assert (answer.status_code, doorman.asked) == (200, 4)
    assert site.stranger().get(path, headers=kept).status_code == 401


@given(st.text(max_size=80))
def test_no_text_is_a_cookie_or_the_token(text: str) -> None:
    doorman = Doorman(Secret(TOKEN), lambda: 0.0, Path("/dev/null/sessions"))
    assert not doorman.accepts(text)
    assert not doorman.knows(text)


# ---------------------------------------------------------------------------------- from where


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8077", True),
        ("LOCALHOST:8077", True),
        ("[::1]:8077", True),
        ("127.0.0.1", False),
        ("127.0.0.1:80", False),
        ("evil.example:8077", False),
        ("127.0.0.1.evil.example:8077", False),
        ("localhost.:8077", False),
        ("", False),
        ("127.0.0.1:8077@evil.example", False),
        ("192.168.1.5:8077", False),
    ],
)
def test_a_name_of_another_site_is_refused(host: str, known: bool) -> None:
    names = Names(8077, frozenset({"127.0.0.1", "localhost", "::1"}))
    assert names.knows(host) is known
    assert names.knows_origin(f"http://{host}") is known
    everywhere = Names(8077, frozenset({"spark"}), any_address=True)
    assert everywhere.knows("192.168.1.5:8077")
    assert not everywhere.knows("evil.example:8077")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "file://"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://testserver"}, 202),
    ],
    ids=str,
)
def test_another_site_changes_nothing(site: Site, headers: dict[str, str], status: int) -> None:
    answer = site.client.post(f"{API}/jobs", json=BODY, headers=headers)
    assert answer.status_code == status
    read = site.client.get(f"{API}/jobs", headers=headers)
    assert read.status_code == (200 if status == 202 else status)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"]
)
def test_what_a_form_can_send_is_refused(site: Site, media: str) -> None:
    head = {"Content-Type": media}
    assert site.client.post(f"{API}/jobs", content=b"{}", headers=head).status_code == 415
    assert site.client.post(f"{API}/jobs/1:cancel", content=b"", headers=head).status_code == 415


@pytest.mark.parametrize("method", ["PUT", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_do_nothing(site: Site, method: str) -> None:
    answer = site.client.request(method, f"{API}/jobs", headers={"X-HTTP-Method": "POST"})
    assert answer.status_code == 405
    hidden = site.client.get(f"{API}/jobs", headers={"X-HTTP-Method-Override": "DELETE"})
    assert hidden.status_code == 200


@pytest.mark.parametrize("name", ["Host", "Origin", "Authorization", "Content-Type"])
def test_a_header_that_decides_comes_once(site: Site, name: str) -> None:
    value = {"Host": "testserver", "Origin": "http://testserver"}.get(name, "x")
    answer = site.client.get(f"{API}/jobs", headers=[(name, value), (name, value)])
    assert (answer.status_code, "given twice" in answer.json()["detail"]) == (400, True)


def test_a_body_has_a_size(site: Site) -> None:
    head = {"Content-Type": "application/json"}
    large = b'{"a": "' + b"x" * BODY_LIMIT + b'"}'
    assert site.client.post(f"{API}/jobs", content=large, headers=head).status_code == 413

    def parts() -> Any:
        for _ in range(40):
            yield b"x" * 65536

    assert site.client.post(f"{API}/jobs", content=parts(), headers=head).status_code == 413
    wrong = head | {"Content-Length": "-1"}
    assert site.client.post(f"{API}/jobs", content=b"{}", headers=wrong).status_code == 413


def test_every_answer_says_what_a_browser_may_do(site: Site) -> None:
    for path in (f"{API}/jobs", "/healthz", "/nowhere", "/static/none.js"):
        headers = site.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


# ---------------------------------------------------------------------------------- which files


@pytest.mark.parametrize(
    "name",
    [
        "../../autotune.db",
        "..%2f..%2fautotune.db",
        "%2e%2e/%2e%2e/autotune.db",
        "/etc/passwd",
        "..\\..\\autotune.db",
        "log.txt/../../../serve.token",
        "log.txt%00",
        "lock",
        "",
    ],
)
def test_no_name_leads_out_of_a_job(site: Site, name: str) -> None:
    job = site.submit()
    folder = site.root / "jobs" / str(job["id"])
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("said")
    (folder / "lock").write_text("")
    assert site.client.get(f"{API}/jobs/{job['id']}/artifacts/log.txt").text == "said"
    answer = site.client.get(f"{API}/jobs/{job['id']}/artifacts/{name}")
    assert answer.status_code in {404, 422} or name == ""  # clients make other paths of some
    assert "SQLite" not in answer.text
    assert "autotune.db" not in answer.text


def test_a_link_among_the_files_of_a_study_is_not_followed_out(site: Site, tmp_path: Path) -> None:
    job = site.submit()
    site.store.jobs().change(job["id"], {JobState.QUEUED}, progress={"study": "s"})
    (site.root / "s").mkdir()
    (site.root / "s" / "own.json").write_text("{}")
    (site.root / "s" / "passwd").symlink_to("/etc/passwd")
    found = site.client.get(f"{API}/jobs/{job['id']}/artifacts").json()["artifacts"]
    assert "own.json" in [one["name"] for one in found]
    assert "passwd" not in [one["name"] for one in found]
    assert site.client.get(f"{API}/jobs/{job['id']}/artifacts/passwd").status_code == 404


def test_a_page_among_the_files_is_of_no_site(site: Site) -> None:
    job = site.submit()
    site.store.jobs().change(job["id"], {JobState.QUEUED}, progress={"study": "s"})
    (site.root / "s").mkdir()
    (site.root / "s" / "report.html").write_text("<script>alert(1)</script>")
    answer = site.client.get(f"{API}/jobs/{job['id']}/artifacts/report.html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts")
    assert "allow-same-origin" not in policy


# ---------------------------------------------------------------------------------- what jobs do

SPEC = {"target": "org/model", "drafter": "ngram"}
FORBIDDEN: list[tuple[str, dict[str, Any]]] = [
    ("moe", {"device": "/etc/x.yaml"}),
    ("moe", {"device": "gb10", "model": "/root/models"}),
    ("moe", {"device": "gb10", "model": "../models"}),
    ("moe", {"device": "gb10", "model": "a/../../b"}),
    ("moe", {"device": "gb10", "space": "/dev/zero"}),
    ("moe", {"device": "gb10", "space": "~/space.yaml"}),
    ("moe", {"device": "gb10", "routing": "/etc/passwd"}),
    ("moe", {"device": "gb10", "launcher": "docker", "image": "evil/image"}),
    ("spec", SPEC | {"vllm": "rm -rf /"}),
    ("spec", SPEC | {"env": ["LD_PRELOAD=/tmp/x.so"]}),
    ("spec", SPEC | {"server_arg": ["--middleware evil.module"]}),
    ("spec", SPEC | {"server_arg": ["--max-model-len 4096 --trust-remote-code"]}),
    ("spec", SPEC | {"server_arg": ["--chat-template=/etc/passwd"]}),
    ("spec", SPEC | {"set": ["tool-parser-plugin=/tmp/x.py"]}),
    ("spec", SPEC | {"target": "/models/x"}),
    ("spec", SPEC | {"target": "s3://bucket/x"}),
    ("spec", SPEC | {"prompts": "/etc/passwd"}),
    ("spec", SPEC | {"moe_config": "default,/etc"}),
    ("spec", SPEC | {"quality": "/tmp/task.yaml"}),
    ("spec", SPEC | {"launcher": "docker", "image": "evil/image"}),
    ("spec", {"launcher": "url", "url": "http://169.254.169.254/latest"}),
    ("verify", {"files": ["/etc/passwd"]}),
    ("compare", {"first": "a.json", "second": "/etc/passwd"}),
    ("export", {"study": "s", "to": "folder", "dest": "/tmp/x"}),
    ("export", {"study": "s", "to": "vllm", "repo": "/root/vllm"}),
    ("explain", {"log": "-"}),
    ("explain", {"log": "/proc/self/environ"}),
    ("files", {"model": "/etc", "device": "gb10"}),
]


@pytest.mark.parametrize(("kind", "args"), FORBIDDEN, ids=str)
def test_what_the_operator_has_not_allowed_is_refused(
    tmp_path: Path, kind: str, args: dict[str, Any]
) -> None:
    with pytest.raises(ForbiddenError) as refused:
        Policy(tmp_path).check(parse(kind, args))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        ("moe", {"device": "gb10", "model": "org/model", "space": "own.yaml", "tp": 2}),
        ("moe", {"device": "auto", "routing": "zipf:1.1", "study": "a b"}),
        ("spec", SPEC | {"server_arg": ["--max-model-len 4096 --enforce-eager"]}),
        ("spec", SPEC | {"set": ["max-num-seqs=8,16"], "prompts": "chat", "gamma": "0-4"}),
        ("export", {"study": "s", "to": "folder", "dest": "here"}),
    ],
    ids=str,
)
def test_what_is_harmless_goes(tmp_path: Path, kind: str, args: dict[str, Any]) -> None:
    Policy(tmp_path).check(parse(kind, args))


def test_the_operator_may_allow_more(tmp_path: Path) -> None:
    fields = {name for kind in KINDS.values() for name in kind.model_fields}
    allow = parse_allow(["env=VLLM_*", "--server-arg=--load-format *", "target=org/*"], fields)
    more = tmp_path / "models"
    policy = Policy(tmp_path / "root", (more,), allow)
    policy.check(parse("spec", SPEC | {"env": ["VLLM_X=1"], "server_arg": ["--load-format dummy"]}))
    policy.check(parse("moe", {"device": "gb10", "model": str(more / "m")}))
    for args in (SPEC | {"target": "other/m"}, SPEC | {"env": ["VLLM_X=1", "PATH=x"]}):
        with pytest.raises(ForbiddenError):
            policy.check(parse("spec", args))
    for wrong in ("env", "env=", "nothing=x", "=x"):
        with pytest.raises(BadInputError, match="expected FLAG=PATTERN"):
            parse_allow([wrong], fields)


def test_a_link_does_not_lead_out_of_the_roots(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to("/etc")
    with pytest.raises(ForbiddenError):
        Policy(tmp_path / "root").check(parse("moe", {"device": "gb10", "model": "link"}))


def test_credentials_do_not_come_over_the_network(tmp_path: Path) -> None:
    policy = Policy(tmp_path, allow={"env": ("*",), "url": ("*",)})
    for args in (
        SPEC | {"env": ["HF_TOKEN=hf_secret"]},
        {"launcher": "url", "url": "http://h", "header": ["Authorization: x"]},
    ):
        with pytest.raises(BadInputError, match="credentials do not come") as refused:
            policy.check(parse("spec", args))
        assert "hf_secret" not in str(refused.value)
    policy.check(parse("spec", SPEC | {"env": ["HF_TOKEN=${HF_TOKEN}"]}))


PLAIN = {
    "moe": {"layer", "batch_sizes", "gamma", "concurrency", "effort", "budget", "sampler"},
    "spec": {"gamma", "kv_cache_dtype", "gpu_memory_utilization", "concurrency", "objective"},
    "export": {"base", "branch", "signoff", "min_gain", "model_name", "cuda", "ai_assistance"},
    "compare": {"study", "batch_sizes"},
    "verify": set(),
    "files": {"moe_backend"},
    "explain": set(),
}
PLAIN["moe"] |= {"dtype", "scheme", "min_gain", "memory_limit", "study", "launcher", "gpus"}
PLAIN["spec"] |= {"quality_tolerance", "quality_timeout", "slo", "min_gain", "budget", "launcher"}
PLAIN["spec"] |= {"synthetic_acceptance", "gpus", "start_timeout", "request_timeout", "study"}
PLAIN["spec"] |= {"capture_sizes", "confirm", "soak", "context"}
PLAIN["export"] |= {"study", "to", "serve_study"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_is_a_place_the_operators_or_known_to_be_plain(kind: str) -> None:
    """A new flag that takes text has to say what it reaches, or be listed here."""
    schema = KINDS[kind].model_json_schema()["properties"]
    unsaid = set()
    for name, field in KINDS[kind].declared():
        said = extra(field)
        paths = "path" in str(schema[name].get("anyOf", schema[name]))
        texts = "'string'" in str(schema[name])
        if texts and not paths and name not in OURS and not said.get("secret"):
            if said.get("reach") is None:
                unsaid.add(name)
            else:
                assert said["reach"] in {"place", "operator"}
    assert unsaid == PLAIN[kind]


def test_no_kind_is_a_shell() -> None:
    assert requests.Serve not in KINDS.values()
    assert all(issubclass(kind, Request) for kind in KINDS.values())


# ---------------------------------------------------------------------------------- the token


def test_a_token_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "serve.token"
    made = make_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(made.reveal()) >= 32
    assert make_token(path) == made


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("x" * 40, 0o644, "other users can read"),
        ("x" * 40, 0o620, "other users can read"),
        ("short", 0o600, "expected one line of 16"),
        ("two words and more of them", 0o600, "space"),
        ("x" * 600, 0o600, "expected one line"),
        ("ü" * 40, 0o600, "expected one line"),
        ("", 0o600, "expected one line"),
    ],
)
def test_a_token_that_others_know_or_guess_is_refused(
    tmp_path: Path, text: str, mode: int, said: str
) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(BadInputError) as refused:
        read_token(path)
    assert said in str(refused.value)
    assert not text or text not in str(refused.value)


def test_a_token_file_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(BadInputError):
            read_token(path)
