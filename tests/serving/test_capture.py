"""Sizes of CUDA graphs, options of the drafter and variables as parameters of the search."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import BadInputError, Candidate
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving import parse
from autotune.serving.dial.dial import Dial
from autotune.serving.preflight import preflight
from autotune.serving.recipe import Recipe, check_server_args
from autotune.serving.server.capture import FLAG, capture_args, capture_sizes
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.server import ServeSettings, serve_args
from tests.serving.test_plan import plan_of
from tests.serving.tiny_models import TinyModels


@given(
    most=st.integers(1, 2048),
    gammas=st.sets(st.integers(0, 10), min_size=1),
    requests=st.integers(1, 80),
)
def test_every_decoding_batch_below_the_largest_size_has_its_own(
    most: int, gammas: set[int], requests: int
) -> None:
    sizes = capture_sizes(most, sorted(gammas), requests)
    assert sizes == sorted(set(sizes))
    assert max(sizes) <= most
    own = {(g + 1) * b for g in gammas for b in range(1, requests + 1)}
    assert {size for size in own if size <= most} <= set(sizes)
    gaps = [b - a for a, b in itertools.pairwise(sizes)]
    assert max(gaps, default=0) <= 16  # nothing below the largest is padded by more


def test_the_grid_is_that_of_vllm() -> None:
    """As ``VllmConfig._set_cudagraph_sizes`` of vLLM 0.32 makes it with a largest size of 288."""
    assert capture_sizes(288, [0], 1) == [1, 2, 4, *range(8, 256, 8), 256, 272, 288]


@pytest.mark.parametrize(
    ("args", "last_own"), [((), 64 * 5), (("--max-num-seqs", "16"), 16 * 5), (("-x",), 64 * 5)]
)
def test_sizes_go_as_far_as_the_server_takes_sequences(
    args: tuple[str, ...], last_own: int
) -> None:
    flag, *sizes = capture_args(1024, {"num_speculative_tokens": 4}, args)
    assert flag == FLAG
    odd = [int(size) for size in sizes if int(size) % 8 and int(size) > 4]
    assert max(odd) < last_own + 5
    assert {str(5 * b) for b in range(1, last_own // 5 + 1)} <= set(sizes)


def test_a_server_of_every_gamma_has_the_sizes_of_each() -> None:
    rows = [[1, 4, 2], [5, 5, 0], [6, 6, 1]]
    config = {"num_speculative_tokens": 2, "num_speculative_tokens_per_batch_size": rows}
    _, *sizes = capture_args(64, config, ("--max-num-seqs", "6"))
    assert {"3", "5", "6", "9", "10", "12", "15", "18"} <= set(sizes)


def test_servers_of_a_dialled_search_capture_the_same_sizes(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what vLLM compiled for the dialled server serves the others: the sizes are in its key."""
    gpu = MemoryReading(140 << 30, 140 << 30, MemoryKind.GPU, "NVIDIA H200")
    monkeypatch.setattr("autotune.serving.make_plan.read_memory", lambda _: gpu)
    few: dict[str, Any] = {"server_arg": ["--max-num-seqs 16"], "concurrency": "1,8"}
    plan = plan_of(tiny_models.qwen3, gpu, dial=True, gamma="0-3", **few)
    assert plan.recipe.captured == (0, 1, 2, 3)
    assert plan.recipe.as_json()["captured"] == [0, 1, 2, 3]

    def sizes(settings: ServeSettings) -> list[str]:
        return capture_args(512, settings.speculative, settings.extra_args, settings.captured)

    static = {c.int("gamma"): plan.recipe.settings(c) for c in plan.column}
    with Dial.made() as dial:
        dialled = sizes(dial.settings(static[3], [0, 1, 2, 3], 8))
    assert sizes(static[1]) == sizes(static[2]) == dialled
    assert len(sizes(static[0])) < len(dialled)  # without speculation nothing is shared anyway
    alone = plan_of(tiny_models.qwen3, dial=False, gamma="0-3", **few)
    assert "captured" not in alone.recipe.as_json()


