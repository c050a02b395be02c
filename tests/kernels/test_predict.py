"""The cost model: its arithmetic against simulation, its limits, and what must be monotone."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import (
    BadInputError,
    Basis,
    Candidate,
    Measurement,
    Outcome,
    Phase,
    Trial,
)
from autotune.kernels.moe.from_model import explicit_shape, load_config, shape_from_config
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.predict.choose import MODEL_ERROR, select_predicted
from autotune.kernels.predict.cost_model import (
    Prediction,
    Resources,
    Tile,
    ctas_per_sm,
    in_waves,
    predict,
    warps_per_tile,
)
from autotune.kernels.predict.measurer import estimated_resources
from autotune.kernels.predict.work import expected_routing
from autotune.machine.devices import get_device
from autotune.measure.replay import Landscape
from benchmarks import gb10, predicted_choice
from benchmarks.prediction import cases, judge, medians

GEMMA = shape_from_config(load_config("gemma-4-26b-a4b"))
GB10 = get_device("gb10")
H200 = get_device("h200")
SMALL = Tile(16, 64, 128, 1, 4, 4)
RESOURCES = Resources(registers=64, spill_bytes=0, shared_bytes=30720, mma="qmma_fp8")
LIMITS = {"bytes", "l2", "tensor cores", "shared memory", "instructions", "latency"}


def predicted(m: int, tile: Tile = SMALL, resources: Resources = RESOURCES) -> Prediction:
    return predict(MoeWorkload(GEMMA, m), tile, (resources, resources), GB10)


@pytest.mark.parametrize(("m", "block_m"), [(1, 16), (8, 16), (64, 16), (300, 32), (1000, 64)])
def test_expected_routing_agrees_with_drawing_experts(m: int, block_m: int) -> None:
    draw = random.Random(m)
    active, blocks, rounds = 0.0, 0.0, 200
    for _ in range(rounds):
        tokens = [0] * 128
        for _ in range(m):
            for expert in draw.sample(range(128), 8):
                tokens[expert] += 1
        active += sum(count > 0 for count in tokens) / rounds
        blocks += sum(math.ceil(count / block_m) for count in tokens) / rounds
    routing = expected_routing(m, 8, 128, 128, block_m)
    assert routing.active_experts == pytest.approx(active, rel=0.03)
    assert routing.row_blocks == pytest.approx(blocks, rel=0.03)


@given(st.integers(1, 4096), st.integers(1, 4096), st.sampled_from([16, 64, 256]))
def test_more_tokens_never_need_fewer_experts_or_tiles(a: int, b: int, block_m: int) -> None:
    less, more = (expected_routing(m, 8, 128, 128, block_m) for m in sorted((a, b)))
    assert less.active_experts <= more.active_experts + 1e-9
    assert less.row_blocks <= more.row_blocks + 1e-9


def test_one_token_cannot_beat_the_bytes_of_its_experts() -> None:
    # 8 experts of 3·K·N fp8 bytes over 273 GB/s is 174 µs; no prediction may be below it.
    floor_us = 8 * 3 * 2816 * 704 / 273e3
    assert floor_us < predicted(1).us < 1.4 * floor_us
    assert predicted(1).limit == "bytes"


def test_occupancy_is_the_tightest_of_its_four_limits() -> None:
    assert ctas_per_sm(RESOURCES, SMALL, GB10) == 102400 // (30720 + 1024)
    many = Resources(registers=255, spill_bytes=0, shared_bytes=1024, mma="qmma_fp8")
    assert ctas_per_sm(many, SMALL, GB10) == 65536 // (256 * 32 * 4)
    few = Resources(registers=16, spill_bytes=0, shared_bytes=0, mma="qmma_fp8")
    assert ctas_per_sm(few, SMALL, GB10) == 1536 // 128
    assert ctas_per_sm(few, Tile(16, 16, 64, 1, 1, 2), GB10) == 24


def test_spills_and_padding_cost_time_where_the_tensor_cores_limit() -> None:
    big = Tile(128, 128, 128, 1, 8, 3)
    clean = Resources(registers=200, spill_bytes=0, shared_bytes=65536, mma="qmma_fp8")
    spilling = Resources(registers=255, spill_bytes=2000, shared_bytes=65536, mma="qmma_fp8")
    assert predicted(4096, big, spilling).us > 1.2 * predicted(4096, big, clean).us


def test_half_rate_instructions_are_slower_where_it_matters() -> None:
    tile = Tile(128, 128, 128, 1, 8, 3)
    fast, slow = (Resources(200, 0, 65536, mma) for mma in ("qmma_fp8", "hmma_bf16"))
    terms = [predicted(4096, tile, r).gemms[0].terms["tensor cores"] for r in (fast, slow)]
    assert terms[1] == pytest.approx(2 * terms[0])
    slow_small = Resources(64, 0, 30720, "hmma_bf16")
    assert predicted(1, SMALL, slow_small).us == pytest.approx(predicted(1).us, rel=0.05)


def test_a_deeper_pipeline_helps_when_latency_limits() -> None:
    # One small block per SM with two stages keeps too few bytes in flight for an H200's memory.
    lonely = Resources(registers=64, spill_bytes=0, shared_bytes=200_000, mma="qgmma_fp8")
    shallow, deep = (
        predict(MoeWorkload(GEMMA, 16), Tile(16, 32, 64, 1, 4, s), (lonely, lonely), H200).us
        for s in (2, 5)
    )
    assert deep < 0.6 * shallow


def test_warps_of_a_block_cover_its_tile() -> None:
    for block_m in (16, 32, 64, 128, 256):
        for block_n in (32, 64, 128, 256):
            for warps in (4, 8):
                rows, columns = warps_per_tile(Tile(block_m, block_n, 64, 1, warps, 2))
                assert rows * columns == warps
                assert rows <= block_m // 16


@given(st.sampled_from([1, 3, 8, 64, 777, 4096]), st.sampled_from([16, 64, 128]))
def test_predictions_are_finite_positive_and_name_a_limit(m: int, block_m: int) -> None:
    found = predicted(m, Tile(block_m, 64, 128, 1, 4, 3))
    assert 0 < found.us < 1e6
    assert found.us >= found.other_us
    assert found.limit in LIMITS


def test_a_device_without_the_rate_of_an_instruction_is_one_clear_error() -> None:
    strange = Resources(registers=64, spill_bytes=0, shared_bytes=30720, mma="xmma_fp8")
    with pytest.raises(BadInputError, match=r"gb10.*xmma_fp8"):
        predicted(1, SMALL, strange)


def test_swapped_operands_cost_what_the_transposed_tile_costs() -> None:
    tall, wide = Tile(128, 16, 128, 1, 4, 3), Tile(16, 128, 128, 1, 4, 3)
    wgmma = Resources(registers=64, spill_bytes=0, shared_bytes=55296, mma="qgmma_fp8")
    gemms = [
        predict(MoeWorkload(GEMMA, 4096), tile, (wgmma, wgmma), H200).gemms[0]
        for tile in (tall, wide)
    ]
    per_cta = [gemm.terms["tensor cores"] / gemm.ctas for gemm in gemms]
    assert per_cta[0] == pytest.approx(per_cta[1])


def test_padding_rows_cost_time_although_they_are_not_loaded() -> None:
    # At M=64 an expert has about four tokens: 128 rows are mostly zeros.
    times = [predicted(64, Tile(block_m, 64, 128, 1, 4, 3)).us for block_m in (16, 32, 64, 128)]
    assert times == sorted(times)


def test_warps_beyond_a_small_tile_only_repeat_work() -> None:
    four, eight = (predicted(4096, Tile(16, 32, 128, 1, w, 3)).gemms[0].terms for w in (4, 8))
    assert eight["tensor cores"] == pytest.approx(2 * four["tensor cores"])


def test_eight_bit_operands_are_converted_where_only_half_rate_products_exist() -> None:
    tile = Tile(32, 32, 128, 1, 4, 3)
    fast, slow = (Resources(64, 0, 16384, mma) for mma in ("qmma_fp8", "hmma_bf16"))
    terms = [predicted(1024, tile, r).gemms[0].terms["instructions"] for r in (fast, slow)]
    assert terms[1] > 1.5 * terms[0]


def test_spilling_accumulators_are_seen_before_compiling() -> None:
    def spilled(block_m: int, block_n: int, warps: int) -> int:
        names = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M")
        values = dict(zip(names, (block_m, block_n, 128, 1), strict=True))
        candidate = Candidate.of(values | {"num_warps": warps, "num_stages": 3})
        return estimated_resources(candidate, GEMMA, H200).spill_bytes

    assert spilled(128, 128, 4) == spilled(128, 256, 8) == 0
    assert 500 < spilled(256, 256, 8) < spilled(256, 256, 4)


def test_longer_pieces_of_a_row_are_read_faster_on_the_gb10() -> None:
    def bytes_term(block_k: int, stages: int = 4) -> float:
        return predicted(64, Tile(16, 32, block_k, 1, 4, stages)).gemms[0].terms["bytes"]

    assert bytes_term(64) > 1.3 * bytes_term(128) > 1.05 * 1.3 * bytes_term(256)
    assert bytes_term(256, stages=2) > 1.01 * bytes_term(256, stages=5)


def test_a_group_costs_nothing_where_row_tiles_are_not_sorted() -> None:
    def us(m: int, group: int) -> float:
        return predicted(m, Tile(16, 64, 256, group, 4, 4)).us

    assert us(4, 32) == us(4, 1)  # 32 pairs of 128 experts: the naive path
    assert us(16, 32) > 1.01 * us(16, 1)


def test_without_stages_nothing_overlaps() -> None:
    one, two = (predicted(4096, Tile(64, 64, 128, 1, 4, s)).gemms[0] for s in (1, 2))
    assert one.terms["latency"] > 1.5 * two.terms["latency"]


def test_a_last_wave_of_few_blocks_lasts_as_long_as_a_block() -> None:
    def us(bytes_us: float, block_us: float, waves: float) -> float:
        return in_waves({"bytes": bytes_us, "latency": block_us}, waves)

    assert us(10, 5, 0.5) == us(10, 5, 1.0)  # one wave: its own time, however full
    assert us(11, 5, 1.1) - us(10, 5, 1.0) > 3  # 1 us more to move: half a block's time and more
    assert us(20, 5, 2.0) - us(11, 5, 1.1) < 8  # 9 us: they fill the second wave
    assert us(1010, 5, 101.0) == pytest.approx(us(1000, 5, 100.0) * 1.01, rel=0.002)


def test_wide_tiles_leave_the_memory_idle_as_they_end() -> None:
    def moved(shape: MoeShape, mma: str, block_m: int, block_n: int) -> float:
        res = Resources(64, 0, 20_000, mma)
        tile = Tile(block_m, block_n, 128, 1, 4, 3)
        return predict(MoeWorkload(shape, 64), tile, (res, res), H200).gemms[0].terms["bytes"]

    def doubled(shape: MoeShape, mma: str, block_m: int, block_n: int) -> float:
        return moved(shape, mma, block_m, 2 * block_n) / moved(shape, mma, block_m, block_n)

    scaled = explicit_shape(experts=256, intermediate=512, hidden=2048, topk=8, scheme="block")
    for block_m in (16, 128):
        assert doubled(GEMMA, "hmma_bf16", block_m, 32) == pytest.approx(1.06, abs=0.01)
        assert doubled(GEMMA, "hmma_bf16", block_m, 64) == pytest.approx(1.12 / 1.06, abs=0.01)
    # Under block scales only small tiles with wgmma keep up with the memory.
    assert doubled(scaled, "qgmma_fp8", 16, 64) == pytest.approx(1.06, abs=0.01)
    for mma, block_m, block_n in (
        ("qgmma_fp8", 16, 32), ("qgmma_fp8", 128, 64), ("hmma_bf16", 16, 64),
    ):  # fmt: skip
        assert doubled(scaled, mma, block_m, block_n) == pytest.approx(1.0, abs=0.01)


def test_winners_published_for_the_gb10_are_near_the_top() -> None:
    found = [case for case in gb10.cases(GB10) if case.file in gb10.FITTED]
    result = gb10.judged(gb10.by_file(found, GB10))["all"]
    assert result["rows"] == 40
    assert result["in_top"] >= 0.7
    assert result["median"] <= 0.03


def test_times_published_for_the_gb10_are_predicted() -> None:
    for kinds in gb10.absolute(GB10).values():
        for times in kinds.values():
            assert all(0.94 < ratio < 1.06 for m, ratio in times.items() if int(m) <= 4096)


@pytest.mark.parametrize("one_in", [3, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_predicted_file_costs_little_where_it_was_measured(one_in: int) -> None:
    made, kept = [], predicted_choice.kept_results()
    for case in predicted_choice.stored()[::one_in]:
        device = get_device(case.device)
        trials = case.trials(case.first(case.estimates(device)), device, kept[case.swaps])
        made.append((case, case.choice(trials, MODEL_ERROR)))
    found = predicted_choice.judged(made)
    assert found["batch_sizes"] * one_in > 180
    assert found["median_regret"] <= 0.015
    assert found["worst_regret"] <= 0.055
    assert found["over_5_percent"] <= 5
    assert found["behind_default"] <= 2
    assert found["most_behind_default"] <= 0.01


def test_a_prediction_within_the_error_leaves_the_default() -> None:
    def trial(us: float, warps: int) -> Trial:
        found = Measurement(Outcome.OK, Basis.PREDICTED, us)
        return Trial(Candidate.of({"num_warps": warps}), "w", Phase.SEARCH, 0, found)

    default, near, far = trial(100.0, 4), trial(98.0, 8), trial(97.0, 2)
    work = MoeWorkload(GEMMA, 8)
    assert select_predicted(work, default, [near], 0.01).kept_incumbent
    assert select_predicted(work, default, [near, far], 0.01).winner is far
    assert select_predicted(work, default, [far], 0.05).kept_incumbent
    assert select_predicted(work, None, [near], 0.01).winner is near


FLOORS = {
    # name: (rho of every key, median rho, median top-1 regret, top-10 regret of every key)
    "e128-n704-channel": (0.88, 0.93, 0.03, 0.04),
    "e256-n512-block (held out)": (0.85, 0.93, 0.10, 0.03),
}


@pytest.mark.parametrize("name", list(FLOORS))
def test_candidates_are_ordered_as_an_h200_measured_them(name: str) -> None:
    rho, median_rho, top1, top10 = FLOORS[name]
    shape, path, with_default = cases()[name]
    keys = judge(shape, Landscape.read(path), H200, with_default=with_default)
    assert min(key.rho for key in keys) >= rho
    assert max(key.top10_regret for key in keys) <= top10
    assert medians(keys)["rho"] >= median_rho
    assert medians(keys)["top1_regret"] <= top1
    for key in keys:
        assert 0.8 < key.median_measured_over_predicted < 1.3
