"""A file that is there already gives way only to one measured to be better."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from autotune.core import BadInputError
from autotune.export.checkout import Checkout
from autotune.kernels.config_file import render
from autotune.kernels.export.existing import Comparison, New, check
from autotune.machine.devices import get_device
from tests.kernels.kept_study import NAME, PERSON, checkout
from tests.kernels.test_gpu import SHAPE, candidate

DEVICE = get_device("h200")
OLD, NEW = (render({8: candidate(stages=n), 64: candidate()}, "3.6.0") for n in (2, 3))
ROW = {"m": 8, "first_us": 3.0, "second_us": 2.0, "ratio": 1.5, "low": 1.4, "high": 1.6, "note": ""}
SAME = {"m": 64, "ratio": 1.0, "note": "the same row"} | dict.fromkeys(
    ("first_us", "second_us", "low", "high")
)


@pytest.fixture
def repo(tmp_path: Path) -> Checkout:
    return Checkout.open(checkout(tmp_path / "vllm", {NAME: OLD}), "--repo")


def said(folder: Path, **changes: Any) -> Path:
    document = {
        "basis": "measured",
        "device": "h200",
        "layer": SHAPE.as_json(),
        "vllm": "0.24.0",
        "triton": "3.6.0",
        "kernel_sha256": "0" * 64,
        "first": {"sha256": hashlib.sha256(OLD).hexdigest()},
        "second": {"sha256": hashlib.sha256(NEW).hexdigest()},
        "geometric_mean": 9.9,
        "warnings": [],
        "rows": [ROW, SAME],
    }
    path = folder / "c.json"
    path.write_text(json.dumps(document | changes))
    return path


def checked(repo: Checkout, path: Path) -> Comparison | None:
    return check(New(NAME, NEW, DEVICE, SHAPE), repo, path, 0.01)


def test_a_better_file(repo: Checkout, tmp_path: Path) -> None:
    found = checked(repo, said(tmp_path))
    assert found is not None
    assert found.rows[0].ratio == 1.5
    # Over the keys of both files, whatever the document says.
    assert found.geometric_mean == pytest.approx(1.5**0.5)
    more = ROW | {"m": 9, "ratio": 100.0, "low": 99.0}
    found = checked(repo, said(tmp_path, rows=[ROW, more, SAME]))
    assert found is not None
    assert found.geometric_mean == pytest.approx(1.5**0.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"basis": "predicted"}, "is predicted, not measured"),
        ({"device": "gb10"}, "was measured on gb10, not on h200"),
        ({"device": None, "layer": None}, "nobody knows what"),
        ({"layer": SHAPE.as_json() | {"topk": 4}}, "another layer"),
        ({"layer": SHAPE.as_json() | {"scheme": "tensor"}}, "--model"),
        ({"warnings": ["the files are for different devices"]}, "warns: the files are for"),
        ({"rows": [SAME]}, "no ratio with an interval at M=8;"),
        ({"rows": [ROW]}, "no ratio with an interval at M=64;"),
        ({"rows": []}, "at M=8, 64;"),
        ({"rows": [ROW | {"ratio": None}, SAME]}, "at M=8;"),
        ({"rows": [ROW | {"low": None}, SAME]}, "at M=8;"),
        ({"rows": [ROW | {"low": 0.0}, SAME]}, "at M=8;"),
        ({"rows": [ROW | {"note": "the same row", "low": None}, SAME]}, "at M=8;"),
        ({"rows": [ROW | {"ratio": 1.0}, SAME]}, "as good"),
        ({"rows": [ROW | {"ratio": 1.009}, SAME]}, "as good"),
        ({"second": {"sha256": "0"}}, "other files"),
        ({"rows": [{"m": 8}]}, "not what `autotune compare"),
    ],
)
def test_what_does_not_make_it_better(
    changes: dict[str, Any], words: str, repo: Checkout, tmp_path: Path
) -> None:
    with pytest.raises(BadInputError, match=words):
        checked(repo, said(tmp_path, **changes))


def test_a_document_of_an_earlier_version(repo: Checkout, tmp_path: Path) -> None:
    path = said(tmp_path)
    document = json.loads(path.read_text())
    del document["device"]
    path.write_text(json.dumps(document))
    with pytest.raises(BadInputError, match="not what `autotune compare"):
        checked(repo, path)


def test_a_branch_that_somebody_else_made_meanwhile(
    repo: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and writing: git itself then refuses to move it."""
    monkeypatch.setattr(Checkout, "check_branch", lambda *_: None)
    with pytest.raises(BadInputError, match="git update-ref failed"):
        repo.commit_file("main", NAME, NEW, "message\n", PERSON)
    assert repo.read(NAME) == OLD
