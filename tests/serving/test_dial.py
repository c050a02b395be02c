"""The dial: one server for every gamma, what vLLM makes of it, and when it is not trusted."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import Candidate, Outcome
from autotune.machine.containers import Image
from autotune.serving.decide.conclusion import warnings
from autotune.serving.dial import plugin
from autotune.serving.dial.dial import NAME, Dial, schedule
from autotune.serving.dial.trust import DialUnfitError, check_counted, check_log, why_not
from autotune.serving.measure import load
from autotune.serving.measure.counters import DraftCounters
from autotune.serving.server.launchers import DockerLauncher, variables_of
from autotune.serving.server.mounts import mounts_of
from autotune.serving.server.server import ServeSettings
from tests.serving.test_spec_job import Bench, gammas
from tests.serving.tiny_models import TinyModels

GAMMAS = st.sets(st.integers(0, 12), min_size=2, max_size=8)


def table_of(rows: list[list[int]], sequences: int) -> dict[int, int]:
    """Gamma by batch size, as vLLM reads a schedule (``v1/spec_decode/dynamic/utils.py``)."""
    assert rows[0][0] == 1
    return {batch: g for low, high, g in rows for batch in range(low, min(high, sequences) + 1)}


@given(gammas=GAMMAS, concurrency=st.integers(1, 300), more=st.integers(0, 300))
def test_a_schedule_names_each_gamma_and_the_load_meets_the_largest_alone(
    gammas: set[int], concurrency: int, more: int
) -> None:
    sequences = concurrency + len(gammas) - 1 + more
    table = table_of(schedule(sorted(gammas), sequences), sequences)
    assert sorted(table) == list(range(1, sequences + 1))  # no gap, no overlap past the end
    assert set(table.values()) == gammas  # vLLM captures graphs for each of these
    assert {table[batch] for batch in range(1, concurrency + 1)} == {max(gammas)}


@pytest.fixture
def dial() -> Iterator[Dial]:
    with Dial.made() as opened:
        yield opened


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> type:
    """What vLLM's scheduler is to the plugin."""

    class Scheduler:
        def __init__(self, table: list[int] | None) -> None:
            self.dynamic_sd_lookup: Any = table

    module = ModuleType("vllm.v1.core.sched.scheduler")
    module.Scheduler = Scheduler  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Scheduler


