"""lm-eval's scores: how they are read, what counts as a fall, and what a fall does."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autotune.core import (
    BadInputError,
    Basis,
    Candidate,
    Measurement,
    MissingEnvironmentError,
    NoFeasibleCandidateError,
    Outcome,
    Phase,
    Trial,
)
from autotune.serving.measure import measurer, tasks
from autotune.serving.measure.tasks import Tasks, check_tasks, evaluate, fallen, read_scores
from autotune.serving.report.document import document
from autotune.serving.server.server import Server
from tests.serving.test_spec_job import Bench
from tests.serving.tiny_models import TinyModels

TASK = """
task: speaks
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/speaks.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_gen_toks: 8, until: ["~~~"]}}
process_results: !function speaks.process
metric_list:
  - {{metric: words, aggregation: mean, higher_is_better: true}}
"""
PROCESS = """
def process(doc, results):
    return {"words": float(bool(results[0].strip()))}
"""


def make_task(folder: Path) -> Path:
    """A task of which the score is whether anything is said."""
    folder.mkdir()
    lines = [json.dumps({"question": f"Question {i}", "answer": "x"}) for i in range(6)]
    (folder / "speaks.jsonl").write_text("\n".join(lines))
    (folder / "speaks.yaml").write_text(TASK.format(folder=folder))
    (folder / "speaks.py").write_text(PROCESS)
    return folder


def given(folder: Path | None = None, **changes: Any) -> Tasks:
    values: dict[str, Any] = {"names": ("speaks",), "tolerance": 0.02, "limit": None}
    return Tasks(**(values | {"folder": folder, "timeout_s": 300.0} | changes))


def trial(value: float | None, stderr: float = 0.01, sign: float = 1.0) -> Trial:
    scores = {} if value is None else {"t m,f": {"value": value, "stderr": stderr, "sign": sign}}
    details = {"tasks": {"scores": scores, "error": "no luck"}}
    found = Measurement(Outcome.OK, Basis.MEASURED, 1.0, details=details)
    return Trial(Candidate.of({"gamma": 1}), "w", Phase.CONFIRM, 0, found)


def test_scores_are_read_with_their_errors() -> None:
    document = {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.8,
                "exact_match_stderr,strict-match": 0.01,
                "ppl,none": 3,
                "ppl_stderr,none": "N/A",
            }
        },
        "higher_is_better": {"gsm8k": {"exact_match": True, "ppl": False}},
    }
    assert read_scores(document) == {
        "gsm8k exact_match,strict-match": {"value": 0.8, "stderr": 0.01, "sign": 1.0},
        "gsm8k ppl,none": {"value": 3.0, "stderr": 0.0, "sign": -1.0},
    }


def test_a_fall_counts_beyond_the_tolerance_and_the_error() -> None:
    assert fallen(trial(0.80), trial(0.80), 0.02) == []
    assert fallen(trial(0.80), trial(0.77), 0.02) == []  # 0.03 is 0.02 and less than one error
    assert "fell from 0.800 to 0.760" in fallen(trial(0.80), trial(0.76), 0.02)[0]
    assert fallen(trial(0.80), trial(0.95), 0.02) == []
    assert fallen(trial(3.0, sign=-1.0), trial(2.0, sign=-1.0), 0.02) == []
    assert fallen(trial(3.0, sign=-1.0), trial(3.5, sign=-1.0), 0.02)
    assert fallen(trial(0.8), trial(None), 0.02) == ["no luck"]


def test_without_lm_eval_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.importlib.util, "find_spec", lambda _: None)  # type: ignore[attr-defined]
    with pytest.raises(MissingEnvironmentError, match=r"\.\[quality\]") as raised:
        check_tasks(given())
    assert raised.value.exit_code == 3


SAID = """\
Validating tasks: ['speaks', 'sings']
Tasks not found: sings
"""
"""What lm-eval 0.4.13 says of a task that it does not know."""


def test_what_lm_eval_says_of_a_task_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By day with recorded words; the night asks lm-eval itself."""
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, SAID, "")

    monkeypatch.setattr("autotune.serving.measure.tasks.subprocess.run", run)
    with pytest.raises(BadInputError, match=r"^--quality speaks,sings: Tasks not found: sings$"):
        check_tasks(given(tmp_path, names=("speaks", "sings")))
    assert asked[0][2:] == (
        ["-m", "lm_eval", "validate", "--tasks", "speaks,sings", "--include_path", str(tmp_path)]
    )


