"""The whole job, in memory, on servers of known speed: what it finds, skips and survives."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.core import Candidate, Measurer, NoFeasibleCandidateError, Outcome, Phase
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.report.page import Page, Table
from autotune.report.render import to_markdown
from autotune.report.verdict import keep_verdict
from autotune.serving.decide.conclusion import warnings
from autotune.serving.export import write as export
from autotune.serving.job import Result, local_measurer, run
from autotune.serving.make_plan import make_plan
from autotune.serving.measure import cell
from autotune.serving.plan import Plan
from autotune.serving.preflight import preflight
from autotune.serving.recipe import GAMMA
from autotune.serving.report.document import document
from autotune.serving.report.page import page_of
from autotune.serving.request import SpecRequest
from autotune.store.store import Store
from tests.serving.tiny_models import TinyModels
from tests.support.formula_measurer import in_memory

FAKE = f"{sys.executable} {Path(__file__).with_name('fake_serving.py')}"
BINARY = Path(sys.executable).with_name("autotune")

Tune = Callable[..., Result]


def make_request(target: Path, prompts: Path | str, **changes: Any) -> SpecRequest:
    """Flags of a quick run with ngram, some of them changed."""
    given: dict[str, Any] = {
        "target": str(target),
        "drafter": "ngram",
        "gamma": None if "space" in changes else "0-4",
        "concurrency": "1",
        "prompts": str(prompts),
        "max_tokens": 24,
        "repeats": 6,
        "waves": 1,
        "confirm_boots": 1,
        "confirm": "in-turn",
        "vllm": None if changes.get("launcher") == "docker" else FAKE,
        "start_timeout": "60s",
        "request_timeout": "20s",
        "study": "t",
        "dial": False,
        "check_tokens": 0,
        "command": "autotune spec …",
        "force": True,  # what is free on the machine of the test decides nothing
    }
    given = {name: value for name, value in (given | changes).items() if value is not None}
    return SpecRequest.model_validate(given)


class Bench:
    """A folder with prompts, a database and a count of boots.

    Servers are formulas in memory, unless ``processes``: then they are processes that sleep.
    """

    def __init__(self, target: Path, root: Path, *, processes: bool = False) -> None:
        self.target, self.root, self.processes = target, root, processes
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
            return run(plan, store, self.measurer(plan), lambda _: None)

    def measurer(self, plan: Plan) -> Measurer:
        make = local_measurer if self.processes else in_memory
        return make(plan, self.root / "logs")

    def page(self, result: Result) -> Page:
        """The page of a job that has just ended, as the command makes it."""
        plan = result.plan
        with Store.open(f"sqlite:///{self.root}/a.db") as store:
            keep_verdict(store, plan, document(result))
            return page_of(store, plan.study, about=(plan.setup(), plan.scenario))

    def report(self, result: Result) -> str:
        """The same in Markdown."""
        return to_markdown(self.page(result))

    @property
    def boots(self) -> int:
        return len(self.boots_file.read_text().splitlines())


@pytest.fixture
def bench(tiny_models: TinyModels, tmp_path: Path) -> Bench:
    return Bench(tiny_models.qwen3, tmp_path)


def test_clocks_under_load_are_a_table_and_a_low_one_is_a_warning(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = itertools.count()

    @contextmanager
    def read() -> Iterator[list[dict[str, float]]]:
        low = 1700.0 if next(loads) == 4 else 2300.0  # in the second server's second load
        yield [{"sm_mhz": 2400.0, "power_mw": 45_400.0}, {"sm_mhz": low, "temperature_c": 92.0}]

    monkeypatch.setattr(cell, "reading_clocks", read)
    result = bench.tune(gamma="0,2", repeats=3, schedule=False)
    hot = next(t for t in result.trials if t.candidate["gamma"] == 2)
    assert hot.measurement.details["clocks"][0]["sm_mhz"] == 1700.0
    (said,) = (one for one in warnings(result) if "SM clock" in one)
    assert said.startswith("the SM clock fell to 1700 of 2400 MHz under the load of gamma=2")
    assert "at 92 °C: the device was throttled" in said
    page = bench.page(result)
    assert said in page.warnings
    (section,) = (one for one in page.sections if one.title == "Clocks")
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    searched, *fresh = table.rows
    assert searched == ["in the search, 2 servers", "1700 to 2400", "92", "45"]
    assert [row[1] for row in fresh] == ["2300 to 2400"] * len(fresh)
    assert fresh


def gammas(result: Result) -> list[int]:
    return [t.candidate.int("gamma") for t in result.trials]


@pytest.mark.parametrize("failing", [0, 2])
def test_what_failed_for_the_moment_is_tried_again_on_request(bench: Bench, failing: int) -> None:
    well = bench.root / "well"
    ask = functools.partial(
        bench.tune, {"oom": [failing], "well": str(well)}, gamma="0,2", repeats=3, schedule=False
    )
    if failing:
        assert [t.candidate.int("gamma") for t in ask().failures] == [2]
        boots = bench.boots
        assert ask().failures, "another command alone does not try again"
        assert bench.boots == boots
    else:
        for _ in range(2):
            with pytest.raises(NoFeasibleCandidateError, match="--retry-failed tries again"):
                ask()
        assert bench.boots == 1
    well.touch()
    mended = ask(retry_failed=True)
    assert gammas(mended) == [0, 2]
    assert not mended.failures
    boots = bench.boots
    assert gammas(ask()) == [0, 2], "the latest trial counts"
    assert gammas(ask(retry_failed=True)) == [0, 2]
    assert bench.boots == boots


def test_the_best_gamma_is_found_and_what_cannot_win_is_not_booted(bench: Bench) -> None:
    # Drafting costs a fifth of a step: γ=2 gives 2.4 tokens in 1.4 steps, and 3 no more than that.
    result = bench.tune(
        {"base_ms": 5.0, "draft_ms": 1.0, "reached": [0.8, 0.6, 0.05, 0, 0, 0]}, gamma="0-6"
    )
    assert result.selection.winner.candidate.int("gamma") == 2
    assert not result.selection.kept_incumbent
    # 24 tokens: the first takes a step alone, the others come 2.4 in a step.
    assert result.selection.speedup == pytest.approx(24 / (1.4 * (1 + 23 / 2.4)), rel=0.05)
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
    wider = bench.tune(gamma="0,1,2", set=("max-num-seqs=4",))
    assert wider.fresh_boots > 0


def test_a_run_cut_off_goes_on_where_it_was(bench: Bench) -> None:
    plan, seen = bench.plan({}, gamma="0,1,2"), []

    def stop(progress: Any) -> None:
        seen.append(progress)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with Store.open(f"sqlite:///{bench.root}/a.db") as store, pytest.raises(KeyboardInterrupt):
        run(plan, store, bench.measurer(plan), stop)
    assert bench.boots == 2
    whole = bench.tune(gamma="0,1,2")
    assert whole.boots == bench.boots == whole.fresh_boots + 2


@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.timing)])
def test_failures_are_outcomes_with_the_telling_line_and_the_search_goes_on(
    processes: bool, bench: Bench
) -> None:
    """Once through processes and HTTP: what happens there is what the formula says."""
    bench.processes = processes
    result = bench.tune({"oom": [4], "dies": [3], "refuses": [1], "draft_ms": 0.0})
    failed = {t.candidate.int("gamma"): t.measurement for t in result.failures}
    assert failed[4].outcome is Outcome.OUT_OF_MEMORY
    assert "CUDA out of memory" in failed[4].message
    assert failed[3].outcome is Outcome.OUT_OF_MEMORY
    assert failed[3].details["failure"] == "out_of_memory_under_load"
    if not processes:  # what is as fast as it sleeps wins on a quiet machine only
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
    result = bench.tune(serving, gamma="0,1,4", set=("max-num-seqs=8,16",))
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
    assert "no setting is clearly faster" in document(result)["verdict"]


def test_a_baseline_that_does_not_work_ends_the_job(bench: Bench) -> None:
    with pytest.raises(NoFeasibleCandidateError, match=r"CUDA out of memory.*log"):
        bench.tune({"oom": [0]})


def test_too_few_pairs_are_a_tie_and_said(bench: Bench) -> None:
    result = bench.tune(gamma="0,2", repeats=2, confirm_boots=1)
    assert result.selection.kept_incumbent
    assert "95 % interval" in document(result)["warnings"][0]
    assert "one fresh boot each" in document(result)["warnings"][1]


def test_the_budget_ends_the_search_but_not_the_result(bench: Bench) -> None:
    result = bench.tune(gamma="0-4", budget="0.000000001s")
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
    files = {path.name: path for path in export.write(result, bench.page(result), tmp_path / "out")}
    pages = {"report.md", "report.html"}
    assert {*files} == {"best.json", "schedule.json", "serve.sh", "compose.yaml"} | pages
    assert list(files)[-1] == "best.json"
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
    text = files["report.md"].read_text()
    for words_of_it in (
        "## Speed",
        "## Acceptance",
        "## Forecast against measured",
        "## Confirmed",
        "made from it",
        "gamma=0",
    ):
        assert words_of_it in text


def test_the_prediction_is_near_what_is_measured(bench: Bench) -> None:
    result = bench.tune({"base_ms": 5.0, "draft_ms": 1.2}, gamma="0,1,2,4")
    rows = document(result)["forecast"]["rows"]
    checked = [row for row in rows if row["measured_tok_s"] and not row["is_input"]]
    assert checked
    assert all(abs(row["error"]) < 0.2 for row in checked)


def test_synthetic_acceptance_is_refused_where_vllm_has_none(bench: Bench) -> None:
    plan = bench.plan({}, gamma="0,2", synthetic_acceptance="0.8,0.6")
    reading = MemoryReading(1 << 40, 1 << 40, MemoryKind.CPU, "memory")
    for kind, refused in ((MemoryKind.CPU, True), (MemoryKind.GPU, False)):
        memory = dataclasses.replace(reading, kind=kind)
        found = preflight(dataclasses.replace(plan, memory=memory))
        assert ("synthetic-cpu" in [f.code for f in found if f.refuses]) == refused


@pytest.mark.parametrize(
    ("says", "words"),
    [
        ("Using configuration from {folder}/E=8,N=32,x.json for MoE layer.", None),
        ("Using configuration from /vllm/configs/E=8,N=32,x.json for MoE layer.", "no server's"),
        ("nothing of it", "no server's log says"),
        (
            "Using default MoE config. Performance might be sub-optimal! Config file not found at "
            "{folder}/E=8,N=64,y.json, /vllm/configs/E=8,N=64,y.json",
            "for want of E=8,N=64,y.json: `autotune files` says what makes it",
        ),
    ],
)
def test_whether_the_moe_files_were_taken_is_read_off_the_log(
    says: str, words: str | None, bench: Bench, tmp_path: Path
) -> None:
    folder = tmp_path / "moe"
    folder.mkdir()
    (folder / "E=8,N=32,x.json").write_text("{}")
    line = f"(Worker pid=7) INFO 11-23 10:00:00 [fused_moe.py:1151] {says.format(folder=folder)}"
    result = bench.tune({"says": [line]}, gamma="0,2", repeats=2, moe_config=str(folder))
    told = document(result)
    about = [text for text in told["warnings"] if "configuration" in text]
    assert bool(about) == (words is not None)
    assert words is None or words in about[0]
    if words is None:
        assert told["trials"][0]["moe_used"] == [str(folder / "E=8,N=32,x.json")]


def test_what_a_crowd_pays_is_told_beside_the_one_number(bench: Bench) -> None:
    """Drafting doubles one stream's speed and costs four streams a quarter of theirs."""
    result = bench.tune(
        {"crowd_ms": 1.0}, gamma="0,2", concurrency="1,4", repeats=6, schedule=False
    )
    told = document(result)
    assert told["best"]["candidate"] == {"gamma": 2}
    (row,) = [row for row in told["confirmed"] if row["setting"] == "gamma=2"]
    assert row["at"]["1"] > 1.5
    assert row["at"]["4"] < 1.0
    assert f"({row['at']['1']:.3f}× at 1, {row['at']['4']:.3f}× at 4)" in told["verdict"]
    lines = bench.report(result).splitlines()
    assert any(line.endswith("| × at 1 | × at 4 |") for line in lines)
    assert any(line.endswith(f" {row['at']['1']:.3f} | {row['at']['4']:.3f} |") for line in lines)


