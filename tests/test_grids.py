"""The recorded grids of real servers, replayed as docs/speculation.md tells them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from benchmarks import replay_grid

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
DOCS = Path(__file__).parents[1] / "docs" / "speculation.md"


def replayed(
    grid: str, args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    monkeypatch.setattr(sys, "argv", ["replay_grid", str(RESULTS / grid), *args])
    replay_grid.main()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("grid", "args", "crowd"),
    [("h100-serving/grid.json", ["0", "128,8"], 8), ("cpu-serving/grid.json", ["1"], 4)],
)
def test_the_table_in_the_docs_is_what_the_command_prints(
    grid: str,
    args: list[str],
    crowd: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = replayed(grid, args, monkeypatch, capsys)
    forecast = out[out.index("\ngamma ") :]
    lines = [line.split() for line in forecast.splitlines() if re.match(r" +\d", line)]
    printed = {int(words[0]): words[1:] for words in lines}
    _, head, table = DOCS.read_text().partition(
        f"| γ | 1 stream | predicted | error | {crowd} streams | predicted | error |"
    )
    assert head
    told: dict[int, list[str]] = {}
    for line in table.strip().splitlines()[1:]:
        if not line.startswith("|"):
            break
        first, *rest = (cell.strip(" *").replace(",", "") for cell in line.strip("|").split("|"))
        told[int(first)] = rest
    assert told.keys() == printed.keys()
    for gamma, cells in told.items():
        made_from_it = gamma in {0, max(told)}
        wanted = printed[gamma]
        if made_from_it:
            assert [wanted[1], wanted[4]] == [wanted[0], wanted[3]], "it is made from these"
            wanted = [wanted[0], "", "", wanted[3], "", ""]
        assert cells == [word.replace("%", " %") for word in wanted], f"γ={gamma}"


def test_two_files_are_set_side_by_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = replayed("h200-serving/file-against-default.json", [], monkeypatch, capsys)
    assert "g0-file over g0-default, long, c=1: 1.031, 1.025 to 1.041 (10 pairs)" in out
    assert "g0-file over g0-default, chat, c=8: 0.959, 0.948 to 1.006 (10 pairs)" in out
    later = replayed("h200-serving/file-against-default.json", ["1"], monkeypatch, capsys)
    assert "(5 pairs)" in later
