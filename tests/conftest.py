"""What every test relies on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from autotune import cli

ONE_AT_A_TIME = ("server", "browser", "timing")
"""Markers whose tests share one worker each: they need the machine, or its time, to themselves."""

# A shell that starts us in the background has SIGINT ignored, and children inherit that: the tests
# that press Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell ``--dist loadgroup`` which tests stay together.

    Tests that compile stay with their file, whose compiling processes they share.
    """
    # Whoever ends the server that others share comes after them.
    items.sort(key=lambda item: "doomed_server" in getattr(item, "fixturenames", ()))
    for item in items:
        named = [name for name in ONE_AT_A_TIME if item.get_closest_marker(name)]
        if not named and item.get_closest_marker("compile"):
            named = [item.path.stem]
        if named:
            item.add_marker(pytest.mark.xdist_group(named[0]))


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
