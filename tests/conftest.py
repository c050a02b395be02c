"""What every test relies on."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from autotune import cli
from autotune.util import secret

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell ``--dist loadgroup`` which tests stay together."""
    # Whoever ends the server that others share comes after them.
    items.sort(key=lambda item: "doomed_server" in getattr(item, "fixturenames", ()))
    for item in items:
        group = group_of(item)
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))
            # xdist 3.8 writes it into ``_nodeid``, which pytest from 9.2 on does not read.
            if getattr(config.option, "loadgroup", False) and not hasattr(item, "_nodeid"):
                item._id = coerce_node_id(f"{item.nodeid}@{group}")


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
