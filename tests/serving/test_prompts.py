"""Our sets of prompts, and files of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.core import BadInputError
from autotune.serving.measure.prompts import CATEGORIES, Prompt, load_prompts, prompts_key


@pytest.mark.parametrize("category", CATEGORIES)
def test_our_sets_hold_sixteen_different_prompts(category: str) -> None:
    prompts = load_prompts(category)
    assert len(prompts) == len(set(prompts)) == 16
    for prompt in prompts:
        ((role, text),) = prompt.messages
        assert role == "user"
        assert 40 < len(text) < 1200


def test_no_prompt_is_in_two_sets() -> None:
    every = [prompt for category in CATEGORIES for prompt in load_prompts(category)]
    assert len(every) == len(set(every)) == 80
    # Nor do two begin alike: a cached prefix would make the later one cheaper.
    assert len({prompt.text[:32] for prompt in every}) > 60


def test_a_file_may_hold_texts_and_conversations(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines: list[dict[str, Any]] = [
        {"prompt": "Say «hello»\u2028and go", "id": 7},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Why?"},
            ]
        },
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("\ufeff" + text + "\r\n", encoding="utf-8")
    first, second = load_prompts(str(path))
    assert first == Prompt.of("Say «hello»\u2028and go")
    assert second.text == "Be brief.\n\nWhy?"
    assert second.as_messages() == lines[1]["messages"]


def test_the_key_follows_the_prompts_and_their_order() -> None:
    a, b = Prompt.of("a"), Prompt.of("b")
    assert prompts_key((a, b)) == prompts_key((Prompt.of("a"), Prompt.of("b")))
    keys = {prompts_key(p) for p in ((a, b), (b, a), (a,), (Prompt((("system", "a"),)),))}
    assert len(keys) == 4


BAD = {
    "not json": ('{"prompt": "a"}\n{"prompt": ', "2: not JSON: Expecting value at column 12"),
    "deep": ("[" * 100_000, "1: not JSON: nested too deep"),
    "list": ('["a"]', "1: expected an object, found list"),
    "neither": ('{"promt": "a"}', "1: needs either 'prompt' or 'messages'"),
    "both": ('{"prompt": "a", "messages": []}', "1: needs either 'prompt' or 'messages'"),
    "number": ('{"prompt": 3}', "1: prompt: expected a text that is not empty"),
    "blank": ('{"prompt": "  "}', "1: prompt: expected a text that is not empty"),
    "surrogate": ('{"prompt": "\\ud800"}', "1: holds half of a surrogate pair, which is no text"),
    "no messages": (
        '{"messages": []}',
        "1: messages: expected a list with at least one message",
    ),
    "message": ('{"messages": ["a"]}', "1: messages[0]: expected an object, found str"),
    "role": (
        '{"messages": [{"role": "me", "content": "a"}]}',
        "1: messages[0].role: expected one of system, user, assistant, developer, tool",
    ),
    "content": (
        '\n{"messages": [{"role": "user"}]}',
        "2: messages[0].content: expected a text that is not empty",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(name: str, tmp_path: Path) -> None:
    text, message = BAD[name]
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(BadInputError) as caught:
        load_prompts(str(path))
    assert str(caught.value) == f"{path}:{message}"


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.jsonl", tmp_path / "binary.jsonl"
    empty.write_text("\n\n")
    binary.write_bytes(b"{\xff}")
    expected = {
        str(empty): f"{empty}: holds no prompt",
        str(binary): f"{binary}: not UTF-8 at byte 1",
        str(tmp_path): f"{tmp_path}: cannot be read: Is a directory",
        "no.jsonl": "no.jsonl: cannot be read: No such file or directory",
        "poems": "poems: no set of prompts; there are chat, code, prose, rewriting, structured "
        "(several: chat,rewriting), or name a FILE.jsonl",
    }
    for source, message in expected.items():
        with pytest.raises(BadInputError) as caught:
            load_prompts(source)
        assert str(caught.value) == message