def test_parameters_reach_the_server() -> None:
    recipe = Recipe("m", "ngram", env={"A": "1"}, server_args=("--seed", "1"))
    candidate = Candidate.of(
        {
            "gamma": 3,
            "capture_sizes": "64",
            "spec.prompt_lookup_max": "4",
            "spec.draft_sample_method": "greedy",
            "spec.disable_padded_drafter_batch": "true",
            "env.VLLM_X": "b",
        }
    )
    settings = recipe.settings(candidate)
    assert settings.speculative == {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 4,
        "draft_sample_method": "greedy",
        "disable_padded_drafter_batch": True,
    }
    assert settings.env == {"A": "1", "VLLM_X": "b"}
    args = serve_args(settings, "h", 1)
    sizes = args[args.index(FLAG) + 1 : args.index("--seed")]
    assert sizes == [str(size) for size in capture_sizes(64, [3], 64)]
    plain = recipe.settings(Candidate.of({"gamma": 0, "capture_sizes": "default"}))
    assert plain.speculative is None
    assert FLAG not in serve_args(plain, "h", 1)


@pytest.mark.parametrize(
    ("reader", "text", "why"),
    [
        (parse.parse_option, "prompt_lookup_max", "expected KEY=VALUE"),
        (parse.parse_option, "num_speculative_tokens=3", "is --gamma"),
        (parse.parse_option, "method=ngram,mtp", "the drafter says it"),
        (parse.parse_option, "x=", "empty value"),
        (parse.parse_variables, "VLLM_API_KEY=a,b", "lock|shut"),
        (parse.parse_variables, "HF_TOKEN=hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "secret"),
        (parse.parse_variables, "1X=a", "expected NAME=VALUE"),
        (parse.parse_captures, "default,all", "default or a number"),
        (parse.parse_captures, "0", "default or a number"),
        (parse.parse_captures, "512,512", "given twice"),
    ],
)
def test_what_is_no_parameter_is_said(reader: object, text: str, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        reader(text)  # type: ignore[operator]


def test_sizes_that_are_searched_are_not_given_for_all() -> None:
    with pytest.raises(BadInputError, match="is searched as capture_sizes"):
        check_server_args([FLAG, "1", "2"], ["capture_sizes"])


def test_a_key_that_this_vllm_lacks_is_refused_before_the_start(tiny_models: TinyModels) -> None:
    plan = plan_of(tiny_models.qwen3, spec_set=("prompt_lookup_mx=4", "prompt_lookup_min=2"))
    plan = dataclasses.replace(plan, launcher=LocalLauncher())
    said = [finding.message for finding in preflight(plan) if finding.code == "spec-set"]
    assert said == [
        "--spec-set prompt_lookup_mx: no key of this vLLM's speculation; did you mean "
        "prompt_lookup_max?"
    ]


@pytest.mark.parametrize(("options", "told"), [((), True), (("prompt_lookup_max=4",), False)])
def test_ngram_as_vllm_has_it_is_worth_a_word(
    tiny_models: TinyModels, options: tuple[str, ...], *, told: bool
) -> None:
    plan = plan_of(tiny_models.qwen3, spec_set=options)
    assert any(finding.code == "ngram-lookup" for finding in preflight(plan)) is told


def test_flags_become_parameters_and_a_space_may_name_them(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    plan = plan_of(
        tiny_models.qwen3,
        gamma="0,2",
        spec_set=("prompt_lookup_min=2", "prompt_lookup_max=4,5"),
        env_set=("VLLM_A=x,y",),
        capture_sizes="default,64",
    )
    named = dict(plan.space.parameters)
    assert named["spec.prompt_lookup_max"] == ("4", "5")
    assert named["env.VLLM_A"] == ("x", "y")
    assert named["capture_sizes"] == ("default", "64")
    drafting = [c for c in plan.points if c["gamma"]]
    assert len(drafting) == 2 * 2 * 2
    plain = [c for c in plan.points if not c["gamma"]]  # where the drafter's options change nothing
    assert {c["spec.prompt_lookup_max"] for c in plain} == {"4"}
    space = tmp_path / "s.yaml"
    text = "name: s\ntitle: t\nsource: u\nparameters:\n  gamma: {values: [0, 2], why: x}\n"
    space.write_text(f"{text}  spec.prompt_lookup_max: {{values: [4, 5], why: x}}\n")
    found = plan_of(tiny_models.qwen3, space=str(space)).recipe.settings(
        Candidate.of({"gamma": 2, "spec.prompt_lookup_max": 5})
    )
    assert found.speculative is not None
    assert found.speculative["prompt_lookup_max"] == 5
    space.write_text(f"{text}  spec.method: {{values: [mtp], why: x}}\n")
    with pytest.raises(BadInputError, match=r"spec\.method: the drafter says it"):
        plan_of(tiny_models.qwen3, space=str(space))
