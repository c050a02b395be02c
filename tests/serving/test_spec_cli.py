"""The command as it is typed: plan, progress, result, JSON, and what `show` makes of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from autotune.cli import spec_runs
from autotune.core import Candidate
from tests.serving.test_spec_job import FAKE
from tests.serving.tiny_models import TinyModels
from tests.support.formula_measurer import in_memory

SMALL = "--server-arg=--kv-cache-memory-bytes=268435456"
"""What is free on the machine of the test then decides nothing."""
BINARY = Path(sys.executable).with_name("autotune")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    lines = [json.dumps({"prompt": f"Question {i}"}) for i in range(5)]
    (root / "p.jsonl").write_text("\n".join(lines))
    return root


Ran = subprocess.CompletedProcess[str]
Run = Callable[..., Ran]


@pytest.fixture
def autotune(
    in_process: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """The command in this process, with servers in memory."""
    monkeypatch.setattr(spec_runs, "local_measurer", in_memory)

    def command(folder: Path, *args: str) -> Ran:
        monkeypatch.chdir(folder)
        return Ran([*args], *in_process(*args))

    return command


def spec(autotune: Run, folder: Path, target: Path, *args: str, drafter: str = "ngram") -> Ran:
    given = (
        f"--target {target} --drafter {drafter} --prompts p.jsonl --concurrency 1 --max-tokens 24"
    )
    given += " --waves 1 --repeats 6 --confirm-boots 1 --confirm in-turn --study s --no-dial"
    return autotune(folder, "spec", *given.split(), "--vllm", FAKE, SMALL, *args)


def test_plan_progress_result_and_a_second_run(
    autotune: Run, folder: Path, tiny_models: TinyModels
) -> None:
    ran = spec(autotune, folder, tiny_models.qwen3, "--gamma", "0,2")
    assert ran.returncode == 0, ran.stderr
    assert "at most 4 boots: 2 searched, 1 × 2 to confirm" in ran.stderr
    assert "boot 1 of at most 4: baseline" in ran.stderr
    assert "Best: gamma=2" in ran.stdout
    assert "4 boots, 4 of them new" in ran.stdout
    assert (folder / "outputs" / "s" / "spec" / "best.json").exists()
    page = (folder / "outputs" / "s" / "spec" / "report.html").read_text()
    assert '<p class="result">Best: gamma=2' in page
    text = (folder / "outputs" / "s" / "spec" / "report.md").read_text()
    shutil.rmtree(folder / "outputs" / "s")  # the database alone is left
    assert autotune(folder, "report", "s").returncode == 0
    assert (folder / "outputs" / "s" / "spec" / "report.md").read_text() == text
    assert (folder / "outputs" / "s" / "spec" / "report.html").read_text() == page

    again = spec(autotune, folder, tiny_models.qwen3, "--gamma", "0,2", "--json")
    document = json.loads(again.stdout)
    assert "boot 4 of at most 4: confirm" in again.stderr, "progress does not disturb the document"
    assert again.stderr.count("(known already)") == 4
    assert (document["boots"], document["fresh_boots"]) == (4, 0)
    assert document["best"]["candidate"] == {"gamma": 2}
    assert document["best"]["speculative_config"]["num_speculative_tokens"] == 2
    assert document["best"]["moe"] is None

    shown = autotune(folder, "show", "s")
    assert shown.returncode == 0, shown.stderr
    assert "4 trials" in shown.stdout
    listed = autotune(folder, "studies")
    assert "spec" in listed.stdout


def test_a_flag_that_vllm_does_not_know_is_bad_input(
    run_in: Run, folder: Path, tiny_models: TinyModels
) -> None:
    program = folder / "vllm"
    program.write_text(
        "#!/bin/sh\necho 'vllm: error: unrecognized arguments: --max-num-sequences 8' >&2\nexit 2\n"
    )
    program.chmod(0o755)
    ran = spec(run_in, folder, tiny_models.qwen3, "--vllm", str(program), "--gamma", "0,2")
    assert ran.returncode == 2
    assert "vLLM refuses what the server without speculation is given" in ran.stderr
    assert "unrecognized arguments: --max-num-sequences 8" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr


def test_a_moe_target_gets_the_keys_that_it_decodes(
    autotune: Run, folder: Path, tiny_models: TinyModels
) -> None:
    args = ("--gamma", "0,2", "--concurrency", "1,4", "--study", "moe", "--json")
    document = json.loads(spec(autotune, folder, tiny_models.qwen3_moe, *args).stdout)
    gamma = document["best"]["candidate"]["gamma"]
    sizes = f"{gamma + 1},{4 * (gamma + 1)}"
    model = tiny_models.qwen3_moe
    expected = f"autotune moe --device auto --model {model} --batch-sizes {sizes}"
    assert document["best"]["moe"] == expected


def test_a_refused_pair_needs_force(autotune: Run, folder: Path, tiny_models: TinyModels) -> None:
    args = ("--study", "f", "--gamma", "0,2")
    refused = spec(autotune, folder, tiny_models.qwen3, *args, drafter="mtp")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1 + refused.stderr.count("note:")
    assert "(--force goes on)" in refused.stderr
    forced = spec(autotune, folder, tiny_models.qwen3, *args, "--force", drafter="mtp")
    assert forced.returncode == 0, forced.stderr
    assert "refuse:" in forced.stderr


def test_a_range_a_limit_and_a_schedule_end_in_files_and_a_page(
    autotune: Run, folder: Path, tiny_models: TinyModels
) -> None:
    memory = {"tokens": 100, "start": 20}
    env = "--env=FAKE_SERVING=" + json.dumps({"memory": memory, "base_ms": 5.0, "crowd_ms": 3.0})
    args = f"spec --target {tiny_models.qwen3} --drafter ngram --prompts p.jsonl --gamma 0,2"
    args += " --concurrency 1,2 --max-tokens 24 --waves 1 --repeats 6 --confirm-boots 1"
    args += " --confirm in-turn --study r"
    args += " --gpu-memory-utilization 0.3:0.5 --slo ttft=20s"
    ran = autotune(folder, *args.split(), "--vllm", FAKE, env)
    assert ran.returncode == 0, ran.stderr
    assert "Memory utilization\nAt least 0.41 holds 2048 tokens at once" in ran.stdout
    assert "3000 tokens of KV cache" in ran.stderr
    out = folder / "outputs" / "r" / "spec"
    assert json.loads((out / "best.json").read_text())["scenario"]["slo"] == {"ttft": 20000.0}
    assert (out / "report.html").exists()
    assert autotune(folder, "report", "r").returncode == 0


@pytest.mark.parametrize("drafter", [(), ("--drafter", "none")])
def test_without_a_drafter_other_flags_are_compared(
    autotune: Run, folder: Path, tiny_models: TinyModels, drafter: tuple[str, ...]
) -> None:
    study = f"plain{len(drafter)}"
    args = f"spec --target {tiny_models.qwen3} --prompts p.jsonl --concurrency 1 --max-tokens 24"
    args += " --waves 1 --repeats 6 --confirm-boots 1"
    args += f" --confirm in-turn --set max-num-seqs=8,16 --study {study}"
    gamma = () if drafter else ("--gamma", "0")
    ran = autotune(folder, *args.split(), *drafter, *gamma, "--vllm", FAKE, SMALL)
    assert ran.returncode == 0, ran.stderr
    assert "with no drafter\n" in ran.stderr
    assert "boot 2 of at most 4: search c=1 gamma=0 max_num_seqs=16" in ran.stderr
    out = folder / "outputs" / study / "spec"
    assert "- Drafter: no drafter\n" in (out / "report.md").read_text()
    assert "--speculative-config" not in (out / "serve.sh").read_text()
    again = autotune(folder, *args.split(), "--drafter", "none", "--vllm", FAKE, SMALL, "--json")
    assert json.loads(again.stdout)["fresh_boots"] == 0
    shown = autotune(folder, "show", study)
    assert shown.returncode == 0, shown.stderr
    assert f"{tiny_models.qwen3} with no drafter; " in shown.stdout


def test_without_a_drafter_a_range_is_searched(
    autotune: Run, folder: Path, tiny_models: TinyModels
) -> None:
    env = "--env=FAKE_SERVING=" + json.dumps({"memory": {"tokens": 100, "start": 20}})
    args = f"spec --target {tiny_models.qwen3} --gamma 0 --prompts p.jsonl --concurrency 1,2"
    args += " --max-tokens 24 --waves 1 --repeats 2 --gpu-memory-utilization 0.3:0.5 --study pr"
    ran = autotune(folder, *args.split(), "--vllm", FAKE, env)
    assert ran.returncode == 0, ran.stderr
    assert "Memory utilization\nAt least 0.41 holds 2048 tokens at once" in ran.stdout
    best = json.loads((folder / "outputs" / "pr" / "spec" / "best.json").read_text())
    assert best["best"]["is_baseline"]
    assert "is the only setting: there was nothing to compare it with" in best["verdict"]
    assert "0 × 0 to confirm" not in ran.stderr
    assert "× 0 to confirm" in ran.stderr
    assert best["memory_utilization"]["least"] == 0.41


def parts_in(database: Path) -> int:
    """Repeats that are stored at this moment."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as opened:
            found: int = opened.execute("SELECT count(*) FROM parts").fetchone()[0]
            return found
    except sqlite3.OperationalError:
        return 0


