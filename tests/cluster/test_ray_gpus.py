"""What the runs on two GPUs said is read from their files, also where one was cut off."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.store.store import Store
from benchmarks import ray_gpus
from benchmarks.ray_gpus import run, summary
from tests.serving.tiny_models import TinyModels, tiny_models
from tests.support.stores import Size, begin, trial, url

__all__ = ["tiny_models"]


def test_the_summary_says_how_much_faster_two_are_and_what_was_lost(tmp_path: Path) -> None:
    for step, seconds in (("one", (0, 30, 45, 59)), ("two", (0, 20, 28, 35))):
        (tmp_path / f"{step}.err").write_text("Plan\nGPU-1 is lost: the actor died\n")
        (tmp_path / f"{step}.json").write_text(json.dumps({"counts": {"ok": 4}, "warnings": []}))
        with Store.open(url(tmp_path / f"{step}.db")) as store:
            search, started = begin(store)
            made = [
                replace(
                    one, measurement=replace(one.measurement, details={"place": {"name": name}})
                )
                for one, name in zip(map(trial, range(4)), "abab", strict=True)
            ]
            store.add_trials(started, store.workload(search, Size(1)).id, made)
        with contextlib.closing(sqlite3.connect(tmp_path / f"{step}.db")) as written, written:
            at = [(f"2026-11-28 05:34:{s:02}.5", 1 + i) for i, s in enumerate(seconds)]
            written.executemany("update trials set created_at = ? where id = ?", at)
    (tmp_path / "two.rc").write_text("0\n\n")
    (tmp_path / "killed.rc").write_text("-15\n123\n")
    (tmp_path / "killed.err").write_text("")
    (tmp_path / "killed.json").write_text("")
    found = summary(tmp_path)
    assert found["one"]["search_by_third_s"] == [30, 15, 14]
    assert found["two_gpus_are_faster_by"] == pytest.approx(
        {"whole": 59 / 35, "third 1": 30 / 20, "third 2": 15 / 8, "third 3": 14 / 7}
    )
    assert "exit" not in found["one"], "it was cut off"
    assert (found["two"]["exit"], found["two"]["counts"]) == (0, {"ok": 4})
    assert found["two"]["places"] == {"a": 2, "b": 2}
    assert found["two"]["lost"] == ["GPU-1 is lost: the actor died"]
    cut = {"lost": [], "places": {}, "search_by_third_s": [], "exit": -15, "killed": "123"}
    assert found["killed"] == cut
    assert "tp2" not in found


def test_a_step_keeps_what_its_command_said(tmp_path: Path) -> None:
    run(tmp_path, "one", ["--no-such-flag"], {}, kill=False)
    assert (tmp_path / "one.rc").read_text() == "2\n\n"
    assert "No such option" in (tmp_path / "one.err").read_text()
    assert ray_gpus.trials(tmp_path / "none.db") == 0
    assert not (tmp_path / "none.db").exists(), "the command makes it"


def test_the_command_line_takes_what_the_steps_ask_for(
    in_process: Callable[..., tuple[int, str, str]], tiny_models: TinyModels, tmp_path: Path
) -> None:
    """On a cluster's machine there is no time to find out that it does not."""
    for words, instead in (
        (ray_gpus.kernels(tmp_path, "one"), ("--device=h100", "--predict")),
        (ray_gpus.serving(tmp_path, tiny_models.qwen3), ()),
    ):
        here = [word for word in words if word not in {"--ray=local", "--device=auto"}]
        code, said, errors = in_process(*here, *instead, "--dry-run")
        assert code == 0, errors
        assert json.loads(said)["study"] in {"one", "tp2"}
