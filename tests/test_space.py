"""Search spaces: the files, their enumeration and what is feasible."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.core import BadInputError, Candidate, NoFeasibleCandidateError, Scalar
from autotune.kernels.moe.constraints import CONSTRAINTS
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.plan import checks
from autotune.machine.devices import get_device
from autotune.space.space import Space, load_space, space_names
from tests.synthetic import SHAPE

# The grid of vLLM's benchmark_moe.py, typed in here a second time.
GRID = {
    "BLOCK_SIZE_M": (16, 32, 64, 128, 256),
    "BLOCK_SIZE_N": (32, 64, 128, 256),
    "BLOCK_SIZE_K": (64, 128, 256),
    "GROUP_SIZE_M": (1, 16, 32, 64),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4, 5),
}
BLOCKS = MoeShape(256, 256, 7168, 8, "fp8_w8a8", "fp8", Scheme.BLOCK, (128, 128), 256)
SMALL = """\
name: small
title: A small one
source: this test
parameters:
  BLOCK_SIZE_M: {values: [16, 32], why: rows}
  mode: {values: [fast, true], why: texts and truths}
constraints: [fits]
"""
Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> str:
        path = tmp_path / "space.yaml"
        path.write_text(text)
        return str(path)

    return to_file


def test_the_stock_grid() -> None:
    stock = load_space("stock", "moe")
    assert dict(stock.parameters) == GRID
    assert stock.size == 1920
    expected = {
        Candidate.of(dict(zip(GRID, values, strict=True)))
        for values in itertools.product(*GRID.values())
    }
    candidates = list(stock.candidates())
    assert len(candidates) == 1920
    assert set(candidates) == expected
    assert all(c in stock for c in candidates)


@pytest.mark.parametrize("name", space_names("moe"))
def test_every_space_of_the_project(name: str) -> None:
    """Its constraints exist, and Gemma 4 on a GB10 has candidates."""
    space = load_space(name, "moe")
    assert space.name == name
    assert set(space.constraints) <= set(CONSTRAINTS)
    assert [parameter for parameter, _ in space.parameters] == list(GRID)
    found = space.feasible(checks(SHAPE, get_device("gb10")))
    assert 0 < len(found) < space.size
    assert len({c.key for c in found}) == len(found)


def test_what_fits_a_gb10() -> None:
    found = load_space("stock", "moe").feasible(checks(SHAPE, get_device("gb10")))
    assert len(found) == 1368
    # Shared memory of sm_121, per channel, fp8, and registers: written down here a second time.
    assert {c.key for c in found} == {
        c.key
        for c in load_space("stock", "moe").candidates()
        if (c.int("num_stages") - 1)
        * (c.int("BLOCK_SIZE_M") + c.int("BLOCK_SIZE_N"))
        * c.int("BLOCK_SIZE_K")
        <= 101376
        and c.int("BLOCK_SIZE_M") * c.int("BLOCK_SIZE_N") < 256 * 32 * c.int("num_warps")
    }


def test_block_quantisation_has_no_duplicates() -> None:
    """The launcher clamps BLOCK_SIZE_K to the block: 256 would be 128 once more."""
    found = load_space("stock", "moe").feasible(checks(BLOCKS, get_device("gb10")))
    assert {c["BLOCK_SIZE_K"] for c in found} == {64, 128}
    clamped = [c.params | {"BLOCK_SIZE_K": min(c.int("BLOCK_SIZE_K"), 128)} for c in found]
    assert len({Candidate.of(c) for c in clamped}) == len(found)


def test_a_larger_device_fits_more() -> None:
    stock = load_space("stock", "moe")
    small, large = (set(stock.feasible(checks(SHAPE, get_device(d)))) for d in ("gb10", "h200"))
    assert len(small) < len(large) <= 1920


def test_a_space_of_ones_own(write: Write) -> None:
    space = load_space(write(SMALL), "moe")
    assert space.size == 4
    assert [c.params for c in space.candidates()] == [
        {"BLOCK_SIZE_M": m, "mode": mode} for m in (16, 32) for mode in ("fast", True)
    ]
    refuse = {"fits": lambda c: "too large" if c["BLOCK_SIZE_M"] == 32 else None}
    assert [c["mode"] for c in space.feasible(refuse)] == ["fast", True]


def test_what_is_in_a_space() -> None:
    space = Space("s", (("a", (1, 2)), ("b", ("x", "y"))))
    assert Candidate.of({"b": "x", "a": 1}) in space
    others: list[dict[str, Scalar]] = [
        {"a": 1},
        {"a": 3, "b": "x"},
        {"a": 1, "b": "x", "c": 1},
        {"a": 1, "c": "x"},
    ]
    for params in others:
        assert Candidate.of(params) not in space


def test_the_digest_follows_what_matters(write: Write) -> None:
    before = load_space(write(SMALL), "moe").digest
    assert load_space(write("# a comment\n" + SMALL.replace("A small", "One")), "moe").digest == (
        before
    )
    for old, new in (("[16, 32]", "[16, 64]"), ("[fits]", "[]"), ("BLOCK_SIZE_M", "BLOCK_SIZE_N")):
        assert load_space(write(SMALL.replace(old, new)), "moe").digest != before


def test_nothing_is_feasible(write: Write) -> None:
    space = load_space(write(SMALL), "moe")
    with pytest.raises(NoFeasibleCandidateError, match=r"none of its 4 .* \(4 refused by fits\)"):
        space.feasible({"fits": lambda _: "no"})
    with pytest.raises(BadInputError, match="unknown constraint 'fits'; known: other"):
        space.feasible({"other": lambda _: None})


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("[16, 32]", "[16, 16]", r":5: parameters\.BLOCK_SIZE_M\.values: 16 is listed twice"),
        ("[16, 32]", "[]", r":5: parameters\.BLOCK_SIZE_M\.values: "),
        ("[16, 32]", "[16, 1.5]", r":5: parameters\.BLOCK_SIZE_M\.values\.1"),
        ("[16, 32]", "[16, null]", r":5: parameters\.BLOCK_SIZE_M\.values\.1"),
        ("[16, 32]", "16", r":5: parameters\.BLOCK_SIZE_M\.values: "),
        (", why: rows", "", r":5: parameters\.BLOCK_SIZE_M\.why: "),
        ("mode:", "BLOCK_SIZE_M:", ":6: BLOCK_SIZE_M: key given twice"),
        ("constraints: [fits]", "constraint: [fits]", ":7: constraint: "),
        ("constraints: [fits]", "constraints: [3]", r":7: constraints\.0: "),
        ("source: this test\n", "", "source: "),
    ],
)
def test_what_is_no_space(write: Write, old: str, new: str, reason: str) -> None:
    assert old in SMALL
    path = write(SMALL.replace(old, new))
    with pytest.raises(BadInputError, match=reason) as caught:
        load_space(path, "moe")
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ref", ["stok", "", "../moe/stock", "stock.json"])
def test_an_unknown_name(ref: str) -> None:
    with pytest.raises(BadInputError, match=r"no space .*; known: .*stock"):
        load_space(ref, "moe")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="cannot be read"):
        load_space(str(tmp_path / "absent.yaml"), "moe")
