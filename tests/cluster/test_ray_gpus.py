"""What the runs on two GPUs said is read from their files, also where one was cut off."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autotune.store.store import Store
from benchmarks import ray_gpus
from benchmarks.ray_gpus import run, summary
from tests.serving.tiny_models import TinyModels, tiny_models
from tests.support.stores import Size, begin, trial, url

__all__ = ["tiny_models"]


def test_the_summary_says_how_much_faster_two_are_and_what_was_lost(tmp_path: Path) -> None:
    for step, seconds in (("one", 60.0), ("two", 31.0)):
        (tmp_path / f"{step}.rc").write_text("0\n\n")
        (tmp_path / f"{step}.err").write_text("Plan\nGPU-1 is lost: the actor died\n")
        document = {"spent": {"search_s": seconds}, "counts": {"ok": 3}, "warnings": []}
        (tmp_path / f"{step}.json").write_text(json.dumps(document))
        with Store.open(url(tmp_path / f"{step}.db")) as store:
            search, started = begin(store)
            made = [
                replace(
                    one, measurement=replace(one.measurement, details={"place": {"name": name}})
                )
                for one, name in ((trial(0), "a"), (trial(1), "b"), (trial(2), "a"))
            ]
            store.add_trials(started, store.workload(search, Size(1)).id, made)
    (tmp_path / "killed.rc").write_text("-15\n123\n")
    (tmp_path / "killed.err").write_text("")
    (tmp_path / "killed.json").write_text("")
    found = summary(tmp_path)
    assert round(found["two_gpus_are_faster_by"], 2) == 1.94
    assert found["two"]["places"] == {"a": 2, "b": 1}
    assert found["two"]["lost"] == ["GPU-1 is lost: the actor died"]
    assert found["killed"] == {"exit": -15, "killed": "123", "lost": []}
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
