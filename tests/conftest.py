"""What every test relies on."""

from __future__ import annotations

import contextlib
import functools
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from autotune import cli
from autotune.machine.environment import environment
from autotune.serving.server.launchers import _version_of
from autotune.store import database
from autotune.util import secret
from tests.support.installed_vllm import InstalledVllm

with contextlib.suppress(ImportError):
    from _pytest.nodeid import coerce_node_id

# A busy machine is no fault of the code: bounds on time stand in benchmarks/.
settings.register_profile("autotune", deadline=None)
settings.load_profile("autotune")

ONE_AT_A_TIME = ("server", "browser", "timing", "container")
"""Markers whose tests share one worker each: they need the machine, or its time, to themselves."""

# A shell that starts us in the background has SIGINT ignored, and children inherit that: the tests
# that press Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def group_of(item: pytest.Item) -> str | None:
    """The group whose tests run on one worker, one after the other; None for most tests.

    Tests that compile stay with their file, whose compiling processes they share.
    """
    named = [name for name in ONE_AT_A_TIME if item.get_closest_marker(name)]
    if not named and item.get_closest_marker("compile"):
        named = [item.path.stem]
    return named[0] if named else None


def turn(item: pytest.Item) -> tuple[bool, bool]:
    """When it is a test's turn: small is early.

    Whoever ends the server that others share comes after them. Kills are the longest of the tests
    without a group: begun last, one of them would leave all other workers without work.
    """
    doomed = "doomed_server" in getattr(item, "fixturenames", ())
    return doomed, item.get_closest_marker("kill") is None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell ``--dist loadgroup`` which tests stay together."""
    items.sort(key=turn)
    for item in items:
        if item.get_closest_marker("alone") and not item.get_closest_marker("nightly"):
            raise pytest.UsageError(f"{item.nodeid}: what runs alone is for the night: mark it so")
        group = group_of(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
            # xdist 3.8 writes it into ``_nodeid``, which pytest from 9.2 on does not read.
            if getattr(config.option, "loadgroup", False) and not hasattr(item, "_nodeid"):
                item._id = coerce_node_id(f"{item.nodeid}@{group}")


@pytest.fixture(autouse=True, scope="session")
def _new_databases_are_copies() -> Iterator[None]:
    """Making a database by its migrations takes 40 ms, a thousand times; tests/test_migrations.py
    and every test with a file that is there already run them."""
    migrate = database._upgrade

    @functools.cache
    def first() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "new.db"
            migrate(path, 30.0)
            return path.read_bytes()

    def upgrade(path: Path, busy_seconds: float) -> None:
        if path.exists():
            migrate(path, busy_seconds)
        else:
            path.write_bytes(first())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_upgrade", upgrade)
        yield


@pytest.fixture(scope="session")
def installed_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledVllm]:
    """The installed vLLM, for tests with the marker ``server``."""
    found = InstalledVllm(tmp_path_factory.mktemp("vllm"))
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests() -> Iterator[None]:
    """A process remembers its secrets; one process runs many tests."""
    yield
    secret.forget()


@pytest.fixture
def in_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: arguments in; exit code, stdout and stderr out.

    Starting the program takes a second each time; a test of each kind of command does that too.
    """

    def command(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autotune", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return command


@pytest.fixture
def run_in(
    in_process: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """The same in a folder and with more in the environment, answered as ``subprocess.run`` does.

    What the command starts is as real as ever; only its own start and imports are saved.
    """

    def command(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        forget()
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for name, value in env.items():
                patch.setenv(name, value)
            return subprocess.CompletedProcess(args, *in_process(*args))

    yield command
    forget()


def forget() -> None:
    """A new process knows no secrets, and looks anew at what machine it runs on."""
    secret.forget()
    environment.cache_clear()
    _version_of.cache_clear()
