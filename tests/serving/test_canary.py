"""A canary in every flag, variable and header that can hold a secret; it is found nowhere.

Tokens in clear in files made to be shared; header secrets in the database; a server's log.
"""

from __future__ import annotations

import base64
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from autotune.util import secret
from tests.serving import fake_serving
from tests.serving.fake_docker import IMAGE
from tests.serving.test_launching import LOAD, SMALL, Docker, docker
from tests.serving.tiny_models import TinyModels

__all__ = ["docker"]

CANARY = 'Kanarie"nvogel\\&7Qx9Zp2Lw'
"""With characters that every format escapes in its own way."""
PLAIN = "Kanarienvogel7Qx9Zp2LwVt5"
SPY = """\
#!/bin/sh
{ printenv; echo "$@"; } >> "$SPY_FOLDER/seen"
tr '\\0' '\\n' < /proc/$$/cmdline >> "$SPY_FOLDER/argv"
ps -eo args >> "$SPY_FOLDER/argv"
printenv
echo "ERROR token=$HF_TOKEN other=$MY_SECRET_VALUE"
exec %s %s "$@"
"""


def traces(value: str) -> set[bytes]:
    """The forms of a secret that must not be found, and its halves."""
    once = json.dumps(value)[1:-1]
    code = base64.b64encode(value.encode()).decode().rstrip("=")
    half = len(value) // 2
    forms = [value, once, json.dumps(once)[1:-1], quote(value, safe=""), shlex.quote(value)]
    forms += [code[:-2], value[:half], value[half:], value.encode().hex()]
    return {form.encode() for form in forms}


def found_in(folder: Path, value: str) -> list[str]:
    return [
        f"{path}: {trace!r}"
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
        for trace in traces(value)
        if trace in path.read_bytes()
    ]


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_spec(run_in: Run, spied: Path) -> Run:
    def command(folder: Path, args: list[str], **env: str) -> subprocess.CompletedProcess[str]:
        (folder / "p.jsonl").write_text("".join(f'{{"prompt": "Q {i}"}}\n' for i in range(5)))
        given = ["--prompts", "p.jsonl", *LOAD.split(), "--study", "d", SMALL, *args]
        return run_in(folder, "spec", *given, SPY_FOLDER=str(spied), **env)

    return command


@pytest.fixture
def spied(tmp_path: Path) -> Path:
    folder = tmp_path / "spied"
    folder.mkdir()
    return folder


def program(tmp_path: Path) -> Path:
    """A ``vllm`` that logs all that it was given, and notes it where we do not search."""
    place = tmp_path / "spy"
    fake = Path(fake_serving.__file__)
    place.write_text(SPY % (sys.executable, fake))
    place.chmod(0o755)
    return place


WAYS: dict[str, dict[str, list[str]]] = {
    "env": {
        "MY_SECRET_VALUE": ["--env", f"MY_SECRET_VALUE={CANARY}"],
        "HF_TOKEN": [f"--env=HF_TOKEN={CANARY}"],
        "apiKey": ["--env", f"apiKey={CANARY}"],
        "DB_PASSWORD": ["--env", f"DB_PASSWORD={CANARY}"],
        "HTTPS_PROXY": ["--env", f"HTTPS_PROXY=http://me:{PLAIN}@127.0.0.1:9"],
        "CONF": ["--env", f"CONF={json.dumps({'api_key': CANARY})}"],
    },
    "hf-token": {"HF_TOKEN": [f"--server-arg=--hf-token {shlex.quote(CANARY)}"]},
    "hf_token=": {"HF_TOKEN": [f"--server-arg=--hf_token={shlex.quote(CANARY)}"]},
    "among others": {"HF_TOKEN": ["--server-arg", f"--max-num-seqs 4 --hf-token {PLAIN} --seed 1"]},
}
"""Variables that the server must find, and the flags that give them."""
OFTEN = ("env", "hf_token=")
"""One of each way; how a flag may be written otherwise is for the night."""


