"""A load of several kinds of prompts or lengths: each by itself, and the mix named as one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.core import BadInputError, Candidate
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving.decide.slices import alone, slice_rows
from autotune.serving.export import write as export
from autotune.serving.job import Result
from autotune.serving.measure import load
from autotune.serving.measure.cell import prompts_by_slice
from autotune.serving.measure.load import LoadOptions, base_load
from autotune.serving.measure.prompts import Prompt, kinds_of, load_prompts, prompts_key
from autotune.serving.measure.race import rules_of
from autotune.serving.measure.stopping import Bar
from autotune.serving.preflight import preflight
from autotune.serving.report.document import document
from autotune.serving.scenario import tokens_of
from tests.serving.formula import Formula, prompt_tokens
from tests.serving.test_spec_job import Bench
from tests.serving.tiny_models import TinyModels
from tests.support.formula_measurer import wire_to

COPY, TALK = "copy", "talk"
MIXED: dict[str, Any] = {
    "base_ms": 5.0,
    "draft_ms": 1.0,
    "kinds": {COPY: [0.95, 0.9, 0.85, 0.8], TALK: [0.15, 0.02, 0.0, 0.0]},
}
"""Copying pays at any gamma, and talk does not at all."""


@pytest.fixture
def bench(tiny_models: TinyModels, tmp_path: Path) -> Bench:
    made = Bench(tiny_models.qwen3, tmp_path)
    lines = [
        json.dumps({"prompt": f"{kind} number {i}", "kind": kind})
        for kind in (COPY, TALK)
        for i in range(4)
    ]
    made.prompts.write_text("\n".join(lines))
    return made


def best(result: Result) -> dict[str, int]:
    return {one.slice.name: one.best.int("gamma") for one in alone(result)}


def test_each_kind_has_its_own_verdict_and_the_mix_is_named(bench: Bench, tmp_path: Path) -> None:
    result = bench.tune(MIXED, gamma="0,2,4", dial=True, max_tokens=64)
    assert best(result) == {COPY: 4, TALK: 0}
    assert result.plan.scenario.requests == 2 * result.plan.scenario.repeats  # of both kinds
    said = document(result)["verdict"]
    assert "a MIX of copy, talk, which want different settings: copy: gamma=4 (" in said
    chosen = result.selection.winner.candidate.int("gamma")
    if chosen:
        assert f"talk: gamma=0 (gamma={chosen} is 0." in said  # slower there than nothing drafted
    # A part by itself: 64 tokens at γ=0 take 64 steps of 5 ms.
    rows = {row["slice"]: row for row in slice_rows(result)}
    for row in rows.values():
        assert row["tok_s"]["gamma=0"]["1"] == pytest.approx(200, rel=0.01)
    assert rows[COPY]["tok_s"]["gamma=4"]["1"] > 1.8 * 200
    assert rows[TALK]["tok_s"]["gamma=4"]["1"] < 0.8 * 200
    # The mix is that of equal numbers of requests.
    (four,) = (t for t in result.trials if t.candidate.int("gamma") == 4)
    both = [rows[kind]["tok_s"]["gamma=4"]["1"] for kind in (COPY, TALK)]
    mean = 2 / sum(1 / rate for rate in both)
    assert four.measurement.details["levels"]["1"]["tok_s"] == pytest.approx(mean, rel=0.01)
    reached = four.measurement.details["slices"]
    assert reached[COPY]["1"]["reached"][0] > 0.9 > 0.3 > reached[TALK]["1"]["reached"][0]

    text = bench.report(result)
    table = text.partition("## By kind of prompt and length")[2].partition("\n## ")[0]
    assert "| copy | gamma=4 |" in table
    assert "| talk | gamma=0 |" in table
    assert "of the mix, equal numbers of requests of each part" in table
    files = {p.name: p for p in export.write(result, bench.page(result), tmp_path / "out")}
    script = files["serve.sh"].read_text().splitlines()
    told = [line.split()[2] for line in script if line.startswith("# For")]
    assert told == [kind for kind, gamma in best(result).items() if gamma != chosen] != []
    rows = json.loads(files["best.json"].read_text())["slices"]
    assert [(row["kind"], row["candidate"]["gamma"]) for row in rows] == [(COPY, 4), (TALK, 0)]


def test_what_loses_in_the_mix_goes_on_while_it_may_win_in_a_part(bench: Bench) -> None:
    # In the mix γ=3 is behind γ=0 and cannot win; of what is copied it is nearly the best.
    serving = MIXED | {"draft_ms": 2.0, "kinds": {COPY: [0.99] * 4, TALK: [0.0] * 4}}
    result = bench.tune(serving, gamma="0-4", dial=True, repeats=6, max_tokens=64)
    assert all(t.measurement.value is not None for t in result.trials)
    assert best(result)[COPY] == 4


def test_a_cut_off_load_goes_on_with_the_part_that_was_under_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = load.timed

    def stops(wire: Any, asked: Any, number: int, salt: str) -> Any:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(salt)
        return real(wire, asked, number, salt)

    monkeypatch.setattr("autotune.serving.measure.cell.timed", stops)
    with pytest.raises(KeyboardInterrupt):
        bench.tune(MIXED, gamma="0,2", dial=True, repeats=3)
    first, made[:] = list(made), [""] * 6
    bench.tune(MIXED, gamma="0,2", dial=True, repeats=3)
    rest = made[6:][: 2 * 3 * 2 - 5]  # what follows confirms
    assert not set(first) & set(rest)
    assert len({*first, *rest}) == 2 * 3 * 2


def test_the_best_gamma_by_length(bench: Bench) -> None:
    # A long context is read at every step, drafted or not: there drafting pays more.
    args = ("--max-model-len 8192",)
    bench.prompts.write_text(json.dumps({"prompt": "one question"}))
    serving = {"base_ms": 2.0, "draft_ms": 2.0, "long_ms": 4.0, "reached": [0.6, 0.4, 0.3, 0.2]}
    result = bench.tune(
        serving, gamma="0,1,4", context="200,8000", max_tokens=64, dial=True, server_arg=args
    )
    assert result.dialled
    assert best(result) == {"200 tokens": 0, "8k tokens": 4}
    (zero, *_) = result.trials
    plain = {name: levels["1"] for name, levels in zero.measurement.details["slices"].items()}
    assert plain["200 tokens"]["tok_s"] == pytest.approx(1e3 / (2 + 4 * 0.130), rel=0.02)
    assert plain["8k tokens"]["tok_s"] == pytest.approx(1e3 / (2 + 4 * 7.8), rel=0.02)
    rows = document(result)["slices"]
    assert [row["context"] for row in rows] == [200, 8000]
    assert "in requests of 200, 8k tokens" in bench.report(result)
    boots = bench.boots
    bench.tune(
        serving, gamma="0,1,4", context="200,8000", max_tokens=64, dial=True, server_arg=args
    )
    assert bench.boots == boots  # all of it came back


def test_one_length_is_no_mix_and_only_a_mix_is_measured_to_the_end(bench: Bench) -> None:
    bench.prompts.write_text(json.dumps({"prompt": "one question"}))
    plan = bench.plan({}, context="600")
    assert plan.scenario.as_json()["context"] == [600]
    assert bench.plan({}, context=600).scenario == plan.scenario  # as JSON may have it
    assert not plan.scenario.is_mixed
    bar = Bar(1.0)
    proposer: Any = SimpleNamespace(forecast=1, bar=lambda: bar)
    four = Candidate.of({"gamma": 4})
    assert rules_of(four, plan.scenario, plan.baseline, proposer).bar is bar
    mixed = bench.plan({}, context="300,600").scenario
    assert rules_of(four, mixed, plan.baseline, proposer).bar is None


def test_prompts_fill_the_length_that_is_asked_for(bench: Bench) -> None:
    plan = bench.plan({}, context="300,5K", max_tokens=24)
    wire = wire_to(Formula({}, ["serve", "m"], {}, lambda _: None), bench.root / "log")
    base = base_load(wire, plan.scenario, LoadOptions(plan.prompts))
    found = prompts_by_slice(wire, base, plan.scenario)
    assert [one.name for one in found] == [
        *("copy 300 tokens", "talk 300 tokens", "copy 5K tokens", "talk 5K tokens")
    ]
    for one, prompts in found.items():
        assert one.context is not None
        for prompt in prompts:
            tokens = prompt_tokens({"prompt": prompt.text})
            assert 0.94 * (one.context - 24) <= tokens <= one.context - 24
        assert len({prompt.text for prompt in prompts}) == len(prompts)


def test_a_length_that_the_server_does_not_take_is_told_before_a_boot(bench: Bench) -> None:
    plan = bench.plan({}, context="1k,64k")
    found = [finding for finding in preflight(plan) if finding.code == "context"]
    (told,) = found
    assert told.refuses
    assert told.message.startswith("--context 64k is longer than the ")
    assert not bench.boots_file.exists()


def test_memory_is_checked_for_as_many_requests_of_the_longest(bench: Bench) -> None:
    reading = MemoryReading(1 << 30, 1 << 30, MemoryKind.GPU, "GPU 0")
    args = ("--kv-cache-memory-bytes 4000000",)

    def told(context: str) -> list[str]:
        plan = bench.plan({}, concurrency="1,64", context=context, server_arg=args, force=False)
        found = preflight(dataclasses.replace(plan, memory=reading))
        return [f.message for f in found if f.code == "memory-concurrency"]

    assert any(text.startswith("64 requests of 1000 tokens need ") for text in told("100,1k"))
    assert not told("100")


def test_several_sets_take_turns_and_are_told_apart() -> None:
    mixed = load_prompts("chat,rewriting")
    assert kinds_of(mixed) == ("chat", "rewriting")
    assert [prompt.kind for prompt in mixed[:4]] == ["chat", "rewriting"] * 2
    alone_ = load_prompts("chat")
    assert kinds_of(alone_) == ("",)
    assert [p.text for p in mixed if p.kind == "chat"] == [p.text for p in alone_]
    assert prompts_key(mixed) != prompts_key(tuple(Prompt(p.messages) for p in mixed))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"prompt": "x", "kind": "a\nrm -rf /"}, "kind: expected a name in one line"),
        ({"prompt": "x", "kind": "a" * 41}, "kind: expected a name in one line"),
        ({"prompt": "x", "kind": 7}, "kind: expected a text"),
    ],
)
def test_a_kind_is_a_name(line: dict[str, Any], why: str, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(BadInputError, match=why):
        load_prompts(str(path))


def test_too_many_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "x", "kind": f"k{i}"}) for i in range(17)))
    with pytest.raises(BadInputError, match="17 values of kind, each of which is a load"):
        load_prompts(str(path))


def test_lengths_are_named_as_they_are_given() -> None:
    assert [tokens_of(n) for n in (16_000, 16_384, 777)] == ["16k", "16K", "777"]
