"""Texts of `autotune spec`'s flags to values; no process, no file."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import BadInputError
from autotune.serving import parse

gammas = st.sets(st.integers(0, parse.MOST_GAMMA), min_size=1)
words = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1).filter(
    lambda word: not word.startswith("~")
)


def ranges(numbers: set[int]) -> str:
    """Numbers as people write them: runs as ranges."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][-1] == number - 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


@given(gammas)
def test_gammas_listed_or_in_ranges_are_the_same(numbers: set[int]) -> None:
    assert parse.parse_gammas(ranges(numbers)) == tuple(sorted(numbers))
    assert parse.parse_gammas(" , ".join(map(str, numbers))) == tuple(sorted(numbers))


@given(st.sets(st.integers(1, parse.MOST_CONCURRENCY), min_size=1))
def test_concurrencies_come_in_order(levels: set[int]) -> None:
    assert parse.parse_concurrency(",".join(map(str, levels))) == tuple(sorted(levels))


@given(st.lists(words, min_size=1))
def test_words_are_those_of_a_shell(given_words: list[str]) -> None:
    assert parse.parse_words(shlex.join(given_words), "--server-arg") == given_words


@given(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), st.text())
def test_a_variable_keeps_its_value(name: str, value: str) -> None:
    assert parse.parse_variable(f"{name}={value}") == (name, value)


def test_home_is_written_out_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert parse.parse_words("--x ~/a '~/b c'", "--vllm") == ["--x", "/home/ann/a", "/home/ann/b c"]


def test_sets_name_a_parameter() -> None:
    assert parse.parse_set("--max-num-seqs = 8, 16") == ("max_num_seqs", ("8", "16"))
    assert parse.parse_set("max_num_seqs=8") == ("max_num_seqs", ("8",))
    assert parse.parse_set("compilation-config={'a': 1}")[1] == ("{'a': 1}",)


@pytest.mark.parametrize("share", ["0.9", "1", "1e-3", 0.5, 1])
def test_a_share_of_the_memory(share: object) -> None:
    parse.check_share(share, "--gpu-memory-utilization")


@pytest.mark.parametrize("share", ["0", "-0.1", "1.01", "nan", "inf", "most", "", None])
def test_no_share_of_the_memory(share: object) -> None:
    with pytest.raises(BadInputError, match="not above 0 and at most 1"):
        parse.check_share(share, "--gpu-memory-utilization")


PARSERS: dict[str, Callable[[str, str], object]] = {
    "--gamma": parse.parse_gammas,
    "--concurrency": parse.parse_concurrency,
    "--kv-cache-dtype": parse.parse_values,
    "--gpu-memory-utilization": parse.check_utilization,
    "--set": parse.parse_set,
    "--server-arg": parse.parse_words,
    "--env": parse.parse_variable,
    "--synthetic-acceptance": parse.parse_rates,
    "--slo": parse.check_slo,
    "--image": parse.check_image,
    "--gpus": parse.check_gpus,
}


@pytest.mark.parametrize("flag", PARSERS)
@given(st.text() | st.text("0123456789.,:-=%ums \"'\\", max_size=12))
def test_any_text_is_read_or_refused_by_its_flag(flag: str, text: str) -> None:
    try:
        PARSERS[flag](text, flag)
    except BadInputError as error:
        refusal = str(error)
    else:
        return
    assert refusal.startswith(flag)


@pytest.mark.parametrize(
    ("parser", "text", "reason"),
    [
        ("--gamma", "6-2", "expected numbers from 0 to 64"),
        ("--gamma", "65", "expected numbers from 0 to 64"),
        ("--gamma", "²", "expected numbers from 0 to 64"),
        ("--kv-cache-dtype", "fp8,fp8", "fp8 is given twice"),
        ("--kv-cache-dtype", "auto,", "an empty value"),
        ("--gpu-memory-utilization", "0.9:0.4", "expected LOW:HIGH"),
        ("--set", "gamma=1", "has a flag of its own, --gamma"),
        ("--set", "a b=1", "expected FLAG=VALUE"),
        ("--server-arg", '"x', "No closing quotation"),
        ("--server-arg", " ", "is empty"),
        ("--env", "VLLM_API_KEY=x", "shut the tuner out"),
        ("--env", "1A=2", "expected NAME=VALUE"),
        ("--synthetic-acceptance", ".2,.4", "must not increase"),
        ("--slo", "ttft=500", "such as ttft=50ms"),
        ("--image", "a b", "expected a docker image's name"),
        ("--gpus", "a b", "expected all, none"),
    ],
)
def test_what_is_refused_and_why(parser: str, text: str, reason: str) -> None:
    with pytest.raises(BadInputError, match=reason) as refused:
        PARSERS[parser](text, parser)
    assert str(refused.value).startswith(parser)
