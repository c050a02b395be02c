"""Several targets: who is tuned, who is refused, what the table says, what a kill leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.cli import spec_runs
from autotune.core import BadInputError
from autotune.report.render import to_markdown
from autotune.serving.matrix.matrix import prepare, study_names
from autotune.serving.matrix.report import matrix_document, matrix_page, row_cells
from autotune.serving.request import SpecRequest
from tests.serving.test_spec_job import FAKE, make_request
from tests.serving.tiny_models import TinyModels
from tests.support.formula_measurer import in_memory

BINARY = Path(sys.executable).with_name("autotune")
SMALL = "--server-arg=--kv-cache-memory-bytes=268435456"
LOAD = "--concurrency 1 --max-tokens 24 --waves 1 --repeats 6 --confirm-boots 1"
LOAD += " --confirm in-turn --gamma 0,2"


@pytest.fixture
def folder(tiny_models: TinyModels, tmp_path: Path) -> Path:
    """Three targets, of which the last has another vocabulary than its configuration says."""
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "Q {i}"}}\n' for i in range(5)))
    for name in ("one", "two", "sick"):
        shutil.copytree(tiny_models.qwen3, tmp_path / name)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    return tmp_path


def command(*args: str) -> list[str]:
    given = ["--drafter", "ngram", "--prompts", "p.jsonl", *LOAD.split(), "--study", "m"]
    return [str(BINARY), "spec", *given, "--vllm", FAKE, SMALL, *args]


Compare = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def compare(
    in_process: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> Compare:
    """The command in this process, with servers in memory."""
    monkeypatch.setattr(spec_runs, "local_measurer", in_memory)

    def run(folder: Path, *args: str, **serving: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(folder)
        given = {"boots": str(folder / "boots"), "base_ms": 10.0, "draft_ms": 0.1, **serving}
        words = [*command(*args)[1:], "--env", f"FAKE_SERVING={json.dumps(given)}"]
        return subprocess.CompletedProcess(words, *in_process(*words))

    return run


def test_a_target_that_is_refused_or_fails_stops_no_other(compare: Compare, folder: Path) -> None:
    targets = [word for name in ("broken", "sick", "one") for word in ("--target", name)]
    ran = compare(folder, *targets, oom_targets=["sick"])
    assert ran.returncode == 0, ran.stderr
    matrix = folder / "outputs" / "m" / "spec"
    document = json.loads((matrix / "matrix.json").read_text())
    broken, sick, one = document["rows"]
    assert [row["status"] for row in document["rows"]] == ["refused", "failed", "done"]
    assert "config.json" in broken["reason"]
    assert "CUDA out of memory" in sick["reason"]
    assert one["wins"]
    assert one["best"]["candidate"] == {"gamma": 2}
    assert one["best"]["speedup"] > 1.5
    assert one["best"]["interval"][0] > 1
    assert one["best"]["acceptance_length"]["1"] == pytest.approx(2.4, abs=0.2)
    assert one["best"]["tok_s"]["1"] > one["baseline"]["tok_s"]["1"]
    for text in (ran.stdout, (matrix / "report.md").read_text()):
        assert "wins" in text
        assert "CUDA out of memory" in text
    assert (folder / "outputs" / one["study"] / "spec" / "best.json").exists()

    boots = (folder / "boots").read_text()
    again = compare(folder, *targets, "--json", oom_targets=["sick"])
    assert json.loads(again.stdout)["rows"][2]["fresh_boots"] == 0
    assert (folder / "boots").read_text() == boots

    other = compare(folder, "--target", "one", "--target", "two", oom_targets=["two"])
    assert "Study m-one" in other.stderr, "a setup other than before is told"
    assert "begins anew" in other.stderr
    assert "Study m-two" not in other.stderr


@pytest.mark.timing
def test_kill_9_loses_no_target_that_is_done(folder: Path, run_in: Compare) -> None:
    env = "--env=FAKE_SERVING=" + json.dumps({"boots": str(folder / "boots")})
    words = command("--target", "one", "--target", "two", env)
    matrix = folder / "outputs" / "m" / "spec" / "matrix.json"

    def states() -> list[str]:
        rows = json.loads(matrix.read_text())["rows"] if matrix.exists() else []
        return [row["status"] for row in rows]

    with subprocess.Popen(words, cwd=folder, stderr=subprocess.DEVNULL) as tuner:
        end = time.monotonic() + 120
        while states() != ["done", "waiting"]:
            assert time.monotonic() < end
            assert tuner.poll() is None
            time.sleep(0.02)
        tuner.kill()
    ran = run_in(folder, *words[1:], "--json")
    assert ran.returncode == 0, ran.stderr
    one, two = json.loads(ran.stdout)["rows"]
    assert (one["fresh_boots"], two["fresh_boots"] > 0) == (0, True)


def of_targets(*targets: object, prompts: str = "chat", **changes: Any) -> SpecRequest:
    request = make_request(Path("m"), prompts, **changes)
    return request.model_copy(update={"target": tuple(map(str, targets))})


def test_studies_of_targets_with_one_name_are_told_apart() -> None:
    assert study_names(of_targets("a/m", "b/k", study=None)) == ["spec-m-ngram", "spec-k-ngram"]
    first, second = study_names(of_targets("a/m", "b/m", study=None))
    assert first != second
    assert first == study_names(of_targets("b/m", "a/m", study=None))[1]  # not by their order
    assert study_names(of_targets("a/m", "b/k", study="s")) == ["s-m", "s-k"]


def test_nothing_to_compare_is_one_line(tiny_models: TinyModels, tmp_path: Path) -> None:
    targets = [str(tiny_models.qwen3), str(tiny_models.gemma4)]
    with pytest.raises(BadInputError) as caught:
        prepare(of_targets(*targets, prompts="poems"))
    assert str(caught.value).count("poems") == 1  # all say the same: said once
    with pytest.raises(BadInputError, match="given twice"):
        prepare(of_targets(*targets[:1] * 2))


def test_a_target_without_gain_shows_what_the_drafter_costs() -> None:
    best = {"setting": "gamma=2", "tok_s": {"1": 25.37}, "speedup": 0.615, "interval": None}
    best["acceptance_length"] = {"1": 1.2, "4": None}
    row = {"target": "base", "status": "done", "wins": False, "best": best}
    row["baseline"] = {"tok_s": {"1": 41.25}}
    cells = row_cells(row)
    assert cells == [
        *("base", "41.2", "gamma=2", "25.4", "0.615", "1.20, –"),
        "no gain: keep the baseline",
    ]
    assert row_cells({**row, "best": None})[-1] == "nothing else works"


def test_a_matrix_of_a_space_carries_what_was_published(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    space = tmp_path / "s.yaml"
    space.write_text(
        "name: s\ntitle: t\nsource: u\nparameters:\n  gamma: {values: [0, 2], why: w}\n"
        "published:\n  hardware: one X\n  source: somebody\n  figures:\n"
        "    - {target: a base model, setting: {gamma: 2}, concurrency: 1, tok_s: 25.37}\n"
    )
    request = of_targets(tiny_models.qwen3, tmp_path / "none", gamma=None, space=str(space))
    entries = prepare(request)
    assert [entry.status.value for entry in entries] == ["waiting", "refused"]
    document = matrix_document(request, entries)
    text = to_markdown(matrix_page(document))
    assert "| gamma=2 | a base model | – | 1 | 25.37 | – |" in text
    assert document["published"]["basis"] == "published, not ours"
    assert document["rows"][1]["reason"]
