"""What a command must do with bad input: one line, a documented exit code."""

from __future__ import annotations

from collections.abc import Callable

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
