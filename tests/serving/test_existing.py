"""A server that runs already: what it says of itself, what is measured, what is never written."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.serving.measure.client import Load, run_load
from autotune.serving.measure.prompts import Prompt
from autotune.serving.request import SpecRequest
from autotune.serving.running.job import make_existing_plan
from autotune.serving.running.server import is_exposed, look, parse_headers, parse_url
from autotune.serving.server.launchers import UrlLauncher, free_port
from autotune.serving.server.web import without_secrets
from tests.serving import fake_serving
from tests.serving.formula import Formula

pytestmark = pytest.mark.timing

SECRET = "sk-very-secret-0123456789"
PROMPTS = (Prompt.of("Q"),)


class Handler(fake_serving.Handler):
    """A vLLM as it may be met: behind a key, without metrics, without a chat template."""

    key: str | None = None
    closed: tuple[str, ...] = ()
    started = 1000.0
    refused: str | None = None
    salts: list[str]
    answered: int

    def do_GET(self) -> None:  # noqa: N802
        if self.path.startswith("/v1") and not self._knows_us():
            return
        if self.path in self.closed:
            self.answer(404, "not here")
        elif self.path == "/metrics":
            text = f"process_start_time_seconds {self.started}\n"
            self.answer(200, text + self.formula.counters.text())
        elif self.path == "/version":
            self.answer(200, '{"version": "0.32.0"}')
        else:
            models = [{"id": name, "max_model_len": 512} for name in ("served", "lora")]
            self.answer(200, json.dumps({"data": models}))

    def do_POST(self) -> None:  # noqa: N802
        if not self._knows_us():
            return
        if self.path in self.closed:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(400, "no chat template")
            return
        type(self).answered += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        salt = json.loads(body).get("cache_salt", "")
        self.salts.append(salt)
        if self.refused is not None and salt.startswith(self.refused):
            self.answer(500, "the engine is dead")
            return
        self.rfile = io.BytesIO(body)
        super().do_POST()

    def _knows_us(self) -> bool:
        given = self.headers.get("Authorization")
        if self.key is None or given == f"Bearer {self.key}":
            return True
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(401, f"{given} is not known")  # a server that repeats what it was sent
        return False


@contextmanager
def serving(gamma: int = 0, **given: Any) -> Iterator[tuple[str, type[Handler]]]:
    """The server's URL and its handler, which can be changed."""
    config = ["--speculative-config", json.dumps({"num_speculative_tokens": gamma})]
    formula = Formula({}, ["serve", "served", *(config if gamma else [])], {}, print)
    formula.factor = 0.3
    fields = {"formula": formula, "answered": 0, "salts": [], **given}
    handler = type("OneHandler", (Handler,), fields)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler
        finally:
            server.shutdown()
            thread.join()


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def autotune(run_in: Run) -> Run:
    load = ("--concurrency", "1,2", "--max-tokens", "8", "--waves", "1", "--repeats", "3")
    return lambda folder, *args, **env: run_in(
        folder, "spec", "--launcher", "url", *load, *args, **env
    )


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_it_is_measured_as_it_runs_and_once_while_it_runs(autotune: Run, tmp_path: Path) -> None:
    with serving(gamma=3) as (url, handler):
        ran = autotune(tmp_path, "--url", f"{url}/v1/")
        assert ran.returncode == 0, ran.stderr
        assert "speculation, gamma 3" in ran.stdout
        assert "one setting, as it runs" in ran.stdout
        assert "No verdict" not in ran.stdout
        answered = handler.answered

        again = autotune(tmp_path, "--url", url, "--json")
        document = json.loads(again.stdout)
        assert document["reused"]
        assert handler.answered == answered + 1  # the look, no load

        handler.started += 1.0  # the same URL, but another process
        document = json.loads(autotune(tmp_path, "--url", url, "--json").stdout)
        assert not document["reused"]
        assert handler.answered > answered + 10
    assert document["basis"] == "measured"
    assert (document["boots"], document["server"]["version"]) == (0, "0.32.0")
    assert document["server"]["model"] == "served"
    assert document["levels"]["2"]["tok_s"] > document["levels"]["1"]["tok_s"] > 0
    assert document["levels"]["1"]["reached"][0] > document["levels"]["1"]["reached"][2]
    assert "nothing is recommended" in document["note"]
    folder = tmp_path / "outputs" / "spec-served-as-served" / "spec"
    assert {"served.json", "report.md"} <= {path.name for path in folder.iterdir()}
    report = (folder / "report.md").read_text()
    assert "gamma 3" in report
    assert "## Acceptance" in report


def test_after_a_failure_what_was_measured_is_kept_and_the_rest_is_asked_again(
    autotune: Run, tmp_path: Path
) -> None:
    with serving(refused="0-2-1") as (url, handler):  # the second load at concurrency 2
        failed = autotune(tmp_path, "--url", url, "--json")
        assert failed.returncode == 4
        assert "could not be measured: a request failed: HTTP 500" in failed.stderr
        assert failed.stdout == ""
        handler.refused = None
        handler.salts.clear()
        ran = autotune(tmp_path, "--url", url, "--json")
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert not document["reused"]
    assert len(document["levels"]["2"]["repeats"]) == 3
    loads = {salt.rsplit("-", 2)[0] for salt in handler.salts if salt[:1].isdecimal()}
    assert loads == {"0-2-1", "0-2-2"}


