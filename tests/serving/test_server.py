"""Starting, watching and ending servers; with a stand-in for vLLM, so that it is quick.

The real server is in test_real_server.py.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.machine.containers import Engine
from autotune.serving.server import launchers, process
from autotune.serving.server.failures import FailureKind
from autotune.serving.server.launchers import DockerLauncher, LocalLauncher, UrlLauncher
from autotune.serving.server.mounts import Mount
from autotune.serving.server.server import (
    Server,
    ServerFailedError,
    ServeSettings,
    serve_args,
    start,
)
from tests.support.processes import alive, gone, wait_for

FAKE = (sys.executable, str(Path(__file__).parent / "fake_vllm.py"))
FULL = ServeSettings(
    "google/gemma-4-26B-A4B-it",
    {"method": "mtp", "model": "google/gemma-4-26B-A4B-it-assistant", "num_speculative_tokens": 4},
    kv_cache_dtype="fp8",
    gpu_memory_utilization=0.85,
    extra_args=("--max-num-seqs", "8", "--limit-mm-per-prompt", '{"image":0}'),
    env={"VLLM_TUNED_CONFIG_FOLDER": "/data/my moe", "HF_HUB_OFFLINE": "1"},
)
FULL_ARGS = [
    *("google/gemma-4-26B-A4B-it", "--host", "127.0.0.1", "--port", "8000"),
    "--speculative-config",
    '{"method": "mtp", "model": "google/gemma-4-26B-A4B-it-assistant", '
    '"num_speculative_tokens": 4}',
    *("--kv-cache-dtype", "fp8", "--gpu-memory-utilization", "0.85", "--max-num-seqs", "8"),
    *("--limit-mm-per-prompt", '{"image":0}'),
]


class Fake:
    """Starts the stand-in and knows its processes."""

    def __init__(self, folder: Path) -> None:
        self.log, self._pids = folder / "logs" / "server.log", folder / "pids"

    def settings(self, model: str, *args: str) -> ServeSettings:
        return ServeSettings(model, extra_args=args, env={"FAKE_VLLM_PIDS": str(self._pids)})

    def start(self, model: str, timeout_s: float = 20.0, grace_s: float = 5.0) -> Server:
        launcher = LocalLauncher(program=FAKE, grace_s=grace_s)
        return start(launcher, self.settings(model), self.log, timeout_s)

    def pids(self) -> list[int]:
        return [int(pid) for pid in self._pids.read_text().split()]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def test_the_arguments_of_vllm_serve() -> None:
    assert serve_args(FULL, "127.0.0.1", 8000) == FULL_ARGS
    bare = ["/models/m", "--host", "0.0.0.0", "--port", "1"]
    assert serve_args(ServeSettings("/models/m"), "0.0.0.0", 1) == bare


def test_the_shell_line_says_the_same() -> None:
    words = shlex.split(LocalLauncher().shell_line(FULL))
    env = ["HF_HUB_OFFLINE=1", "VLLM_TUNED_CONFIG_FOLDER=/data/my moe"]
    assert words == [*env, "vllm", "serve", *FULL_ARGS]


def test_the_shell_line_works_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("m", "d", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "vllm").write_text("")
    (tmp_path / "t.jinja").write_text("")
    monkeypatch.chdir(tmp_path)
    settings = ServeSettings("m", {"model": "./d"}, extra_args=("--chat-template=./t.jinja",))
    line = LocalLauncher(("bin/vllm", "-x")).shell_line(settings)
    assert shlex.split(line) == [
        *(f"{tmp_path}/bin/vllm", "-x", "serve", f"{tmp_path}/m"),
        *("--host", "127.0.0.1", "--port", "8000"),
        *("--speculative-config", json.dumps({"model": f"{tmp_path}/d"})),
        f"--chat-template={tmp_path}/t.jinja",
    ]


def test_a_clean_up_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it is killed with the supervisor's group, and a container stays."""
    monkeypatch.setattr(process, "KILL_S", 0.0)
    monkeypatch.setattr(process, "_SLACK_S", 0.5)
    done = tmp_path / "done"
    handle = process.ProcessHandle(
        ["sleep", "60"],
        launchers.free_port(),
        tmp_path / "log",
        0.5,
        cleanup=["sh", "-c", f"sleep 2; touch {done}"],
    )
    handle.stop()
    assert done.exists()


