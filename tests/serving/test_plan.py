"""What a plan leaves out, what ends it, and under what its trials are stored."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune.cli.spec_terminal import show_plan
from autotune.core import BadInputError, MissingEnvironmentError
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving import make_plan as make_plan_module
from autotune.serving.make_plan import make_plan
from autotune.serving.memory.search import at_utilization, hungriest
from autotune.serving.plan import Plan
from autotune.serving.preflight import preflight, refusal
from autotune.serving.recipe import Recipe
from autotune.serving.server.launchers import DockerLauncher, LocalLauncher
from tests.serving.test_spec_job import make_request
from tests.serving.tiny_models import TinyModels

NINE_OF_TEN = MemoryReading(10 << 30, 9 << 30, MemoryKind.GPU, "GPU 0")


def plan_of(target: Path, memory: MemoryReading = NINE_OF_TEN, **changes: Any) -> Plan:
    plan = make_plan(make_request(target, "chat", **changes))
    return dataclasses.replace(plan, memory=memory, force=False)


def refusals(plan: Plan) -> list[str]:
    return [finding.message for finding in preflight(plan) if finding.refuses]


def test_settings_that_cannot_start_are_left_out_with_the_reason(tiny_models: TinyModels) -> None:
    plan = plan_of(tiny_models.qwen3, gamma="0,2", gpu_memory_utilization="0.85,0.98")
    assert {c["gpu_memory_utilization"] for c in plan.grid} == {"0.85"}
    assert {c.params["gamma"] for c in plan.refused} == {0, 2}
    for candidate, why in plan.refused.items():
        assert candidate["gpu_memory_utilization"] == "0.98"
        assert "at most 0.90" in why
    assert plan.boots < dataclasses.replace(plan, force=True).boots
    assert not refusals(plan)
    assert "the others go on" in [f.message for f in preflight(plan) if f.severity == "warn"][-1]
    forced = dataclasses.replace(plan, force=True)
    assert (forced.refused, len(forced.grid)) == ({}, 4)


def test_a_baseline_that_cannot_start_ends_it(tiny_models: TinyModels) -> None:
    plan = plan_of(tiny_models.qwen3, gamma="0,2", gpu_memory_utilization="0.98,0.85")
    with pytest.raises(BadInputError, match=r"0\.98 asks for .*give one first that fits"):
        refusal(preflight(plan))


def test_nothing_that_can_start_ends_it(tiny_models: TinyModels) -> None:
    plan = plan_of(tiny_models.qwen3, gamma="0,2", gpu_memory_utilization="0.95,0.98")
    with pytest.raises(BadInputError, match=r"0\.95 asks for") as caught:
        refusal(preflight(plan))
    assert "give one first" not in str(caught.value)


def test_a_drafter_that_does_not_fit_leaves_nothing_to_compare(tiny_models: TinyModels) -> None:
    drafter = tiny_models.noisy(tiny_models.qwen3, 0.02)
    plan = plan_of(tiny_models.qwen3, drafter=str(drafter), gamma="0,2")
    large = dataclasses.replace(plan.pair.drafter, weight_bytes=10 << 30)  # type: ignore[type-var]
    plan = dataclasses.replace(
        plan,
        pair=dataclasses.replace(plan.pair, drafter=large),
        memory=dataclasses.replace(NINE_OF_TEN, free=10 << 30),
    )
    assert [c.params for c in plan.refused] == [{"gamma": 2}]
    assert "weights need 10.0" in refusals(plan)[0]


def test_a_searched_length_is_what_is_checked(tiny_models: TinyModels) -> None:
    """And not the model's own, with which nothing would fit."""
    sets = ("max-model-len=128,1k", "kv-cache-memory-bytes=131072")
    free = dataclasses.replace(NINE_OF_TEN, free=10 << 30)
    plan = plan_of(tiny_models.qwen3, free, gamma="0,2", set=sets)
    assert {c["max_model_len"] for c in plan.grid} == {"128"}
    assert {c["max_model_len"] for c in plan.refused} == {"1k"}


