"""Names, model cards and chat templates: the model that the drafter expects, or its base."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.serving.pair.checkpoint import Checkpoint
from autotune.serving.pair.identity import check_identity
from autotune.util.finding import Finding

FP8 = {"quantization_config": {"quant_method": "fp8"}}


def codes(findings: list[Finding]) -> set[str]:
    """Such as ``refuse base-target``."""
    return {f"{finding.severity} {finding.code}" for finding in findings}


INSTRUCT, BASE = "google/gemma-4-26B-A4B-it", "google/gemma-4-26B-A4B"
DRAFTER = f"{INSTRUCT}-assistant"
LLAMA = "meta-llama/Meta-Llama-3.1-8B"
EAGLE = "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"


@pytest.mark.parametrize(
    ("target", "chat", "drafter", "names", "expected"),
    [
        (INSTRUCT, True, DRAFTER, (), set()),
        (INSTRUCT, None, DRAFTER, (INSTRUCT,), set()),
        ("RedHatAI/gemma-4-26B-A4B-it-FP8-Dynamic", True, DRAFTER, (INSTRUCT,), set()),
        ("nvidia/Gemma-4-26B-A4B-it-NVFP4", True, DRAFTER, (INSTRUCT,), set()),
        (BASE, False, DRAFTER, (), {"refuse base-target"}),
        (BASE, False, "someone/gemma-drafter", (INSTRUCT,), {"refuse base-target"}),
        (BASE, False, "someone/gemma-drafter", (), {"warn base-target"}),
        (BASE, None, DRAFTER, (), {"warn base-target"}),
        (BASE, True, "someone/gemma-drafter", (INSTRUCT,), {"warn base-target"}),
        (f"{BASE}-FP8", True, DRAFTER, (), {"warn base-target"}),
        ("google/gemma-4-E4B-it", True, DRAFTER, (INSTRUCT,), {"warn other-target"}),
        (f"{LLAMA}-Instruct", True, EAGLE, (), set()),
        (LLAMA, False, EAGLE, (), {"refuse base-target"}),
        (LLAMA, None, EAGLE, (), {"warn base-target"}),
        ("Qwen/Qwen3-8B", True, "AngelSlim/Qwen3-8B_eagle3", ("Qwen/Qwen3-8B",), set()),
        ("Qwen/Qwen3-8B-Base", True, "AngelSlim/Qwen3-8B_eagle3", (), {"warn base-target"}),
        ("/models/target", True, DRAFTER, (), set()),
        ("/models/target", True, DRAFTER, (INSTRUCT,), {"note other-target"}),
    ],
)
def test_names_and_cards(
    target: str, chat: bool | None, drafter: str, names: tuple[str, ...], expected: set[str]
) -> None:
    ours = Checkpoint(target, {}, chat=chat, from_hub=not target.startswith("/"))
    theirs = Checkpoint(drafter, {}, base_models=names)
    assert codes(list(check_identity(ours, theirs, "mtp"))) == expected


def test_a_quantised_target_is_what_was_quantised() -> None:
    theirs = Checkpoint(DRAFTER, {}, base_models=(INSTRUCT,))
    ours = Checkpoint("me/mine", FP8, chat=True, base_models=(INSTRUCT,), from_hub=True)
    assert not list(check_identity(ours, theirs, "mtp"))
    assert not list(check_identity(replace(ours, config={}), theirs, "mtp"))  # a tuned copy
    stranger = replace(ours, config={}, base_models=("someone/else",))
    assert list(check_identity(stranger, theirs, "mtp"))


def test_a_hub_cache_folder_has_the_name_of_its_model() -> None:
    ref = "/root/.cache/huggingface/hub/models--google--gemma-4-26B-A4B/snapshots/0123abcd"
    assert Checkpoint(ref, {}).name == "gemma-4-26B-A4B"