@pytest.mark.timing
@pytest.mark.parametrize("how", ["--dial", pytest.param("--no-dial", marks=pytest.mark.nightly)])
def test_kill_9_loses_no_finished_repeat(
    how: str, run_in: Run, tiny_models: TinyModels, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    env = "--env=FAKE_SERVING=" + json.dumps({"base_ms": 6.0})
    args = f"spec --target {tiny_models.qwen3} --drafter ngram --prompts p.jsonl --gamma 0,2"
    args += " --concurrency 1,2 --max-tokens 24 --waves 1 --repeats 8 --confirm-boots 1"
    args += " --confirm in-turn --study s"
    command = [str(BINARY), *args.split(), "--vllm", FAKE, SMALL, "--no-schedule", how, env]
    database = tmp_path / "outputs" / "autotune.db"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as tuner:
        end = time.monotonic() + 60
        while parts_in(database) < 10:  # all repeats at concurrency 1, some at 2
            assert time.monotonic() < end
            time.sleep(0.02)
        tuner.kill()
    kept = parts_in(database)
    ran = run_in(tmp_path, *command[1:], "--json")
    assert ran.returncode == 0, ran.stderr
    trials = json.loads(ran.stdout)["trials"]
    reused = [trial["repeats_of_earlier_runs"] for trial in trials]
    # By the dial both gammas were under way; else the baseline alone.
    assert (sum(reused) if how == "--dial" else reused[0]) == kept
    levels = trials[0]["levels"]
    assert [len(levels[c]["repeats"]) for c in ("1", "2")] == [8, 8]
    with contextlib.closing(sqlite3.connect(database)) as opened:
        stored = opened.execute(
            "SELECT value FROM parts WHERE name LIKE 'concurrency 1 %' AND candidate_key = ? "
            "ORDER BY id LIMIT 8",
            (Candidate.of({"gamma": 0}).key,),
        )
        rates = [json.loads(value)["tok_s"] for (value,) in stored]
    assert levels["1"]["repeats"] == pytest.approx(rates, rel=1e-3)


def serving_in(folder: Path) -> list[int]:
    """Servers whose model path or working folder is of this test."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if any("fake_serving.py" in word for word in line) and process.cwd() == str(folder):
                found.append(process.pid)
    return found


@pytest.mark.timing
def test_kill_9_leaves_no_server_and_loses_no_finished_trial(
    run_in: Run, tiny_models: TinyModels, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    boots = tmp_path / "boots"
    env = "--env=FAKE_SERVING=" + json.dumps({"boots": str(boots)})
    args = f"spec --target {tiny_models.qwen3} --drafter ngram --prompts p.jsonl --gamma 0,2"
    args += " --concurrency 1 --max-tokens 24 --waves 1 --repeats 6 --confirm-boots 1"
    args += " --confirm in-turn --study s"
    command = [str(BINARY), *args.split(), "--vllm", FAKE, SMALL, "--no-dial", env]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as tuner:
        end = time.monotonic() + 60
        while not boots.exists() or len(boots.read_text().splitlines()) < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
        tuner.kill()
    end = time.monotonic() + 60
    while serving_in(tmp_path):
        assert time.monotonic() < end
        time.sleep(0.05)
    ran = run_in(tmp_path, *command[1:], "--json")
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    # The baseline was finished, the second boot was not: it alone is made again.
    assert (document["boots"], document["fresh_boots"]) == (4, 3)
    assert len(boots.read_text().splitlines()) == 5