@pytest.mark.server
@pytest.mark.nightly
def test_a_task_that_lm_eval_does_not_know_is_refused(tmp_path: Path) -> None:
    """Of two it names the one: it knows the other."""
    folder = make_task(tmp_path / "tasks")
    with pytest.raises(BadInputError, match=r"Tasks not found: sings$"):
        check_tasks(given(folder, names=("speaks", "sings")))


@pytest.mark.server
@pytest.mark.nightly
def test_a_task_that_lm_eval_knows_is_taken(tmp_path: Path) -> None:
    check_tasks(given(make_task(tmp_path / "tasks")))


@pytest.fixture
def bench(tiny_models: TinyModels, tmp_path: Path) -> Bench:
    return Bench(tiny_models.qwen3, tmp_path)


def scored(monkeypatch: pytest.MonkeyPatch, found: dict[int, dict[str, Any]]) -> None:
    """Let lm-eval find this by gamma."""
    by_key = {Candidate.of({"gamma": gamma}).key: one for gamma, one in found.items()}

    def stand_in(server: Server, given: Tasks, *, chat: bool, out: Path) -> dict[str, Any]:
        del server, given, chat
        return by_key[out.name.split("-")[0]]

    monkeypatch.setattr(measurer, "evaluate", stand_in)
    monkeypatch.setattr("autotune.serving.make_plan.check_tasks", lambda _: None)


def score(value: float) -> dict[str, Any]:
    return {"scores": {"t m,f": {"value": value, "stderr": 0.01, "sign": 1.0}}}


def test_a_setting_whose_score_falls_is_not_recommended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, {0: score(0.8), 1: score(0.79), 2: score(0.5)})
    # γ=2 is a little faster, γ=1 near enough to be booted as well.
    serving = {"base_ms": 10.0, "draft_ms": 1.0, "reached": [0.8, 0.2, 0, 0]}
    # Nine pairs, so that one that a busy machine spoils does not decide.
    result = bench.tune(serving, gamma="0,1,2", quality="t", repeats=9)
    told = document(result)
    assert result.selection.winner.candidate["gamma"] == 1, told["verdict"]
    assert any("t m,f fell from 0.800 to 0.500" in text for text in told["warnings"])
    assert sorted(row["value"] for row in told["scores"]) == [0.5, 0.79, 0.8]
    assert "## Scores" in bench.report(result)


def test_without_the_baseline_s_scores_nothing_can_be_said(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, {0: {"error": "too slow"}, 1: score(0.8), 2: score(0.8)})
    with pytest.raises(NoFeasibleCandidateError, match="not known without speculation: too slow"):
        bench.tune(gamma="0,2", quality="t")


@pytest.mark.server
@pytest.mark.timeout(900)
def test_a_real_evaluation_of_a_real_server(real_server: Server, tmp_path: Path) -> None:
    folder = make_task(tmp_path / "tasks")
    found = evaluate(real_server, given(folder, limit=4), chat=True, out=tmp_path / "out")
    assert "error" not in found, (tmp_path / "out" / "lm-eval.log").read_text()[-2000:]
    assert found["scores"]["speaks words,none"]["value"] == 1.0
    late = evaluate(real_server, given(folder, timeout_s=0.5), chat=True, out=tmp_path / "late")
    assert "did not end within 0.5 s" in late["error"]
    left = subprocess.run(["pgrep", "-f", str(tmp_path / "late")], capture_output=True, check=False)
    assert left.stdout == b""
