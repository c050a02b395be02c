"""A command under another setup takes no keys away from the file that is there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core import BadInputError, Basis, Measurement, Outcome, Phase, Trial
from autotune.kernels.config_file import render
from autotune.kernels.export.earlier import check_keys_stay, left_out, stored_keys
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.plan import Plan
from autotune.kernels.stored import load
from autotune.store.store import Store
from tests.kernels.test_gpu import SHAPE, candidate
from tests.kernels.test_measured_job import plan


def lay(folder: Path, one: Plan, batch_sizes: Iterable[int], **provenance: object) -> Path:
    """A file with these keys, and what stands beside it."""
    folder.mkdir(exist_ok=True)
    path = folder / one.file_name
    path.write_bytes(render(dict.fromkeys(batch_sizes, candidate()), "3.8.0"))
    if provenance:
        (folder / "provenance.json").write_text(json.dumps(provenance))
    return path


def later(one: Plan) -> Plan:
    """The same under a newer driver."""
    return replace(one, gpus=tuple(replace(gpu, driver="2") for gpu in one.gpus))


def test_fewer_keys_are_refused_with_the_cause(tmp_path: Path) -> None:
    one = plan(batch_sizes=(8192,))
    path = lay(tmp_path, one, (1, 8, 64), setup=one.setup())
    with pytest.raises(BadInputError) as error:
        check_keys_stay(later(one), {8192}, tmp_path)
    said = str(error.value)
    assert said.startswith(f"{path}: would lose M=1,8,64: ")
    assert "another driver (1, now 2)" in said
    assert "--batch-sizes 1,8,64,8192" in said
    assert "--study NAME" in said
    assert "seed" not in said
    with pytest.raises(BadInputError, match="is saved, `autotune export fake --to folder"):
        check_keys_stay(later(one), {8192}, tmp_path, tuned=True)


def test_as_many_keys_replace_the_file(tmp_path: Path) -> None:
    one = plan()
    lay(tmp_path, one, (1, 8, 64), setup=one.setup())
    check_keys_stay(later(one), {1, 8, 64}, tmp_path)
    check_keys_stay(later(one), {1, 2, 8, 64}, tmp_path)


def test_a_first_file(tmp_path: Path) -> None:
    check_keys_stay(plan(), {1}, tmp_path)
    (tmp_path / plan().file_name).write_text("{")  # nothing that vLLM could read
    check_keys_stay(plan(), {1}, tmp_path)


def test_keys_between_the_keys_come_and_go(tmp_path: Path) -> None:
    one = plan()
    between = [{"m": 5, "pinned": True}, {"m": 36, "pinned": False}]
    lay(tmp_path, one, (1, 5, 8), setup=one.setup(), between_keys=between)
    check_keys_stay(later(one), {1, 8}, tmp_path)
    lay(tmp_path, one, (1, 5, 36), setup=one.setup(), between_keys=between)
    with pytest.raises(BadInputError, match="would lose M=36:"):
        check_keys_stay(later(one), {1, 8}, tmp_path)


def test_the_same_setup_from_another_database(tmp_path: Path) -> None:
    one = plan()
    lay(tmp_path, one, (1, 8, 64), setup=one.setup())
    with pytest.raises(BadInputError, match="not in this database"):
        check_keys_stay(one, {8}, tmp_path)


@pytest.mark.parametrize("left", ["{", "[]", '{"setup": 3}', None])
def test_nobody_knows_how_it_was_made(tmp_path: Path, left: str | None) -> None:
    one = plan()
    lay(tmp_path, one, (1, 8, 64))
    if left is not None:
        (tmp_path / "provenance.json").write_text(left)
    with pytest.raises(BadInputError, match=r"no provenance\.json"):
        check_keys_stay(one, {8}, tmp_path)


def search(
    store: Store, one: Plan, batch_sizes: Iterable[int], between: Iterable[int] = ()
) -> None:
    """Store a search of these keys, and comparisons between them."""
    record = store.search(store.study(one.study, "moe", one.identity()), one.setup())
    run = store.start_run(record, store.environment({"gpus": []}), one.command)
    ok = Measurement(
        Outcome.OK, Basis.MEASURED, 1.0, (1.0,) * 9, details={"compared": "c", "error": 0.004}
    )
    for phases, places in (
        ((Phase.BASELINE, Phase.SEARCH, Phase.CONFIRM), batch_sizes),
        ((Phase.CONFIRM,), between),
    ):
        for m in places:
            workload = MoeWorkload(SHAPE, m)
            trials = [Trial(candidate(), workload.key, phase, 0, ok) for phase in phases]
            store.add_trials(run, store.workload(record, workload).id, trials)


def test_keys_of_the_same_setup_are_stored(tmp_path: Path) -> None:
    one = plan()
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        store.study(one.study, "moe", one.identity())
        assert stored_keys(store, one) == set()
        search(store, one, (1, 8), between=(5,))
        assert stored_keys(store, one) == {1, 8}
        assert stored_keys(store, later(one)) == set()


def test_an_export_says_which_keys_another_setup_has(tmp_path: Path) -> None:
    one = plan()
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        search(store, one, (1, 8), between=(5,))
        assert left_out(store, load(store, one.study, 0.01)) is None
        search(store, later(one), (8, 8192))
        said = left_out(store, load(store, one.study, 0.01)) or ""
    assert said.startswith("not in the file: M=1, tuned in this study under another setup")
