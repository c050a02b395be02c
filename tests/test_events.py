"""``--dry-run`` says the plan and leaves nothing; ``--events`` tells programs of each step."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.cli.events import told
from autotune.core import BadInputError, Basis, Measurement, Outcome, Phase, Trial
from autotune.kernels.moe.from_model import load_config, shape_from_config
from autotune.store.store import Store
from autotune.tune import Progress
from autotune.util import secret
from tests.support.stores import Size
from tests.synthetic import feasible

Command = Callable[..., tuple[int, str, str]]


def step(value: float | None, message: str = "", *, reused: bool = False) -> Progress:
    outcome = Outcome.OK if value is not None else Outcome.CRASH
    measurement = Measurement(outcome, Basis.SYNTHETIC, value, message=message)
    trial = Trial(feasible()[0], Size(1).key, Phase.SEARCH, 0, measurement)
    return Progress(Size(1), trial, reused)


def test_each_step_is_a_line_that_a_reader_may_follow(tmp_path: Path) -> None:
    path = tmp_path / "events"
    seen: list[Progress] = []
    with told(path, {"study": "s", "total": 2}, seen.append) as tell:
        assert [json.loads(line) for line in path.read_text().splitlines()] == [
            {"event": "plan", "study": "s", "total": 2}
        ]
        tell(step(1.5))
        tell(step(None, "Fehler ü \udcff", reused=True))
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["value"], e["outcome"], e["known"]) for e in lines[1:]] == [
        (1.5, "ok", False),
        (None, "crash", True),
    ]
    assert lines[1]["candidate"] == feasible()[0].params
    assert len(seen) == 2
    with told(path, {"study": "s"}, seen.append):
        assert len(path.read_text().splitlines()) == 4  # a second command adds to it


def test_a_secret_stands_in_no_event(tmp_path: Path) -> None:
    secret.remember(["hf_verysecret"])
    with told(tmp_path / "events", {"notes": ["hf_verysecret"]}, lambda _: None) as tell:
        tell(step(None, "denied: hf_verysecret"))
    assert "verysecret" not in (tmp_path / "events").read_text()


def test_events_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    refused = pytest.raises(BadInputError, match="name another file with --events")
    with refused, told(tmp_path, {}, lambda _: None):
        pytest.fail("was told")


def test_the_work_goes_on_where_nobody_takes_the_events(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for place in (pipe, Path("/dev/full")):
        seen: list[Progress] = []
        with told(place, {"study": "s"}, seen.append) as tell:
            if place == pipe:
                assert b'"plan"' in os.read(reader, 1000)
                os.close(reader)
            tell(step(1.5))
            tell(step(2.5))
        assert len(seen) == 2
        said = capfd.readouterr().err
        assert said.count("no more events are written; the work goes on") == 1
        assert str(place) in said.replace("\n", "")


def test_a_dry_run_says_the_plan_and_starts_nothing(
    tmp_path: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = in_process(
        *("moe", "--device", "gb10", "--batch-sizes", "1,8", "--predict", "--dry-run", "--json")
    )
    plan = json.loads(out)
    assert (code, plan["batch_sizes"], plan["basis"]) == (0, [1, 8], "predicted")
    assert plan["total"] == 2 * (plan["candidates"] + 1)
    assert f"study {plan['study']}" in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and ".db" not in path.name]
    gemma = shape_from_config(load_config("gemma-4-26b-a4b"))
    identity = {"device": "gb10", "shape": gemma.as_json()}
    with (
        Store.open(f"sqlite:///{tmp_path}/outputs/autotune.db") as store,
        store.lock_study(store.study(plan["study"], "moe", identity).name),
    ):
        tuned = in_process("moe", "--device", "gb10", "--batch-sizes", "1", "--dry-run", "--json")
    assert tuned[0] == 0, "it only reads, while another command tunes"
    refused = in_process("moe", "--device", "gb10", "--tp", "3", "--dry-run")
    assert refused[0] == 2
    assert refused[2].startswith("autotune: ")