@pytest.mark.parametrize("factor", [0.6, 1.7])
def test_tuned_moe_files_are_served_in_turns_with_the_default(
    factor: float, bench: Bench, tmp_path: Path
) -> None:
    folder = tmp_path / "moe"
    folder.mkdir()
    (folder / "E=8,N=32,device_name=X.json").write_text("{}")
    result = bench.tune(
        {"tuned": factor}, gamma="0,2", repeats=6, moe_config=f"default,{folder}", schedule=False
    )
    assert result.baseline.candidate.params == {"gamma": 0, "moe_config": "default"}
    told = document(result)
    wanted = str(folder) if factor < 1 else "default"
    assert told["best"]["candidate"] == {"gamma": 2, "moe_config": wanted}
    assert (f"VLLM_TUNED_CONFIG_FOLDER={folder}" in told["best"]["serve"]) == (factor < 1)
    assert not [text for text in told["warnings"] if "configuration" in text]
    found = {t.candidate.params["moe_config"]: t.measurement for t in result.trials}
    assert found["default"].details["moe_used"] == []
    if factor < 1:
        used = found[str(folder)].details["moe_used"]
        assert used == [f"{folder}/E=8,N=32,device_name=X.json"]
    else:
        assert found[str(folder)].outcome is not Outcome.OK, "stopped, for it could not win"


