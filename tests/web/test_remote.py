"""``autotune jobs`` and ``--server``: the same command, run at a service, ends here as it would."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotune.cli import remote
from autotune.cli.remote import Remote
from autotune.core import BadInputError
from tests.support.commands import BAD, MISSING, Command, check
from tests.support.synthetic_service import TOTAL, hold, release
from tests.web.served import REPOSITORY, Served, reached

pytestmark = pytest.mark.kill


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("far") / "root"
    root.mkdir()
    made = Served(root)
    yield made
    if made.process.poll() is None:
        made.stop()


@pytest.fixture
def far(
    served: Served, in_process: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Command:
    """The command line in this process, with the service's token."""
    monkeypatch.setenv("AUTOTUNE_TOKEN", served.token)
    monkeypatch.setattr(remote, "LOOK_S", 0.05)
    monkeypatch.chdir(tmp_path)
    return lambda *args: in_process(*args, "--server", served.url)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "AUTOTUNE_TOKEN": "", **more}


@contextmanager
def started(served: Served, *args: str) -> Iterator[subprocess.Popen[str]]:
    """The same in a process of its own; it reads what that said on stderr up to now."""
    with subprocess.Popen(
        [sys.executable, "-m", "autotune", *args, "--server", served.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(AUTOTUNE_TOKEN=served.token),
    ) as process:
        yield process


def until_said(process: subprocess.Popen[str], words: str) -> str:
    """Read its stderr up to the line with these words."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


MOE = ("moe", "--device", "gb10", "--study")
DONE = '{"done": true}\n'


def test_a_command_runs_there_and_ends_here(served: Served, far: Command, tmp_path: Path) -> None:
    code, out, err = far(*MOE, "far")
    assert (code, out) == (0, DONE)
    assert "autotune: begins\n" in err
    assert not list(tmp_path.iterdir())  # nothing was written here
    (study,) = [s for s in served.call("GET", "/studies")["studies"] if s["study"]["name"] == "far"]
    assert study["trials"] == TOTAL


def test_its_exit_code_and_its_last_line_are_the_jobs(far: Command) -> None:
    code, out, err = far(*MOE, "refused")
    assert (code, out) == (2, "")
    assert err.endswith("autotune: no device 'x'; did you mean gb10?\n")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--model", "/root/m"), "outside of what jobs may read"),
        (("--out", "x"), "--out: the service has its own"),
        (("--tp", "0", "--batch-sizes", "0"), "--batch-sizes 0: expected 1"),
    ],
)
def test_what_the_service_refuses_is_one_line(
    more: tuple[str, ...], said: str, far: Command
) -> None:
    check(far(*MOE, "s", *more), BAD, said)


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(
    served: Served, far: Command, tmp_path: Path
) -> None:
    hold(served.root, 2)
    terminal, end_of_process = pty.openpty()  # where a bar is drawn, and ^C echoed
    token = tmp_path / "my token"
    token.write_text(served.token)
    where = f"--server {served.url} --token-file '{token}'"
    process = subprocess.Popen(
        [sys.executable, "-m", "autotune", *MOE, "left", *shlex.split(where)],
        stderr=end_of_process,
        text=True,
        env=environment(COLUMNS="200"),
    )
    os.close(end_of_process)
    said = ""
    while "/58" not in said:  # it is followed
        said += os.read(terminal, 4096).decode()
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 4096):
            said += part.decode()
    os.close(terminal)
    assert process.wait(120) == 130
    found = served.call("GET", "/jobs")["jobs"]
    (job,) = (one["id"] for one in found if one["args"].get("study") == "left")
    lines = said.splitlines()
    assert lines[-3] == f"autotune: detached; job {job} goes on"
    assert lines[-2] == f"  attach again: autotune jobs logs {job} -f {where}"
    assert lines[-1] == f"  end it:       autotune jobs cancel {job} {where}"
    assert "what is finished is saved" not in said  # which is about work of this machine
    release(served.root)
    code, out, err = far("jobs", "logs", str(job), "-f")
    assert (code, out) == (0, DONE)
    assert "autotune: begins" in err


def test_a_service_that_comes_back_is_waited_for(served: Served) -> None:
    hold(served.root, 2)
    with started(served, *MOE, "patient") as process:
        until_said(process, "autotune: begins")
        served.stop()
        until_said(process, "does not answer")
        release(served.root)
        served.start()
        out, said = process.communicate(timeout=180)
    assert (process.returncode, out) == (0, DONE), said


def test_jobs_are_submitted_listed_shown_and_cancelled(
    served: Served, far: Command, tmp_path: Path
) -> None:
    hold(served.root, 2)
    file = tmp_path / "job.json"
    body = {"kind": "moe", "args": {"device": "gb10", "study": "mine"}, "name": "[b]mine[/b]"}
    file.write_text(json.dumps(body))
    job = far("jobs", "submit", str(file))[1].strip()
    shown = json.loads(far("jobs", "show", job, "--json")[1])
    assert (shown["name"], shown["args"]["study"]) == ("[b]mine[/b]", "mine")
    assert "[b]mine[/b]" in far("jobs", "list")[1]
    assert "autotune moe --device gb10" in far("jobs", "show", job)[1]
    waiting = str(served.submit("last", priority=-1))
    code, out, _ = far("jobs", "cancel", waiting)
    assert (code, "is cancelled" in out) == (0, True)
    late = far("jobs", "wait", job, "--max-wait", "0.1s")
    assert late[:2] == (3, "")
    assert f"autotune: job {job} has not ended within 0.1 s, and goes on; wait" in late[2]
    assert far("jobs", "wait", waiting)[:2] == (130, "")
    served.wait(int(job), reached(1))
    assert far("jobs", "logs", job)[1] == "autotune: begins\n"
    code, detached, _ = far(*MOE, "mine", "--detach")
    assert (code, detached.strip().isdecimal()) == (0, True)
    release(served.root)
    assert far("jobs", "wait", detached.strip())[0] == 0
    check(far("jobs", "show", "999"), BAD, "no job 999")


def test_a_plan_can_be_asked_for_there(far: Command) -> None:
    code, out, err = far("moe", "--device", "gb10", "--batch-sizes", "1", "--dry-run", "--json")
    assert (code, json.loads(out)["batch_sizes"]) == (0, [1])
    assert "Plan " in err


def test_who_does_not_know_the_token_is_told_so(far: Command, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("a-wrong-token-of-some-length")
    said = far("jobs", "list", "--token-file", str(wrong))
    check(said, BAD, "the token is missing or wrong")
    assert "a-wrong-token" not in said[2]


def test_a_service_that_is_not_there_is_one_line(
    in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_TOKEN", "x" * 20)
    said = in_process("jobs", "list", "--server", "http://127.0.0.1:9")
    check(said, MISSING, "autotune: --server http://127.0.0.1:9: ")


@pytest.mark.parametrize(
    "url",
    ["spark", "ftp://h", "http://", "http://u:p@h", "http://h/x", "http://h?x=1", "http://h:x"],
)
def test_a_url_that_is_none_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_TOKEN", "x" * 20)
    with pytest.raises(BadInputError, match="expected a URL"):
        Remote(url, None)


def test_no_token_goes_to_another_machine_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AUTOTUNE_TOKEN", raising=False)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "serve.token").write_text("x" * 20)
    Remote("http://127.0.0.1:1", None)
    with pytest.raises(BadInputError, match="--token-file: is missing"):
        Remote("http://elsewhere:1", None)
