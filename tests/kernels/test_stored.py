"""A stored study read back: rows and the comparisons between them, from trials made up for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from autotune.core import BadInputError, Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.stored import Tuned, load, study_device
from autotune.machine.devices import GpuInfo, described
from autotune.store.store import Store
from tests.kernels.test_gpu import SHAPE, candidate
from tests.kernels.test_measured_job import plan
from tests.test_devices import L40S

DEFAULT, FAST, OTHER = candidate(columns=64), candidate(), candidate(stages=2)
Samples = Mapping[Candidate, Sequence[float]]
NINE = [100.0 + n / 100 for n in range(9)]


def times(factor: float, spread: float = 0.0) -> list[float]:
    """Nine rounds that are the default's by this factor, some of them by less or more."""
    return [us * (factor + spread * (n - 4)) for n, us in enumerate(NINE)]


def made(folder: Path, searched: Mapping[int, Samples], between: Mapping[int, Samples]) -> Tuned:
    """A study with these comparisons; the first of the searched rows is the default."""
    with Store.open(f"sqlite:///{folder}/a.db") as store:
        study = store.study("s", "moe", {"device": "h200", "shape": SHAPE.as_json()})
        search = store.search(study, {"basis": "measured"})
        run = store.start_run(search, store.environment({"gpus": []}), "autotune moe")
        for m, rows in (*searched.items(), *between.items()):
            workload = MoeWorkload(SHAPE, m)
            trials = [confirmed(workload, n, *row) for n, row in enumerate(rows.items())]
            if m in searched:
                ok = Measurement(Outcome.OK, Basis.MEASURED, 100.0, (100.0,))
                trials += [
                    Trial(DEFAULT, workload.key, phase, 0, ok)
                    for phase in (Phase.BASELINE, Phase.SEARCH)
                ]
            store.add_trials(run, store.workload(search, workload).id, trials)
        return load(store, "s", 0.01)


def confirmed(
    workload: MoeWorkload, sequence: int, one: Candidate, samples: Sequence[float]
) -> Trial:
    details = {"compared": f"at {workload.m}", "seed": 0, "error": 0.004}
    value = Measurement(
        Outcome.OK, Basis.MEASURED, sorted(samples)[4], tuple(samples), details=details
    )
    return Trial(one, workload.key, Phase.CONFIRM, sequence, value)


def test_a_device_without_a_file_is_read_from_the_study(tmp_path: Path) -> None:
    """Where the study is read, its GPU need not be."""
    facts = {**L40S, "sm_count": 141}
    device = described(GpuInfo(0, "NVIDIA L40S", "GPU-1", "580.1", "46068", "8.9"), facts)
    setup = plan(device=device).setup()
    assert "device_described" not in plan().setup(), "of others the digest is enough"
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        study = store.study("s", "moe", {"device": device.name, "shape": SHAPE.as_json()})
        store.search(study, setup)
        assert study_device(store, "s", "nvidia-l40s") == device
        with pytest.raises(BadInputError, match="was made for nvidia-l40s"):
            study_device(store, "s", "gb10")


SEARCHED: Mapping[int, Samples] = {
    16: {DEFAULT: NINE, FAST: times(0.9), OTHER: times(0.95)},
    64: {DEFAULT: NINE, FAST: times(0.995)},
}


def test_rows_that_win_and_rows_that_are_pinned(tmp_path: Path) -> None:
    tuned = made(tmp_path, SEARCHED, {})
    won, pinned = tuned.rows[16], tuned.rows[64]
    assert (won.config, won.pinned, won.rounds) == (FAST, False, 9)
    assert won.ratio is not None
    assert round(won.ratio.value, 3) == 1.111
    assert won.tried is None
    assert (pinned.config, pinned.pinned, pinned.ratio) == (DEFAULT, True, None)
    assert pinned.tried is not None
    assert round(pinned.tried.value, 3) == 1.005
    assert round(tuned.overall, 3) == round(1.1111**0.5, 3)


def test_a_neighbour_that_loses_makes_a_key(tmp_path: Path) -> None:
    tuned = made(tmp_path, SEARCHED, {40: {DEFAULT: NINE, FAST: times(1.05)}})
    assert [gap.m for gap in tuned.gaps] == [40]
    assert tuned.gaps[0].key == 16
    assert (tuned.rows[40].config, tuned.rows[40].added) == (DEFAULT, True)


def test_a_neighbour_that_may_not_lose_makes_none(tmp_path: Path) -> None:
    """The median is worse by 2 %, and the interval reaches over 1."""
    tuned = made(tmp_path, SEARCHED, {40: {DEFAULT: NINE, FAST: times(1.02, 0.02)}})
    (gap,) = tuned.gaps
    assert gap.ratio.value < 0.99 < 1 < gap.ratio.high
    assert set(tuned.rows) == {16, 64}


def test_comparisons_that_say_nothing_of_this_file_are_left_out(tmp_path: Path) -> None:
    """At another place than between these keys, or of a row that the file does not have."""
    lost: Samples = {DEFAULT: NINE, FAST: times(1.05)}
    stale: Samples = {DEFAULT: NINE, OTHER: times(1.05)}
    tuned = made(tmp_path, SEARCHED, {24: lost, 40: stale})
    assert tuned.gaps == ()
    assert set(tuned.rows) == {16, 64}
