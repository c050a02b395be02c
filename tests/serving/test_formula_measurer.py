"""The serving measurer, on servers in memory: the contract, and parts that come before the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune.core import Candidate, Job, Measurement, Measurer, Outcome, Part
from autotune.serving.measure.load import LoadOptions
from autotune.serving.measure.prompts import Prompt
from autotune.serving.measure.repeats import part_name
from autotune.serving.recipe import Recipe
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.launchers import LocalLauncher
from tests.contracts import MeasurerContract, whole
from tests.support.formula_measurer import FormulaMeasurer

GIVEN = json.dumps({"oom": [3], "base_ms": 5.0, "draft_ms": 1.0})
RECIPE = Recipe("m", "ngram", env={"FAKE_SERVING": GIVEN})
LOAD = SpecScenario("m", "ngram", "p", "k", (1, 2), 24, True, True, 2, 1, "geomean")


def of(gamma: int) -> Candidate:
    return Candidate.of({"gamma": gamma})


def measuring(logs: Path) -> FormulaMeasurer:
    prompts = LoadOptions(tuple(Prompt.of(text) for text in "abc"))
    return FormulaMeasurer(LocalLauncher(), RECIPE.settings, prompts, logs)


class TestFormula(MeasurerContract):
    @pytest.fixture(autouse=True)
    def _logs(self, tmp_path: Path) -> None:
        self.logs = tmp_path

    def measurer(self) -> Measurer:
        return measuring(self.logs)

    def workload(self) -> SpecScenario:
        return LOAD

    def expected(self) -> dict[Candidate, Measurement]:
        gammas = map(of, (0, 1, 2, 3))
        return {c: whole(measuring(self.logs).measure([Job(c, LOAD)]))[0] for c in gammas}

    def unmeasurable(self) -> Candidate | None:
        return None


def test_every_repeat_comes_before_the_measurement_and_is_not_made_again(tmp_path: Path) -> None:
    *parts, last = measuring(tmp_path).measure([Job(of(2), LOAD)])
    names = [part_name(level, number) for level in (1, 2) for number in (0, 1)]
    assert [part.name for part in parts if isinstance(part, Part)] == names
    assert isinstance(last, Measurement)
    known = {part.name: part.value for part in parts[:3] if isinstance(part, Part)}
    fourth, again = measuring(tmp_path).measure([Job(of(2), LOAD, parts=known)])
    assert isinstance(fourth, Part)
    assert fourth.name == names[3]
    assert isinstance(again, Measurement)
    assert again.details["repeats_of_earlier_runs"] == 3
    assert again.value == pytest.approx(last.value, rel=0.1)


def test_what_does_not_start_is_an_outcome_with_its_telling_line(tmp_path: Path) -> None:
    (failed,) = measuring(tmp_path).measure([Job(of(3), LOAD)])
    assert isinstance(failed, Measurement)
    assert failed.outcome is Outcome.OUT_OF_MEMORY
    assert "CUDA out of memory" in failed.message
