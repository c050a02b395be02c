"""The predicting measurer, over real compiles: the contract, and what its measurements say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Self

import pytest

from autotune.core import Candidate, Job, Measurement, Measurer, Outcome
from autotune.kernels.compile.job import kernel_info
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.moe.from_model import load_config, shape_from_config
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.predict.measurer import (
    PredictingMeasurer,
    compile_jobs,
    estimated_resources,
)
from autotune.machine.devices import get_device
from benchmarks import predicted_choice
from benchmarks.compiled import Kept
from tests.contracts import MeasurerContract

pytestmark = pytest.mark.compile

GB10 = get_device("gb10")
SHAPE = shape_from_config(load_config("gemma-4-26b-a4b"))


def candidate(block_m: int, block_n: int, block_k: int, stages: int, warps: int = 4) -> Candidate:
    return Candidate.of(
        {
            "BLOCK_SIZE_M": block_m,
            "BLOCK_SIZE_N": block_n,
            "BLOCK_SIZE_K": block_k,
            "GROUP_SIZE_M": 1,
            "num_warps": warps,
            "num_stages": stages,
        }
    )


SMALL, MIDDLE = candidate(16, 64, 128, 4), candidate(64, 64, 128, 3)
TOO_BIG = candidate(128, 256, 128, 4, warps=8)


class MemoryCache:
    def __init__(self) -> None:
        self.values: dict[str, dict[str, Any]] = {}
        self.put_count = 0

    def get(self, key: str) -> dict[str, Any] | None:
        return self.values.get(key)

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        self.values[key] = dict(value)
        self.put_count += 1


CACHE = MemoryCache()


class Shared(CompileProcesses):
    """Processes that stay when one of their users leaves them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def processes() -> Iterator[Shared]:
    shared = Shared(kernel_info(), 1)
    CompileProcesses.__enter__(shared)
    yield shared
    CompileProcesses.__exit__(shared)


def predicting(processes: CompileProcesses) -> PredictingMeasurer:
    measurer = PredictingMeasurer(GB10, SHAPE, processes)
    measurer.use(CACHE)
    return measurer


@cache
def _apart() -> dict[Candidate, Measurement]:
    ours = (SMALL, TOO_BIG, MIDDLE)
    with predicting(CompileProcesses(kernel_info(), 1)) as measurer:
        jobs = ([Job(one, MoeWorkload(SHAPE, 512))] for one in ours)
        return {one: next(measurer.measure(job)) for one, job in zip(ours, jobs, strict=True)}


def alone(one: Candidate) -> Measurement:
    """What a candidate gives by itself, in a process that the contract's do not share."""
    return _apart()[one]


class TestPredictingMeasurer(MeasurerContract):
    @pytest.fixture
    def opened(self, processes: Shared) -> Iterator[Measurer]:
        with predicting(processes) as measurer:
            yield measurer

    def measurer(self) -> Measurer:
        return PredictingMeasurer(GB10, SHAPE, CompileProcesses(kernel_info(), 1))

    def workload(self) -> MoeWorkload:
        return MoeWorkload(SHAPE, 512)

    def expected(self) -> dict[Candidate, Measurement]:
        return {one: alone(one) for one in (SMALL, TOO_BIG, MIDDLE)}

    @pytest.mark.nightly  # it compiles all again; by day tests/test_pickles.py sends it
    def test_it_can_be_sent_elsewhere_before_it_is_entered(self) -> None:
        super().test_it_can_be_sent_elsewhere_before_it_is_entered()

    def unmeasurable(self) -> Candidate | None:
        return None


def test_what_does_not_fit_is_out_of_resources_with_the_figures() -> None:
    found = alone(TOO_BIG)
    assert found.outcome is Outcome.OUT_OF_RESOURCES
    assert "147456" in found.message
    assert "101376" in found.message


def test_a_prediction_carries_what_the_report_shows() -> None:
    details = alone(SMALL).details
    assert [gemm["mma"] for gemm in details["compiled"]] == ["QMMA", "QMMA"]
    assert all(gemm["registers"] > 16 for gemm in details["compiled"])
    assert details["limit"] in details["gemms"][0]["terms_us"] or details["limit"] == "waves"
    assert details["fp16_fallback"] is False


def test_a_second_measurement_compiles_nothing(processes: Shared) -> None:
    alone(SMALL)
    before = CACHE.put_count
    with predicting(processes) as measurer:
        list(measurer.measure([Job(SMALL, MoeWorkload(SHAPE, 512))]))
        list(measurer.measure([Job(SMALL, MoeWorkload(SHAPE, 1024))]))  # the same specialisation
        assert before == CACHE.put_count
        list(measurer.measure([Job(SMALL, MoeWorkload(SHAPE, 1))]))  # the naive path: another
    assert before + 2 == CACHE.put_count


def test_the_estimate_before_compiling_has_the_exact_shared_memory() -> None:
    for one in (SMALL, MIDDLE):
        compiled = alone(one).details["compiled"]
        estimate = estimated_resources(one, SHAPE, GB10)
        assert estimate.shared_bytes == compiled[0]["shared_bytes"]
        assert estimate.mma == "qmma_fp8"


def test_kept_results_are_what_this_compiler_makes(processes: Shared) -> None:
    kept, kernel = Kept(predicted_choice.COMPILED, swaps=True), kernel_info()
    if f"vLLM {kernel.vllm_version}, Triton {kernel.triton_version}" not in kept.versions():
        pytest.skip("kept results are of other versions")
    bf16 = shape_from_config(load_config("gemma-4-26b-a4b"), dtype="bf16")
    # The estimate takes 20 registers more, so that one block fits an SM and not two.
    jobs = compile_jobs(candidate(128, 128, 64, 3, warps=8), MoeWorkload(bf16, 2048), 90)
    for job, compiled in zip(jobs, processes.compile(jobs, None), strict=True):
        assert kept[job].summary() == compiled.summary()
        assert compiled.registers <= 128
