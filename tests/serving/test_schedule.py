"""Gamma by batch size: its form is vLLM's own, and what decides whether it is recommended."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import Basis, Candidate, Measurement, Outcome, Phase, Selection, Trial
from autotune.serving.decide.confirm import Confirmed
from autotune.serving.decide.schedule import Schedule, judge, make_ranges, offer
from autotune.serving.recipe import Recipe
from autotune.serving.scenario import SpecScenario


def scenario(*levels: int) -> SpecScenario:
    return SpecScenario("t", "d", "chat", "k", levels, 8, True, True, 6, 1, "geomean")


def trial(rates: Mapping[int, float], **params: Any) -> Trial:
    levels = {str(c): {"tok_s": r, "repeats": [r] * 6} for c, r in rates.items()}
    details = {"levels": levels, "outputs": ["a", "b", "c", "d", "e"]}
    found = Measurement(Outcome.OK, Basis.MEASURED, 1.0, (1.0,) * 6, details=details)
    return Trial(Candidate.of(params), "w", Phase.SEARCH, 0, found)


def test_what_is_between_two_concurrencies_goes_to_the_nearer_by_ratio() -> None:
    assert make_ranges({1: 4, 4: 3, 8: 2}) == ((1, 2, 4), (3, 5, 3), (6, 8, 2))
    assert make_ranges({1: 4, 4: 4, 8: 0}) == ((1, 5, 4), (6, 8, 0))
    assert make_ranges({2: 4}) == ((1, 2, 4),)
    assert make_ranges({1: 4, 2: 3}) == ((1, 1, 4), (2, 2, 3))
    with pytest.raises(ValueError, match="from 1"):
        make_ranges({})


def vllm_lookup(ranges: Sequence[Sequence[int]], most: int, cap: int) -> list[int]:
    """vLLM's own function, from its file alone: importing vLLM takes many seconds."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("needs vLLM's sources")
    file = Path(spec.origin).parent / "v1" / "spec_decode" / "dynamic" / "utils.py"
    if not file.exists():
        pytest.skip("this vLLM has no schedules")
    names: dict[str, Any] = {}
    exec(compile(file.read_text(), file, "exec"), names)
    found: list[int] = names["build_dynamic_sd_schedule_lookup"](
        [list(entry) for entry in ranges], most, cap
    )
    return found


@given(st.dictionaries(st.integers(1, 64), st.integers(0, 8), min_size=1, max_size=6))
def test_vllm_reads_from_it_what_was_meant(best: dict[int, int]) -> None:
    lookup = vllm_lookup(make_ranges(best), max(best) + 3, max(1, *best.values(), 1))
    assert [lookup[c] for c in best] == list(best.values())
    assert lookup[-1] == best[max(best)]  # beyond the last range its gamma goes on


def test_a_schedule_takes_the_best_measured_gamma_at_every_concurrency() -> None:
    trials = [
        trial({1: 100, 8: 500}, gamma=0),
        trial({1: 130, 8: 700}, gamma=2),
        trial({1: 180, 8: 520}, gamma=4),
        trial({1: 900, 8: 900}, gamma=6, kv="fp8"),
    ]
    found = offer(trials, Candidate.of({"gamma": 4}), scenario(1, 8), ())
    assert found.ranges == ((1, 2, 4), (3, 8, 2))
    assert found.candidate == Candidate.of({"gamma": 4, "schedule": "[[1,2,4],[3,8,2]]"})
    assert found.table[2] == {1: 130, 8: 700}
    config = Recipe("t", "draft_model", "d").settings(found.candidate).speculative
    assert config is not None
    assert config["num_speculative_tokens"] == 4
    assert config["num_speculative_tokens_per_batch_size"] == [[1, 2, 4], [3, 8, 2]]


@pytest.mark.parametrize(
    ("rates", "levels", "args", "why"),
    [
        ({2: {1: 130, 8: 700}, 4: {1: 120, 8: 600}}, (1, 8), (), "gamma=2 is the best"),
        ({2: {1: 100, 8: 700}, 4: {1: 102, 8: 600}}, (1, 8), (), "gamma=2 is the best"),
        ({2: {1: 100}, 4: {1: 200}}, (1,), (), "one concurrency"),
        (
            {2: {1: 100, 8: 700}, 4: {1: 200, 8: 600}},
            (1, 8),
            ("--data-parallel-size", "2"),
            "--data-parallel-size",
        ),
    ],
)
def test_where_there_is_nothing_to_gain_there_is_no_schedule(
    rates: dict[int, dict[int, float]], levels: tuple[int, ...], args: tuple[str, ...], why: str
) -> None:
    trials = [trial(values, gamma=gamma) for gamma, values in rates.items()]
    found = offer(trials, Candidate.of({"gamma": 2}), scenario(*levels), args)
    assert found.candidate is None
    assert why in found.said


def judged(static: Sequence[float], schedule: Sequence[float], outputs: str = "abcde") -> Schedule:
    """One rate for each round, at concurrency 1 and 4 alike."""
    winner = Candidate.of({"gamma": 4})
    params: dict[str, Any] = {"gamma": 4, "schedule": "[[1,1,4],[2,4,2]]"}
    rivals = [trial({1: rate, 4: rate}, gamma=4) for rate in static]
    ours = [trial({1: rate, 4: rate}, **params) for rate in schedule]
    selection = Selection(rivals[0], None, None, kept_incumbent=False)
    offered = Schedule("not measured", {}, ((1, 1, 4), (2, 4, 2)), Candidate.of(params))
    confirmed = Confirmed(selection, {winner: rivals, Candidate.of(params): ours}, {}, ())
    reference = trial({1: 1.0}, gamma=0)
    reference.measurement.details["outputs"][:] = list(outputs)
    return judge(offered, confirmed, reference, scenario(1, 4), 0.01)


def test_only_what_is_clearly_faster_in_every_round_is_recommended() -> None:
    good = judged([100, 100], [120, 110])
    assert good.recommended
    assert good.against == Candidate.of({"gamma": 4})
    assert good.ratio is not None
    assert good.ratio.value == pytest.approx(1.15)
    assert "95 % interval" in good.said
    tie = judged([100, 100], [120, 99])
    assert not tie.recommended
    assert tie.said.endswith("a tie")
    worse = judged([100, 100], [90, 80])
    assert not worse.recommended
    assert worse.said.endswith("worse")
    assert not judged([100, 100], [100.5, 100.5]).recommended  # below the least gain


def test_other_outputs_are_not_recommended() -> None:
    found = judged([100, 100], [120, 110], outputs="vwxyz")
    assert not found.recommended
    assert "output differs: 0%" in found.said


def test_the_setting_survives_the_database_as_json() -> None:
    found = offer(
        [trial({1: 1, 8: 5}, gamma=1), trial({1: 2, 8: 4}, gamma=3)],
        Candidate.of({"gamma": 1}),
        scenario(1, 8),
        (),
    )
    assert found.candidate is not None
    assert Candidate.of(json.loads(json.dumps(found.candidate.params))) == found.candidate