@pytest.mark.parametrize("way", ["flag", "flag with =", "environment"])
def test_credentials_are_sent_and_written_nowhere(way: str, autotune: Run, tmp_path: Path) -> None:
    text = f"Authorization: Bearer {SECRET}"
    args = {"flag": ["--header", text], "flag with =": [f"--header={text}"], "environment": []}
    env = {"AUTOTUNE_HEADER": text} if way == "environment" else {}
    with serving(key=SECRET) as (url, _):
        ran = autotune(tmp_path, "--url", url, *args[way], **env)
    assert ran.returncode == 0, ran.stderr
    written = everything_in(tmp_path)
    assert b"spec-served-as-served" in written
    assert SECRET.encode() not in written
    assert SECRET not in ran.stdout + ran.stderr
    if way != "environment":
        assert b"***" in written  # the command is kept, without what is secret


def test_a_failure_that_repeats_the_credentials_is_told_without_them(
    autotune: Run, tmp_path: Path
) -> None:
    # It lets us look, then has another key: the load is refused with our own header in the answer.
    header = f"Authorization: Bearer {SECRET}"
    with serving(key=SECRET) as (url, handler):
        load = Load(url, "served", PROMPTS, 1, 1, 4, headers=parse_headers([header]))
        assert not run_load(load).errors()
        handler.key = "another"
        (error,) = run_load(load).errors()
        assert "401" in error
        assert SECRET not in error
        assert SECRET not in repr(load)
        assert SECRET not in repr(UrlLauncher(url, load.headers))
        ran = autotune(tmp_path, "--url", url, "--header", header)
    assert ran.returncode == 2
    assert "refuses these credentials" in ran.stderr
    assert SECRET not in ran.stderr
    assert without_secrets("a 1 b", {"X": "1"}) == "a 1 b"


def test_lengths_that_it_does_not_take_are_told_before_a_load() -> None:
    with serving() as (url, handler):
        asked = SpecRequest.model_validate({"launcher": "url", "url": url, "context": "200,1k"})
        with pytest.raises(BadInputError, match="--context 1k is longer than the 512 tokens that"):
            make_existing_plan(asked, [])
        assert handler.answered <= 1  # the look
        fits = SpecRequest.model_validate(
            {"launcher": "url", "url": url, "context": "200,512", "prompts": "chat,code"}
        )
        assert len(make_existing_plan(fits, []).scenario.slices) == 4


def test_what_is_closed_stays_unknown() -> None:
    with serving(closed=("/metrics", "/version", "/v1/chat/completions")) as (url, _):
        found = look(UrlLauncher(url), PROMPTS, "lora")
    assert (found.model, found.context, found.version, found.gamma) == ("lora", 512, None, None)
    assert not found.chat
    assert "unknown" in found.speculation
    with serving() as (url, _):
        found = look(UrlLauncher(url), PROMPTS, None)
    assert (found.gamma, found.chat, found.started) == (0, True, 1000.0)
    assert found.speculation == "no speculation"


def test_what_is_no_server_of_ours_is_one_line() -> None:
    with pytest.raises(MissingEnvironmentError, match="nobody answers"):
        look(UrlLauncher(f"http://127.0.0.1:{free_port()}"), PROMPTS, None)
    with serving() as (url, _), pytest.raises(BadInputError, match="serves served, lora, not gpt"):
        look(UrlLauncher(url), PROMPTS, "gpt")
    with serving(closed=("/health",)) as (url, _), pytest.raises(BadInputError, match="no vLLM"):
        look(UrlLauncher(url), PROMPTS, None)
    closed = ("/v1/chat/completions", "/v1/completions")
    with serving(closed=closed) as (url, _), pytest.raises(BadInputError, match="no request is"):
        look(UrlLauncher(url), PROMPTS, None)
    with serving(key="k") as (url, _), pytest.raises(BadInputError, match="without credentials"):
        look(UrlLauncher(url), PROMPTS, None)


def test_headers_and_urls() -> None:
    assert parse_headers(["X-Key:  a b ", "X-Key: c"]) == {"X-Key": "c"}
    for bad in ("", "no colon", "X-Key:", "bad name: x", "X: a\nb", "X: ü"):
        with pytest.raises(BadInputError, match="header") as caught:
            parse_headers([bad])
        assert not bad or bad not in str(caught.value)
    assert parse_url("https://h/v1") == "https://h/v1"
    for bad in ("h:8000", "ftp://h", "http://", "http://u:p@h", "http://h?key=1", "http://h:99999"):
        with pytest.raises(BadInputError, match="--url"):
            parse_url(bad)
    key = {"Authorization": "x"}
    assert is_exposed("http://10.0.0.1:80", key)
    assert not is_exposed("http://10.0.0.1:80", {})
    for safe in ("https://10.0.0.1", "http://127.0.0.1:1", "http://localhost", "http://[::1]:8"):
        assert not is_exposed(safe, key)
