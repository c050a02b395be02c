"""Who meets the baseline in fresh boots, who takes the place of whom, and what the verdict says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.core import Candidate, Outcome
from autotune.machine.environment import environment
from autotune.serving.export import write as export
from autotune.serving.forecast import forecast
from autotune.serving.report.document import document
from autotune.serving.report.page import page_of
from autotune.serving.report.verdict import last_verdict
from autotune.serving.stored import load_served
from autotune.store import run_log as runlog
from autotune.store.store import Store
from tests.serving.test_spec_job import Bench
from tests.serving.test_tasks import score, scored
from tests.serving.tiny_models import TinyModels

ALIKE: dict[str, Any] = {"base_ms": 10.0, "draft_ms": 1.0, "reached": [0.74, 0.23, 0.23, 0.0]}
"""Two drafted tokens give 4 % more than one, three 3 % more than two."""


@pytest.fixture
def bench(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Whatever it is asked to search is booted, however little it may gain."""
    monkeypatch.setattr(forecast, "WORTH", 0.0)
    return Bench(tiny_models.qwen3, tmp_path)


def of(gamma: int, **more: str) -> Candidate:
    return Candidate.of({"gamma": gamma, **more})


def test_the_next_best_takes_the_place_of_one_whose_score_falls(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, {0: score(0.8), 1: score(0.79), 2: score(0.4), 3: score(0.5)})
    result = bench.tune(ALIKE, gamma="0-3", quality="t", repeats=6, confirm_boots=2)
    confirmed = result.confirmed
    assert confirmed is not None
    assert set(confirmed.dropped) == {of(2), of(3)}
    assert list(confirmed.trials) == [of(0), of(1)]
    assert [len(trials) for trials in confirmed.trials.values()] == [2, 2]
    assert result.selection.winner.candidate == of(1)
    told = document(result)
    assert len(told["scores"]) == 4
    rows = {row["setting"]: row["message"] for row in told["confirmed"]}
    assert rows["gamma=1"] == ""
    assert "fell from 0.800 to 0.500" in rows["gamma=3"]
    assert "\ngamma=3: t m,f fell from 0.800 to 0.500" in bench.report(result)
    boots = bench.boots
    again = bench.tune(ALIKE, gamma="0-3", quality="t", repeats=6, confirm_boots=2)
    assert again.selection == result.selection
    assert bench.boots == boots


def test_where_all_that_is_faster_falls_the_verdict_names_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, {0: score(0.8), 2: score(0.5)})
    result = bench.tune(ALIKE, gamma="0,2", quality="t")
    assert result.selection.kept_incumbent
    verdict = document(result)["verdict"]
    assert verdict.startswith("no setting that may be recommended is clearly faster")
    assert "faster, but barred: gamma=2 (t m,f fell from 0.800 to 0.500" in verdict


def test_a_finalist_whose_fresh_boot_fails_is_replaced_and_told(bench: Bench) -> None:
    result = bench.tune(ALIKE | {"oom_at": {"3": 2}}, gamma="0-3")
    assert result.confirmed is not None
    assert set(result.confirmed.dropped) == {of(3)}
    assert set(result.confirmed.trials) == {of(0), of(1), of(2)}
    (failed,) = result.failures
    assert failed.measurement.outcome is Outcome.OUT_OF_MEMORY
    assert "CUDA out of memory" in bench.report(result).partition("## Failures")[2]


def test_a_failed_fresh_boot_is_in_the_verdict(bench: Bench) -> None:
    result = bench.tune(ALIKE | {"oom_at": {"2": 2}}, gamma="0,2")
    assert result.selection.kept_incumbent
    verdict = document(result)["verdict"]
    assert "barred: gamma=2 (a fresh boot failed: " in verdict
    assert "CUDA out of memory" in verdict


def test_a_baseline_that_fails_in_a_fresh_boot_leaves_nothing_to_say(bench: Bench) -> None:
    serving = ALIKE | {"oom_at": {"0": 3}, "crowd_ms": 0.1}
    load = {"gamma": "0,2", "repeats": 3, "confirm_boots": 2}
    result = bench.tune(serving, **load)
    assert result.selection.kept_incumbent
    assert result.selection.winner == result.baseline
    assert document(result)["verdict"].startswith("nothing can be said: without speculation")
    boots = bench.boots
    assert bench.tune(serving, **load).selection.kept_incumbent, "it stands until it is tried again"
    assert bench.boots == boots
    again = bench.tune(serving, retry_failed=True, **load)
    assert again.selection.winner.candidate == of(2)
    assert bench.boots == boots + 1


