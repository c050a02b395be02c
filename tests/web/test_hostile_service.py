"""A service that is none of ours, asked by `autotune jobs` and `--server`: one line, no token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving import hostile_server
from tests.serving.hostile_server import redirect, response, serving
from tests.support.hostile_files import VALUES

TOKEN = "a-token-that-nobody-may-see-7Qx9"
Command = Callable[..., tuple[int, str, str]]
ACTIONS = (
    ["jobs", "list"],
    ["jobs", "show", "1"],
    ["jobs", "cancel", "1"],
    ["jobs", "logs", "1"],
    ["moe", "--device", "gb10", "--dry-run"],
    ["moe", "--device", "gb10", "--detach"],
)


def asked(
    in_process: Command, monkeypatch: pytest.MonkeyPatch, folder: Path, url: str, args: list[str]
) -> tuple[int, str]:
    monkeypatch.setenv("AUTOTUNE_TOKEN", TOKEN)
    monkeypatch.setattr("autotune.cli.remote.PATIENCE_S", 0.0)
    monkeypatch.setattr("autotune.cli.remote.LOOK_S", 0.01)
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
