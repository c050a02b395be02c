"""The predicted job with times that are made up: what becomes of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from autotune.core import (
    Basis,
    Cache,
    Candidate,
    HoldsNothing,
    Job,
    Measurement,
    NoFeasibleCandidateError,
    Outcome,
    Phase,
)
from autotune.kernels.job import Result, run
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.stored import load
from autotune.store.store import Store
from tests.kernels.test_gpu import candidate
from tests.kernels.test_measured_job import plan


class MadeUp(HoldsNothing):
    """The more candidates it has seen of an M, the faster they are; all crash where it says so."""

    basis = Basis.PREDICTED

    def __init__(self, crashes: Iterable[int] = ()) -> None:
        self.crashes = frozenset(crashes)
        self.seen: dict[int, int] = {}

    def use(self, cache: Cache) -> None:
        """Nothing is compiled."""

    def defaults(self, batch_sizes: Sequence[int]) -> dict[int, Candidate]:
        return {m: candidate(columns=64, stages=4) for m in batch_sizes}

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        for job in jobs:
            workload = job.workload
            assert isinstance(workload, MoeWorkload)
            seen = self.seen[workload.m] = self.seen.get(workload.m, 0) + 1
            if workload.m in self.crashes:
                yield Measurement(Outcome.CRASH, self.basis, message="killed")
            else:
                yield Measurement(Outcome.OK, self.basis, 1000.0 / seen)


def predict(folder: Path, crashes: Iterable[int] = (), **changes: Any) -> Result:
    with Store.open(f"sqlite:///{folder}/a.db") as store:
        return run(plan(gpus=(), **changes), store, MadeUp(crashes), lambda _: None)


def test_a_batch_size_at_which_nothing_works_is_left_out(tmp_path: Path) -> None:
    result = predict(tmp_path, {8}, batch_sizes=(1, 8, 64))
    assert set(result.selections) == {1, 64}
    assert result.failed == {8: "M=8: no candidate works (crash)"}
    assert "M=8" in result.noticed[0]
    with pytest.raises(NoFeasibleCandidateError, match="M=8: no candidate works"):
        predict(tmp_path / "alone", {8}, batch_sizes=(8,))
    assert predict(tmp_path, batch_sizes=(8,)).failed.keys() == {8}, "it was not asked to try again"
    mended = predict(tmp_path, batch_sizes=(8,), retry_failed=True)
    assert (set(mended.selections), mended.failed) == ({1, 8, 64}, {})
    assert mended.selections[8].incumbent is not None


def test_less_effort_later_takes_nothing_away(tmp_path: Path) -> None:
    best = predict(tmp_path, batch_sizes=(8,), effort="standard").selections[8].winner
    assert (best.phase, best.sequence) == (Phase.SEARCH, 31)
    quick = predict(tmp_path, batch_sizes=(8,), effort="quick")
    assert quick.fresh == 0
    assert quick.selections[8].winner == best
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        assert load(store, "fake", 0.01).configs == {8: best.candidate}
