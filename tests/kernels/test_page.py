"""The page of a ``moe`` study: the kept run on an H200, a prediction, an interrupted search."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autotune.core import Basis, Phase
from autotune.kernels.config_file import FIELDS
from autotune.kernels.moe.routing import Routing
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.predict.roofline import Ceilings, share
from autotune.kernels.report.page import page_of
from autotune.kernels.stored import load
from autotune.machine.devices import get_device
from autotune.report.page import Page, Section, Table
from autotune.report.render import to_html, to_markdown
from autotune.report.terminal import to_terminal
from autotune.store.records import RunStatus
from autotune.store.store import Store
from tests.support.kernel_pages import (
    RESULTS,
    SETUP,
    SHAPE,
    h200,
    predicted,
    stored,
    trial,
)

KEPT: dict[str, Any] = json.loads((RESULTS / "provenance.json").read_text())


def kept(out: Path) -> Path:
    """What a job that kept its verdict in a file alone left."""
    left = out / "h200-gemma4" / "measured"
    left.mkdir(parents=True)
    (left / "provenance.json").write_text(json.dumps(KEPT))
    return out


def section(page: Page, title: str) -> Section:
    (found,) = (one for one in page.sections if one.title == title)
    return found


def table(page: Page, title: str) -> Table:
    return next(block for block in section(page, title).blocks if isinstance(block, Table))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Page:
    with Store.open(h200(tmp_path_factory.mktemp("h200"))) as store:
        return page_of(store, "h200-gemma4", out=kept(tmp_path_factory.mktemp("out")))


def test_the_rows_are_those_of_the_job(measured: Page) -> None:
    assert measured.banner is None
    assert measured.result.startswith("13 of 19 rows differ from vLLM's default; 1.121×")
    shown = table(measured, "Speed-up").rows
    for row, kept in zip(shown, KEPT["rows"], strict=True):
        assert row[0] == str(kept["m"])
        assert row[1] == "/".join(str(kept["config"][name]) for name in FIELDS)
        assert row[2:4] == [f"{kept['us']:.1f}", f"{kept['default_us']:.1f}"]
        assert row[4] == ("default" if kept["is_default"] else f"{kept['speedup']:.3f}×")
        low, high = kept["speedup_low"], kept["speedup_high"]
        assert row[5] == ("" if low is None else f"{low:.3f} to {high:.3f}")
        # Shares count against what was measured in that process.
        assert row[6:8] == [f"{kept['bandwidth_share']:.0%}", f"{kept['tensor_share']:.0%}"]


def test_clocks_are_a_table_on_every_page(tmp_path: Path) -> None:
    """Of the run under control on an H200: 144 controls, 31 comparisons."""
    kept = RESULTS.parent / "h200-vllm033" / "control" / "trials.db.gz"
    (tmp_path / "c.db").write_bytes(gzip.decompress(kept.read_bytes()))
    with Store.open(f"sqlite:///{tmp_path}/c.db") as store:
        page = page_of(store, "gpu1")
    assert [list(row) for row in table(page, "Clocks").rows] == [
        ["at the start", "1590", "54", "226"],
        ["in the search, 144 controls", "1980", "42 to 53", "123 to 508"],
        ["in 31 comparisons", "1680 to 1980", "42 to 58", "134 to 668"],
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(to_terminal(page, 80), crop=False)
    assert isinstance(console.file, io.StringIO)
    for shown in (console.file.getvalue(), to_markdown(page), to_html(page)):
        assert "in 31 comparisons" in shown
        assert "134 to 668" in shown
    known = dict(page.facts)["Ceilings measured there"]
    assert "99% of what NVIDIA H200 SXM is known for" in known


def test_the_plots_show_what_was_measured(measured: Page) -> None:
    plots = {plot.name: plot.figure["data"] for plot in measured.plots}
    gains, kept, between = plots["speedups"]
    assert len(gains["x"]) == 13
    assert len(kept["x"]) == 6
    assert len(between["x"]) == 14
    low = {row["m"]: row["speedup_low"] for row in KEPT["rows"]}
    bottoms = [y - down for y, down in zip(gains["y"], gains["error_y"]["arrayminus"], strict=True)]
    assert bottoms == pytest.approx([low[m] for m in gains["x"]])
    assert sum(name.startswith("landscape-") for name in plots) == 18
    assert sum(name.startswith("effect-") for name in plots) == 6
    (least,) = {
        min(factor for line in figure[0]["z"] for factor in line if factor is not None)
        for name, figure in plots.items()
        if name.startswith("landscape-")
    }
    assert least == 1.0
    *single, mean = plots["history-seconds"]
    assert len(single) == 18
    assert mean["y"][-1] == pytest.approx(1.0)
    assert max(mean["x"]) < 85  # the job took 85 s


def test_the_pinned_key_is_named(measured: Page) -> None:
    pinned = {row[0]: row[4] for row in table(measured, "Between the keys").rows}
    assert {m for m, said in pinned.items() if said} == {"12"}


def test_the_database_alone_has_what_the_job_said(tmp_path: Path, measured: Page) -> None:
    with Store.open(h200(tmp_path)) as store:
        search = store.get_study("h200-gemma4").searches[0]
        assert page_of(store, "h200-gemma4") != measured
        run = store.start_run(search, store.environment({}), "autotune moe")
        store.end_run(run, RunStatus.DONE)
        store.set_verdict(search, KEPT)
        page = page_of(store, "h200-gemma4")
    assert page.result == measured.result
    assert page.warnings == measured.warnings
    assert [(name, said) for name, said in page.facts if name != "Trials"] == [
        (name, said) for name, said in measured.facts if name != "Trials"
    ]
    assert table(page, "Speed-up") == table(measured, "Speed-up")


def test_facts_that_only_the_job_knew(measured: Page) -> None:
    facts = dict(measured.facts)
    assert facts["Model"] == KEPT["model"]
    assert f"{KEPT['feasible']} of {KEPT['space_size']} feasible" in facts["Search"]
    seen = KEPT["measured_on"]
    assert facts["Measured on"].startswith(f"{seen['gpu']}, driver ")
    assert f"torch {seen['torch']}, Triton {seen['triton']}" in facts["Measured on"]
    assert f"copy {seen['copy_gbs']:.0f} GB/s" in facts["Ceilings measured there"]
    assert "compilers" in facts["Time"]


@pytest.mark.parametrize(
    "change",
    [{"warnings": 3}, {"min_gain": "much"}, {"measured_on": {"gpu": "G"}}, {"spent": {"x_s": "a"}}],
    ids=lambda change: next(iter(change)),
)
def test_a_damaged_verdict_counts_as_absent(change: dict[str, Any], tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/p.db") as store:
        search = stored(store, [trial(1, Phase.SEARCH, 0, 64, 9.0)], (1,))
        verdict = {"setup": SETUP, "model": "a model"}
        store.set_verdict(search, verdict | change)
        assert "Model" not in dict(page_of(store, "p").facts)
        store.set_verdict(search, verdict)
        assert dict(page_of(store, "p").facts)["Model"] == "a model"


def test_a_gain_that_the_job_asked_for_chooses_the_rows(tmp_path: Path) -> None:
    trials = [
        trial(1, Phase.BASELINE, 0, 64, 10.0),
        trial(1, Phase.SEARCH, 0, 64, 10.0),
        trial(1, Phase.SEARCH, 1, 128, 9.5),
    ]
    with Store.open(f"sqlite:///{tmp_path}/p.db") as store:
        search = stored(store, trials, (1,))
        store.set_verdict(search, {"setup": SETUP, "min_gain": 0.1})
        assert page_of(store, "p").result.startswith("Predicted: 0 of 1 rows")
        assert page_of(store, "p", min_gain=0.01).result.startswith("Predicted: 1 of 1 rows")


def test_the_command_and_the_environment_are_there(measured: Page) -> None:
    blocks = section(measured, "Command").blocks
    assert KEPT["command"] in [getattr(block, "text", "") for block in blocks]
    shown = {row[0]: row[1] for row in table(measured, "Environment").rows}
    assert shown["gpus 0 name"] == "NVIDIA H200"
    assert shown["packages torch"] == "2.11.0"


# --- predictions, and what was cut off -----------------------------------------------------------


def test_a_prediction_is_called_one_wherever_a_number_stands(tmp_path: Path) -> None:
    page = predicted(tmp_path)
    assert page.banner is not None
    assert page.banner.startswith("PREDICTED")
    assert page.result.startswith("Predicted: 1 of 2 rows")
    for name in ("speedups", "times", "utilisation", "roofline"):
        (plot,) = (plot for plot in page.plots if plot.name == name)
        assert "predicted" in plot.figure["layout"]["yaxis"]["title"]["text"]
    assert "measured" not in " ".join(table(page, "Speed-up").heads)
    row = table(page, "Speed-up").rows[0]
    assert row[2:] == ["8.0", "10.0", "1.250×", "bytes", "60, 64", "0", "30720", "QMMA"]
    (plot,) = (plot for plot in page.plots if plot.name == "speedups")
    assert "error_y" not in plot.figure["data"][0]


def test_failures_stand_with_their_reason(tmp_path: Path) -> None:
    rows = table(predicted(tmp_path), "Failures").rows
    assert rows == [("out_of_resources", "too much shared memory", "M=1", "1")]


def test_a_search_that_was_cut_off_claims_nothing(tmp_path: Path) -> None:
    trials = [
        replace(t, measurement=replace(t.measurement, basis=Basis.MEASURED))
        for t in (trial(1, Phase.BASELINE, 0, 64, 10.0), trial(1, Phase.SEARCH, 0, 128, 8.0))
    ]
    with Store.open(f"sqlite:///{tmp_path}/p.db") as store:
        stored(store, trials, (1,), SETUP | {"basis": "measured"})
        page = page_of(store, "p")
    assert page.result == "No row has met vLLM's default side by side yet; the same command goes on"
    assert page.warnings[0].startswith("M=1: searched, but not compared")
    titles = [one.title for one in page.sections]
    assert titles == ["Landscape", "Search history", "Failures", "Environment", "Command"]


@pytest.mark.parametrize("status", [RunStatus.DONE, RunStatus.INTERRUPTED, RunStatus.KILLED])
def test_a_command_that_did_not_reach_its_end_is_told(tmp_path: Path, status: RunStatus) -> None:
    with Store.open(f"sqlite:///{tmp_path}/p.db") as store:
        stored(store, [trial(1, Phase.SEARCH, 0, 64, 9.0)], (1,))
        (run,) = store.get_study("p").all_runs
        store.end_run(run, status)
        page = page_of(store, "p")
    told = [said for said in page.warnings if "did not reach its end" in said]
    assert bool(told) == (status is not RunStatus.DONE)
    assert all(status.value in said for said in told)


def test_other_searches_of_the_study_are_mentioned(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/p.db") as store:
        for seed in (0, 1):
            stored(store, [trial(1, Phase.SEARCH, 0, 64, 9.0 - seed)], (1,), SETUP | {"seed": seed})
        tuned = load(store, "p", 0.01)
        page = page_of(store, "p")
        first = load(store, "p", 0.01, setup=SETUP | {"seed": 0})
    assert tuned.setup["seed"] == 1
    assert first.rows[1].us == 9.0
    assert any("1 more searches (predicted)" in said for said in page.warnings)


# --- ceilings ------------------------------------------------------------------------------------


def test_ceilings_say_where_they_come_from() -> None:
    h200 = Ceilings.published(get_device("h200"), SHAPE)
    assert h200.gbs == 4300
    assert h200.tflops == pytest.approx(8192 * 132 * 1.98e9 / 1e12)
    assert h200.source.startswith("not measured by this study")
    read = Ceilings.measured({"gpu": "G", "copy_gbs": 4000.0, "bf16_tflops": 700.0}, SHAPE)
    assert (read.gbs, read.tflops) == (4000, 1400)
    bf16 = replace(SHAPE, weight_dtype="bf16", dtype=None, scheme=Scheme.NONE)
    assert Ceilings.published(get_device("h200"), bf16).tflops == pytest.approx(h200.tflops / 2)


def test_a_call_at_the_ceiling_has_all_of_it() -> None:
    ceilings = Ceilings(1000.0, 100.0, "")
    floor = share(SHAPE, 1, 1.0, ceilings, Routing()).floor_us
    reached = share(SHAPE, 1, floor, ceilings, Routing())
    assert max(reached.bandwidth, reached.tensor) == pytest.approx(1.0)
    assert (
        reached.bandwidth > reached.tensor
    )  # one token reads weights and computes next to nothing
    assert reached.tflops == pytest.approx(reached.intensity * ceilings.gbs / 1e3)


def test_fewer_experts_in_use_are_fewer_bytes() -> None:
    """With Zipf's law fewer experts are read, so that the same time is a smaller share."""
    ceilings = Ceilings(1000.0, 100.0, "")
    uniform, steep = (
        share(SHAPE, 64, 100.0, ceilings, routing) for routing in (Routing(), Routing(exponent=3.0))
    )
    assert steep.bandwidth < 0.5 * uniform.bandwidth
    assert steep.tensor == uniform.tensor


def test_a_routing_is_named_where_it_is_not_uniform(tmp_path: Path) -> None:
    routing = Routing("zipf:1.5", exponent=1.5)
    setup = SETUP | {"basis": "predicted", "routing": routing.as_json()}
    with Store.open(f"sqlite:///{tmp_path}/p.db") as store:
        stored(store, [trial(1, Phase.SEARCH, 0, 64, 9.0)], (1,), setup)
        page = page_of(store, "p")
    assert ("Routing", "zipf:1.5") in page.facts
