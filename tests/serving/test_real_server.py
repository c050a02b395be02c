"""The real vLLM server: how it fails, and that nothing of it stays behind.

Boots are slow (20 to 40 s on 2 cores), so each is used for all that it can show, two at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from autotune.serving.measure.client import Load, run_load
from autotune.serving.measure.prompts import Prompt
from autotune.serving.server import launchers
from autotune.serving.server.failures import FailureKind, ServerFailure
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.server import Server, ServerFailedError, start
from tests.serving.real_server import CPU_ENV, QUICK_ENV, START_S, cpu_settings
from tests.serving.tiny_models import TinyModels
from tests.support.installed_vllm import InstalledVllm
from tests.support.processes import gone, wait_for

pytestmark = pytest.mark.server

BAD_STARTS = {
    "flag": (("--no-such-flag", "3"), FailureKind.BAD_FLAG, 2, "unrecognized arguments"),
    "choice": (("--kv-cache-dtype", "banana"), FailureKind.BAD_VALUE, 2, "invalid choice"),
    "value": (
        ("--gpu-memory-utilization", "1.7"),
        FailureKind.BAD_VALUE,
        1,
        "gpu_memory_utilization Input should be less than or equal to 1",
    ),
    "model": ((), FailureKind.MODEL_MISSING, 1, "LocalEntryNotFoundError"),
    "cache": (
        ("--kv-cache-memory-bytes", "200000"),
        FailureKind.KV_CACHE_TOO_SMALL,
        1,
        "ValueError: To serve at least one request",
    ),
    "memory": (
        ("--gpu-memory-utilization", "1.0"),
        FailureKind.OUT_OF_MEMORY_AT_START,
        1,
        "is less than desired CPU memory utilization",
    ),
}


OFTEN = ("flag", "model", "cache")
"""One for each place that gives up: the parser, the checkpoint, the engine; the others at night."""


@pytest.fixture(scope="module")
def failures(
    request: pytest.FixtureRequest,
    tiny_models: TinyModels,
    installed_vllm: InstalledVllm,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, ServerFailure]:
    """What became of each bad start that a test of this run asks for."""
    here = [item for item in request.session.items if item.path == request.path]
    names = {item.callspec.params.get("name") for item in here if hasattr(item, "callspec")}
    asked = [name for name in BAD_STARTS if name in names]
    folder = tmp_path_factory.mktemp("bad-starts")
    launcher = LocalLauncher(program=(*installed_vllm.python, "-m", "vllm.entrypoints.cli.main"))

    def fail(name: str) -> ServerFailure:
        model = "nobody/no-such-model" if name == "model" else tiny_models.qwen3
        settings = cpu_settings(model, *BAD_STARTS[name][0])
        with pytest.raises(ServerFailedError) as caught:
            start(launcher, settings, folder / f"{name}.log", START_S)
        return caught.value.failure

    assert tiny_models.qwen3.is_dir()  # made before the threads ask for it
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(asked, pool.map(fail, asked), strict=True))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in OFTEN else pytest.mark.nightly) for name in BAD_STARTS],
)
def test_a_bad_start_is_classified(name: str, failures: dict[str, ServerFailure]) -> None:
    _, kind, code, line = BAD_STARTS[name]
    failure = failures[name]
    assert (failure.kind, failure.exit_code) == (kind, code)
    assert line in failure.line
    assert failure.log is not None
    assert failure.line.split(": ")[-1][:20] in failure.log.read_text()


@pytest.mark.nightly  # by day test_server.py loses a port to a stranger, with a stand-in
def test_a_taken_port_is_classified(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(launchers, "free_port", lambda: taken.getsockname()[1])
        monkeypatch.setattr("autotune.serving.server.server._TRIES", {})
        settings = cpu_settings(tiny_models.qwen3)
        with pytest.raises(ServerFailedError) as caught:
            start(LocalLauncher(), settings, tmp_path / "log", START_S)
    assert caught.value.failure.kind is FailureKind.PORT_TAKEN


TUNER = """
import json, sys, time
from pathlib import Path
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.server import start
from tests.serving.real_server import cpu_settings
settings = cpu_settings(sys.argv[1], env=json.loads(sys.argv[3]))
server = start(LocalLauncher(), settings, Path(sys.argv[2]), 400)
print("up", flush=True)
time.sleep(600)
"""


def tree(pid: int) -> dict[str, int]:
    """Process ids below ``pid`` by what they are; vLLM names its processes itself."""
    found: dict[str, int] = {}
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):  # it ended as it was asked
            found[process.cmdline()[0].removeprefix("VLLM::") + str(len(found))] = process.pid
    return found


@pytest.mark.parametrize(
    "up", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["starting", "up"]
)
def test_kill_9_of_the_tuner_leaves_no_process_of_vllm(
    up: bool, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """By day as the engine loads its model; at night a server that is up, booted as users' are."""
    env = json.dumps(CPU_ENV if up else QUICK_ENV)
    command = [sys.executable, "-c", TUNER, str(tiny_models.qwen3), str(tmp_path / "log"), env]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tuner:
        try:
            assert tuner.stdout is not None
            assert not up or tuner.stdout.readline() == b"up\n"
            wait_for(lambda: {"EngineCore", "Worker"} <= {*kinds(tree(tuner.pid))}, START_S)
            pids = tree(tuner.pid)
        finally:
            tuner.kill()
    assert gone(list(pids.values()), 60.0)


def kinds(pids: dict[str, int]) -> list[str]:
    return [name.rstrip("0123456789").partition("_")[0] for name in pids]


def test_a_stopped_engine_is_a_hang_and_dies_with_its_server(doomed_server: Server) -> None:
    server = doomed_server
    pids = tree(os.getpid())
    load = Load(server.url, server.model, [Prompt.of("Hello")], 1, 1, 8, timeout_s=2.0)
    assert run_load(load).errors() == []
    (engine,) = (pid for name, pid in pids.items() if "EngineCore" in name)
    # The pytest process has other children too, such as multiprocessing's resource tracker.
    lineage = [psutil.Process(engine), *psutil.Process(engine).parents()]
    (top,) = (process for process in lineage if process.ppid() == os.getpid())
    server_pids = [top.pid, *(child.pid for child in top.children(recursive=True))]
    assert engine in server_pids
    os.kill(engine, signal.SIGSTOP)
    assert run_load(load).errors() == ["no full answer within 2 s"]
    assert server.failure() is None  # its health is said to be good
    failure = server.failure(stalled=True)
    assert failure is not None
    assert failure.kind is FailureKind.HANG
    # A dead engine ends the server with status 0, and leaves its worker behind.
    began = time.monotonic()
    os.kill(engine, signal.SIGKILL)
    failure = server.failure()
    while failure is None and time.monotonic() - began < 20:
        failure = server.failure()
    assert failure is not None
    assert (failure.kind, failure.exit_code) == (FailureKind.EXIT_ZERO, 0)
    assert "EngineDeadError" in failure.line
    assert gone(server_pids, 30.0)
