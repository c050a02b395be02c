"""The recorded grids of real servers, replayed as docs/speculation.md tells them."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.store import Store
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


def measuring() -> str:
    return (Path(__file__).parents[1] / "docs" / "measuring.md").read_text()


def test_the_table_of_cold_weights_is_that_of_the_file() -> None:
    timed = json.loads((RESULTS / "h200-serving" / "cold-weights.json").read_text())["timed"]
    found: dict[int, list[str]] = {}
    for row in timed:
        if row["row"] == "file":
            value, low, high = row["over"]
            found.setdefault(row["m"], []).append(f"{value:.3f} ({low:.3f} to {high:.3f})")
    _, head, table = measuring().partition(
        "| M | file ÷ default, speed, one layer | thirty layers |"
    )
    assert head
    told = dict(re.findall(r"^\| (\d+) \| (.+) \|$", table.partition("\n\n")[0], re.MULTILINE))
    assert told
    assert {int(m) for m in told} < found.keys()
    assert all(cells == " | ".join(found[int(m)]) for m, cells in told.items())


@pytest.mark.parametrize(
    ("load", "concurrency", "least", "row"),
    [("chat", 1, 100, "M=1"), ("chat", 8, 100, "M=8"), ("long", 1, 0, "a prompt of 3,000 tokens")],
)
def test_the_table_of_the_profile_is_that_of_the_file(
    load: str, concurrency: int, least: int, row: str
) -> None:
    """Of the decoding steps, of which there are many; of the prompt, those that take longest."""
    profiled = json.loads((RESULTS / "h200-serving" / "profile.json").read_text())["profiled"]
    cells = []
    for setting in ("g0-file", "g0-default"):
        (one,) = [
            each["kernels"]
            for each in profiled
            if (each["setting"], each["load"], each["concurrency"]) == (setting, load, concurrency)
        ]
        ran = [k for k in one if k["name"] == "fused_moe_kernel" and k["calls"] > least][:2]
        places = 1 if least else 0
        ran.sort(key=lambda kernel: kernel["grid"])
        cells.append(" + ".join(f"{kernel['median_us']:.{places}f}" for kernel in ran))
    assert f"| {row} | {cells[0]} | {cells[1]} |" in measuring()


def test_what_the_server_gains_with_random_experts_is_that_of_the_file(tmp_path: Path) -> None:
    folder = RESULTS / "h200-serving" / "uniform-routing"
    best = json.loads((folder / "best.json").read_text())
    told = {}
    for one in best["objectives"]:
        low, high = one["interval"]
        told[one["objective"]] = f"{one['speedup']:.3f}", f"({low:.3f} to {high:.3f})"
    text = measuring()
    assert "{} {}".format(*told["single"]) in text
    assert "**{}** {}".format(*told["aggregate"]) in text
    assert "{} {}, for the file".format(*told["geomean"]) in text
    (tmp_path / "t.db").write_bytes(gzip.decompress((folder / "trials.db.gz").read_bytes()))
    with Store.open(f"sqlite:///{tmp_path}/t.db") as store:
        (search,) = store.get_study("uniform").searches
        trials = store.trials(search)

    def by_boot(streams: str, quantity: Callable[[dict[str, Any]], str]) -> str:
        cells = []
        for moe in ("/tmp/moe", "default"):
            levels = [
                trial.measurement.details["levels"][streams]
                for trial in trials
                if trial.candidate["moe_config"] == moe
            ]
            cells.append(", ".join(map(quantity, levels)))
        return " | ".join(cells)

    for streams in ("1", "8"):
        rates = by_boot(streams, lambda level: f"{level['tok_s']:,.0f}")
        assert f"tok/s | {rates} |" in text
    ttft = by_boot("8", lambda level: f"{level['ttft_ms']['p50']:.0f}")
    assert f"TTFT | {ttft.replace(' |', ' ms |')} ms |" in text
    tpot = by_boot("8", lambda level: f"{level['tpot_ms']['p50']:.2f}")
    assert f"TPOT | {tpot.replace(' |', ' ms |')} ms |" in text