@pytest.mark.timing
def test_a_server_starts_answers_and_ends(fake: Fake) -> None:
    with fake.start("good") as server:
        assert (server.model, server.context) == ("good", 7)
        assert server.url.startswith("http://127.0.0.1:")
        assert server.failure() is None
        assert server.start_seconds > 0
        (pid,) = fake.pids()
        resident = psutil.Process(pid).memory_info().rss
        assert server.memory_bytes() > resident
    assert gone([pid], 0.0)
    assert server.log is not None
    assert server.log.read_text().startswith("serving serve good --host 127.0.0.1 --port ")
    server.stop()


@pytest.mark.timing
def test_it_is_in_our_session_but_not_in_our_group(fake: Fake) -> None:
    """Another session would be another share of the processors (autogroup)."""
    with fake.start("good"):
        (pid,) = fake.pids()
        assert os.getsid(pid) == os.getsid(0)
        assert os.getpgid(pid) != os.getpgid(0)


@pytest.mark.timing
def test_a_stubborn_server_is_killed_with_what_it_started(fake: Fake) -> None:
    with fake.start("stubborn", grace_s=0.5):
        pids = fake.pids()
        assert len(pids) == 2
        assert all(map(alive, pids))
        began = time.monotonic()
    assert gone(pids, 0.0)
    assert 0.4 < time.monotonic() - began < 60


TUNER = """
import sys, time
from pathlib import Path
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.server import ServeSettings, start
model, pids, log, *program = sys.argv[1:]
settings = ServeSettings(model, env={"FAKE_VLLM_PIDS": pids})
start(LocalLauncher(program=tuple(program), grace_s=0.5), settings, Path(log), 30)
print("up", flush=True)
time.sleep(600)
"""


