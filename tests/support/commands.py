"""What a command must do with bad input: one line, a documented exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from autotune import cli

DONE, BAD, MISSING, NOTHING = 0, 2, 3, 4
"""Exit codes, as autotune/core.py has them."""

Command = Callable[..., tuple[int, str, str]]


def check(got: tuple[int, str, str], code: int, *words: str) -> None:
    """One line on stderr with the words, nothing on stdout, the exit code."""
    returned, out, err = got
    assert err.startswith("autotune: "), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert out == ""
    assert returned == code


def refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Sequence[str],
    code: int,
    words: str,
) -> str:
    """Run a command that ends with the words in its last line on stderr; gives all of stderr."""
    monkeypatch.setattr("sys.argv", ["autotune", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == code, said.err
    last = said.err.rstrip("\n").split("\n")[-1]
    assert last.startswith("autotune: ")
    assert words in last
    assert "Traceback" not in said.err
    assert said.out == ""
    return said.err