def test_synthetic_acceptance_is_named_so(bench: Bench) -> None:
    result = bench.tune(gamma="0,2", synthetic_acceptance="0.8,0.6,0.1")
    lines = bench.boots_file.read_text().splitlines()
    assert '"synthetic_acceptance_rates": [0.8, 0.6]' in lines[1]
    told = document(result)
    assert told["basis"] == "synthetic"
    assert "SYNTHETIC" in told["warnings"][0]
    assert not told["best"]["is_baseline"]
    assert {t.measurement.basis.value for t in result.trials} == {"synthetic"}


CROWDED: dict[str, Any] = {
    "base_ms": 8.0,
    "draft_ms": 0.2,
    "crowd_ms": 2.0,
    "reached": [0.8, 0.7, 0.6, 0.5, 0, 0],
}
"""Alone, four drafted tokens give 3.3 times as much; of six streams each they cost a third."""


def test_pareto_confirms_the_ends_of_the_front_and_its_knee(bench: Bench) -> None:
    load = {"gamma": "0,1,4", "concurrency": "1,6", "schedule": False}
    result = bench.tune(CROWDED, objective="pareto", **load)
    told = document(result)
    front = told["pareto_front"]
    assert front[0]["candidate"]["gamma"] == 4
    assert front[-1]["candidate"]["gamma"] < 3
    assert "single end" in front[0]["place"]
    assert "aggregate end" in front[-1]["place"]
    assert sum("knee" in row["place"] for row in front) == (len(front) > 2)
    named = [row for row in front if row["place"] and row["candidate"] != {"gamma": 0}]
    assert all(row["booted_again"] for row in named)
    assert len(told["confirmed"]) == 1 + len(named)
    by = {row["objective"]: row for row in told["objectives"]}
    assert by["single"]["candidate"] == front[0]["candidate"]
    assert by["aggregate"]["candidate"] == front[-1]["candidate"]
    assert by["single"]["speedup"] == pytest.approx(by["single"]["times_baseline"], rel=0.02)
    assert by["single"]["interval"][0] > 1
    assert {"## Best by objective", "## Pareto front"} <= set(bench.report(result).splitlines())


