"""A canary in every other place that can hold a secret, searched in all that a command leaves.

Headers of a running server that repeats them, and flags that are refused with a secret in them;
the database, reports, tables, mirror, events, terminal and process list.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.cli import COMMANDS
from autotune.report.optuna_mirror import mirror
from autotune.store.store import Store
from autotune.util.request import extra
from tests.serving import hostile_server
from tests.serving.hostile_server import HostileServer, serving
from tests.serving.test_canary import CANARY, PLAIN, found_in, traces

Command = Callable[..., tuple[int, str, str]]


def echo(peer: socket.socket, server: HostileServer) -> None:
    """Answer as a vLLM that repeats the credentials that it got wherever it can say anything."""
    seen = server.seen[-1]
    key = seen.headers.get("authorization", "") + seen.headers.get("x-api-key", "")
    twice = json.dumps(json.dumps(key))[1:-1]
    code = base64.b64encode(f"user:{key}".encode()).decode()
    said = f"{key} {twice} {code} {key[: len(key) // 2]} {key.encode().hex()}"
    if seen.path == "/v1/models":
        models = {"data": [{"id": "served", "max_model_len": 512, "owned_by": said}]}
        server.send(peer, hostile_server.response(json.dumps(models).encode()))
    elif seen.path == "/version":
        version = json.dumps({"version": f"0.32.0+{said}"[:200]})
        server.send(peer, hostile_server.response(version.encode()))
    elif seen.path == "/metrics":
        server.send(peer, hostile_server.response(f"# {said}\n{hostile_server.METRICS}".encode()))
    elif len(server.seen) % 7 == 0:
        server.send(peer, hostile_server.response(said.encode(), "500 No"))
    else:
        server.send(peer, hostile_server.answer_of(text=said))


@pytest.mark.parametrize("way", ["flags", "variable"])
def test_a_header_is_found_nowhere(
    way: str, tmp_path: Path, run_in: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Header secrets reach the database, though "written nowhere"."""
    basic = "Basic " + base64.b64encode(f"me:{PLAIN}".encode()).decode()
    monkeypatch.delenv("AUTOTUNE_HEADER", raising=False)
    if way == "variable":
        monkeypatch.setenv("AUTOTUNE_HEADER", f"Authorization: Bearer {PLAIN}")
    flags = {
        "flags": [f"--header=Authorization: {basic}", "--header", f"X-Api-Key: {PLAIN}"],
        "variable": [],
    }[way]
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "Q {i}"}}\n' for i in range(4)))
    load = "--prompts p.jsonl --concurrency 1,2 --repeats 2 --waves 2 --max-tokens 4 --study s"
    said = ""
    with serving({"*": echo}) as server:
        command = ["spec", "--launcher", "url", "--url", server.url, *flags]
        for args in (
            [*command, *load.split(), "--no-ignore-eos", "--json", "--events", "events.jsonl"],
            ["report", "s", "--json"],
            ["show", "s", "--json"],
            ["show", "s", "--to", "trials.csv"],
            ["studies"],
        ):
            ran = run_in(tmp_path, *args)
            said += ran.stdout + ran.stderr
        assert any(PLAIN in str(seen.headers) for seen in server.seen)
    assert (tmp_path / "outputs/autotune.db").exists(), said
    with Store.open(f"sqlite:///{tmp_path}/outputs/autotune.db", create=False) as store:
        detail = store.get_study("s")
        trials = {search.id: store.dated_trials(search) for search in detail.searches}
    mirror([(detail, trials)], tmp_path / "outputs/dashboard.journal")
    assert found_in(tmp_path, PLAIN) == []
    assert not [trace for trace in traces(PLAIN) if trace.decode() in said]
    if way == "flags":
        assert found_in(tmp_path, basic.removeprefix("Basic ")) == []


REFUSED = (
    ["spec", "--launcher", "url", "--url", f"http://me:{PLAIN}@127.0.0.1:9/x y"],
    ["spec", "--launcher", "url", "--url", f"http//me:{PLAIN}@h"],
    ["spec", "--launcher", "url", "--url", "http://127.0.0.1:9", "--header", PLAIN],
    ["spec", "--launcher", "url", "--url", "http://127.0.0.1:9", "--header", f"X: {PLAIN}\n"],
    ["spec", "--target", "none", "--gamma", "0", "--server-arg", f"--api-key {PLAIN}"],
    ["spec", "--target", "none", "--gamma", "0", f"--server-arg=--api-key={PLAIN}"],
    ["spec", "--target", "none", "--gamma", "0", "--server-arg", f"--hf-token '{PLAIN}"],
    ["spec", "--target", "none", "--gamma", "0", "--env", f"VLLM_API_KEY={PLAIN}"],
    ["spec", "--target", "none", "--gamma", "0", "--env", f"1_TOKEN={PLAIN}"],
    ["spec", "--target", "none", "--gamma", "0", "--env", PLAIN],
    ["spec", "--target", "none", "--gamma", "0", "--set", f"hf-token={PLAIN},{PLAIN}"],
    ["spec", "--target", "none", "--gamma", "0", "--set", f"api-key={PLAIN}"],
    ["spec", "--target", "none", "--gamma", "0", "--vllm", f"nothing --token {PLAIN}"],
    ["spec", "--target", "none", "--gamma", "0", "--docker-arg", f"-e TOKEN={PLAIN}"],
    ["spec", "--target", "none", "--gamma", "0", "--launcher", "docker", "--image", "none",
     "--docker-arg", f"-e TOKEN={PLAIN} '"],
    ["moe", "--device", "gb10", "--launcher", "docker", "--docker-arg", f"-e TOKEN={PLAIN} '",
     "--image", "none"],
    ["moe", "--device", "gb10", "--docker-arg", f"-e TOKEN={PLAIN}"],
    ["studies", "--db", f"postgresql://me:{PLAIN}@127.0.0.1/x"],
    ["studies", "--db", f"postgresql//me:{PLAIN}@127.0.0.1/x"],
)  # fmt: skip


@pytest.mark.parametrize("args", REFUSED, ids=lambda args: " ".join(args)[-50:].replace(PLAIN, "…"))
def test_a_refusal_does_not_repeat_what_it_refuses(
    args: list[str], tmp_path: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passwords of malformed URLs printed."""
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(*args)
    assert code in {2, 3}
    assert not [trace for trace in traces(PLAIN) if trace.decode() in out + err], err
    assert found_in(tmp_path, PLAIN) == []


def test_every_flag_that_can_hold_a_secret_is_known_here() -> None:
    """A new one must come into the tests of this file, or of ``test_canary.py``."""
    held = {
        request.flag_name(name)
        for request, _ in COMMANDS
        for name, field in request.declared()
        if extra(field).get("secret") or extra(field).get("sensitive")
    }
    assert held == {"--header", "--server-arg", "--env", "--docker-arg"}


def test_variables_with_secrets_stand_in_no_file(
    tmp_path: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model's folder that is called like a token of the environment is masked everywhere."""
    monkeypatch.setenv("HF_TOKEN", PLAIN)
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process("files", f"org/{PLAIN}", "--device", "gb10")
    assert code in {2, 3}
    assert PLAIN not in out + err
    assert re.search(r"\*\*\*", err)


def test_nothing_of_ours_runs_with_a_secret_in_its_arguments() -> None:
    """The traces that this file leaves in the process list are of commands that have ended."""
    own = psutil.Process().children(recursive=True)
    for process in own:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends meanwhile, or has ended
            words = process.cmdline()
            assert not [word for word in words if CANARY in word or PLAIN in word]
