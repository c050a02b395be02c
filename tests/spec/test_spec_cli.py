"""The command as it is typed: plan, progress, result, JSON, and what `show` makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.spec.test_spec_job import FAKE
from tests.spec.tiny_models import TinyModels

BINARY = Path(sys.executable).with_name("autotune")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    lines = [json.dumps({"prompt": f"Question {i}"}) for i in range(5)]
    (root / "p.jsonl").write_text("\n".join(lines))
    return root


def autotune(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BINARY), *args], cwd=folder, capture_output=True, text=True, check=False
    )


def spec(folder: Path, target: Path, *args: str) -> subprocess.CompletedProcess[str]:
    given = f"--target {target} --drafter ngram --prompts p.jsonl --concurrency 1 --max-tokens 24"
    given += " --waves 1 --repeats 6 --confirm-boots 1 --study s"
    return autotune(folder, "spec", *given.split(), "--vllm", FAKE, *args)


def test_plan_progress_result_and_a_second_run(folder: Path, tiny_models: TinyModels) -> None:
    ran = spec(folder, tiny_models.qwen3, "--gamma", "0,2")
    assert ran.returncode == 0, ran.stderr
    assert "at most 5 boots: 2 searched, 1 × 3 to confirm" in ran.stderr
    assert "boot 1 of at most 5: baseline" in ran.stderr
    assert "best: gamma=2" in ran.stdout
    assert "4 boots, 4 of them new" in ran.stdout
    assert (folder / "outputs" / "s" / "spec" / "best.json").exists()

    again = spec(folder, tiny_models.qwen3, "--gamma", "0,2", "--json")
    document = json.loads(again.stdout)
    assert again.stderr == ""
    assert (document["boots"], document["fresh_boots"]) == (4, 0)
    assert document["best"]["candidate"] == {"gamma": 2}
    assert document["best"]["speculative_config"]["num_speculative_tokens"] == 2
    assert document["best"]["moe"] is None

    shown = autotune(folder, "show", "s")
    assert shown.returncode == 0, shown.stderr
    assert "4 trials" in shown.stdout
    listed = autotune(folder, "studies")
    assert "spec" in listed.stdout


def test_a_moe_target_gets_the_keys_that_it_decodes(folder: Path, tiny_models: TinyModels) -> None:
    args = ("--gamma", "0,2", "--concurrency", "1,4", "--study", "moe", "--json")
    document = json.loads(spec(folder, tiny_models.qwen3_moe, *args).stdout)
    gamma = document["best"]["candidate"]["gamma"]
    sizes = f"{gamma + 1},{4 * (gamma + 1)}"
    model = tiny_models.qwen3_moe
    expected = f"autotune moe --device auto --model {model} --batch-sizes {sizes}"
    assert document["best"]["moe"] == expected


def test_a_refused_pair_needs_force(folder: Path, tiny_models: TinyModels) -> None:
    args = ("--drafter", "mtp", "--study", "f", "--gamma", "0,2")
    refused = spec(folder, tiny_models.qwen3, *args)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1 + refused.stderr.count("note:")
    assert "(--force goes on)" in refused.stderr
    forced = spec(folder, tiny_models.qwen3, *args, "--force")
    assert forced.returncode == 0, forced.stderr
    assert "refuse:" in forced.stderr