@pytest.mark.timing
@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=() if way in OFTEN else pytest.mark.nightly) for way in WAYS],
)
def test_a_server_gets_its_secret_and_nothing_else_does(
    way: str, run_spec: Run, tmp_path: Path, spied: Path, tiny_models: TinyModels
) -> None:
    args = [word for words in WAYS[way].values() for word in words]
    work = tmp_path / "work"
    work.mkdir()
    given = ["--target", str(tiny_models.qwen3), "--drafter", "ngram", "--gamma", "0,2"]
    given += ["--vllm", str(program(tmp_path)), "--image", IMAGE, "--json"]
    ran = run_spec(work, [*given, *args])
    assert ran.returncode == 0, ran.stderr
    for value in (PLAIN, CANARY):
        for trace in traces(value):
            assert trace.decode() not in ran.stdout + ran.stderr
        assert found_in(work, value) == []
        # Nobody got it as an argument.
        ours = [line for line in (spied / "argv").read_text().splitlines() if "pytest" not in line]
        assert not [line for line in ours if value in line]
    seen = (spied / "seen").read_text().splitlines()
    (document,) = json.loads(f"[{ran.stdout}]")
    line = document["best"]["serve"]
    names = {piece[2:-1] for piece, known in secret.split(line) if known}
    assert len(names) == len(WAYS[way])
    head = line.split(" serve ")[0].replace(str(program(tmp_path)), "printenv #")
    env = {"PATH": os.environ["PATH"], "SPY_FOLDER": str(spied)}
    shown = subprocess.run(
        ["sh", "-c", head], env=env | dict.fromkeys(names, CANARY), capture_output=True, check=True
    ).stdout.decode()
    # Files name the variable, so that they work where it is set.
    assert line in (work / "outputs/d/spec/serve.sh").read_text()
    compose = yaml.safe_load((work / "outputs/d/spec/compose.yaml").read_text())
    for variable, words in WAYS[way].items():
        value = PLAIN if PLAIN in str(words) else CANARY
        is_json = variable == "CONF"
        (got,) = {one for one in seen if one.startswith(f"{variable}=")}
        assert value in got or is_json
        assert variable == "HTTPS_PROXY" or is_json or f"{variable}={CANARY}" in shown
        written = json.dumps(compose["services"]["vllm"]["environment"][variable])
        assert any(f"${{{name}}}" in written for name in names)
        assert "$$" not in written
    if way == "env":
        the_same_study_goes_on_with_a_reference(run_spec, work, given)


def the_same_study_goes_on_with_a_reference(run_spec: Run, work: Path, given: list[str]) -> None:
    """In place of each value; where it is not set, that is said."""
    others = {name: words for name, words in WAYS["env"].items() if name != "MY_SECRET_VALUE"}
    again = [*given, "--env", "MY_SECRET_VALUE=${MY_SECRET_VALUE}"]
    again += [word for words in others.values() for word in words]
    before = boots(work)
    resumed = run_spec(work, again, MY_SECRET_VALUE=CANARY)
    assert resumed.returncode == 0, resumed.stderr
    assert "begins anew" not in resumed.stderr
    assert searches(work) == 1
    assert boots(work) >= before
    missing = run_spec(work, again)
    assert missing.returncode == 3
    assert "${MY_SECRET_VALUE} is not set; export MY_SECRET_VALUE" in missing.stderr


def searches(work: Path) -> int:
    with sqlite3.connect(work / "outputs/autotune.db") as connection:
        return int(connection.execute("SELECT count(*) FROM searches").fetchone()[0])


def boots(work: Path) -> int:
    with sqlite3.connect(work / "outputs/autotune.db") as connection:
        return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])


DOCKER_WAYS: dict[str, list[str]] = {
    "APART_TOKEN": ["--docker-arg", f"-e APART_TOKEN={PLAIN}"],
    "JOINED_TOKEN": ["--docker-arg", f"-eJOINED_TOKEN={PLAIN}"],
    "EQUAL_TOKEN": [f"--docker-arg=--env=EQUAL_TOKEN={PLAIN}"],
    "LONG_TOKEN": ["--docker-arg", f"--shm-size 1g --env LONG_TOKEN={PLAIN}"],
    "OUR_TOKEN": ["--env", f"OUR_TOKEN={PLAIN}"],
    "HF_TOKEN": ["--server-arg", f"--hf-token {PLAIN}"],
}


@pytest.mark.timing
def test_a_container_gets_its_secrets_from_dockers_environment(
    docker: Docker, tmp_path: Path, tiny_models: TinyModels
) -> None:
    given = ["--target", str(tiny_models.qwen3), "--drafter", "ngram", "--gamma", "0,2"]
    ran = docker.tune(*given, *(word for words in DOCKER_WAYS.values() for word in words))
    assert ran.returncode == 0, ran.stderr
    assert PLAIN not in ran.stdout + ran.stderr
    assert found_in(tmp_path, PLAIN) == []  # docker's arguments are among the files here
    before, _, after = (tmp_path / "outputs/d/spec/serve.sh").read_text().rpartition("docker run")
    (first,) = docker.servers[:1]
    for name in DOCKER_WAYS:
        assert f'{name}="${{{name}}}"' in before.splitlines()[-1]
        assert name in after
        assert f"-e{name}" in first or f"--env={name}" in first or name in first
