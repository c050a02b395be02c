"""The database of commit 5efff5a under the job of today; more in ``tests/test_legacy.py``."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.serving import plan as serving_plans
from autotune.serving.job import run as tune_servers
from autotune.serving.stored import load_served
from autotune.store.store import Store
from tests.serving.test_spec_job import Bench
from tests.serving.tiny_models import TinyModels
from tests.support.formula_measurer import in_memory

LEGACY = Path(__file__).parents[1] / "data" / "legacy"


def test_servers_go_on_from_what_is_stored(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(LEGACY / "autotune.db", tmp_path / "a.db")
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        known, scenario = store.get_study("s"), load_served(store, "s").scenario
    (search,) = known.searches
    bench = Bench(tiny_models.qwen3, tmp_path)
    plan = replace(bench.plan({}, gamma="0,2", study="s"), scenario=scenario)
    monkeypatch.setattr(serving_plans.Plan, "identity", lambda _: known.study.identity)
    monkeypatch.setattr(serving_plans.Plan, "setup", lambda _: search.setup)
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        measurer = in_memory(plan, tmp_path / "logs")
        result = tune_servers(plan, store, measurer, lambda _: None)
    assert (result.boots, result.fresh_boots) == (4, 0)
    assert result.selection.winner.candidate["gamma"] == 2
    assert result.selection.speedup == pytest.approx(1.7667774836766057)