@pytest.mark.timing
@pytest.mark.parametrize("model", ["good", "stubborn"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_no_server_outlives_the_tuner(
    model: str, end: signal.Signals, fake: Fake, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", TUNER, model, str(tmp_path / "pids"), str(fake.log), *FAKE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as tuner:
        assert tuner.stdout is not None
        assert tuner.stdout.readline() == b"up\n"
        pids = fake.pids()
        supervisor = psutil.Process(pids[0]).ppid()
        tuner.send_signal(end)
        tuner.wait()
    assert gone([*pids, supervisor])


@pytest.mark.timing
def test_no_server_outlives_its_supervisor(fake: Fake) -> None:
    server = fake.start("good")
    (pid,) = fake.pids()
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    assert gone([pid])
    failure = server.failure()
    assert failure is not None
    assert failure.exit_code == 128 + signal.SIGKILL
    server.stop()


@pytest.mark.timing
def test_a_server_that_never_answers_is_ended(fake: Fake) -> None:
    began = time.monotonic()
    with pytest.raises(ServerFailedError) as caught:
        fake.start("mute", timeout_s=3.0)
    assert caught.value.failure.kind is FailureKind.HANG
    assert "serving serve mute" in caught.value.failure.line
    assert 2.9 < time.monotonic() - began < 60
    assert gone(fake.pids(), 0.0)


@pytest.mark.timing
@pytest.mark.parametrize(
    ("model", "kind", "code", "line"),
    [
        ("out-of-memory", FailureKind.OUT_OF_MEMORY_UNDER_LOAD, 0, "Tried to allocate 2.00 GiB"),
        ("killed", FailureKind.OUT_OF_MEMORY_UNDER_LOAD, 137, "killed by SIGKILL"),
        ("silent-end", FailureKind.EXIT_ZERO, 0, "exit status 0; last line: serving serve silent"),
    ],
)
def test_a_death_after_the_start_is_told(
    model: str, kind: FailureKind, code: int, line: str, fake: Fake
) -> None:
    with fake.start(model) as server:
        failure = server.failure()
    assert failure is not None
    assert (failure.kind, failure.exit_code) == (kind, code)
    assert line in failure.line
    assert failure.log == fake.log


@pytest.mark.timing
def test_a_stopped_server_hangs(fake: Fake) -> None:
    with fake.start("good", grace_s=0.5) as server:
        (pid,) = fake.pids()
        os.kill(pid, signal.SIGSTOP)
        failure = server.failure(timeout_s=0.5)
        assert failure is not None
        assert failure.kind is FailureKind.HANG
        os.kill(pid, signal.SIGCONT)
        assert server.failure() is None
        stalled = server.failure(stalled=True)
        assert stalled is not None
        assert stalled.kind is FailureKind.HANG
        os.kill(pid, signal.SIGSTOP)
        server.stop()
    assert gone([pid], 0.0)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port with a stranger behind it who says that all is well."""

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"data": [{"id": "stranger"}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Nothing."""

    stranger = ThreadingHTTPServer(("127.0.0.1", 0), Stranger)
    thread = Thread(target=stranger.serve_forever)
    thread.start()
    yield stranger.server_address[1]
    stranger.shutdown()
    thread.join()
    stranger.server_close()


@pytest.mark.timing
def test_a_port_lost_to_a_stranger_is_given_up(
    taken: int, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = [taken, taken, launchers.free_port()]
    monkeypatch.setattr(launchers, "free_port", lambda: ports.pop(0))
    with fake.start("good") as server:
        assert not ports
        assert server.model == "good"


@pytest.mark.timing
def test_a_port_is_not_tried_for_ever(
    taken: int, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "free_port", lambda: taken)
    with pytest.raises(ServerFailedError) as caught:
        fake.start("good")
    assert caught.value.failure.kind is FailureKind.PORT_TAKEN
    assert "Address already in use" in caught.value.failure.line


def test_ports_are_free() -> None:
    for _ in range(20):
        with socket.create_server(("127.0.0.1", launchers.free_port())):
            pass


def test_a_key_that_is_exported_does_not_lock_us_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-secret")
    shell = LocalLauncher(program=("sh", "-c", 'echo "key=$VLLM_API_KEY."', "sh"))
    handle = shell.launch(ServeSettings("m"), tmp_path / "log")
    wait_for(lambda: handle.poll() is not None)
    handle.stop()
    assert (tmp_path / "log").read_text() == "key=.\n"


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    for launcher, name in (
        (LocalLauncher(program=("no-such-vllm",)), "no-such-vllm"),
        (DockerLauncher("image", engine=Engine("no-such-docker")), "no-such-docker"),
    ):
        with pytest.raises(MissingEnvironmentError, match=f"^{name}: no such program"):
            launcher.launch(ServeSettings("m"), tmp_path / "log")


# ------------------------------------------------------------------------------------------
# docker, with a script in its place that records its arguments

DOCKER = f"""#!/bin/bash
[ "$1" = version ] && {{ [ "$FAIL" = daemon ] && echo "Cannot connect to the Docker daemon" >&2; \
[ "$FAIL" != daemon ]; exit; }}
printf '%s\\n' "$*" >> "$(dirname "$0")/calls"
[ "$1" = run ] || exit 0
echo $$ > "$(dirname "$0")/pid"
[ "$FAIL" = port ] && {{ echo "docker: Error response from daemon: driver failed programming \
external connectivity: Bind for 127.0.0.1:80 failed: port is already allocated." >&2; exit 125; }}
port=$(sed -E 's/.*--publish 127.0.0.1:([0-9]+):8000.*/\\1/' <<< "$*")
exec {shlex.join(FAKE)} serve good --port "$port"
"""


@pytest.fixture
def docker(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "docker"
    path.parent.mkdir()
    path.write_text(DOCKER)
    path.chmod(0o755)
    return path


def test_the_docker_command() -> None:
    launcher = DockerLauncher(
        "vllm/vllm-openai:v0.24.0",
        mounts=(Mount(Path("/models"), "/models"),),
        options=("--shm-size", "8g"),
    )
    inner = list(FULL_ARGS)
    inner[2] = "0.0.0.0"
    assert launcher.command(FULL, 8123, "mine") == [
        *("docker", "run", "--rm", "--name", "mine", "--label", "autotune=spec", "--gpus", "all"),
        *("--ipc", "host"),
        *("--publish", "127.0.0.1:8123:8000", "--volume", "/models:/models"),
        *("--env", "HF_HUB_OFFLINE=1", "--env", "VLLM_TUNED_CONFIG_FOLDER=/data/my moe"),
        *("--shm-size", "8g", "--entrypoint", "vllm"),
        *("vllm/vllm-openai:v0.24.0", "serve", *inner),
    ]
    words = shlex.split(launcher.shell_line(FULL, 8123))
    assert words == launcher.command(FULL, 8123)
    with pytest.raises(BadInputError, match="colon"):
        DockerLauncher("i", mounts=(Mount(Path("/a:b"), "/c"),)).command(FULL, 1)


@pytest.mark.timing
def test_docker_starts_stops_and_removes(docker: Path, fake: Fake) -> None:
    launcher = DockerLauncher("image", engine=Engine(str(docker)))
    with start(launcher, ServeSettings("good"), fake.log, 20) as server:
        pid = int((docker.parent / "pid").read_text())
        assert alive(pid)
        assert server.memory_bytes() is None  # of the client's processes it would say nothing
    assert gone([pid], 0.0)
    run, remove = (docker.parent / "calls").read_text().splitlines()
    name = run.split()[run.split().index("--name") + 1]
    assert run.startswith(
        f"run --oom-score-adj 1000 --rm --name {name} --label autotune=spec --gpus all "
    )
    assert run.endswith(" --entrypoint vllm image serve good --host 0.0.0.0 --port 8000")
    assert remove == f"rm --force {name}"


@pytest.mark.timing
def test_no_container_outlives_the_tuner(docker: Path, fake: Fake, tmp_path: Path) -> None:
    script = TUNER.replace("LocalLauncher(program=tuple(program), grace_s=0.5)", "launcher")
    imports = "from autotune.serving.server.launchers import DockerLauncher, Engine\n"
    made = "launcher = DockerLauncher('image', engine=Engine(program[0]))\nsettings ="
    script = imports + script.replace("settings =", made)
    command = [sys.executable, "-c", script, "good", str(tmp_path / "pids"), str(fake.log)]
    with subprocess.Popen([*command, str(docker)], stdout=subprocess.PIPE) as tuner:
        assert tuner.stdout is not None
        assert tuner.stdout.readline() == b"up\n"
        tuner.kill()
    wait_for(lambda: "rm --force" in (docker.parent / "calls").read_text())
    assert gone([int((docker.parent / "pid").read_text())])


@pytest.mark.timing
def test_docker_without_its_daemon_is_missing(
    docker: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "daemon")
    with pytest.raises(MissingEnvironmentError, match="does not work here: Cannot connect"):
        start(DockerLauncher("image", engine=Engine(str(docker))), ServeSettings("m"), fake.log, 20)
    assert not (docker.parent / "calls").exists()


@pytest.mark.timing
def test_docker_with_a_taken_port_is_tried_again(
    docker: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "port")
    with pytest.raises(ServerFailedError) as caught:
        start(DockerLauncher("image", engine=Engine(str(docker))), ServeSettings("m"), fake.log, 20)
    assert caught.value.failure.kind is FailureKind.PORT_TAKEN
    calls = (docker.parent / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["run", "rm"] * 3


# ------------------------------------------------------------------------------------------
# a server of somebody else's


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
def test_an_existing_server_is_used_and_left_alone(tail: str, taken: int, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{taken}"
    launcher, settings = UrlLauncher(url + tail), ServeSettings("whatever")
    assert launcher.command(settings, 1) == []
    for _ in range(2):
        with start(launcher, settings, tmp_path / "log", 5) as server:
            assert (server.url, server.model, server.context) == (url, "stranger", None)
            assert server.failure() is None
            assert server.memory_bytes() is None
    assert not (tmp_path / "log").exists()


def test_an_existing_server_may_be_away(tmp_path: Path) -> None:
    launcher = UrlLauncher(f"http://127.0.0.1:{launchers.free_port()}")
    with pytest.raises(ServerFailedError, match="hang: no healthy answer in time"):
        start(launcher, ServeSettings("m"), tmp_path / "log", 0.5)
    with pytest.raises(BadInputError, match="begins with http"):
        UrlLauncher("localhost:8000")
