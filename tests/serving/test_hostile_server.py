"""What a server may do to us: it ends in one line, in time, in little memory; nothing leaks."""

from __future__ import annotations

import base64
import json
import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from autotune.core import AutotuneError, BadInputError
from autotune.serving.measure.client import Load, run_load
from autotune.serving.measure.prompts import Prompt
from autotune.serving.parse import check_image
from autotune.serving.running.server import look, parse_url
from autotune.serving.server import web
from autotune.serving.server.launchers import UrlLauncher
from tests.serving import hostile_server
from tests.serving.hostile_server import redirect, response, serving, token

PROMPTS = (Prompt.of("a prompt that is nobody else's"),)
KEY = 'canary-"quoted"\\slashed-0123456789'
HEADERS = {"Authorization": f"Bearer {KEY}"}


def load_on(url: str, **changes: Any) -> Load:
    given = {"requests": 1, "concurrency": 1, "max_tokens": 8, "timeout_s": 3.0} | changes
    return Load(url, "served", PROMPTS, **given)


def error_of(url: str, **changes: Any) -> str:
    (error,) = run_load(load_on(url, **changes)).errors()
    assert error
    assert "\n" not in error
    error.encode()
    return error


# ------------------------------------------------------------------------------------------
# credentials follow redirects


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308, 399])
def test_no_redirect_is_followed(status: int) -> None:
    """Credentials follow redirects: to another host, with the key and the prompts."""
    with serving() as other, serving({"*": redirect(status, f"{other.url}/stolen")}) as server:
        said = error_of(server.url, headers=HEADERS)
        assert said == f"HTTP {status}: it redirects, and no redirect is followed"
        reply = web.fetch(f"{server.url}/health", 3.0, HEADERS)
        assert reply is not None
        assert reply.status == status
        with pytest.raises(BadInputError, match="redirects"):
            look(UrlLauncher(server.url, HEADERS), PROMPTS, None)
        assert other.seen == []
        assert server.seen[0].headers["authorization"] == HEADERS["Authorization"]


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/metrics"])
def test_no_later_redirect_is_followed_either(path: str) -> None:
    with serving() as other, serving({path: redirect(307, other.url)}) as server:
        if path == "/v1/models":
            with pytest.raises(BadInputError, match="redirects"):
                look(UrlLauncher(server.url, HEADERS), PROMPTS, None)
        else:
            look(UrlLauncher(server.url, HEADERS), PROMPTS, None)
        assert other.seen == []


