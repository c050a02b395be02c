"""A soak in memory: servers that break after a while, each in its own way."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core import Basis, Candidate, Job, Part
from autotune.serving.decide.conclusion import verdict
from autotune.serving.decide.soak import judge_soak
from autotune.serving.measure.client import Load
from autotune.serving.measure.load import LoadOptions
from autotune.serving.measure.prompts import load_prompts
from autotune.serving.measure.soak import SoakLoad, measure_soak, repeats_itself
from autotune.serving.measure.wire import Wire
from autotune.serving.report.document import document
from autotune.serving.server.server import Server
from autotune.store.store import Store
from tests.serving.test_spec_job import Bench
from tests.serving.tiny_models import TinyModels
from tests.support.formula_measurer import FormulaWire

DRAFTING = {"base_ms": 5.0, "draft_ms": 1.0, "reached": [0.8, 0.6]}
ASK = {"gamma": "0,2", "dial": False, "schedule": False, "confirm": "side-by-side", "soak": "60s"}
AFTER = 400
"""Answers until something breaks: after two thirds of the soak, at ten answers a second."""


@pytest.fixture
def bench(tiny_models: TinyModels, tmp_path: Path) -> Bench:
    return Bench(tiny_models.qwen3, tmp_path)


def soaked(bench: Bench, late: dict[str, Any] | None = None, **changes: Any) -> Any:
    serving = DRAFTING if late is None else DRAFTING | {"late": {"after": AFTER, **late}}
    return bench.tune(serving, **{**ASK, **changes})


def test_what_lasts_is_said_to_and_is_not_soaked_again(bench: Bench) -> None:
    result = soaked(bench)
    assert result.soak is not None
    assert result.soak.failures == ()
    windows = result.soak.windows
    assert len(windows) >= 20
    assert windows[-1]["age_s"] >= 60
    assert sum(one["requests"] for one in windows) > AFTER
    assert windows[-1]["reached"] == pytest.approx([0.8, 0.6], abs=0.05)
    assert verdict(result).endswith("; a soak of 1 min showed nothing against it")
    text = bench.report(result)
    assert "## Soak" in text
    assert "Nothing speaks against it" in text
    soak = document(result)["soak"]
    assert soak["setting"] == "gamma=2"
    assert len(json.loads(json.dumps(soak))["windows"]) == len(windows)
    boots = bench.boots
    again = soaked(bench)
    assert (bench.boots, again.soak.windows) == (boots, windows)


def test_a_soak_has_requests_of_the_lengths_that_were_asked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Load] = []
    real = FormulaWire.load

    def noted(self: FormulaWire, load: Load) -> Any:
        sent.append(load)
        return real(self, load)

    monkeypatch.setattr(FormulaWire, "load", noted)
    result = soaked(bench, context="512,1k")
    assert result.soak is not None
    assert result.soak.failures == ()
    letters = [len(prompt.text) for prompt in sent[-1].prompts]
    assert len(letters) == 2 * len(result.plan.prompts)
    assert min(letters) > 1.5 * max(len(prompt.text) for prompt in result.plan.prompts)
    assert max(letters) > 1.7 * min(letters)
    plain = SoakLoad.of(replace(result.plan.scenario, context=()), 60)
    assert "context" not in plain.as_json(), "what was soaked before is known still"
    assert result.soak.trial.workload_key != plain.key


@pytest.mark.parametrize(
    ("late", "said"),
    [
        (
            {"accepts": 0.0},
            r"acceptance at the first position fell from 0\.8\d to 0\.00, after (3|4)\d s",
        ),
        (
            {"empty": True},
            r"\d+ of \d+ answers were empty in \d+ of \d+ windows, the first after (3|4)\d s",
        ),
        ({"repeats": True}, "answers that repeat themselves rose from 0% to 100%, after (3|4)"),
        ({"slower": 2.0}, r"it slows down: from \d+ to \d+ tok/s"),
        ({"grows": 2e6}, "its host memory grows: from 1.00 GiB to"),
        ({"ends": True}, "it did not last: RuntimeError: late, after (3|4)"),
    ],
)
def test_each_failure_is_recognised(bench: Bench, late: dict[str, Any], said: str) -> None:
    result = soaked(bench, late, max_tokens=32)
    assert not result.selection.kept_incumbent
    assert result.soak is not None
    failure, *others = result.soak.failures
    assert not others or "accepts" in late  # which slows it down as well
    assert re.match(said, failure), failure
    assert "BUT a soak of 1 min FAILED" in verdict(result)
    assert failure in bench.report(result)


def test_told_acceptance_makes_text_noise(bench: Bench) -> None:
    windows = [
        {"age_s": 10.0 * i, "tok_s": 100.0, "requests": 10, "empty": 10, "repeating": 0}
        for i in range(9)
    ]
    trial = soaked(bench).soak.trial
    told = replace(
        trial,
        measurement=replace(trial.measurement, basis=Basis.SYNTHETIC, details={"windows": windows}),
    )
    assert judge_soak(told).failures == ()
    real = replace(told, measurement=replace(told.measurement, basis=Basis.MEASURED))
    assert "90 of 90 answers were empty" in judge_soak(real).failures[0]


def test_a_soak_that_was_cut_off_begins_anew_with_its_new_server(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks late depends on how long a server has run; what was seen stays stored."""
    soaked(bench, soak=None)
    loads = [0]
    real = FormulaWire.load

    def stops(self: FormulaWire, asked: Load) -> Any:
        loads[0] += 1
        if loads[0] == 10:
            raise KeyboardInterrupt
        return real(self, asked)

    monkeypatch.setattr(FormulaWire, "load", stops)
    with pytest.raises(KeyboardInterrupt):
        soaked(bench)
    result = soaked(bench)
    windows = result.soak.windows
    assert {one["server"] for one in windows} == {2}
    assert windows[-1]["age_s"] >= 60
    plan = result.plan
    with Store.open(f"sqlite:///{bench.root}/a.db") as store:
        search = store.search(store.study(plan.study, plan.kind, plan.identity()), plan.setup())
        load = SoakLoad.of(plan.scenario, plan.soak_s)
        stored = store.parts(search, load.key, result.soak.trial.candidate)
    assert {one["server"] for one in stored.values()} == {1, 2}
    assert len(stored) > len(windows)


@pytest.mark.server
def test_a_real_server_is_soaked_for_some_seconds(real_server: Server) -> None:
    load = SoakLoad(
        real_server.model,
        "d",
        "k",
        concurrency=2,
        max_tokens=16,
        ignore_eos=True,
        chat=True,
        seconds=4,
    )
    job = Job(Candidate.of({"gamma": 2}), load)
    measuring = measure_soak(Wire(real_server), job, LoadOptions(load_prompts("chat")))
    parts: list[Part] = []
    while True:
        try:
            parts.append(next(measuring))
        except StopIteration as end:
            served = end.value
            break
    windows = served.details["windows"]
    assert [dict(part.value) for part in parts] == windows
    assert windows[-1]["age_s"] >= 4
    for window in windows:
        assert window["tok_s"] > 0
        assert window["empty"] < window["requests"]
        assert window["memory_bytes"] > 2**28
        assert 0 <= window["reached"][-1] <= window["reached"][0] <= 1


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("the cat sat on the mat and then it went out to look for a mouse in the garden", False),
        ("yes yes yes " * 8, True),
        ("I do not know. " * 6, True),
        ("no no no", False),
        ("", False),
    ],
)
def test_an_answer_that_goes_round_is_told(text: str, *, repeats: bool) -> None:
    assert repeats_itself(text) is repeats