def test_every_objective_has_its_best_whichever_one_leads(bench: Bench) -> None:
    result = bench.tune(CROWDED, gamma="0,1,4", concurrency="1,6", objective="single")
    by = {row["objective"]: row for row in document(result)["objectives"]}
    assert {*by} == {"geomean", "single", "aggregate"}
    assert by["single"]["candidate"] == result.selection.winner.candidate.params == {"gamma": 4}
    assert by["aggregate"]["candidate"]["gamma"] < 4


def test_a_schedule_that_wins_in_the_same_boots_is_recommended(bench: Bench) -> None:
    # Nine pairs: their interval leaves the worst one out, which another process may have disturbed.
    wanted = {"gamma": "0,1,4", "concurrency": "1,6", "objective": "pareto", "repeats": 9}
    result = bench.tune(CROWDED, **wanted)
    written = export.write(result, bench.page(result), bench.root / "out")
    files = {path.name: path for path in written}
    found = json.loads(files["schedule.json"].read_text())
    assert found == json.loads(files["best.json"].read_text())["schedule"]
    assert found["num_speculative_tokens_per_batch_size"][0] == [1, 2, 4]
    assert found["num_speculative_tokens_per_batch_size"][1][2] < 4
    lines = bench.boots_file.read_text().splitlines()
    assert sum("num_speculative_tokens_per_batch_size" in line for line in lines) == 1
    assert found["recommended"], found["said"]
    assert found["interval"][0] > 1
    assert "num_speculative_tokens_per_batch_size" in found["serve"]
    assert "Recommended." in files["report.md"].read_text()


