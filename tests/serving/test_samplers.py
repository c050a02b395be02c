"""Boots ordered by samplers of Optuna: what each asks for, and what it is told."""

from __future__ import annotations

import itertools
from typing import Any

import optuna
import pytest

from autotune.core import BadInputError, Candidate, MissingEnvironmentError, Outcome
from autotune.propose.names import NAMED
from autotune.propose.study import StudyInMemory, Told, check_sampler, maker
from autotune.serving.forecast.ask import StudyProposer
from autotune.serving.forecast.forecast import ForecastProposer
from tests.serving.test_forecast import failed, scenario, trial

SLOWER = {"a": 1.0, "b": 0.8, "c": 1.3}
OWN = "optuna.samplers:QMCSampler"
POINTS = [
    Candidate.of({"gamma": g, "x": x, "y": y})
    for g, x, y in itertools.product((0, 1, 2, 4), SLOWER, (1, 2))
]


def told(candidate: Candidate, objective: str = "geomean") -> Any:
    factor = SLOWER[str(candidate["x"])] * (1.0 if candidate["y"] == 1 else 0.95)
    more: dict[str, Any] = {name: value for name, value in candidate.items if name != "gamma"}
    return trial(candidate.int("gamma"), 1.0, factor, objective=objective, **more)


def proposer(sampler: str, *, seed: int = 0, objective: str = "geomean", columns: bool = False,
             width: int = 1) -> StudyProposer:  # fmt: skip
    baseline, by = told(POINTS[0], objective), scenario(objective)
    forecast = ForecastProposer(POINTS, baseline, by, columns=columns, width=width)
    return StudyProposer(forecast, POINTS, baseline, by, sampler, seed)


def booted(asking: StudyProposer, objective: str = "geomean") -> list[Candidate]:
    made: list[Candidate] = []
    while asked := asking.ask(8):
        made += asked
        for candidate in asked:
            asking.tell(told(candidate, objective))
    return made


@pytest.mark.parametrize(
    ("sampler", "columns"),
    # GP takes seconds for every boot: once, over the few settings that a dial leaves.
    [(s, c) for s in (*NAMED, OWN) for c in (False, True) if c or s != "gp"],
)
def test_every_sampler_finds_the_best_and_repeats_nothing(sampler: str, columns: bool) -> None:
    made = booted(proposer(sampler, columns=columns))
    assert len(made) == len(set(made))
    best = min(POINTS, key=lambda c: told(c).measurement.value)
    assert best in made
    if sampler == "grid":
        assert {*made} == {*POINTS[1:]}


@pytest.mark.parametrize("columns", [False, True])
def test_the_forecast_as_a_sampler_boots_what_it_would_boot_itself(columns: bool) -> None:
    alone = ForecastProposer(POINTS, told(POINTS[0]), scenario(), columns=columns)
    made: list[Candidate] = []
    while asked := alone.ask(8):
        made += asked
        for candidate in asked:
            alone.tell(told(candidate))
    assert booted(proposer("forecast", columns=columns)) == made


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_that_was_cut_off_goes_on_as_it_would_have(sampler: str) -> None:
    whole = booted(proposer(sampler, seed=3))
    again = proposer(sampler, seed=3)
    for candidate in whole[:4]:
        assert again.ask(8) == [candidate]
        again.tell(told(candidate))
    assert booted(again) == whole[4:]


@pytest.mark.parametrize("more", [{"x": "a"}, {"x": "z", "y": 1}, {"x": "a", "y": 1, "z": 2}])
def test_trials_of_another_space_teach_the_sampler_nothing(more: dict[str, Any]) -> None:
    asking = proposer("random")
    asking.tell(trial(2, **more))
    assert asking.ask(8)


def test_the_seed_decides_the_order() -> None:
    assert len({tuple(booted(proposer("random", seed=seed))) for seed in range(4)}) > 1


def test_several_servers_at_once_get_several_settings() -> None:
    asking = proposer("tpe", columns=True, width=3)
    asked = asking.ask(8)
    assert len({(c["x"], c["y"]) for c in asked}) == 3


def test_two_objectives_are_two_directions() -> None:
    made = booted(proposer("tpe", objective="pareto"), "pareto")
    assert min(POINTS, key=lambda c: told(c).measurement.value) in made


SPACE: dict[str, list[Any]] = {"x": ["a", "b"], "y": [1, 2, 3]}


def point(x: str, y: int) -> Candidate:
    return Candidate.of({"x": x, "y": y})


def test_a_study_holds_what_was_told_as_optuna_has_it() -> None:
    seen = [
        Told(point("a", 1), (3.0,), {"slo": 0.0}),
        Told(point("b", 3), (1.0,), {"slo": 2.0}),
        Told(point("a", 2), None, partial=5.0),
        Told(point("a", 3), None),
    ]
    made = maker("tpe", lambda: point("a", 1), SPACE)
    study = StudyInMemory(SPACE, seen, made, 0).study
    states = [t.state.name for t in study.trials]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert study.trials[2].intermediate_values == {1: 5.0}
    # The constraint is Optuna's own: its best trial is not the faster one that breaks a limit.
    assert study.best_trial.params == {"x": 0, "y": 0}
    kinds = study.trials[0].distributions
    assert isinstance(kinds["x"], optuna.distributions.CategoricalDistribution)
    assert isinstance(kinds["y"], optuna.distributions.IntDistribution)


def test_tpe_keeps_away_from_what_breaks_a_limit() -> None:
    space: dict[str, list[Any]] = {"y": list(range(40))}
    points = [Candidate.of({"y": y}) for y in range(40)]
    kept = 0
    for seed in range(10):
        made = maker("tpe", lambda: points[0], space)
        # The higher, the faster; but above 20 the limit is broken.
        seen = [
            Told(p, (100.0 - p.int("y"),), {"slo": float(p.int("y") > 20)}) for p in points[::2]
        ]
        asked = StudyInMemory(space, seen, made, seed).ask(points)
        kept += asked.int("y") <= 22
    assert kept >= 8


def test_what_failed_is_told_without_a_value() -> None:
    asking = proposer("tpe")
    (probe,) = asking.ask(8)
    more: dict[str, Any] = {name: value for name, value in probe.items if name != "gamma"}
    asking.tell(failed(probe.int("gamma"), Outcome.OUT_OF_MEMORY, **more))
    assert asking.ask(8)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("best", "no sampler 'best'; known: forecast, gp"),
        ("no.such:Thing", "No module named"),
        ("optuna.samplers:Nothing", "has no attribute"),
        ("json:dumps", "is no class of optuna"),
        ("optuna.samplers:PartialFixedSampler", "wants more than a seed"),
    ],
)
def test_a_sampler_that_is_not_there_is_named(name: str, why: str) -> None:
    with pytest.raises(BadInputError, match=why):
        check_sampler(name)


def test_a_sampler_whose_packages_are_not_here_ends_before_the_first_boot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autotune.propose.study.find_spec", lambda _: None)
    assert check_sampler("tpe") == "tpe"
    with pytest.raises(MissingEnvironmentError, match="--sampler gp: pip install scipy torch"):
        check_sampler("gp")