def test_a_schedule_without_a_baseline_is_not_judged(bench: Bench) -> None:
    serving = {"base_ms": 8.0, "draft_ms": 0.2, "crowd_ms": 2.0, "reached": [0.8, 0.7, 0.6, 0.5]}
    result = bench.tune(serving | {"oom_at": {"0": 2}}, gamma="0,1,4", concurrency="1,6")
    assert result.selection.kept_incumbent
    assert not result.schedule.recommended
    assert "nothing to compare it with" in result.schedule.said


def test_outputs_of_what_may_win_are_compared_even_if_that_costs_a_boot(bench: Bench) -> None:
    """The fastest differ from the target; what is right has nothing to be compared with yet."""
    serving = ALIKE | {"other_text": [1, 2], "right_text": "--kv-cache-dtype=fp8"}
    serving |= {"fast": {"--kv-cache-dtype=fp8": 1.05}}
    result = bench.tune(serving, gamma="1,2", kv_cache_dtype="auto,fp8", repeats=9)
    winner = result.selection.winner.candidate
    assert winner["kv_cache_dtype"] == "fp8"
    assert winner["gamma"] in {1, 2}
    assert [t.candidate for t in result.references] == [of(0, kv_cache_dtype="fp8")]
    assert of(0, kv_cache_dtype="fp8") not in result.left_out
    told = document(result)
    assert any("0% of its outputs" in text for text in told["warnings"])
    assert told["trials"][-1]["setting"] == "gamma=0 kv_cache_dtype=fp8"


@pytest.mark.parametrize("moved", [False, True])
def test_boots_of_several_commands_did_not_take_turns_and_that_is_said(
    moved: bool, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = {"base_ms": 5.0, "draft_ms": 0.3, "reached": [0.8, 0.7, 0.6, 0.0]}
    assert bench.tune(serving, gamma="0,2").apart == {}
    if moved:  # to another GPU of the same name, which the set-up does not tell
        elsewhere = environment() | {"gpus": [{"uuid": "GPU-of-another-machine"}]}
        monkeypatch.setattr(runlog, "environment", lambda: elsewhere)
    wider = bench.tune(serving, gamma="0,2,3")
    assert wider.selection.winner.candidate == of(3)
    assert {n: apart.environments for n, apart in wider.apart.items()} == {1: 1 + moved}
    (said,) = (t for t in document(wider)["warnings"] if "did not take turns" in t)
    assert ("another GPU" in said) == moved


def test_another_load_does_not_make_a_finished_job_look_outdated(bench: Bench) -> None:
    bench.tune(gamma="0,2")
    result = bench.tune(gamma="0,2", concurrency="2")
    assert result.boots > result.boots_of_load
    export.write(result, bench.page(result), bench.root / "out")
    with Store.open(f"sqlite:///{bench.root}/a.db") as store:
        served = load_served(store, "t")
        assert served.boots == result.boots_of_load
        left = last_verdict(store, served, bench.root / "out" / "t" / "spec")
        page = page_of(store, "t")
    assert left.boots_of_load == served.boots
    assert not any("the verdict is of a job" in text for text in page.warnings)


def test_tasks_that_could_not_be_evaluated_are_tried_again_on_request(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {0: {"error": "no data set"}, 2: score(0.8)}
    scored(monkeypatch, found)
    for _ in range(2):
        with pytest.raises(Exception, match="no data set; --retry-failed tries again"):
            bench.tune(ALIKE, gamma="0,2", quality="t")
    boots = bench.boots
    scored(monkeypatch, found | {0: score(0.8)})
    result = bench.tune(ALIKE, gamma="0,2", quality="t", retry_failed=True)
    assert result.selection.winner.candidate == of(2)
    assert bench.boots == boots + 1, "the repeats are kept, and the others' scores too"