def test_the_scheduler_reads_what_the_tuner_writes(
    dial: Dial, scheduler: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(plugin.PATH, dial.variables({})[plugin.PATH])
    plugin.register()
    plugin.register()  # vLLM may load it twice in one process
    made = scheduler([0, 4, 4, 0])
    for gamma in (3, 0, 4):
        dial.turn(gamma)
        assert [made.dynamic_sd_lookup[batch] for batch in (1, 2)] == [gamma, gamma]
    dial.turn(9)
    assert made.dynamic_sd_lookup[1] == 4  # the server has room for no more
    assert len(made.dynamic_sd_lookup) == 4
    assert capsys.readouterr().out.count(plugin.IN_PLACE) == 1
    assert scheduler(None).dynamic_sd_lookup is None  # one of no schedule stays as it is


def test_the_plugin_does_nothing_unless_the_tuner_started_the_server(
    scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(plugin.PATH, raising=False)
    plugin.register()
    assert scheduler([1, 2]).dynamic_sd_lookup == [1, 2]


def test_python_finds_the_entry_point_in_the_folder_and_nowhere_else(dial: Dial) -> None:
    found = [
        entry
        for one in metadata.distributions(path=[str(dial.folder)])
        for entry in one.entry_points
        if entry.group == "vllm.general_plugins"
    ]
    assert [(entry.name, entry.value) for entry in found] == [(NAME, f"{NAME}:register")]
    source = (dial.folder / f"{NAME}.py").read_text()
    assert "import autotune" not in source
    assert "from autotune" not in source
    assert not [e for e in metadata.entry_points(group="vllm.general_plugins") if e.name == NAME]


def test_the_servers_own_variables_stay(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("VLLM_PLUGINS", "lora")
    found = dial.variables({"A": "b"})
    assert found["A"] == "b"
    assert found["PYTHONPATH"].split(os.pathsep) == [str(dial.folder), "/mine"]
    assert found["VLLM_PLUGINS"] == f"lora,{NAME}"
    given = dial.variables({"PYTHONPATH": "/theirs", "VLLM_PLUGINS": ""})
    assert given["PYTHONPATH"].split(os.pathsep) == [str(dial.folder), "/theirs"]
    assert given["VLLM_PLUGINS"] == NAME
    monkeypatch.delenv("VLLM_PLUGINS")
    assert "VLLM_PLUGINS" not in dial.variables({})  # not set: vLLM loads all


@pytest.mark.parametrize(
    ("args", "sequences"), [((), 10), (("--max-num-seqs", "64"), 64), (("--max-num-seqs=4",), 10)]
)
def test_the_server_takes_as_many_sequences_as_the_load_and_the_schedule_need(
    dial: Dial, args: tuple[str, ...], sequences: int
) -> None:
    static = ServeSettings("m", {"method": "mtp", "num_speculative_tokens": 2}, extra_args=args)
    found = dial.settings(static, [0, 1, 2], 8)
    assert found.extra_args == (*args, "--max-num-seqs", str(sequences))
    assert found.speculative is not None
    assert found.speculative["num_speculative_tokens"] == 2
    rows = found.speculative["num_speculative_tokens_per_batch_size"]
    assert rows == [
        [1, sequences - 2, 2],
        [sequences - 1, sequences - 1, 0],
        [sequences, sequences, 1],
    ]


DRAFTING = {"base_ms": 5.0, "draft_ms": 1.0, "reached": [0.8, 0.6, 0.05, 0, 0, 0]}
"""Drafting costs a fifth of a step: gamma 2 gives 2.4 tokens in 1.4 steps, 3 no more than that."""


@pytest.fixture
def bench(tiny_models: TinyModels, tmp_path: Path) -> Bench:
    return Bench(tiny_models.qwen3, tmp_path)


def test_one_boot_tells_every_gamma_and_fresh_boots_of_one_gamma_confirm(bench: Bench) -> None:
    result = bench.tune(DRAFTING, gamma="0-6", dial=True)
    assert result.dialled
    assert not result.no_dial
    assert result.selection.winner.candidate.int("gamma") == 2
    assert result.selection.speedup == pytest.approx(2.4 / 1.4, rel=0.15)
    assert sorted(gammas(result)) == list(range(7))
    assert len({t.measurement.details["log"] for t in result.trials}) == 1  # one server
    first, *fresh = bench.boots_file.read_text().splitlines()
    assert '"num_speculative_tokens_per_batch_size": [[1, 1, 6], [2, 2, 0], [3, 3, 1]' in first
    assert result.boots == 1 + len(fresh) == 1 + 3  # the baseline and two finalists again
    assert not any("per_batch_size" in line for line in fresh)
    again = bench.tune(DRAFTING, gamma="0-6", dial=True)
    assert (again.fresh_boots, again.selection) == (0, result.selection)


def test_the_matrix_holds_acceptance_and_outputs_of_each_gamma(bench: Bench) -> None:
    result = bench.tune(DRAFTING | {"other_text": [3]}, gamma="0-3", dial=True)
    for trial in result.trials:
        details = trial.measurement.details
        level = (details.get("levels") or details["partial"])["1"]
        # and not one position for each of the server's largest gamma
        assert len(level.get("reached", ())) == trial.candidate.int("gamma")
    assert result.identical[Candidate.of({"gamma": 2})] == 1.0
    assert result.identical[Candidate.of({"gamma": 3})] == 0.0


def test_a_gamma_that_can_win_nowhere_leaves_early(bench: Bench) -> None:
    result = bench.tune(DRAFTING, gamma="0-6", dial=True)
    stopped = {
        t.candidate.int("gamma"): t.measurement
        for t in result.trials
        if t.measurement.outcome is Outcome.CANNOT_WIN
    }
    assert {4, 5} <= set(stopped)
    assert not {0, 6} & set(stopped)  # the ends tell the forecast of other columns
    for measurement in stopped.values():
        assert 2 <= len(measurement.details["partial"]["1"]["repeats"]) < 6


def test_each_value_of_another_parameter_is_one_more_boot(bench: Bench) -> None:
    fast = {"fast": {"--kv-cache-dtype=fp8": 0.5}}
    result = bench.tune(DRAFTING | fast, gamma="0-3", dial=True, kv_cache_dtype="auto,fp8")
    assert result.selection.winner.candidate.params == {"gamma": 2, "kv_cache_dtype": "fp8"}
    starts = bench.boots_file.read_text().splitlines()
    assert sum("per_batch_size" in line for line in starts) == 2
    assert len(result.trials) == 2 * 4


@pytest.mark.parametrize(
    ("serving", "why"),
    [
        ({"no_dial": True}, "did not load the plugin"),
        ({"no_schedule": True}, "unexpected keyword argument"),
        (
            {"says": ["Overriding cudagraph_mode from FULL to PIECEWISE for reliability."]},
            "gives up full CUDA graphs",
        ),
    ],
)
def test_where_the_dial_cannot_be_used_each_gamma_boots_and_that_is_said(
    bench: Bench, serving: dict[str, Any], why: str
) -> None:
    result = bench.tune(DRAFTING | serving, gamma="0-3", dial=True, schedule=False)
    assert not result.dialled
    assert why in result.no_dial
    assert result.selection.winner.candidate.int("gamma") == 2
    assert any(why in said for said in warnings(result))
    boots = bench.boots
    again = bench.tune(DRAFTING | serving, gamma="0-3", dial=True, schedule=False)
    assert bench.boots == boots, "neither the dial nor anything else is tried again"
    assert again.no_dial == result.no_dial


def test_a_static_boot_that_says_otherwise_counts_and_is_told(bench: Bench) -> None:
    """The dialled server is faster than what is recommended, as with other CUDA graphs."""
    result = bench.tune(DRAFTING | {"dialled": 0.6}, gamma="0-3", dial=True)
    assert result.selection.speedup == pytest.approx(2.4 / 1.4, rel=0.15)  # of fresh boots alone
    told = [text for text in warnings(result) if "the dialled server showed" in text]
    assert any(text.startswith("gamma=2: servers of one gamma run at 0.6") for text in told)
    alike = bench.tune(DRAFTING, gamma="0-3", dial=True, study="alike", max_tokens=400)
    assert not [text for text in warnings(alike) if "the dialled server showed" in text]


def test_a_matrix_that_was_cut_off_goes_on_with_the_repeat_that_was_under_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real, least = load.timed, 9

    def stops(wire: Any, asked: Any, number: int, salt: str) -> Any:
        if len(made) == least:
            raise KeyboardInterrupt
        made.append(salt)
        return real(wire, asked, number, salt)

    monkeypatch.setattr("autotune.serving.measure.cell.timed", stops)
    with pytest.raises(KeyboardInterrupt):
        bench.tune(DRAFTING, gamma="0-3", dial=True, repeats=4)
    first = list(made)
    made[:] = ["never again"] * (least + 1)
    bench.tune(DRAFTING, gamma="0-3", dial=True, repeats=4)
    rest = made[least + 1 :][: 4 * 4 - least]  # what follows confirms, on servers of one gamma
    assert not set(first) & set(rest)
    assert len({*first, *rest}) == 4 * 4


def test_rounds_go_forwards_and_backwards(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = load.timed

    def noted(wire: Any, asked: Any, number: int, salt: str) -> Any:
        made.append(int(salt.partition("-")[0]))
        return real(wire, asked, number, salt)

    monkeypatch.setattr("autotune.serving.measure.cell.timed", noted)
    bench.tune(DRAFTING, gamma="0-2", dial=True, repeats=2, schedule=False)
    assert made[:6] == [0, 1, 2, 2, 1, 0]  # then the confirmation


def test_nothing_is_left_behind() -> None:
    with Dial.made() as dial:
        folder = dial.folder
        assert folder.stat().st_mode & 0o777 == 0o700  # nobody else turns it
    assert not folder.exists()


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("INFO serving", "did not load the plugin"),
        (
            f"{plugin.IN_PLACE}\nWARNING Overriding cudagraph_mode from FULL_AND_PIECEWISE to "
            "PIECEWISE for reliability.",
            "gives up full CUDA graphs",
        ),
        (
            "Disabling num_speculative_tokens_per_batch_size and falling back to static",
            "data-parallel",
        ),
    ],
)
def test_a_server_whose_log_speaks_against_the_dial_is_not_trusted(
    tmp_path: Path, log: str, why: str
) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    with pytest.raises(DialUnfitError, match=why):
        check_log(path)


def test_a_server_with_the_dial_in_place_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(f"(EngineCore pid=1) {plugin.IN_PLACE}\n")
    check_log(path)


@pytest.mark.parametrize("gamma", [0, 1])
def test_more_drafted_than_the_dial_says_is_noticed(gamma: int) -> None:
    with pytest.raises(DialUnfitError, match=f"the dial says {gamma} tokens"):
        check_counted(DraftCounters(10, 20, 12, (8, 4)), gamma)
    check_counted(DraftCounters(10, 20, 12, (8, 4)), 2)
    check_counted(DraftCounters(0, 0, 0, (0, 0)), 0)


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("0.33.0", ""),
        ("0.32.0+cpu", ""),
        ("1.0.0rc1", ""),
        ("0.24.0", "vLLM 0.24.0 is older than 0.32"),
        (None, "not known"),
        ("nightly", "not known"),
    ],
)
def test_the_dial_is_tried_where_it_may_work(version: str | None, why: str) -> None:
    said = why_not(version)
    assert (why in said) if why else not said


def test_an_image_keeps_its_own_variables(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gets none of this machine's."""
    monkeypatch.setenv("PYTHONPATH", "/ours")
    image = Image("i", "5eed", env={"PYTHONPATH": "/opt/vllm", "VLLM_PLUGINS": "lora"})
    launcher = DockerLauncher("i", found=image)
    found = dial.variables({}, variables_of(launcher))
    assert found["PYTHONPATH"].split(os.pathsep) == [str(dial.folder), "/opt/vllm"]
    assert found["VLLM_PLUGINS"] == f"lora,{NAME}"
    plain = dial.variables({}, variables_of(DockerLauncher("i")))
    assert plain["PYTHONPATH"] == str(dial.folder)


def test_a_container_sees_the_dial_and_cannot_turn_it(dial: Dial, tmp_path: Path) -> None:
    settings = ServeSettings(str(tmp_path), env=dial.variables({}, {}))
    mounts = [mount.volume() for mount in mounts_of(settings)]
    assert f"{dial.folder}:{dial.folder}:ro" in mounts