def test_a_vllm_without_schedules_says_so_and_the_rest_is_as_ever(bench: Bench) -> None:
    serving = CROWDED | {"no_schedule": True}
    result = bench.tune(serving, gamma="0,1,4", concurrency="1,6", objective="single")
    assert not result.selection.kept_incumbent
    assert not result.schedule.recommended
    assert "vLLM does not serve it: TypeError: unexpected keyword" in result.schedule.said
    boots = bench.boots
    assert bench.tune(serving, gamma="0,1,4", concurrency="1,6", objective="single").boots == boots
    again = bench.tune(
        serving, gamma="0,1,4", concurrency="1,6", objective="single", schedule=False
    )
    assert "not asked for" in again.schedule.said


def test_published_figures_stand_beside_ours_and_are_named_so(bench: Bench, tmp_path: Path) -> None:
    space = tmp_path / "s.yaml"
    space.write_text(
        "name: s\ntitle: t\nsource: u\n"
        "parameters:\n  gamma: {values: [0, 2], why: w}\n"
        "published:\n  hardware: one X\n  source: somebody\n  figures:\n"
        "    - {setting: {gamma: 0}, concurrency: 1, tok_s: 40.85}\n"
        "    - {setting: {gamma: 2}, concurrency: 1, tok_s: 74.51}\n"
        "    - {target: another, setting: {gamma: 2}, concurrency: 1, tok_s: 9.5}\n"
    )
    result = bench.tune(gamma=None, space=str(space))
    told = document(result)
    assert told["published"]["basis"] == "published, not ours"
    assert told["basis"] == "measured"
    lines = bench.report(result).splitlines()
    (head,) = [line for line in lines if "published tok/s, not ours: one X" in line]
    row = lines[lines.index(head) + 3]
    assert row.startswith("| gamma=2 |")
    assert row.endswith("| 74.5 at 1 |")
    assert any(line.startswith("| gamma=2 | another | – | 1 | 9.50 | – |") for line in lines)


def test_what_misses_its_slo_is_stopped_and_never_recommended(bench: Bench) -> None:
    serving = CROWDED | {"crowd_ms": 5.0}  # six streams at γ=4: 30 ms per token, without it 8
    load = {"gamma": "0,4", "concurrency": "1,6", "schedule": False}
    assert bench.tune(serving, objective="single", **load).selection.winner.candidate[GAMMA] == 4
    result = bench.tune(serving, objective="single", slo="tpot=19ms,ttft=10s", **load)
    (stopped,) = result.failures
    assert stopped.measurement.outcome is Outcome.SLO_MISSED
    assert "tpot p99" in stopped.measurement.message
    assert "is above 19 ms at concurrency 6" in stopped.measurement.message
    told = document(result)
    (row,) = told["stopped"]
    assert (row["repeats"]["1"], row["repeats"]["6"]) == (6, 1)
    assert result.selection.winner.candidate[GAMMA] == 0
    assert all(row["candidate"] == {"gamma": 0} for row in told["objectives"])
    assert "## Stopped" in bench.report(result)


def test_where_no_setting_keeps_the_slo_nothing_is_recommended(bench: Bench) -> None:
    with pytest.raises(NoFeasibleCandidateError, match=r"no setting keeps --slo.*ttft p99"):
        bench.tune(gamma="0,2", slo="ttft=1ms")


def test_a_baseline_that_misses_the_slo_is_measured_and_beaten_by_what_keeps_it(
    bench: Bench,
) -> None:
    serving = {"base_ms": 20.0, "draft_ms": 0.5, "reached": [0.9, 0.9, 0.9, 0.9]}
    result = bench.tune(serving, gamma="0,4", slo="tpot=14ms", repeats=3, confirm_boots=1)
    assert result.baseline.measurement.details["slo_missed"]
    assert result.selection.winner.candidate[GAMMA] == 4
    assert document(result)["confirmed"][1]["speedup"] > 2


def test_what_cannot_win_any_more_is_stopped(bench: Bench) -> None:
    serving: dict[str, Any] = {"fast": {"--max-num-seqs=16": 3.0}, "reached": [0.8, 0.7, 0.6, 0.5]}
    load = {"gamma": "0,4", "concurrency": "1,2", "set": ["max-num-seqs=8,16"]}
    result = bench.tune(serving, schedule=False, **load)
    stopped = [t for t in result.failures if t.measurement.outcome is Outcome.CANNOT_WIN]
    assert stopped
    assert {t.candidate["max_num_seqs"] for t in stopped} == {"16"}
    for row in document(result)["stopped"]:
        assert row["repeats"] == {"1": 2}
        assert "another setting has" in row["message"]
    assert result.selection.winner.candidate.params == {"gamma": 4, "max_num_seqs": "8"}
