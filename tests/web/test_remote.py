"""``autotune jobs`` and ``--server``: the same command, run at a service, ends here as it would."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.cli.remote import Remote
from autotune.core import BadInputError
from tests.support.synthetic_service import TOTAL
from tests.web.served import REPOSITORY, Served

pytestmark = pytest.mark.kill


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("far") / "root"
    root.mkdir()
    made = Served(root)
    yield made
    if made.process.poll() is None:
        made.stop()


def words(served: Served, *args: str) -> list[str]:
    return [sys.executable, "-m", "autotune", *args, "--server", served.url]


def environment(served: Served, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "AUTOTUNE_TOKEN": served.token, **more}


def autotune(served: Served, *args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(served, *args),
        capture_output=True,
        text=True,
        check=False,
        env=environment(served),
        timeout=120,
        **more,
    )


MOE = ("moe", "--device", "gb10", "--study")


def test_a_command_runs_there_and_ends_here(served: Served, tmp_path: Path) -> None:
    ran = autotune(served, *MOE, "far", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, '{"done": true}\n')
    assert "autotune: begins\n" in ran.stderr
    assert not list(tmp_path.iterdir())  # nothing was written here
    (study,) = [s for s in served.call("GET", "/studies")["studies"] if s["study"]["name"] == "far"]
    assert study["trials"] == TOTAL


def test_its_exit_code_and_its_last_line_are_the_jobs(served: Served) -> None:
    ran = autotune(served, *MOE, "refused")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.endswith("autotune: no device 'x'; did you mean gb10?\n")


def test_what_the_service_refuses_is_one_line(served: Served) -> None:
    for more, said in (
        (("--model", "/root/m"), "outside of what jobs may read"),
        (("--out", "x"), "--out: the service has its own"),
        (("--tp", "0", "--batch-sizes", "0"), "--batch-sizes 0: expected 1"),
    ):
        ran = autotune(served, *MOE, "s", *more)
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
        assert said in ran.stderr


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(
    served: Served, tmp_path: Path
) -> None:
    terminal, end_of_process = pty.openpty()  # where a bar is drawn, and ^C echoed
    token = tmp_path / "my token"
    token.write_text(served.token)
    process = subprocess.Popen(
        words(served, *MOE, "left", "--token-file", str(token)),
        stderr=end_of_process,
        text=True,
        env=environment(served, COLUMNS="200", AUTOTUNE_TOKEN=""),
    )
    os.close(end_of_process)
    job = 0
    end = time.monotonic() + 30
    while not job and time.monotonic() < end:
        found = served.call("GET", "/jobs")["jobs"]
        job = next((one["id"] for one in found if one["args"].get("study") == "left"), 0)
        time.sleep(0.05)
    said = ""
    while "/58" not in said:  # it is followed
        said += os.read(terminal, 4096).decode()
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 4096):
            said += part.decode()
    assert process.wait(30) == 130
    lines = said.splitlines()
    assert lines[-3] == f"autotune: detached; job {job} goes on"
    where = f"--server {served.url} --token-file '{token}'"
    assert lines[-2] == f"  attach again: autotune jobs logs {job} -f {where}"
    assert lines[-1] == f"  end it:       autotune jobs cancel {job} {where}"
    assert "what is finished is saved" not in said  # which is about work of this machine
    again = autotune(served, "jobs", "logs", str(job), "-f")
    assert (again.returncode, again.stdout) == (0, '{"done": true}\n')
    assert "autotune: begins" in again.stderr


def test_a_service_that_comes_back_is_waited_for(served: Served) -> None:
    process = subprocess.Popen(
        words(served, *MOE, "patient"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(served),
    )
    end = time.monotonic() + 30
    while not [j for j in served.call("GET", "/jobs")["jobs"] if j["args"]["study"] == "patient"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    served.stop()
    time.sleep(1.5)
    served.start()
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, '{"done": true}\n'), said


def test_jobs_are_submitted_listed_shown_and_cancelled(served: Served, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    body = {"kind": "moe", "args": {"device": "gb10", "study": "mine"}, "name": "[b]mine[/b]"}
    file.write_text(json.dumps(body))
    job = autotune(served, "jobs", "submit", str(file)).stdout.strip()
    shown = json.loads(autotune(served, "jobs", "show", job, "--json").stdout)
    assert (shown["name"], shown["args"]["study"]) == ("[b]mine[/b]", "mine")
    assert "[b]mine[/b]" in autotune(served, "jobs", "list").stdout
    assert "autotune moe --device gb10" in autotune(served, "jobs", "show", job).stdout
    served.submit("long")
    longer = served.submit("longer")
    waiting = str(served.submit("last", priority=-1))
    cancelled = autotune(served, "jobs", "cancel", waiting)
    assert (cancelled.returncode, "is cancelled" in cancelled.stdout) == (0, True)
    late = autotune(served, "jobs", "wait", str(longer), "--max-wait", "0.1s")
    assert (late.returncode, late.stdout) == (3, "")
    assert f"autotune: job {longer} has not ended within 0.1 s, and goes on; wait" in late.stderr
    waited = autotune(served, "jobs", "wait", waiting)
    assert (waited.returncode, waited.stdout) == (130, "")
    assert autotune(served, "jobs", "logs", job).stdout == "autotune: begins\n"
    detached = autotune(served, *MOE, "mine", "--detach")
    assert (detached.returncode, detached.stdout.strip().isdecimal()) == (0, True)
    assert autotune(served, "jobs", "wait", detached.stdout.strip()).returncode == 0
    missing = autotune(served, "jobs", "show", "999")
    assert (missing.returncode, missing.stderr) == (2, "autotune: no job 999\n")


def test_a_plan_can_be_asked_for_there(served: Served) -> None:
    ran = autotune(served, "moe", "--device", "gb10", "--batch-sizes", "1", "--dry-run", "--json")
    assert (ran.returncode, json.loads(ran.stdout)["batch_sizes"]) == (0, [1])
    assert "Plan " in ran.stderr


def test_who_does_not_know_the_token_is_told_so(served: Served, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("a-wrong-token-of-some-length")
    ran = autotune(served, "jobs", "list", "--token-file", str(wrong))
    assert (ran.returncode, "the token is missing or wrong" in ran.stderr) == (2, True)
    assert "a-wrong-token" not in ran.stderr


def test_a_service_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    ran = subprocess.run(
        [*(sys.executable, "-m", "autotune", "jobs", "list"), "--server", "http://127.0.0.1:9"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "AUTOTUNE_TOKEN": "x" * 20},
    )
    assert (ran.returncode, ran.stderr.count("\n")) == (3, 1)
    assert ran.stderr.startswith("autotune: --server http://127.0.0.1:9: ")


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
