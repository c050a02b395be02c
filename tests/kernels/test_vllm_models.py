"""Layers of routed experts: ours against those that vLLM's own classes build on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kernels.vllm_models import ask
from tests.support.installed_vllm import InstalledVllm

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "moe-classes.md"
FEW = (
    *("Qwen3MoeForCausalLM", "Glm4MoeForCausalLM", "JambaForCausalLM", "NemotronHForCausalLM"),
    *("GptOssForCausalLM", "KimiK3ForConditionalGeneration", "InklingForConditionalGeneration"),
    *("Gemma4ForConditionalGeneration", "Cosmos3EdgeForConditionalGeneration"),
)


def test_the_table_of_classes_names_no_unexplained_difference() -> None:
    rows = [line.split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    classes = {row[0].strip("| "): row[4] for row in rows[1:]}
    assert sum(word == "same" for word in classes.values()) >= 70
    assert "differs" not in classes.values()
    assert all("not explained" not in line for line in TABLE.read_text().splitlines())


@pytest.mark.server
@pytest.mark.parametrize(
    "names", [FEW, pytest.param((), marks=pytest.mark.nightly)], ids=["few", "all"]
)
def test_vllm_builds_the_layers_that_we_say(
    names: tuple[str, ...], installed_vllm: InstalledVllm
) -> None:
    script = f"import sys, json, {__name__} as test; test.compare(*json.loads(sys.argv[1]))"
    installed_vllm.run(script, json.dumps([names, installed_vllm.bare]))


def compare(names: list[str], python: list[str]) -> None:
    """Compare ours with theirs, in a process that has imported vLLM: all classes if none named."""
    from benchmarks.moe_classes import configurations, ours, theirs

    wanted = configurations(names)
    questions = [{"files": {"config.json": config}} for config in wanted.values()]
    built = 0
    answers = ask(questions, python, deep_gemm=True)
    for (name, config), answer in zip(wanted.items(), answers, strict=True):
        if "error" in answer:
            assert not names, (name, answer["error"])
            continue
        mine = ours(config)
        layers = theirs(answer["layers"])
        assert mine == layers or (isinstance(mine, str) and not layers), name
        built += 1
    assert built >= (len(wanted) if names else 70)
    assert set(names) <= set(wanted)
