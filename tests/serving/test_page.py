"""The page of a ``spec`` study, from trials of known numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core import (
    BadInputError,
    Candidate,
    Outcome,
    Phase,
    Trial,
)
from autotune.report.page import Page, Section, Table
from autotune.serving.report import page as report
from autotune.serving.report.verdict import Verdict, last_verdict
from autotune.serving.stored import load_served
from autotune.store.records import RunStatus
from autotune.store.store import Store
from tests.support.serving_pages import (
    LEFT,
    REACHED,
    SCENARIO,
    SETUP,
    TRIALS,
    page_of,
    put,
    trial,
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(tmp_path_factory.mktemp("spec"))


def section(page: Page, title: str) -> Section:
    (found,) = (one for one in page.sections if one.title == title)
    return found


def table(page: Page, title: str) -> Table:
    return next(block for block in section(page, title).blocks if isinstance(block, Table))


def traces(page: Page, name: str) -> list[Any]:
    (plot,) = (plot for plot in page.plots if plot.name == name)
    found: list[Any] = plot.figure["data"]
    return found


def test_the_verdict_and_how_to_serve_are_those_of_the_job(page: Page) -> None:
    assert page.result == "Best: gamma=2, 1.400× the baseline's tok/s"
    assert list(page.warnings) == ["a warning of the job"]
    texts = [getattr(block, "text", "") for block in section(page, "Serve it").blocks]
    assert texts[0] == "vllm serve models/target"
    assert texts[-1] == "autotune moe --x"
    assert page.banner is None


def test_rates_by_gamma_with_their_intervals(page: Page) -> None:
    alone, together = traces(page, "rates")
    assert (alone["name"], together["name"]) == ("at concurrency 1", "at concurrency 4")
    assert alone["x"] == together["x"] == [0, 1, 2, 3]
    # Six repeats, of which the least and the greatest enclose the median with 97 %.
    assert alone["y"] == [100.5, 120.5, 180.5, 150.5]
    assert alone["error_y"]["array"] == [2.5] * 4
    (plot,) = (plot for plot in page.plots if plot.name == "rates")
    assert "Medians with 95 % intervals" in plot.says


def test_rates_over_the_baseline_are_paired(page: Page) -> None:
    alone, together = traces(page, "speedups")
    assert alone["y"][0] == 1.0
    assert alone["y"][2] == pytest.approx((180 / 100 + 181 / 101) / 2, rel=1e-3)
    assert together["y"][3] == pytest.approx(0.75, rel=1e-2)
    assert min(together["error_y"]["array"]) >= 0


def test_too_few_repeats_are_called_by_their_name(tmp_path: Path) -> None:
    trials = [
        trial(0, (100.0, 400.0), phase=Phase.BASELINE, repeats=3),
        trial(1, (120.0, 440.0), repeats=3),
    ]
    page = page_of(tmp_path, trials, {})
    (plot,) = (plot for plot in page.plots if plot.name == "rates")
    assert "Medians ± standard deviation" in plot.says
    alone, _ = traces(page, "speedups")
    assert alone["error_y"]["array"] == [0, 0]  # no interval is better than a made-up one


def test_acceptance_by_position(page: Page) -> None:
    found = {trace["name"]: trace["y"] for trace in traces(page, "acceptance")}
    assert found == {"gamma=3": REACHED, "gamma=2": REACHED[:2], "gamma=1": REACHED[:1]}
    assert ["gamma=2", "4", "2.40", "0.800 / 0.600"] in table(page, "Acceptance").rows


def test_the_front_leaves_out_what_says_something_else(page: Page) -> None:
    found = {trace["name"]: trace["y"] for trace in traces(page, "pareto")}
    # γ=1 is the fastest together, but half of its outputs differ; medians of six repeats.
    assert found == {
        "Pareto front": [440.5],
        "behind it": [300.5, 400.5],
        "outputs differ: not recommended": [500.5],
    }
    assert table(page, "Pareto front").rows[0][:3] == ["1", "gamma=2", "Pareto front"]


def test_what_was_confirmed_has_the_interval_of_fresh_boots(page: Page) -> None:
    rows = {row[0]: row for row in table(page, "Confirmed").rows}
    assert rows["gamma=0"][2:] == ["–"] * 5
    value = float(rows["gamma=2"][2])
    low, high = map(float, rows["gamma=2"][3].split(" to "))
    assert 1 < low < value < high
    assert value == pytest.approx((182 / 102 * 442 / 402) ** 0.5, rel=0.01)
    alone, together = map(float, rows["gamma=2"][5:])
    assert (alone, together) == pytest.approx((182 / 102, 442 / 402), rel=0.01)


def test_what_speaks_against_a_setting_stands_beside_its_boots(tmp_path: Path) -> None:
    said = [{"setting": "gamma=1"}, {"setting": "gamma=2", "message": "t m,f fell"}]
    blocks = section(page_of(tmp_path, left=LEFT | {"confirmed": said}), "Confirmed").blocks
    assert getattr(blocks[-1], "text", "") == "gamma=2: t m,f fell"
    assert len(blocks) == 3


def test_the_method_of_a_drafter_is_named(tmp_path: Path) -> None:
    recipe = {"name": "r", "method": "eagle3"}
    with Store.open(f"sqlite:///{tmp_path}/s.db") as store:
        put(store, TRIALS[:1], SETUP | {"recipe": recipe})
        facts = dict(report.page_of(store, "s").facts)
    assert facts["Drafter"] == "ngram (method eagle3)"


def test_a_forecast_is_never_called_measured(page: Page) -> None:
    names = [trace["name"] for trace in traces(page, "forecast")]
    assert names == ["PREDICTED at 1", "measured at 1", "PREDICTED at 4", "measured at 4"]
    assert traces(page, "forecast")[0]["marker"]["symbol"].endswith("-open")
    assert table(page, "Forecast against measured").heads[2] == "PREDICTED tok/s"


def test_failures_have_the_telling_line(page: Page) -> None:
    expected = ("out_of_memory", "torch.OutOfMemoryError: CUDA out of memory", "gamma=4", "1")
    assert table(page, "Failures").rows == [expected]
    settings = {row[0] for row in table(page, "Speed").rows}
    assert settings == {f"gamma={g}" for g in range(5)}


def test_a_finished_job_whose_words_are_elsewhere_goes_on_no_more(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/s.db") as store:
        put(store, TRIALS[:3])
        (run,) = store.get_study("s").all_runs
        store.end_run(run, RunStatus.DONE)
        page = report.page_of(store, "s")
    assert page.result.startswith("No verdict here: the job that measured 3 settings ended")


def test_without_the_words_of_a_job_there_is_no_verdict(tmp_path: Path) -> None:
    page = page_of(tmp_path, TRIALS[:3], {})
    assert page.result == "No verdict yet: 3 settings measured; the same command goes on"
    titles = {one.title for one in page.sections}
    assert not titles & {"Serve it", "Forecast against measured", "Not tried", "Confirmed"}


def test_the_rest_of_what_a_job_said(tmp_path: Path) -> None:
    figure = {"setting": {"gamma": 4}, "concurrency": 1, "tok_s": 108.8, "target": None, "note": ""}
    page = page_of(
        tmp_path,
        left=LEFT
        | {
            "objectives": [
                {
                    "objective": "single",
                    "setting": "gamma=2",
                    "times_baseline": 1.8,
                    "speedup": 1.7,
                    "interval": [1.6, 1.9],
                }
            ],
            "schedule": {
                "serve": "vllm serve --x",
                "num_speculative_tokens_per_batch_size": [[1, 4, 2]],
                "recommended": False,
                "said": "a tie",
                "against": "gamma=2",
            },
            "published": {"hardware": "a GB10", "source": "a page", "figures": [figure]},
        },
    )
    rows = table(page, "Best by objective").rows
    assert rows == [["single", "gamma=2", "1.800", "1.700", "1.600 to 1.900"]]
    text, code = section(page, "γ by batch size").blocks
    assert "[[1, 4, 2]] against gamma=2: a tie. Not recommended." in getattr(text, "text", "")
    assert getattr(code, "text", "") == "vllm serve --x"
    first, shown = section(page, "Published, not ours").blocks
    assert "not measured by this study" in getattr(first, "text", "")
    assert isinstance(shown, Table)
    assert shown.heads[-2] == "published tok/s"
    assert shown.rows == [["gamma=4", "the space's own", "–", "1", "108.80", "–"]]


def test_what_was_stopped_is_no_failure(tmp_path: Path) -> None:
    stopped = trial(4, None, sequence=3, said="at best 2 µs per token")
    stopped = replace(stopped, measurement=replace(stopped.measurement, outcome=Outcome.CANNOT_WIN))
    page = page_of(tmp_path, [TRIALS[0], stopped], {})
    assert table(page, "Stopped half-way").rows[0][2] == "at best 2 µs per token"
    assert getattr(section(page, "Failures").blocks[0], "text", "") == "No trial failed."


def test_an_older_verdict_says_that_it_is_older(tmp_path: Path) -> None:
    page = page_of(tmp_path, left=LEFT | {"boots": 3})
    assert any("knew 3 boots; by now there are 7" in said for said in page.warnings)


def test_synthetic_acceptance_is_called_so(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/s.db") as store:
        put(store, TRIALS[:2], SETUP | {"basis": "synthetic"})
        page = report.page_of(store, "s")
    assert page.banner is not None
    assert page.banner.startswith("SYNTHETIC")


def test_only_words_about_this_search_are_used(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/s.db") as store:
        put(store, TRIALS)
        served = load_served(store, "s")

        def left(**changes: Any) -> str:
            (tmp_path / "best.json").write_text(json.dumps(LEFT | changes))
            return last_verdict(store, served, tmp_path).verdict

        assert left() == LEFT["verdict"]
        assert left(study="t") == ""
        assert left(setup={"basis": "measured"}) == ""
        assert left(scenario=SCENARIO.as_json() | {"max_tokens": 9}) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"best": [1]},
        {"objectives": [{}]},
        {"objectives": 3},
        {"schedule": {"serve": "x"}},
        {"setup": "here"},
        {"forecast": {"rows": [{"gamma": 1}]}},
        {"memory_utilization": {"evidence": [{}]}},
        {"scores": [{"setting": "a", "score": "b", "value": "c", "stderr": None}]},
        {"not_tried": [{"setting": 1}]},
        {"published": {"figures": [{}]}},
        {"warnings": 1},
        {"boots": "many", "boots_of_load": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_damaged_result_file_counts_as_absent(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text(json.dumps(LEFT | changes))
    with Store.open(f"sqlite:///{tmp_path}/s.db") as store:
        put(store, TRIALS)
        assert last_verdict(store, load_served(store, "s"), tmp_path) == Verdict()


@pytest.mark.parametrize("text", ["[", "[]", "3", "[" * 100_000, "\0"])
def test_a_result_file_that_is_no_object_counts_as_absent(text: str, tmp_path: Path) -> None:
    (tmp_path / "best.json").write_text(text)
    with Store.open(f"sqlite:///{tmp_path}/s.db") as store:
        put(store, TRIALS)
        assert last_verdict(store, load_served(store, "s"), tmp_path) == Verdict()


def test_the_database_alone_has_the_verdict(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/s.db") as store:
        put(store, TRIALS)
        served = load_served(store, "s")
        (tmp_path / "best.json").write_text(json.dumps(LEFT | {"verdict": "of the file"}))
        store.set_verdict(served.search, LEFT)
        assert last_verdict(store, served, tmp_path).verdict == LEFT["verdict"]
        store.set_verdict(served.search, LEFT | {"scenario": {"of": "another load"}})
        assert last_verdict(store, served, tmp_path).verdict == "of the file"


def test_the_last_load_is_shown_and_others_are_mentioned(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/s.db") as store:
        put(store, TRIALS, SETUP | {"cpus": 1})
        put(store, TRIALS[:1])
        last = load_served(store, "s")
        first = load_served(store, "s", (SETUP | {"cpus": 1}, SCENARIO))
        page = report.page_of(store, "s")
    assert (len(last.searched), len(first.searched)) == (1, 5)
    assert (last.boots, first.boots) == (1, 7)
    assert any("1 more loads or set-ups" in said for said in page.warnings)


def test_a_study_of_nothing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/s.db") as store:
        store.study("m", "moe", {})
        put(store, [])
        with pytest.raises(BadInputError, match="is of kind moe"):
            load_served(store, "m")
        with pytest.raises(BadInputError, match="has measured nothing yet"):
            load_served(store, "s")


def test_a_server_whose_gamma_nobody_knows(tmp_path: Path) -> None:
    """As ``--launcher url`` stores it."""
    one = trial(0, (100.0, 400.0), phase=Phase.BASELINE)
    unknown = Trial(
        Candidate.of({"gamma": "unknown"}), one.workload_key, one.phase, 0, one.measurement
    )
    one_load = {name: LEFT[name] for name in ("study", "setup", "scenario")}
    page = page_of(tmp_path, [unknown], one_load | {"note": "one setting, as it runs"})
    assert page.result == "One setting, as it runs"
    assert [row[0] for row in table(page, "Speed").rows] == ["gamma=unknown"]
    assert page.plots == []