def test_the_environment_names_no_proxy_and_no_credentials(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with serving() as proxy, serving() as server:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password canary\n")
        monkeypatch.setenv("NETRC", str(netrc))
        reply = web.fetch(f"{server.url}/health", 3.0)
        assert reply is not None
        assert not run_load(load_on(server.url)).errors()
        assert proxy.seen == []
        assert all("authorization" not in seen.headers for seen in server.seen)


# ------------------------------------------------------------------------------------------
# header secrets reach the database: masked after the cut, escaped echo not recognised


def forms() -> dict[str, str]:
    quoted = json.dumps(KEY)[1:-1]
    code = base64.b64encode(b"user:" + KEY.encode()).decode()
    return {
        "raw": KEY,
        "JSON": quoted,
        "JSON in JSON": json.dumps(quoted)[1:-1],
        "URL": quote(KEY, safe=""),
        "URL, small": quote(KEY, safe="").replace("%2", "%2").lower(),
        "base64": code,
        "base64 for URLs": code.replace("+", "-").replace("/", "_"),
        "hex": KEY.encode().hex(),
        "first half": KEY[: len(KEY) // 2],
        "second half": KEY[len(KEY) // 2 :],
        "HTML": KEY.replace('"', "&quot;"),
    }


def parts_of(text: str, size: int = 8) -> set[str]:
    return {text[i : i + size] for i in range(len(text) - size + 1)}


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize("offset", [0, 150, 280, 290, 299])
@pytest.mark.parametrize("where", ["HTTP 401", "in the stream"])
def test_no_echo_of_a_credential_is_kept(where: str, offset: int, form: str) -> None:
    """Header secrets reach the database: cut in two, or escaped."""
    said = "x" * offset + forms()[form] + " is not known"
    answer = response(said.encode(), "401 No")
    if where == "in the stream":
        answer = hostile_server.stream(token(), hostile_server.event({"error": {"message": said}}))
    with serving({"*": answer}) as server:
        error = error_of(server.url, headers=HEADERS)
    assert not parts_of(error) & parts_of(forms()[form])
    assert not parts_of(error) & parts_of(KEY)


def test_no_echo_of_a_credential_is_taken_for_an_answer() -> None:
    answer = hostile_server.answer_of(text=KEY, finish=KEY)
    with serving({"*": answer}) as server:
        (record,) = run_load(load_on(server.url, headers=HEADERS)).records
    assert KEY not in record.text + record.finish
    assert record.text == "***b"


# ------------------------------------------------------------------------------------------
# unbounded bodies, tracebacks on a server's answers

PATHS = ("/health", "/v1/models", "/v1/chat/completions", "*")


@pytest.mark.parametrize("name", hostile_server.TRANSPORT)
def test_transport(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unbounded bodies, and every other misbehaviour of transport, on every path."""
    # What never ends is not waited for; what ends is given the time of a busy machine.
    patience_s = 0.5 if name.startswith(("endless", "slow", "silence")) else 5.0
    monkeypatch.setattr("autotune.serving.running.server.LOOK_S", patience_s)
    answer = hostile_server.TRANSPORT[name]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with serving({"*": answer}) as server:
        try:
            result = run_load(load_on(server.url, timeout_s=patience_s, headers=HEADERS))
            assert result.errors() or result.records[0].output_tokens
            for error in result.errors():
                assert "\n" not in error
                assert len(error) <= 300
            reply = web.fetch(f"{server.url}/health", patience_s, HEADERS)
            assert reply is None or len(reply.text) <= web.BODY_LIMIT
            with pytest.raises(AutotuneError) as caught:
                look(UrlLauncher(server.url, HEADERS), PROMPTS, None)
            assert "\n" not in str(caught.value)
        finally:
            server.stopped.set()
    assert time.monotonic() - began < 60.0
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * 1024, f"{grown} KiB"  # ours and, in threads, the server's


@pytest.mark.parametrize(
    "url", ["http:/me:canary@h", "//me:canary@h", "me:canary@h:8", "http://me:canary@[h"]
)
def test_the_password_of_a_url_is_not_repeated(url: str) -> None:
    """Passwords of malformed URLs printed."""
    with pytest.raises(BadInputError) as caught:
        parse_url(url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("image", ["--privileged", "-v/:/host"])
def test_an_image_is_no_option(image: str) -> None:
    """Leading dash."""
    with pytest.raises(BadInputError, match="--image"):
        check_image(image, "--image")


# ------------------------------------------------------------------------------------------
# a connection that ends at each byte


def cut_at_each_byte(answer: bytes) -> hostile_server.Answer:
    """The n-th request gets the first n bytes of the answer, then a reset."""
    given = iter(range(len(answer) + 1))
    lock = threading.Lock()

    def send(peer: socket.socket, server: hostile_server.HostileServer) -> None:
        with lock:
            count = next(given, len(answer))
        reset = hostile_server.reset_after(answer[:count])
        assert callable(reset)
        reset(peer, server)

    return send


def test_a_stream_that_is_reset_at_each_byte_is_a_failed_request_or_a_whole_one() -> None:
    answer = hostile_server.answer_of()
    with serving({"/v1/chat/completions": cut_at_each_byte(answer)}) as server:
        began = time.monotonic()
        loads = [run_load(load_on(server.url, headers=HEADERS)) for _ in range(len(answer))]
        assert time.monotonic() - began < 300.0
    records = [record for load in loads for record in load.records]
    for record in records:
        if record.error:
            assert "\n" not in record.error
        else:
            assert (record.output_tokens, record.text) == (4, "ab")
    assert len([record for record in records if record.error]) > len(answer) // 2


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/metrics"])
def test_an_answer_that_is_reset_at_each_byte_is_none_or_whole(path: str) -> None:
    whole = hostile_server.HostileServer().good(path)
    body = whole.partition(b"\r\n\r\n")[2].decode()
    with serving({path: cut_at_each_byte(whole)}) as server:
        for _ in range(len(whole)):
            reply = web.fetch(server.url + path, 5.0, HEADERS)
            assert reply is None or reply.text == body


# ------------------------------------------------------------------------------------------
# what a server calls itself stays words


@pytest.mark.parametrize("name", ["markup", "ESC", "a newline", "right to left", "a path"])
def test_the_name_of_a_served_model_stays_words_in_every_report(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_process: Callable[..., tuple[int, str, str]],
) -> None:
    """report.md unescaped: model id with markup, newlines, ESC; terminal control characters."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "Q {i}"}}\n' for i in range(4)))
    answers: dict[str, hostile_server.Answer] = {
        "/v1/models": hostile_server.models_text(hostile_server.TEXTS[name])
    }
    with serving(answers) as server:
        load = "--prompts p.jsonl --concurrency 1 --repeats 2 --waves 1 --max-tokens 4 --study s"
        code, out, err = in_process(
            "spec", "--launcher", "url", "--url", server.url, *load.split(), "--no-ignore-eos"
        )
        again = [in_process(command, "s") for command in ("show", "report")]
    assert code in {0, 2}, err
    shown = out + err + "".join(said for one in again for said in one[1:])
    assert all(c.isprintable() or c in "\n\t" for c in shown)
    if code == 0:
        for path in tmp_path.rglob("report.*"):
            text = path.read_text()
            assert "<script>alert(1)" not in text
            assert not {"\x1b", "\x07", "\u202e"} & set(text)
        words = (tmp_path / "outputs/s/spec/report.md").read_text()
        assert "-->" not in words
        assert len([line for line in words.split("\n") if line.startswith("- Target: ")]) == 1


# ------------------------------------------------------------------------------------------
# numbers and texts of other kinds: tracebacks on a server's answers


@pytest.mark.parametrize("name", hostile_server.NUMBERS)
def test_a_count_that_is_none(name: str) -> None:
    """``usage`` that is a string, negative, NaN or huge; deep JSON."""
    number = hostile_server.NUMBERS[name]
    for field in ("prompt_tokens", "completion_tokens"):
        answers: dict[str, hostile_server.Answer] = {
            "/v1/chat/completions": hostile_server.usage_text(number, field)
        }
        with serving(answers) as server:
            (record,) = run_load(load_on(server.url)).records
        assert record.error or 0 <= record.output_tokens < 2**53
        assert "\n" not in record.error
    with serving({"/v1/models": hostile_server.models_text('"m"', number)}) as server:
        said = ""
        try:
            found = look(UrlLauncher(server.url), PROMPTS, None)
        except AutotuneError as error:
            said = str(error)
        else:
            assert found.context is None or 0 < found.context < 2**53
        assert "\n" not in said


@pytest.mark.parametrize("path", ["/v1/models", "/version"])
@pytest.mark.parametrize("name", hostile_server.TEXTS)
def test_a_name_that_is_none(name: str, path: str) -> None:
    """A model id with a lone surrogate dies after everything was measured."""
    text = hostile_server.TEXTS[name]
    answer = hostile_server.models_text(text)
    if path == "/version":
        answer = response(f'{{"version": {text}}}'.encode())
    with serving({path: answer}) as server:
        try:
            found = look(UrlLauncher(server.url), PROMPTS, None)
        except AutotuneError as error:
            said = str(error)
        else:
            said = f"{found.model} {found.version}"
    said.encode()
    assert len(said) < 2000