def test_in_a_searched_range_the_boots_tell_what_is_free(tiny_models: TinyModels) -> None:
    plan = plan_of(tiny_models.qwen3, gamma="0,2", gpu_memory_utilization="0.4:0.98")
    assert not at_utilization(plan, 98).refused


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"gamma": "0,2"}, "at most 4 boots: 2 searched, 1 × 2 to confirm; about"),
        ({"gamma": "2,4", "kv_cache_dtype": "auto,fp8"}, "1 for outputs to compare"),
        ({"gamma": "0-4"}, "2 in place of what fails"),
        ({"gamma": "0,2", "gpu_memory_utilization": "0.4:0.9"}, "12 for the range of memory"),
    ],
)
def test_the_boots_of_the_plan_add_up(
    tiny_models: TinyModels, flags: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(plan_of(tiny_models.qwen3, **{"gpu_memory_utilization": "0.85"} | flags))
    line = next(line for line in capsys.readouterr().err.splitlines() if "at most" in line)
    boots, rest = re.findall(r"at most (\d+) boots: (.+); about", line)[0]
    numbers = [
        int(first) * int(second or 1)
        for first, second in re.findall(r"(\d+)(?: × (\d+))? [a-z]", rest)
    ]
    assert int(boots) == sum(numbers)
    assert said in line


def test_the_plan_says_that_a_server_starts_beside_the_dialled_one(
    tiny_models: TinyModels, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "beside the first the baseline's server starts too"
    plan = plan_of(tiny_models.qwen3, gamma="0,2", dial=True, confirm="auto")
    show_plan(plan)
    assert said not in capsys.readouterr().err, "vLLM keeps 5 GiB a server, and 9 are free"
    show_plan(dataclasses.replace(plan, memory=dataclasses.replace(plan.memory, free=90 << 30)))
    assert said in capsys.readouterr().err


def test_the_hungriest_setting_is_one_that_the_drafter_can_do(tiny_models: TinyModels) -> None:
    plan = plan_of(tiny_models.qwen3, gamma="0,2,3")
    heads = dataclasses.replace(
        plan.pair,
        method="mtp",
        drafter=dataclasses.replace(
            plan.pair.target,
            config={
                **plan.pair.target.config,
                "n_predict": 2,
            },
        ),
    )
    assert hungriest(dataclasses.replace(plan, pair=heads)).int("gamma") == 2


def test_dummy_weights_of_experts_are_warned_about(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    dummy = {"server_arg": ("--load-format dummy",)}
    drawn = {"env": ("VLLM_MOE_ROUTING_SIMULATION_STRATEGY=uniform_random",)}

    def warned(target: Path, **flags: Any) -> bool:
        return "dummy-routing" in [finding.code for finding in preflight(plan_of(target, **flags))]

    assert warned(tiny_models.qwen3_moe, **dummy)
    assert warned(tiny_models.qwen3_moe, **dummy, env=("VLLM_MOE_ROUTING_SIMULATION_STRATEGY=",))
    assert warned(tiny_models.qwen3_moe, set=("load-format=auto,dummy",))
    assert not warned(tiny_models.qwen3_moe, **dummy, **drawn)
    assert not warned(tiny_models.qwen3_moe)
    assert not warned(tiny_models.qwen3, **dummy)
    monkeypatch.setenv("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "uniform_random")
    assert not warned(tiny_models.qwen3_moe, **dummy)


def test_a_stored_startup_plan_is_no_figure_of_another_share_of_the_memory(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    unified = dataclasses.replace(NINE_OF_TEN, kind=MemoryKind.UNIFIED)
    given: dict[str, Any] = {"env": ("VLLM_ENABLE_STARTUP_PLAN=1",)}

    def told(memory: MemoryReading = NINE_OF_TEN, **flags: Any) -> list[bool]:
        found = preflight(plan_of(tiny_models.qwen3, memory, **flags))
        return [finding.refuses for finding in found if finding.code == "startup-plan"]

    assert told(**given) == [False]
    assert told(unified, **given) == [True]
    assert told(gpu_memory_utilization="0.4,0.8", **given) == [True]
    assert told(gpu_memory_utilization="0.4:0.8", **given) == [True]
    assert told(env_set=("VLLM_ENABLE_STARTUP_PLAN=0,1",)) == [False]
    assert not told()
    assert not told(unified, env=("VLLM_ENABLE_STARTUP_PLAN=0",))
    monkeypatch.setenv("VLLM_ENABLE_STARTUP_PLAN", "1")
    assert told(unified) == [True]


def test_what_the_checks_found_goes_with_the_plan(tiny_models: TinyModels) -> None:
    plan = make_plan(make_request(tiny_models.qwen3, "chat", repeats=2))
    assert plan.findings == tuple(preflight(plan))
    assert "few-pairs" in [finding.code for finding in plan.findings]


# ------------------------------------------------------------------------------------------
# which GPU


@pytest.mark.parametrize(
    ("changes", "exported", "expected"),
    [
        ({}, None, 0),
        ({}, "1", 1),
        ({"env": ("CUDA_VISIBLE_DEVICES=1",)}, "0", 1),
        ({"server_arg": ("--device-ids 1",)}, None, 1),
        ({"launcher": "docker", "image": "i", "gpus": "device=1"}, None, 1),
        ({"launcher": "docker", "image": "i"}, "1", 0),
        ({"launcher": "docker", "image": "i", "gpus": "none"}, None, None),
    ],
)
def test_memory_is_that_of_the_gpu_used(
    changes: dict[str, Any],
    exported: str | None,
    expected: int | None,
    tiny_models: TinyModels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus = [{"name": "X", "uuid": "GPU-a"}, {"name": "X", "uuid": "GPU-b"}]
    asked: list[int | None] = []

    def read(gpu: int | None) -> MemoryReading:
        asked.append(gpu)
        return NINE_OF_TEN

    monkeypatch.setattr(make_plan_module, "environment", lambda: {"gpus": gpus})
    monkeypatch.setattr(make_plan_module, "visible_gpus", lambda: exported)
    monkeypatch.setattr(make_plan_module, "read_memory", read)
    monkeypatch.setattr(make_plan_module, "looked_up", lambda launcher, *_, **__: (launcher, []))
    make_plan(make_request(tiny_models.qwen3, "chat", **changes))
    assert asked == [expected]


# ------------------------------------------------------------------------------------------
# under what trials are stored


def test_a_recipe_without_moe_files_keeps_its_key() -> None:
    plain = Recipe("t", "ngram", server_args=("--x",), env={"A": "b"}).as_json()
    assert plain == {
        "target": "t",
        "method": "ngram",
        "drafter": None,
        "synthetic": [],
        "server_args": ["--x"],
        "env": {"A": "b"},
    }


def test_moe_files_that_were_tuned_again_are_another_set_up(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    file = tmp_path / "E=8,N=32,device_name=X.json"

    def key(text: str) -> dict[str, Any]:
        file.write_text(text)
        return plan_of(tiny_models.qwen3, moe_config=str(tmp_path)).setup()

    first = key("{}")
    assert key("{}") == first
    assert key('{"1": {}}') != first


def test_the_version_is_that_of_the_program(tmp_path: Path) -> None:
    def program(name: str, script: str) -> LocalLauncher:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return LocalLauncher((str(path),))

    assert program(
        "v", 'echo "INFO a log line"; [ "$1" = --version ] && echo 0.99.1'
    ).version() == ("0.99.1")
    assert program("fails", "echo 0.99.1; exit 2").version() is None
    assert program("mute", "exit 0").version() is None
    assert LocalLauncher((str(tmp_path / "none"),)).version() is None
    assert LocalLauncher().version()


def test_the_version_is_in_the_set_up(tiny_models: TinyModels, tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked; echo 0.99.1\n")
    program.chmod(0o755)
    plan = plan_of(tiny_models.qwen3, vllm=str(program))
    assert plan.setup()["vllm"] == plan.setup()["vllm"] == "0.99.1"
    assert (tmp_path / "asked").read_text() == "asked\n", "asked once"
    docker = dataclasses.replace(plan, launcher=DockerLauncher("image"))
    assert docker.setup()["vllm"] is None
    ours = dataclasses.replace(plan, launcher=LocalLauncher())
    assert ours.setup()["vllm"] == LocalLauncher().version()


def test_home_is_written_out_once(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").symlink_to(tiny_models.qwen3)
    (tmp_path / "t.jinja").write_text("")
    (tmp_path / "moe").mkdir()
    (tmp_path / "moe" / "E=1.json").write_text("{}")
    plan = plan_of(
        Path("~/m"),
        moe_config="~/moe",
        server_arg=("--chat-template ~/t.jinja",),
        vllm=f"{sys.executable} ~/fake.py",
    )
    assert plan.recipe.target == plan.scenario.target == f"{tmp_path}/m"
    assert plan.recipe.server_args == ("--chat-template", f"{tmp_path}/t.jinja")
    assert plan.recipe.env["VLLM_TUNED_CONFIG_FOLDER"] == f"{tmp_path}/moe"
    assert plan.launcher.as_json()["program"] == [sys.executable, f"{tmp_path}/fake.py"]


def test_a_program_that_tells_no_version_is_doubted(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    def doubts(program: str, share: str = "0.85") -> list[str]:
        plan = plan_of(tiny_models.qwen3, vllm=program, gpu_memory_utilization=share)
        found = preflight(plan)
        return [f.message for f in found if f.code == "vllm-version"]

    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\n")
    silent.chmod(0o755)
    telling = tmp_path / "telling"
    telling.write_text("#!/bin/sh\necho vllm 1.2.3\n")
    telling.chmod(0o755)
    assert "is it vLLM?" in "".join(doubts(f"{silent}"))
    assert not doubts(f"{silent}", "0.98"), "what is refused anyway does not wait for an answer"
    assert not doubts(f"{telling}")
    with pytest.raises(MissingEnvironmentError, match="no such program"):
        doubts(f"{tmp_path}/absent")
