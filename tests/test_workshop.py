"""The tests' own machinery: groups of tests, and what the markers promise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).parents[1] / "Makefile"


@pytest.mark.timing
def test_a_group_is_told_to_the_scheduler(request: pytest.FixtureRequest) -> None:
    """By the end of the name, from which xdist reads it; plugins have changed this silently."""
    name = request.node.nodeid
    if "PYTEST_XDIST_WORKER" in os.environ and request.config.option.loadgroup:
        assert name.endswith("@timing")
    else:
        assert "@" not in name


def test_every_marker_is_left_out_by_some_command(pytestconfig: pytest.Config) -> None:
    """Whoever adds a marker decides where it runs."""
    named = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    ours = {"compile", "server", "browser", "kill", "timing", "nightly", "gpu"}
    assert ours <= named
    (quick,) = (line for line in MAKEFILE.read_text().splitlines() if "compile or server" in line)
    assert all(name in quick for name in ours)


def test_what_must_run_alone_runs_after_the_others() -> None:
    lines = MAKEFILE.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("nightly: "))
    together, alone = lines[start + 1 : start + 3]
    assert "$(PYTEST)" in together
    assert " or alone)" in together
    assert "$(ALONE)" in alone
    assert "alone" in alone.partition(" -m ")[2]
    (plain,) = (line for line in lines if line.startswith("ALONE := "))
    assert " -n " not in plain
