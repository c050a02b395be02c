"""A service that is none of ours, asked by `autotune jobs` and `--server`: one line, no token."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving import hostile_server
from tests.serving.hostile_server import (
    Answer,
    HostileServer,
    redirect,
    response,
    serving,
    silence,
)
from tests.support.hostile_files import VALUES

TOKEN = "a-token-that-nobody-may-see-7Qx9"
Command = Callable[..., tuple[int, str, str]]
ACTIONS = (
    ["jobs", "list"],
    ["jobs", "show", "1"],
    ["jobs", "cancel", "1"],
    ["jobs", "logs", "1"],
    ["jobs", "logs", "1", "-f"],
    ["jobs", "wait", "1"],
    ["moe", "--device", "gb10", "--dry-run"],
    ["moe", "--device", "gb10", "--detach"],
)


def asked(
    in_process: Command, monkeypatch: pytest.MonkeyPatch, folder: Path, url: str, args: list[str]
) -> tuple[int, str]:
    monkeypatch.setenv("AUTOTUNE_TOKEN", TOKEN)
    monkeypatch.setattr("autotune.cli.remote.PATIENCE_S", 0.0)
    monkeypatch.setattr("autotune.cli.remote.LOOK_S", 0.01)
    monkeypatch.setattr("autotune.cli.remote._LOOK_TIMEOUT_S", 0.5)
    monkeypatch.setattr("autotune.cli.remote.MOST_LOG", 1 << 16)
    monkeypatch.chdir(folder)
    code, out, err = in_process(*args, "--server", url)
    assert TOKEN not in out + err
    assert "Traceback" not in err
    assert all(c.isprintable() or c in "\n\t" for c in out + err)
    return code, err


@pytest.mark.parametrize("args", ACTIONS, ids=" ".join)
def test_documents_of_another_shape_are_one_line(
    args: list[str], in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = [value for value in VALUES.values() if len(value) < 10_000]
    for number, value in enumerate(odd[::2]):
        bodies = (value, f'{{"jobs": {value}, "id": {value}, "state": {value}, "said": {value}}}')
        body = bodies[number % 2].encode()
        with serving({"*": response(body, "200 OK", "X-Next-Offset: " + "9" * 5000)}) as server:
            code, err = asked(in_process, monkeypatch, tmp_path, server.url, args)
        assert code in {0, 2, 3, 130}, err


@pytest.mark.parametrize("status", [301, 307, 308])
def test_the_token_follows_no_redirect(
    status: int, in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving() as other, serving({"*": redirect(status, f"{other.url}/x")}) as server:
        code, err = asked(in_process, monkeypatch, tmp_path, server.url, ["jobs", "list"])
        assert code == 3
        assert "no redirect is followed" in err
        assert other.seen == []
        assert server.seen[0].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("name", ["nothing", "zeros", "endless body", "gzip bomb", "a TLS alert",
                                  "bad chunk", "not UTF-8", "control characters"])  # fmt: skip
def test_transport_of_a_service(
    name: str, in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving({"*": hostile_server.TRANSPORT[name]()}) as server:
        code, err = asked(in_process, monkeypatch, tmp_path, server.url, ["jobs", "show", "1"])
        server.stopped.set()
    assert code in {2, 3}
    assert err.count("autotune: ") == 1


RUNNING = response(b'{"id": 1, "state": "RUNNING", "progress": null}')
FOLLOWING = (["jobs", "wait", "1"], ["jobs", "logs", "1", "-f"])


@pytest.mark.parametrize("args", FOLLOWING, ids=" ".join)
def test_a_service_that_falls_silent_is_not_waited_for_without_end(
    args: list[str], in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def once(peer: socket.socket, server: HostileServer) -> None:
        if len(server.seen) > 1:
            silence(peer, server)
        server.send(peer, RUNNING)

    with serving({"/api/v1/jobs/1": once, "*": silence}) as server:
        code, err = asked(in_process, monkeypatch, tmp_path, server.url, args)
        server.stopped.set()
    assert (code, err.count("\n")) == (3, 2)
    assert "the service does not answer (no answer within 0.5 s); its jobs go on" in err
    assert err.endswith("has not answered for 0 s (no answer within 0.5 s)\n")


@pytest.mark.parametrize("args", FOLLOWING, ids=" ".join)
def test_a_service_that_never_spoke_is_not_waited_for(
    args: list[str], in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving({"*": silence}) as server:
        code, err = asked(in_process, monkeypatch, tmp_path, server.url, args)
        server.stopped.set()
    assert (code, err.count("\n")) == (3, 1)
    assert "no answer within 0.5 s" in err


@pytest.mark.parametrize("follow", [[], ["-f"]])
def test_a_log_without_end_ends(
    follow: list[str], in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def more(peer: socket.socket, server: HostileServer) -> None:
        given = len(server.seen)
        server.send(peer, response(b"x" * 4096, "200 OK", f"X-Next-Offset: {given}"))

    answers: dict[str, Answer] = {"/api/v1/jobs/1": RUNNING, "*": more}
    with serving(answers) as server:
        args = ["jobs", "logs", "1", *follow]
        code, err = asked(in_process, monkeypatch, tmp_path, server.url, args)
    assert (code, "its log has no end" in err) == (3, True)


def test_a_state_that_no_job_has_ends_the_wait(
    in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving({"*": response(b'{"id": 1, "state": "NEVER", "progress": null}')}) as server:
        code, err = asked(in_process, monkeypatch, tmp_path, server.url, ["jobs", "wait", "1"])
    assert (code, "answers as no service of autotune does" in err) == (3, True)
    assert "a job's state is 'NEVER'" in err


def test_a_job_without_a_plan_shows_none(
    in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    progress = '{"study": null, "basis": null, "done": 0, "total": 0, "unit": null}'
    job = (
        f'{{"id": 1, "state": "STOPPING", "command": "c", "reason": "", "progress": {progress}, '
        '"kind": "moe", "name": "n"}'
    )
    monkeypatch.setenv("AUTOTUNE_TOKEN", TOKEN)
    with serving({"*": response(job.encode())}) as server:
        code, out, _ = in_process("jobs", "cancel", "1", "--server", server.url)
    assert (code, out) == (0, "job 1 is stopping\n  c\n")
