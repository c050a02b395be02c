"""Texts of flags to values; what is refused names the flag."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import BadInputError
from autotune.kernels.request import STANDARD_LADDER
from autotune.util import flags

drafted = st.lists(st.integers(0, 64), min_size=1, max_size=5, unique=True)
sequences = st.lists(st.integers(1, 16_131), min_size=1, max_size=5, unique=True)


def text(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))


@pytest.mark.parametrize(
    ("gamma", "concurrency", "expected"),
    [
        (None, None, ()),
        ("2", None, (1, 3)),
        ("0", None, (1,)),
        (None, "1,4,8", (1, 4, 8)),
        ("2,4", "1,8", (1, 3, 5, 8, 24, 40)),
        ("1", "2,4", (2, 4, 8)),
        ("4,2", "8,1", (1, 3, 5, 8, 24, 40)),
        (" 2 , 4 ", "1", (1, 3, 5)),
    ],
)
def test_decoding(gamma: str | None, concurrency: str | None, expected: tuple[int, ...]) -> None:
    assert flags.decode_sizes(gamma, concurrency) == expected


@given(gamma=drafted, concurrency=sequences)
def test_every_draft_with_every_concurrency(gamma: list[int], concurrency: list[int]) -> None:
    found = flags.decode_sizes(text(gamma), text(concurrency))
    assert list(found) == sorted(set(found))
    assert set(found) == {(g + 1) * b for g in [0, *gamma] for b in concurrency}
    assert set(concurrency) <= set(found), "without speculation"


@pytest.mark.parametrize(
    ("gamma", "concurrency", "reason"),
    [
        ("-1", None, "--gamma -1: expected 0 to 64"),
        ("65", None, "--gamma 65: expected 0 to 64"),
        ("2,2", None, "--gamma: 2 is given twice"),
        ("two", None, "--gamma two: expected numbers"),
        ("", None, "--gamma : expected numbers"),
        ("2,", None, "--gamma 2,: expected numbers"),
        ("2.5", None, "--gamma 2.5: expected numbers"),
        (None, "0", "--concurrency 0: expected 1 to 65536"),
        (None, "65537", "--concurrency 65537: expected"),
        (None, "-4", "--concurrency -4: expected"),
        ("2", "8,8", "--concurrency: 8 is given twice"),
        ("2", "many", "--concurrency many: expected numbers"),
        ("2", "", "--concurrency : expected numbers"),
        ("2", "9" * 5000, "--concurrency"),
    ],
)
def test_no_decoding(gamma: str | None, concurrency: str | None, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        flags.decode_sizes(gamma, concurrency)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        (None, None),
        ("512M", 512),
        ("8G", 8192),
        ("8GB", 8192),
        ("8GiB", 8192),
        ("600MiB", 600),
        ("0.5G", 512),
        ("1.5G", 1536),
        ("16 G", 16384),
        (" 16G ", 16384),
        ("700.6M", 701),
    ],
)
def test_memory(given_text: str | None, expected: int | None) -> None:
    assert flags.mebibytes(given_text) == expected


@given(st.integers(512, 2**30 - 1))
def test_memory_counts_in_mebibytes(number: int) -> None:
    assert flags.mebibytes(f"{number}M") == number


@pytest.mark.parametrize(
    "given_text",
    [
        "", "0", "0G", "511M", "0.4G", "8", "G", "8T", "8g", "8k", "-8G", "+8G", "8,5G", "nan",
        "inf", "1e3G", "8 Gi", "8Gi B", "all", "1048576G", "9" * 400 + "G",
    ],
)  # fmt: skip
def test_no_memory_limit(given_text: str) -> None:
    with pytest.raises(BadInputError, match=r"^--memory-limit .*: expected 512M or more"):
        flags.mebibytes(given_text)


def test_batch_sizes_of_nothing_are_the_standard() -> None:
    assert flags.batch_sizes(None, STANDARD_LADDER) == STANDARD_LADDER
    assert flags.batch_sizes("auto", STANDARD_LADDER) == STANDARD_LADDER
    assert flags.batch_sizes("64,1,8", STANDARD_LADDER) == (1, 8, 64)
    for near in ("Auto", "auto,1", " auto", ""):
        with pytest.raises(BadInputError, match=f"--batch-sizes {near}: expected numbers"):
            flags.batch_sizes(near, STANDARD_LADDER)


@given(st.lists(st.integers(1, 1_048_576), min_size=1, max_size=30, unique=True))
def test_batch_sizes_ascend(sizes: list[int]) -> None:
    assert flags.batch_sizes(text(sizes), (1,)) == tuple(sorted(sizes))


@given(gamma=drafted, concurrency=sequences)
def test_what_decoding_asks_for_may_be_asked_for_by_hand(
    gamma: list[int], concurrency: list[int]
) -> None:
    found = flags.decode_sizes(text(gamma), text(concurrency))
    assert flags.batch_sizes(text(list(found)), ()) == found


def test_decoding_beyond_what_may_be_asked_for() -> None:
    with pytest.raises(BadInputError, match="--gamma with --concurrency: 4259840 tokens are more"):
        flags.decode_sizes("64", "65536")


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [("90s", 90), ("1.5m", 90), ("2h", 7200), (" 10 m ", 600), ("0.001s", 0.001)],
)
def test_seconds(given_text: str, expected: float) -> None:
    assert flags.seconds(given_text, "--x") == expected


@pytest.mark.parametrize(
    "given_text",
    ["", "0", "0s", "-1", "+1", "1d", "m", "1m30s", "1e3", "nan", "inf", "9" * 400, "١"],
)
def test_no_seconds(given_text: str) -> None:
    with pytest.raises(BadInputError, match=r"^--start-timeout .*: expected a time such as 90s"):
        flags.seconds(given_text, "--start-timeout")
