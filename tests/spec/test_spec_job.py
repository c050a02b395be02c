"""The whole job against servers of known speed: what it finds, what it skips, what it survives."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.core import Candidate, NoFeasibleCandidateError, Outcome, Phase
from autotune.spec import export
from autotune.spec.job import Result, run
from autotune.spec.plan import Plan
from autotune.spec.request import Request, make_plan
from autotune.store import Store
from tests.spec.tiny_models import TinyModels

FAKE = f"{sys.executable} {Path(__file__).with_name('fake_serving.py')}"
BINARY = Path(sys.executable).with_name("autotune")

Tune = Callable[..., Result]


def make_request(target: Path, prompts: Path | str, **changes: Any) -> Request:
    """Flags of a quick run with ngram, ready to be changed."""
    given = Request(
        target=str(target),
        drafter="ngram",
        gamma="0-4",
        kv_cache_dtype=None,
        gpu_memory_utilization=None,
        sets=(),
        space=None,
        concurrency="1",
        prompts=str(prompts),
        max_tokens=24,
        ignore_eos=True,
        repeats=6,
        waves=1,
        objective="geomean",
        confirm_boots=1,
        min_gain=0.01,
        budget_s=None,
        server_args=(),
        env=(),
        moe_config=None,
        synthetic=None,
        program=FAKE,
        image=None,
        start_timeout="60s",
        request_timeout="20s",
        study="t",
        command="autotune spec …",
    )
    return dataclasses.replace(given, **changes)


class Bench:
    """A folder with prompts, a database and a count of boots."""

    def __init__(self, target: Path, root: Path) -> None:
        self.target, self.root = target, root
        self.prompts, self.boots_file = root / "p.jsonl", root / "boots"
        lines = [json.dumps({"prompt": f"Question {i}"}) for i in range(5)]
        self.prompts.write_text("\n".join(lines))

    def plan(self, serving: dict[str, Any], **changes: Any) -> Plan:
        behaviour = json.dumps({"boots": str(self.boots_file)} | serving)
        env = (f"FAKE_SERVING={behaviour}",)
        return make_plan(make_request(self.target, self.prompts, env=env, **changes))

    def tune(self, serving: dict[str, Any] | None = None, **changes: Any) -> Result:
        plan = self.plan(serving or {}, **changes)
        with Store.open(f"sqlite:///{self.root}/a.db") as store:
            return run(plan, store, self.root / "logs", lambda _: None)

    @property
    def boots(self) -> int:
        return len(self.boots_file.read_text().splitlines())


@pytest.fixture
def bench(tiny_models: TinyModels, tmp_path: Path) -> Bench:
    return Bench(tiny_models.qwen3, tmp_path)


def gammas(result: Result) -> list[int]:
    return [t.candidate.int("gamma") for t in result.trials]


def test_the_best_gamma_is_found_and_what_cannot_win_is_not_booted(bench: Bench) -> None:
    # Drafting costs a fifth of a step: γ=2 gives 2.4 tokens in 1.4 steps, and 3 no more than that.
    result = bench.tune(
        {"base_ms": 5.0, "draft_ms": 1.0, "reached": [0.8, 0.6, 0.05, 0, 0, 0]}, gamma="0-6"
    )
    assert result.selection.winner.candidate.int("gamma") == 2
    assert not result.selection.kept_incumbent
    assert result.selection.speedup == pytest.approx(2.4 / 1.4, rel=0.15)
    assert gammas(result)[:3] == [0, 6, 2]  # baseline, probe, the best by the forecast
    assert {c.int("gamma") for c in result.left_out} >= {4, 5}
    assert result.boots == result.fresh_boots == bench.boots
    assert bench.boots < 7 + 3


def test_a_second_run_boots_nothing_and_a_wider_one_only_what_is_new(bench: Bench) -> None:
    first = bench.tune(gamma="0,1,2")
    boots = bench.boots
    again = bench.tune(gamma="0,1,2")
    assert (again.fresh_boots, again.boots, bench.boots) == (0, boots, boots)
    assert again.selection == first.selection
    wider = bench.tune(gamma="0,1,2", sets=("max-num-seqs=4",))
    assert wider.fresh_boots > 0


def test_a_run_cut_off_goes_on_where_it_was(bench: Bench) -> None:
    plan, seen = bench.plan({}, gamma="0,1,2"), []

    def stop(progress: Any) -> None:
        seen.append(progress)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with Store.open(f"sqlite:///{bench.root}/a.db") as store, pytest.raises(KeyboardInterrupt):
        run(plan, store, bench.root / "logs", stop)
    assert bench.boots == 2
    whole = bench.tune(gamma="0,1,2")
    assert whole.boots == bench.boots == whole.fresh_boots + 2


def test_failures_are_outcomes_with_the_telling_line_and_the_search_goes_on(bench: Bench) -> None:
    result = bench.tune({"oom": [4], "dies": [3], "refuses": [1], "draft_ms": 0.0})
    failed = {t.candidate.int("gamma"): t.measurement for t in result.failures}
    assert failed[4].outcome is Outcome.OUT_OF_MEMORY
    assert "CUDA out of memory" in failed[4].message
    assert failed[3].outcome is Outcome.OUT_OF_MEMORY
    assert failed[3].details["failure"] == "out_of_memory_under_load"
    assert result.selection.winner.candidate.int("gamma") == 2
    if 1 in failed:  # the forecast may leave it out
        assert "HTTP 400" in failed[1].message


def test_an_invalid_value_is_tried_once(bench: Bench) -> None:
    result = bench.tune(gamma="0,2,3", kv_cache_dtype="auto,banana")
    refused = [t for t in result.failures if t.candidate["kv_cache_dtype"] == "banana"]
    assert [t.measurement.outcome for t in refused] == [Outcome.CONSTRAINT]
    assert "invalid choice" in refused[0].measurement.message
    assert result.selection.winner.candidate["kv_cache_dtype"] == "auto"


def test_other_parameters_are_searched_at_the_gammas_that_promise_most(bench: Bench) -> None:
    serving: dict[str, Any] = {"fast": {"--max-num-seqs=16": 0.7}, "draft_ms": 1.5}
    serving["reached"] = [0.8, 0.1, 0.0, 0.0]
    result = bench.tune(serving, gamma="0,1,4", sets=("max-num-seqs=8,16",))
    winner = result.selection.winner.candidate
    assert winner.params == {"gamma": 1, "max_num_seqs": "16"}
    assert Candidate.of({"gamma": 4, "max_num_seqs": "16"}) in result.left_out


def test_a_drafter_of_which_nothing_is_accepted_is_stopped_early(bench: Bench) -> None:
    result = bench.tune({"reached": [0.0] * 6}, waves=4)
    assert gammas(result) == [0, 4]
    (failed,) = result.failures
    assert "does not fit this target" in failed.measurement.message
    assert result.selection.kept_incumbent
    assert result.confirmed is None


def test_other_output_is_not_recommended(bench: Bench) -> None:
    serving = {"other_text": [2], "base_ms": 5.0, "draft_ms": 1.0, "reached": [0.8, 0.6, 0.05, 0.0]}
    result = bench.tune(serving, gamma="0,1,2")
    assert result.identical[Candidate.of({"gamma": 2})] == 0.0
    assert result.identical[Candidate.of({"gamma": 1})] == 1.0
    assert result.selection.winner.candidate.int("gamma") == 1


def test_nothing_wins_where_drafting_does_not_pay(bench: Bench) -> None:
    result = bench.tune({"draft_ms": 6.0, "reached": [0.3, 0.1, 0, 0]})
    assert result.selection.kept_incumbent
    assert gammas(result)[:2] == [0, 4]
    assert result.selection.winner.candidate == result.plan.baseline
    assert "no setting is clearly faster" in export.document(result)["verdict"]


def test_a_baseline_that_does_not_work_ends_the_job(bench: Bench) -> None:
    with pytest.raises(NoFeasibleCandidateError, match=r"CUDA out of memory.*log"):
        bench.tune({"oom": [0]})


def test_too_few_pairs_are_a_tie_and_said(bench: Bench) -> None:
    result = bench.tune(gamma="0,2", repeats=2, confirm_boots=1)
    assert result.selection.kept_incumbent
    assert "95 % interval" in export.document(result)["warnings"][0]


def test_the_budget_ends_the_search_but_not_the_result(bench: Bench) -> None:
    result = bench.tune(gamma="0-4", budget_s=0.001)
    assert result.out_of_time
    assert gammas(result) == [0]


def test_confirmation_takes_turns_in_fresh_boots(bench: Bench) -> None:
    result = bench.tune(gamma="0,2", repeats=3, confirm_boots=2)
    assert result.confirmed is not None
    lines = bench.boots_file.read_text().splitlines()[2:]
    assert ["speculative" in line for line in lines] == [False, True, True, False]
    with Store.open(f"sqlite:///{bench.root}/a.db") as store:
        (record,) = store.get_study("t").searches
        phases = [t.phase for t in store.trials(record)]
    assert phases.count(Phase.CONFIRM) == 4


def test_the_files_say_what_was_found(bench: Bench, tmp_path: Path) -> None:
    result = bench.tune({"draft_ms": 0.6}, gamma="0,1,2,4", concurrency="1,2", image="img:1")
    files = {path.name: path for path in export.write(result, tmp_path / "out")}
    assert {*files} == {"best.json", "serve.sh", "compose.yaml", "report.md"}
    best = json.loads(files["best.json"].read_text())
    assert best["basis"] == "measured"
    assert best["forecast"]["basis"] == "predicted"
    assert best["best"]["candidate"] == result.selection.winner.candidate.params
    gamma = best["best"]["candidate"]["gamma"]
    assert gamma > 0
    words = shlex.split(files["serve.sh"].read_text().splitlines()[-1])
    at = words.index("--speculative-config")
    assert json.loads(words[at + 1])["num_speculative_tokens"] == gamma
    subprocess.run(["sh", "-n", str(files["serve.sh"])], check=True)
    service = yaml.safe_load(files["compose.yaml"].read_text())["services"]["vllm"]
    assert service["command"][0] == str(bench.target)
    assert service["volumes"] == [f"{bench.target}:{bench.target}:ro"]
    assert service["image"] == "img:1"
    report = files["report.md"].read_text()
    for words_of_it in (
        "## Measured",
        "## Acceptance",
        "## Predicted against measured",
        "## Confirmed",
        "made from it",
        "gamma=0",
    ):
        assert words_of_it in report


def test_the_prediction_is_near_what_is_measured(bench: Bench) -> None:
    result = bench.tune({"base_ms": 5.0, "draft_ms": 1.2}, gamma="0,1,2,4")
    rows = export.document(result)["forecast"]["rows"]
    checked = [row for row in rows if row["measured_tok_s"] and not row["is_input"]]
    assert checked
    assert all(abs(row["error"]) < 0.2 for row in checked)


def test_synthetic_acceptance_is_named_so(bench: Bench) -> None:
    result = bench.tune(gamma="0,2", synthetic="0.8,0.6,0.1")
    lines = bench.boots_file.read_text().splitlines()
    assert '"synthetic_acceptance_rates": [0.8, 0.6]' in lines[1]
    document = export.document(result)
    assert document["basis"] == "synthetic"
    assert "SYNTHETIC" in document["warnings"][0]
    assert not document["best"]["is_baseline"]
    assert {t.measurement.basis.value for t in result.trials} == {"synthetic"}
