"""What is tried first: files that are named, published rows; and where a chosen row is from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.core import BadInputError, Candidate, Job, Measurement, Outcome
from autotune.kernels.config_file import FIELDS, render
from autotune.kernels.export.write import write
from autotune.kernels.job import Result, run
from autotune.kernels.propose import DEFAULT, MODEL, SEARCH, first_rows, grouped, rank
from autotune.kernels.published import candidate_of, given_files, published_for
from autotune.kernels.report.document import provenance
from autotune.kernels.report.page import page_of
from autotune.kernels.stored import load
from autotune.machine.devices import get_device
from autotune.report.render import to_markdown
from autotune.store.store import Store
from tests.kernels.test_gpu import candidate
from tests.kernels.test_measured_job import plan
from tests.kernels.test_predicted_job import MadeUp

NAME = "E=128,N=704,device_name=NVIDIA_H100,dtype=fp8_w8a8.json"
STAGES = {1: 2, 8: 3, 64: 4, 256: 5}
ROWS = {m: candidate_of((16, 64, 128, 1, 4, stages)) for m, stages in STAGES.items()}


def kept(folder: Path, name: str = NAME) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(render(ROWS, "3.6.0"))
    return path


def shape() -> Any:
    return plan().shape


def test_a_file_gives_the_row_that_is_used_and_those_beside_it(tmp_path: Path) -> None:
    (file,) = given_files([kept(tmp_path, "mine.json")], shape())
    assert file.at(8) == [ROWS[8], ROWS[1], ROWS[64]]
    assert file.at(4096)[0] == ROWS[256]


def test_a_folder_gives_the_files_for_the_layer_of_any_device(tmp_path: Path) -> None:
    kept(tmp_path / "a")
    kept(tmp_path / "a", "E=8,N=704,device_name=NVIDIA_H100,dtype=fp8_w8a8.json")
    (file,) = given_files([tmp_path / "a"], shape())
    assert file.path.endswith(NAME)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b"[]", "not a fused-MoE configuration file"),
        (b'{"8": {"BLOCK_SIZE_M": 16}}', "no row with BLOCK_SIZE_M, "),
    ],
)
def test_what_is_no_file_is_one_line(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError, match=said):
        given_files([path], shape())


def test_a_folder_without_a_file_for_the_layer_names_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"--first .*: the folder holds no E=128,N=704"):
        given_files([tmp_path], shape())


def test_the_order_is_default_given_published_shipped_and_the_model(tmp_path: Path) -> None:
    made = plan(gpus=(), device=get_device("gb10"))
    given = given_files([kept(tmp_path)], made.shape)
    made = plan(gpus=(), device=get_device("gb10"), first=given)
    ranked = rank(made, 64)
    default = candidate(columns=64, stages=4)
    said = list(first_rows(made, 64, default, ranked).values())
    kinds = [next(k for k in (DEFAULT, "--first", "published", MODEL, "shipped") if s.startswith(k))
             for s in said]  # fmt: skip
    order = [DEFAULT, "--first", "published", "shipped", MODEL]
    assert [order.index(k) for k in kinds] == sorted(order.index(k) for k in kinds)
    assert {DEFAULT, "--first", "published", MODEL} <= set(kinds)


def test_other_devices_have_nothing_published() -> None:
    made = plan(gpus=())
    found = first_rows(made, 64, candidate(columns=64, stages=4), rank(made, 64))
    assert not published_for(made.device.name)
    assert not any(said.startswith("published") for said in found.values())


class Wanted(MadeUp):
    """One candidate is twice as fast as all others."""

    def __init__(self, best: Candidate) -> None:
        super().__init__()
        self.best = best

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        for job in jobs:
            us = 50.0 if job.candidate == self.best else 100.0
            details = {"limit": "bytes", "compiled": [COMPILED, COMPILED]}
            yield Measurement(Outcome.OK, self.basis, us, details=details)


COMPILED = {"registers": 64, "spill_bytes": 0, "shared_bytes": 1024, "mma": "QMMA"}


def tuned(folder: Path, best: Candidate, **changes: Any) -> Result:
    with Store.open(f"sqlite:///{folder}/a.db") as store:
        made = plan(gpus=(), batch_sizes=(8,), **changes)
        return run(made, store, Wanted(best), lambda _: None)


def test_a_chosen_row_says_where_it_came_from_here_and_in_the_database(tmp_path: Path) -> None:
    given = given_files([kept(tmp_path)], shape())
    result = tuned(tmp_path, ROWS[1], first=given)
    said = f"--first {tmp_path / NAME}"
    assert result.origins == {8: said}
    (row,) = provenance(result)["rows"]
    assert row["origin"] == said
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        assert load(store, "fake", 0.01).rows[8].origin == said
        page = page_of(store, "fake")
    assert f"M=8: {said}" in to_markdown(page).replace("\\", "")
    document = next(p for p in write(result, page, tmp_path) if p.name == "provenance.json")
    assert json.loads(document.read_text())["rows"][0]["origin"] == said


def test_without_a_file_it_is_the_model_or_the_search(tmp_path: Path) -> None:
    ranked = rank(plan(gpus=()), 8)
    default = candidate(columns=64, stages=4)
    seeds = first_rows(plan(gpus=()), 8, default, ranked)
    prior = next(c for c, said in seeds.items() if said == MODEL)
    assert tuned(tmp_path, prior).origins == {8: MODEL}
    assert tuned(tmp_path / "b", default).origins == {8: DEFAULT}


def test_another_file_is_another_search(tmp_path: Path) -> None:
    given = given_files([kept(tmp_path)], shape())
    assert plan().setup() != plan(first=given).setup()
    assert plan().setup() == plan(first=()).setup()


def test_batch_sizes_of_one_origin_stand_together() -> None:
    assert grouped({1: DEFAULT, 2: "a", 8: SEARCH, 4: "a"}) == ["M=2, 4: a", f"M=8: {SEARCH}"]
    assert FIELDS[0] == "BLOCK_SIZE_M"
