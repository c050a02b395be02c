"""What keeps the service from starting, each in one line, and what it says when it starts."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from autotune.cli.requests import Serve
from autotune.core import BadInputError
from autotune.util import lockfile
from autotune.web.runner import Settings
from autotune.web.serve import is_loopback, names_of

Command = Callable[..., tuple[int, str, str]]


def start(in_process: Command, folder: Path, *args: str) -> tuple[int, str]:
    places = ("--root", str(folder / "out"), "--db", f"sqlite:///{folder}/a.db")
    code, out, err = in_process("serve", "--port", "0", *places, *args)
    assert out == ""
    assert err.count("\n") == 1, err
    return code, err


def test_another_address_demands_a_token_file(tmp_path: Path, in_process: Command) -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "spark"):
        code, said = start(in_process, tmp_path, "--host", host)
        assert (code, "needs --token-file FILE" in said) == (2, True)


def test_what_cannot_be_used_is_one_line(tmp_path: Path, in_process: Command) -> None:
    weak = tmp_path / "token"
    weak.write_text("x" * 40)
    weak.chmod(0o644)
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for args, said in (
        (("--token-file", str(weak)), "other users can read"),
        (("--token-file", str(tmp_path / "none")), "cannot be read"),
        (("--allow", "nothing"), "expected FLAG=PATTERN"),
        (("--allow-path", str(tmp_path / "none")), "no such folder"),
        (("--patience", "soon"), "--patience soon: expected a time"),
        (("--root", str(in_the_way)), "file"),
        (("--db", "postgres://h/x"), "only SQLite"),
    ):
        code, found = start(in_process, tmp_path, *args)
        assert (code, said in found) == (2, True), found


def test_a_port_that_is_taken_is_named(tmp_path: Path, in_process: Command) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        code, said = start(in_process, tmp_path, "--port", port)
    assert (code, f"port {port} of 127.0.0.1: Address already in use" in said) == (2, True)


def test_a_missing_package_is_named(
    tmp_path: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "uvicorn" else real(name, *a)
    )
    code, said = start(in_process, tmp_path)
    assert (code, "pip install '.[serve]'" in said) == (3, True)


def test_the_names_of_a_service() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "127.0.0.9", "::1", "localhost")] == [True] * 4
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "spark"))
    own = socket.gethostname().lower()
    assert own not in names_of(Serve())
    wide = names_of(Serve.model_validate({"host": "0.0.0.0", "host_name": ["Spark.Example"]}))
    assert {own, f"{own}.local", "spark.example"} <= wide


@pytest.mark.parametrize("name", ["out/serve.lock", "a.db.serve.lock"])
def test_two_services_do_not_share_a_place(name: str, tmp_path: Path, in_process: Command) -> None:
    (tmp_path / "out").mkdir()
    with lockfile.hold(tmp_path / name, datetime.now(UTC), BadInputError):
        code, said = start(in_process, tmp_path)
    assert (code, "serves here already" in said) == (2, True)


def test_what_the_operator_says_reaches_the_queue(
    tmp_path: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Settings] = []

    def no_queue(_: object, settings: Settings, __: object) -> None:
        made.append(settings)
        raise BadInputError("enough")

    monkeypatch.setattr("autotune.web.serve.Runner", no_queue)
    start(in_process, tmp_path)
    start(in_process, tmp_path, "--no-resume", "--predictions", "3")
    assert [(one.resume, one.capacity.predictions) for one in made] == [(True, 1), (False, 3)]
    assert made[0].program[1:] == ("-m", "autotune.web.child")
