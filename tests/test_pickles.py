"""Every measurer can be sent to another process or machine before it is entered."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from autotune.core import SideBySide
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measurers import local_measurer
from autotune.kernels.predict.measurer import PredictingMeasurer
from autotune.serving import job as serving
from autotune.serving.make_plan import make_plan
from autotune.serving.measure.measurer import ServingMeasurer
from autotune.serving.recipe import GAMMA
from tests.kernels.test_measured_job import plan as kernel_plan
from tests.serving.test_spec_job import make_request
from tests.serving.tiny_models import TinyModels, tiny_models

__all__ = ["tiny_models"]


@pytest.mark.parametrize("measured", [True, False])
def test_the_measurer_of_a_kernel_pickles(measured: bool) -> None:
    plan = kernel_plan() if measured else kernel_plan(gpus=())
    made = local_measurer(plan, Path("/shared"))
    sent = pickle.loads(pickle.dumps(made))
    assert isinstance(sent, GpuMeasurer if measured else PredictingMeasurer)
    assert isinstance(sent, SideBySide) is measured
    assert sent.basis is plan.basis


def test_the_measurer_of_a_server_pickles(tiny_models: TinyModels, tmp_path: Path) -> None:
    request = make_request(tiny_models.qwen3, "chat", gamma="0,2", env=["A=1"])
    plan = make_plan(request)
    sent = pickle.loads(pickle.dumps(serving.local_measurer(plan, tmp_path)))
    assert isinstance(sent, ServingMeasurer)
    assert sent.basis is plan.basis
    for candidate in plan.grid:
        settings = sent._settings_of(candidate)
        assert settings == plan.recipe.settings(candidate)
        assert (settings.speculative is None) == (candidate[GAMMA] == 0)
