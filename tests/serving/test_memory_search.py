"""A range of memory utilization against servers whose KV cache and end are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving.job import run
from autotune.serving.report.document import document
from autotune.store.store import Store
from tests.serving.test_spec_job import Bench
from tests.serving.tiny_models import TinyModels


@pytest.fixture
def bench(tiny_models: TinyModels, tmp_path: Path) -> Bench:
    return Bench(tiny_models.qwen3, tmp_path)


def test_both_borders_are_found_and_the_search_goes_on_at_the_upper_one(bench: Bench) -> None:
    # Four requests of the whole 1024 tokens need 4096: 41 hundredths above 20. Above 84 it dies.
    serving = {"memory": {"tokens": 100, "start": 20, "dies": 0.84}}
    plan = bench.plan(
        serving, gamma="0,2", concurrency="1,4", gpu_memory_utilization="0.4:0.9", schedule=False
    )
    free = MemoryReading(100 << 30, 95 << 30, MemoryKind.GPU, "GPU 0")
    plan = dataclasses.replace(plan, memory=free)
    with Store.open(f"sqlite:///{bench.root}/a.db") as store:
        result = run(plan, store, bench.measurer(plan), lambda _: None)
        boots = bench.boots
        again = run(plan, store, bench.measurer(plan), lambda _: None)
        # By the next day a little less is free: nothing is measured anew, and that is said.
        less = dataclasses.replace(plan, memory=dataclasses.replace(free, free=83 << 30))
        later = run(less, store, bench.measurer(less), lambda _: None)
    assert (again.fresh_boots, later.fresh_boots, bench.boots) == (0, 0, boots)
    assert later.selection == result.selection
    assert "0.83 is free now" in bench.report(later)
    assert "free now" not in bench.report(again)
    found = document(result)["memory_utilization"]
    assert (found["least"], found["most"], found["tokens_at_once"]) == (0.61, 0.84, 4096)
    rows = {row["utilization"]: row for row in found["evidence"]}
    assert rows[0.9]["failure"] == "out_of_memory_under_load"
    assert "OutOfMemoryError" in rows[0.9]["message"]
    assert rows[0.61]["preemptions"] == 0
    assert rows[0.6]["preemptions"] > 0
    assert rows[0.6]["kv_cache_tokens"] == 4000
    assert all(t.candidate["gpu_memory_utilization"] == "0.84" for t in result.trials)
    text = bench.report(result)
    assert "At least 0.61 holds 4096 tokens at once without preemption; at most 0.84" in text
    assert json.loads(json.dumps(found)) == found
