"""Routings: what may be asked for, how often each expert is chosen, and what is refused."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import BadInputError, canonical_json
from autotune.kernels.moe.routing import Routing, parse_routing
from autotune.kernels.predict.work import expected_routing


def file(tmp_path: Path, content: object) -> str:
    path = tmp_path / "counts.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_uniform_is_the_standard() -> None:
    assert parse_routing("uniform") == Routing()
    assert Routing().weights(5) == [1.0] * 5
    assert Routing().as_json() == {"exponent": 0.0, "counts": []}


@given(exponent=st.floats(0, 10).map(lambda x: round(x, 3)), experts=st.integers(1, 300))
def test_zipf_is_a_law_of_the_rank(exponent: float, experts: int) -> None:
    routing = parse_routing(f"zipf:{exponent:f}")
    weights = routing.weights(experts)
    assert routing.exponent == pytest.approx(exponent)
    assert len(weights) == experts
    assert weights[0] == 1
    assert all(a >= b > 0 for a, b in pairwise(weights))
    for rank in (1, experts // 2, experts - 1):
        if 0 < rank < experts:
            assert weights[rank] == pytest.approx((rank + 1) ** -exponent)


def test_zipf_of_one() -> None:
    assert parse_routing("zipf:1").weights(4) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert parse_routing("zipf:0").weights(3) == [1, 1, 1]
    assert parse_routing("zipf:10").weights(2) == [1, 2**-10]


@pytest.mark.parametrize("m", [1, 7, 64, 4096])
def test_uniform_is_what_the_cost_model_expects(m: int) -> None:
    expected = expected_routing(m, 8, 128, 128, 1).active_experts
    assert Routing().active_experts(m, 8, 128) == pytest.approx(expected)


@pytest.mark.parametrize(
    "routing",
    [
        Routing(exponent=1.1),
        Routing(exponent=3.0),
        Routing(counts=(1e6,) * 4 + (1.0,) * 60 + (0.0,) * 64),
    ],
    ids=lambda routing: routing.label,
)
@pytest.mark.parametrize("m", [1, 16, 256])
def test_experts_in_use_agree_with_drawing_them(routing: Routing, m: int) -> None:
    """By the Gumbel top-k trick, as the measuring process draws."""
    draw = np.random.default_rng(0)
    logarithms = np.log(routing.weights(128))
    seen = []
    for _ in range(100):
        keys = logarithms + draw.gumbel(size=(m, 128))
        seen.append(len(np.unique(np.argsort(keys, axis=1)[:, -8:])))
    assert routing.active_experts(m, 8, 128) == pytest.approx(np.mean(seen), rel=0.03)


@given(
    exponent=st.floats(0, 10),
    experts=st.integers(1, 300),
    topk=st.integers(1, 300),
    m=st.integers(1, 10**6),
)
def test_experts_in_use_are_as_many_as_can_be(
    exponent: float, experts: int, topk: int, m: int
) -> None:
    active = Routing(exponent=exponent).active_experts(m, topk, experts)
    assert min(topk, experts) * 0.999 <= active <= experts * 1.001


def test_a_stored_routing_has_a_name() -> None:
    for routing, label in (
        (Routing(), "uniform"),
        (Routing("zipf:0"), "uniform"),
        (Routing("zipf:1.1", exponent=1.1), "zipf:1.1"),
        (Routing("f.json", counts=(1.0, 2.0)), "by the counts of 2 experts"),
    ):
        found = Routing.from_setup({"routing": routing.as_json()})
        assert (found.label, found.uniform) == (label, label == "uniform")
        assert found.weights(2) == routing.weights(2)
    assert Routing.from_setup({}).uniform


def test_a_file_of_counts(tmp_path: Path) -> None:
    name = file(tmp_path, [10, 0, 2.5, 0.1])
    routing = parse_routing(name)
    assert (routing.name, routing.counts, routing.exponent) == (name, (10.0, 0.0, 2.5, 0.1), 0)
    # An expert that was never seen can still be chosen.
    assert routing.weights(4) == [10, 0.5, 2.5, 0.5]


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=64).filter(any))
def test_weights_are_positive_finite_and_in_the_order_of_the_file(counts: list[int]) -> None:
    weights = Routing("f", counts=tuple(map(float, counts))).weights(len(counts))
    assert all(0 < w < math.inf for w in weights)
    assert [w for w, n in zip(weights, counts, strict=True) if n] == [n for n in counts if n]


@pytest.mark.parametrize("experts", [1, 3, 5])
def test_a_file_for_another_model(tmp_path: Path, experts: int) -> None:
    routing = parse_routing(file(tmp_path, [1, 2, 3, 4]))
    with pytest.raises(BadInputError, match=f"counts.json: 4 counts for {experts} experts"):
        routing.weights(experts)


def test_the_identity_is_of_what_decides_a_measurement(tmp_path: Path) -> None:
    """Not of its name: the same counts in another file are the same routing."""
    a, b = Routing("a.json", counts=(1.0, 2.0)), Routing("b.json", counts=(1.0, 2.0))
    assert a.as_json() == b.as_json()
    assert parse_routing("zipf:0").as_json() == Routing().as_json()
    different = [Routing(), parse_routing("zipf:1"), a, Routing("a.json", counts=(2.0, 1.0))]
    assert len({canonical_json(routing.as_json()) for routing in different}) == 4


@pytest.mark.parametrize(
    "text",
    [
        "", "Uniform", "zipf", "zipf:", "zipf:-1", "zipf:x", "zipf:1.", "zipf:.5", "zipf:1e1",
        "zipf:nan", "zipf:inf", " uniform", "zipf:1.1 ", "nowhere.json", "/", "~nobody/counts.json",
    ],
)  # fmt: skip
def test_what_is_no_routing(text: str) -> None:
    with pytest.raises(BadInputError, match="expected uniform, zipf") as caught:
        parse_routing(text)
    assert str(caught.value).startswith(f"--routing {text}: ")


@pytest.mark.parametrize("text", ["zipf:10.1", "zipf:11", "zipf:" + "9" * 400])
def test_an_exponent_that_is_too_steep(text: str) -> None:
    with pytest.raises(BadInputError, match="at most 10"):
        parse_routing(text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not JSON"),
        ("[1, 2", "not JSON"),
        ("uniform", "not JSON"),
        ("{}", "expected a list"),
        ("3", "expected a list"),
        ("null", "expected a list"),
        ('"12"', "expected a list"),
        ('["1", 2]', "expected a list"),
        ("[1, null]", "expected a list"),
        ("[1, [2]]", "expected a list"),
        ("[true, 2]", "expected a list"),
        ("[1, -2]", "expected a list"),
        ("[1, -0.001]", "expected a list"),
        ("[1, NaN]", "not JSON: NaN is no number"),
        ("[1, Infinity]", "Infinity is no number"),
        ("[1, 1e999]", "a number too large"),
        ("[1, " + "9" * 5000 + "]", "not JSON"),
        ("[]", "no expert was ever chosen"),
        ("[0, 0.0]", "no expert was ever chosen"),
    ],
)
def test_what_is_no_list_of_counts(tmp_path: Path, content: str, reason: str) -> None:
    name = file(tmp_path, content)
    with pytest.raises(BadInputError, match=reason) as caught:
        parse_routing(name)
    assert str(caught.value).startswith(f"--routing {name}: ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bytes.json"
    bad.write_bytes(b"[1, \xff]")
    with pytest.raises(BadInputError, match="not JSON"):
        parse_routing(str(bad))
    with pytest.raises(BadInputError, match="expected uniform"):
        parse_routing(str(tmp_path))


@pytest.mark.parametrize("content", ["[1, " + "9" * 400 + "]", "[" * 100_000], ids=["big", "deep"])
def test_numbers_and_nestings_beyond_all(tmp_path: Path, content: str) -> None:
    with pytest.raises(BadInputError, match="--routing"):
        parse_routing(file(tmp_path, content))


def test_a_name_that_is_too_long() -> None:
    with pytest.raises(BadInputError, match="--routing"):
        parse_routing("x" * 5000)
