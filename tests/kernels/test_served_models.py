"""Which tuned files vLLM reads: our rules against vLLM's own answers, for 46 models on each GPU."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from autotune.core import BadInputError
from autotune.kernels.files import TunedFile
from benchmarks import files_by_model
from benchmarks.files_by_model import ANSWERS, TABLE, situations, vllm_says, we_say
from tests.kernels.quantised_models import VARIANTS
from tests.kernels.served_models import MODELS
from tests.support.installed_vllm import InstalledVllm

STORED: dict[str, dict[str, Any]] = json.loads(ANSWERS.read_text())["answers"]
WITHOUT_FILES = {
    *(f"qwen3-30b-a3b {how}" for how in ("nvfp4", "nvfp4 compressed", "mxfp4 compressed")),
    *("qwen3-30b-a3b mxfp8", "qwen3-30b-a3b quark mxfp4"),
    *("deepseek-v4-flash", "gpt-oss-20b", "nemotron-3-nano nvfp4"),
}
"""Floats with scales of groups: several backends share them, and none looks for a file."""

NAME = re.compile(r"E=(\d+),N=(\d+),device_name=[^,]*?(?:,dtype=\w+)?(?:,block_shape=(.*))?\.json")


def sizes(file: TunedFile) -> list[Any]:
    found = NAME.fullmatch(file.name or "")
    assert found is not None, file
    block = json.loads(found[3]) if found[3] else None
    return [int(found[1]), int(found[2]), block, file.backend]


@pytest.mark.parametrize("situation", situations())
@pytest.mark.parametrize("model", MODELS)
def test_the_rules_say_what_vllm_selects(model: str, situation: str) -> None:
    theirs = STORED[situation][model]
    try:
        mine = we_say(MODELS[model], *situations()[situation])
    except BadInputError:
        assert isinstance(theirs, str)  # vLLM refuses the model too
        return
    if isinstance(theirs, str):
        assert theirs.startswith("ValueError: Weight ")  # of dense layers, which are not ours
        assert "tp 2" in situation
    elif all(file.name is None for file in mine):
        assert not any(file.reads for file in mine)
        assert model in WITHOUT_FILES
    else:
        assert sorted(map(sizes, mine), key=str) == sorted(theirs, key=str)


@pytest.mark.parametrize("situation", ["gb10", "h100"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_description_means_what_vllm_makes_of_it(variant: str, situation: str) -> None:
    theirs = STORED[situation][variant]
    if isinstance(theirs, str):
        assert (variant, situation) == ("ct w4a8 fp8", "gb10")  # refused there
        return
    mine = we_say(VARIANTS[variant], situation)
    for file in mine:
        if file.name is not None:
            assert sizes(file) in theirs
        elif file.backend != "?" and " or " not in file.backend and "quark" not in variant:
            assert file.backend in {layer[3] for layer in theirs}
        assert file.name is not None or not file.reads
    named = [sizes(file) for file in mine if file.name is not None]
    assert len(mine) > len(named) or all(layer in named for layer in theirs)


def test_the_table_is_what_the_rules_say() -> None:
    assert TABLE.read_text() == files_by_model.table()
    assert len(MODELS) >= 30


@pytest.mark.server
@pytest.mark.parametrize(
    "situation",
    [
        pytest.param(name, marks=() if name == "gb10" else pytest.mark.nightly)
        for name in situations()
    ],
)
def test_vllm_still_selects_so(situation: str, installed_vllm: InstalledVllm) -> None:
    said = vllm_says(*situations()[situation], installed_vllm.bare)
    asked = json.loads(json.dumps(said))
    assert asked == STORED[situation]
