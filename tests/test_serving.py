"""A serving test without and with a fused-MoE file, read from a study of the other half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autotune.core import BadInputError, Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.engine.variables import FOLDER, ROUTING
from autotune.kernels.export.serving_evidence import with_and_without
from autotune.serving.recipe import Recipe
from autotune.serving.scenario import SpecScenario
from autotune.store.store import Store

NAME = "E=128,N=704,device_name=NVIDIA_H200,dtype=fp8_w8a8.json"
SCENARIO = SpecScenario("target", "ngram", "chat", "0", (1, 8), 128, True, True, 2, 2, "geomean")


def setup(env: dict[str, str], *args: str) -> dict[str, Any]:
    files = "digest of its files" if FOLDER in env else None
    recipe = Recipe("target", "ngram", server_args=args, env=env, moe_files=files).as_json()
    return {"basis": "measured", "recipe": {"name": "ngram"} | recipe, "vllm": "0.24.0"}


def serve(
    store: Store, env: dict[str, str], one: list[float], eight: list[float], *args: str
) -> None:
    """A search with one setting, served with these rates."""
    study = store.study("s", "spec", {"target": "target", "drafter": "ngram"})
    search = store.search(study, setup(env, *args))
    run = store.start_run(search, store.environment({}), "autotune spec")
    levels = {"1": {"repeats": one, "tok_s": one[0]}, "8": {"repeats": eight, "tok_s": eight[0]}}
    measurement = Measurement(Outcome.OK, Basis.MEASURED, 1.0, (1.0,), details={"levels": levels})
    trial = Trial(Candidate.of({"gamma": 4}), SCENARIO.key, Phase.BASELINE, 0, measurement)
    store.add_trials(run, store.workload(search, SCENARIO).id, [trial])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "moe").mkdir()
    (tmp_path / "moe" / NAME).write_bytes(b"{}")
    return tmp_path / "moe"


def test_each_load_without_and_with_the_file(tmp_path: Path, folder: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        serve(store, {"X": "1"}, [100.0, 110.0, 105.0], [800.0, 810.0])
        serve(store, {"X": "1", FOLDER: str(folder)}, [120.0, 125.0, 130.0], [805.0, 795.0])
        found = with_and_without(store, "s", NAME, b"{}")
    assert [row["load"] for row in found["rows"]] == ["gamma=4, 1 at once", "gamma=4, 8 at once"]
    one, eight = found["rows"]
    assert one["before"] == "105.0 (100.0 to 110.0, 3 repeats)"
    assert (one["ratio"], one["range"]) == ("1.190", "1.091 to 1.300")
    assert (eight["ratio"], eight["range"]) == ("0.994", "0.981 to 1.006")


def test_what_is_no_test_of_this_file(tmp_path: Path, folder: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        serve(store, {FOLDER: str(folder)}, [1.0], [1.0])
        with pytest.raises(BadInputError, match="both without --moe-config and with it"):
            with_and_without(store, "s", NAME, b"{}")
        serve(store, {"Y": "other"}, [1.0], [1.0])
        with pytest.raises(BadInputError, match="all else equal"):
            with_and_without(store, "s", NAME, b"{}")
        serve(store, {}, [1.0], [1.0])
        assert with_and_without(store, "s", NAME, b"{}")["rows"]
        with pytest.raises(BadInputError, match="no longer"):
            with_and_without(store, "s", NAME, b"{ }")
        store.study("m", "moe", {})
        with pytest.raises(BadInputError, match="of kind moe"):
            with_and_without(store, "m", NAME, b"{}")


def test_one_search_that_compared_them(tmp_path: Path, folder: Path) -> None:
    def trial(moe: str, phase: Phase, sequence: int, rates: list[float]) -> Trial:
        levels = {"1": {"repeats": rates, "tok_s": rates[0]}}
        measured = Measurement(Outcome.OK, Basis.MEASURED, 1.0, (1.0,), details={"levels": levels})
        setting = Candidate.of({"gamma": 0, "moe_config": moe})
        load = SCENARIO if phase is not Phase.CONFIRM else SCENARIO.in_round(1)
        return Trial(setting, load.key, phase, sequence, measured)

    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        study = store.study("s", "spec", {"target": "target", "drafter": "ngram"})
        search = store.search(study, setup({}))
        run = store.start_run(search, store.environment({}), "autotune spec")
        loads = [store.workload(search, load).id for load in (SCENARIO, SCENARIO.in_round(1))]
        default = trial("default", Phase.BASELINE, 0, [100.0, 102.0, 101.0])
        tuned = trial(str(folder), Phase.SEARCH, 1, [50.0, 51.0, 52.0])
        store.add_trials(run, loads[0], [default])
        with pytest.raises(BadInputError, match="nor with --moe-config default,FOLDER"):
            with_and_without(store, "s", NAME, b"{}")
        store.add_trials(run, loads[0], [tuned])
        found = with_and_without(store, "s", NAME, b"{}")
        assert "one boot each" in found["how"]
        assert [(row["load"], row["ratio"]) for row in found["rows"]] == [
            ("gamma=0, 1 at once", "0.505")
        ]
        again = trial("default", Phase.CONFIRM, 2, [100.0, 100.0, 100.0])
        fresh = trial(str(folder), Phase.CONFIRM, 3, [120.0, 121.0, 119.0])
        store.add_trials(run, loads[1], [again, fresh])
        found = with_and_without(store, "s", NAME, b"{}")
        assert "fresh boots, round by round" in found["how"]
        assert found["rows"][0]["ratio"] == "1.200"
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / NAME).write_bytes(b"[]")
        other = trial(str(tmp_path / "other"), Phase.CONFIRM, 4, [150.0, 150.0, 150.0])
        store.add_trials(run, loads[1], [other])
        assert with_and_without(store, "s", NAME, b"[]")["rows"][0]["ratio"] == "1.500"
        assert with_and_without(store, "s", NAME, b"{}")["rows"][0]["ratio"] == "1.200"
        with pytest.raises(BadInputError, match="no longer"):
            with_and_without(store, "s", NAME, b"{ }")


def test_what_was_made_up_is_told(tmp_path: Path, folder: Path) -> None:
    drawn = {ROUTING: "uniform_random"}
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        serve(store, drawn, [1.0], [1.0], "--load-format", "dummy")
        serve(store, drawn | {FOLDER: str(folder)}, [1.0], [1.0], "--load-format", "dummy")
        how = with_and_without(store, "s", NAME, b"{}")["how"]
    assert how.endswith("; weights made up; experts drawn by uniform_random)")
