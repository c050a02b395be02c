"""The recorded grids of real servers, replayed as docs/lab and ADR 6 tell them."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autotune.core import Candidate, Phase, Trial
from autotune.serving.forecast.forecast import ForecastProposer
from autotune.serving.measure.levels import rate_of
from autotune.store.store import Store
from benchmarks import replay_grid

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
DOCS = Path(__file__).parents[1] / "docs"
H200 = DOCS / "lab" / "h200.md"


@functools.cache
def replayed(grid: str, *args: str) -> str:
    """What the command prints."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(said):
        patched.setattr(sys, "argv", ["replay_grid", str(RESULTS / grid), *args])
        replay_grid.main()
    return said.getvalue()


@dataclass(frozen=True)
class Grid:
    """A recorded grid, the command's arguments for it, and the larger concurrency."""

    file: str
    args: tuple[str, ...]
    crowd: int

    def replayed(self) -> str:
        return replayed(self.file, *self.args)


GRIDS = {
    "H200": Grid("h200-serving/uniform-gamma/grid.json", ("0", "128,8"), 8),
    "H100": Grid("h100-serving/grid.json", ("0", "128,8"), 8),
    "CPU": Grid("cpu-serving/grid.json", ("1",), 4),
}


def test_two_files_are_set_side_by_side() -> None:
    out = replayed("h200-serving/file-against-default.json")
    assert "g0-file over g0-default, long, c=1: 1.031, 1.025 to 1.041 (10 pairs)" in out
    assert "g0-file over g0-default, chat, c=8: 0.959, 0.948 to 1.006 (10 pairs)" in out
    later = replayed("h200-serving/file-against-default.json", "1")
    assert "(5 pairs)" in later


UNIFORM = RESULTS / "h200-serving" / "uniform-gamma"


def searched(folder: Path, study: str, tmp_path: Path) -> list[Trial]:
    """Every trial of a study that a run on GPUs left."""
    (tmp_path / f"{study}.db").write_bytes(gzip.decompress((folder / "trials.db.gz").read_bytes()))
    with Store.open(f"sqlite:///{tmp_path}/{study}.db") as store:
        (search,) = store.get_study(study).searches
        return store.trials(search)


def measuring() -> str:
    return H200.read_text()


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
    trials = searched(folder, "uniform", tmp_path)

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


@pytest.mark.parametrize("name", GRIDS)
def test_the_table_of_replays_is_what_the_command_prints(name: str) -> None:
    out = GRIDS[name].replayed()
    adr = DOCS / "adr" / "0006-boots-follow-a-forecast.md"
    _, _, table = adr.read_text().partition(f"| {name}, ")
    rows = [line.split(" | ", 1)[1] for line in f"| {name}, {table}".splitlines()[:3]]
    for objective, row in zip(("geomean", "single", "aggregate"), rows, strict=True):
        block = out[out.index(f"\n{objective} ") :].split(" of 7 ", 1)
        booted = str(block[0].count(",") + 1)
        shares = re.findall(r"([\d.]+)%", block[1].replace("all 7 booted", ""))
        said = [booted, shares[0], shares[1], shares[3]]  # behind; medians of TPE and random
        if found := re.match(r".*?draws: ([\d.]+) boots", block[1], re.DOTALL):
            more = re.findall(r"([\d.]+)%", block[1][found.end() :])
            said += [found[1], more[0], more[4]]
        cells = [cell.strip(" %") for cell in row.strip(" |").split("|")]
        assert [cell for cell in cells if cell] == [objective, *said]


def test_the_table_of_boots_is_that_of_all_runs(tmp_path: Path) -> None:
    runs = [*searched(UNIFORM, "spec", tmp_path)]
    runs += searched(UNIFORM / "to-32-streams", "sched", tmp_path)
    grid = json.loads((UNIFORM / "grid.json").read_text())
    boots = [(int(row["setting"][1:]), row["levels"]) for row in grid["measured"]]
    boots.sort(key=lambda boot: boot[0])  # stable: by round
    boots += [(t.candidate.int("gamma"), t.measurement.details["levels"]) for t in runs]
    for gamma in (0, 2, 4, 6):
        cells = [
            ", ".join(f"{rate_of(levels[c]):,.0f}" for g, levels in boots if g == gamma)
            for c in ("1", "8")
        ]
        assert f"| {gamma} | {cells[0]} | {cells[1]} |" in H200.read_text()


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        (UNIFORM, "γ=2 {0:.3f}×\nno speculation ({1:.3f} to {2:.3f}), 1.55× for one"),
        (UNIFORM / "to-32-streams", "γ=4 {0:.3f}× ({1:.3f} to\n{2:.3f}), a tie with γ=6: 1.49×"),
        (
            RESULTS / "h200-serving" / "range",
            "{0:.3f}× no speculation ({1:.3f} to {2:.3f}, one fresh",
        ),
    ],
)
def test_the_verdicts_with_random_experts_are_those_of_the_files(folder: Path, told: str) -> None:
    best = json.loads((folder / "best.json").read_text())["best"]
    assert told.format(best["speedup"], *best["interval"]) in H200.read_text()


def test_a_boot_that_read_too_little_no_longer_hides_its_neighbour(tmp_path: Path) -> None:
    """The run left gamma 3 out, the best of the grid, for what it measured of gamma 4."""
    trials = [t for t in searched(UNIFORM, "spec", tmp_path) if t.phase is not Phase.CONFIRM]
    baseline, *others = trials
    assert [t.candidate.int("gamma") for t in trials] == [0, 6, 4, 2]
    scenario = replay_grid.scenario_of(json.loads((UNIFORM / "grid.json").read_text()), "geomean")
    grid = [Candidate.of({"gamma": gamma}) for gamma in range(7)]
    proposer = ForecastProposer(grid, baseline, scenario, replay_grid.growth_of("128,8"))
    for trial in others[:2]:
        assert proposer.ask(1) == [trial.candidate]
        proposer.tell(trial)
    assert [c.int("gamma") for c in proposer.ask(1)] == [3]


def test_the_range_is_as_told() -> None:
    best = json.loads((RESULTS / "h200-serving" / "range" / "best.json").read_text())
    found = best["memory_utilization"]
    text = H200.read_text()
    assert [boot["utilization"] for boot in found["evidence"]] == [0.24, 0.25, 0.27, 0.5]
    assert all(f"({boot['kv_cache_tokens']:,}" in text for boot in found["evidence"])
    assert f"the least is {found['least']:.2f}" in text
    assert f"{found['most']:.2f} survives the full load" in text
