"""The contracts of ``tests/contracts.py`` on every proposer and on the replayed landscape."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pandas as pd
import pytest

from autotune.core import BadInputError, Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.measure.replay import Landscape
from autotune.propose.proposers import SAMPLERS, OptunaProposer, OrderedProposer
from tests.contracts import MeasurerContract, ProposerContract
from tests.support.stores import Size
from tests.synthetic import feasible, space, synthetic, write_csv

WORKLOAD = Size(64)


class Synthetic(ProposerContract):
    def feasible(self) -> frozenset[Candidate]:
        return frozenset(feasible())

    def verdict(self, candidate: Candidate) -> Measurement:
        return synthetic(candidate, WORKLOAD)


class TestTPE(Synthetic):
    sampler = "tpe"

    def make(self, seed: int) -> OptunaProposer:
        return OptunaProposer(space(), feasible(), sampler=self.sampler, seed=seed)

    def make_small(self, seed: int) -> tuple[OptunaProposer, list[Candidate]]:
        few = list(feasible()[::70])
        return OptunaProposer(space(), few, sampler=self.sampler, seed=seed), few

    def test_seeds_differ(self) -> None:
        assert self.make(1).ask(8) != self.make(2).ask(8)


class TestRandom(TestTPE):
    sampler = "random"


@pytest.mark.nightly  # minutes: a Gaussian process over 1,568 candidates
class TestGP(TestTPE):
    sampler = "gp"


class TestTPEWithSeeds(TestTPE):
    """Candidates of the cost model go first; one is not feasible, one is not of the space."""

    first = (*feasible()[5:1400:127], Candidate.of({"BLOCK_SIZE_M": 7}), *feasible()[5:8])

    def make(self, seed: int) -> OptunaProposer:
        return OptunaProposer(space(), feasible(), seed=seed, first=self.first)

    def test_seeds_differ(self) -> None:
        asked = [self.make(seed).ask(32) for seed in (1, 2)]
        given = list(dict.fromkeys(c for c in self.first if c in self.feasible()))
        assert asked[0][: len(given)] == asked[1][: len(given)] == given
        assert asked[0] != asked[1]


class TestOrdered(Synthetic):
    def make(self, seed: int) -> OrderedProposer:
        return OrderedProposer(feasible()[seed:])

    def make_small(self, seed: int) -> tuple[OrderedProposer, list[Candidate]]:
        few = list(feasible()[seed::70])
        return OrderedProposer(few), few

    def test_keeps_the_order(self) -> None:
        assert self.make(0).ask(5) == list(feasible()[:5])


def test_all_samplers_are_under_contract() -> None:
    assert set(SAMPLERS) == {"gp", "random", "tpe"}
    with pytest.raises(BadInputError, match="no sampler 'grid'; known: gp, random, tpe"):
        OptunaProposer(space(), feasible(), sampler="grid")


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e300])
def test_values_at_the_edge(value: float) -> None:
    proposer = OptunaProposer(space(), feasible())
    for sequence, candidate in enumerate(proposer.ask(16)):
        measurement = Measurement(Outcome.OK, Basis.SYNTHETIC, value)
        proposer.tell(Trial(candidate, "w", Phase.SEARCH, sequence, measurement))
    assert len(proposer.ask(8)) == 8


def test_a_baseline_outside_the_space_teaches_nothing() -> None:
    outside = Candidate.of(dict(feasible()[0].params) | {"BLOCK_SIZE_M": 512})
    proposer = OptunaProposer(space(), feasible())
    proposer.tell(Trial(outside, "w", Phase.BASELINE, 0, synthetic(feasible()[0], WORKLOAD)))
    assert len(proposer.ask(8)) == 8


class TestLandscapeCSV(MeasurerContract):
    suffix = ".csv"

    @pytest.fixture(autouse=True)
    def _record(self, tmp_path: Path) -> None:
        self.path = tmp_path / f"synthetic{self.suffix}"
        csv = tmp_path / "synthetic.csv"
        write_csv(csv, list(self.expected()), [Size(1), WORKLOAD])
        if self.suffix == ".parquet":
            pd.read_csv(csv).to_parquet(self.path)

    def measurer(self) -> Landscape:
        return Landscape.read(self.path)

    def workload(self) -> Size:
        return WORKLOAD

    def expected(self) -> dict[Candidate, Measurement]:
        return {c: synthetic(c, WORKLOAD) for c in feasible()[:200:3]}

    def unmeasurable(self) -> Candidate:
        return feasible()[-1]


class TestLandscapeParquet(TestLandscapeCSV):
    suffix = ".parquet"


HEADER = "workload,BLOCK,outcome,value,basis\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a landscape"),
        ("workload,BLOCK,outcome,value\nM=1,16,ok,1\n", "needs the column 'basis'"),
        (HEADER, "one known basis"),
        (HEADER + "M=1,16,ok,1,guessed\n", "one known basis, not .*guessed"),
        (HEADER + "M=1,16,ok,1,measured\nM=2,16,ok,1,synthetic\n", "one known basis"),
        (HEADER + "M=1,16,ok,1,measured\nM=2,16,ok,1,\n", "one known basis"),
        (HEADER + "M=1,16,fine,1,measured\n", "M=1: 'fine' is not a valid Outcome"),
        (HEADER + "M=1,16,ok,,measured\n", "M=1: .*value"),
        (HEADER + "M=1,16,ok,inf,measured\n", "M=1: .*value"),
        (HEADER + "M=1,16,ok,-3,measured\n", "M=1: .*value"),
        (HEADER + "M=1,16,ok,quick,measured\n", "M=1: .*quick"),
        (HEADER + "M=1,,ok,1,measured\n", "M=1: .*BLOCK"),
        (HEADER + "M=1,16,ok,1,measured\nM=1,16,ok,2,measured\n", "M=1: .*twice"),
    ],
)
def test_what_is_no_landscape(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(BadInputError, match=reason) as caught:
        Landscape.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    broken = tmp_path / "x.parquet"
    broken.write_bytes(b"PAR0")
    cut = tmp_path / "x.csv.gz"
    cut.write_bytes(gzip.compress(random.Random(0).randbytes(9000))[:3000])
    for path in (tmp_path / "absent.csv", tmp_path / "absent.parquet", tmp_path, broken, cut):
        with pytest.raises(BadInputError, match=r"not a landscape|cannot be read|not of gzip"):
            Landscape.read(path)


def test_texts_and_truths_survive(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(
        "workload,mode,on,size,outcome,value,basis\nM=1,fast,True,16,ok,2.5,synthetic\n"
    )
    candidate = Candidate.of({"mode": "fast", "on": True, "size": 16})
    assert Landscape.read(path).table == {
        ("M=1", candidate): Measurement(Outcome.OK, Basis.SYNTHETIC, 2.5)
    }
