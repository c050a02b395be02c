"""What stands beside the numbers of a finished job."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from autotune.kernels.report.document import warnings
from autotune.kernels.report.notes import SPARSE, few_keys
from tests.kernels.test_measured_job import plan


def finished(**changes: Any) -> Any:
    known = {"plan": plan(), "fp16_fallback": False, "out_of_budget": (), "noticed": []}
    return SimpleNamespace(**known | {"selections": dict.fromkeys(range(SPARSE))} | changes)


def test_nothing_is_said_of_a_job_without_trouble() -> None:
    assert warnings(finished()) == []


def test_what_the_job_noticed_is_said() -> None:
    assert warnings(finished(noticed=["GPU 0 is 37 % busy"])) == ["GPU 0 is 37 % busy"]


def test_why_a_gpu_that_is_here_was_not_used() -> None:
    (said,) = warnings(finished(plan=replace(plan(), unmeasured="no torch")))
    assert said == "NVIDIA H200 SXM is here, but no torch"


def test_few_keys_are_said() -> None:
    assert few_keys(SPARSE) is None
    (said,) = warnings(finished(selections={8: None}))
    assert said.startswith("few keys in the file (1): ")
    assert said.endswith("without --batch-sizes it gets the standard 18")
