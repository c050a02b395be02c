"""What the server is asked: our own sets by category, or a file of the user's.

Acceptance of drafted tokens depends on the text, hence the categories. The sets are written for
this project and stand under its licence; they come with the program
(`search_spaces/prompts/*.jsonl`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.core import BadInputError, digest
from autotune.util import edge, flags
from autotune.util.resources import data_root

CATEGORIES = ("chat", "code", "prose", "rewriting", "structured")
MOST_KINDS = 16
"""Each is a load of its own, of every setting at every concurrency."""
_NAME = 40
"""Letters of a kind's name at most."""
_FILLED = 0.98
"""Of the length wanted: letters to a token differ from text to text."""
_ROLES = ("system", "user", "assistant", "developer", "tool")


@dataclass(frozen=True)
class Prompt:
    """A conversation to be continued: pairs of role and text, a user's text last as a rule.

    ``kind`` names what is asked, where a set holds prompts of several kinds; else it is empty.
    """

    messages: tuple[tuple[str, str], ...]
    kind: str = ""

    @classmethod
    def of(cls, text: str) -> Prompt:
        """One text of the user's."""
        return cls((("user", text),))

    @property
    def text(self) -> str:
        """All texts with blank lines between, for a completion without chat template."""
        return "\n\n".join(text for _, text in self.messages)

    def after(self, filler: str) -> Prompt:
        """Return the same asked after a text to read, which comes first in the last message."""
        *before, (role, text) = self.messages
        return replace(self, messages=(*before, (role, f"{filler}\n\n{text}")))

    def as_messages(self) -> list[dict[str, str]]:
        """In the form of OpenAI's chat API."""
        return [{"role": role, "content": text} for role, text in self.messages]


def load_prompts(source: str) -> tuple[Prompt, ...]:
    """A set of ours by its category's name, several such as ``chat,rewriting``, else a file.

    A file has one JSON object in a line, with ``prompt`` (a text) or ``messages`` (a list of
    ``{"role": …, "content": …}``), and perhaps ``kind`` (a text); other keys and empty lines are
    passed over. Where there are several kinds, they take turns.

    Raises:
        BadInputError: one line ``FILE:LINE: what is wrong``.
    """
    names = [name.strip() for name in source.split(",")]
    if set(names) <= set(CATEGORIES):
        flags.each_once(names, source)
        sets = [_read(data_root() / "search_spaces" / "prompts" / f"{n}.jsonl") for n in names]
        if len(sets) == 1:
            return sets[0]
        named = zip(names, sets, strict=True)
        return _in_turn([[replace(p, kind=name) for p in prompts] for name, prompts in named])
    if source.endswith((".jsonl", ".json")) or Path(source).exists():
        prompts = _read(Path(source))
        kinds = kinds_of(prompts)
        if len(kinds) > MOST_KINDS:
            raise BadInputError(
                f"{source}: {len(kinds)} values of kind, each of which is a load of its own: "
                f"{MOST_KINDS} at most"
            )
        return _in_turn([[p for p in prompts if p.kind == kind] for kind in kinds])
    known = ", ".join(CATEGORIES)
    raise BadInputError(
        f"{source}: no set of prompts; there are {known} (several: chat,rewriting), or name a "
        "FILE.jsonl"
    )


def kinds_of(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The kinds of a set in the order in which they appear; one where nothing tells them apart."""
    return tuple(dict.fromkeys(prompt.kind for prompt in prompts))


def prompts_key(prompts: tuple[Prompt, ...]) -> str:
    """The identity of a set: equal for equal prompts in equal order, of the same kinds."""
    kinds = [[prompt.kind] if prompt.kind else [] for prompt in prompts]
    texts = [list(map(list, prompt.messages)) for prompt in prompts]
    return digest([text + kind for text, kind in zip(texts, kinds, strict=True)])


def _in_turn(sets: Sequence[Sequence[Prompt]]) -> tuple[Prompt, ...]:
    """One of each set, then the second of each, to the end of the longest."""
    turns = itertools.zip_longest(*sets)
    return tuple(prompt for turn in turns for prompt in turn if prompt is not None)


def _read(path: Path) -> tuple[Prompt, ...]:
    try:
        text = edge.read_text(path, edge.LARGE)
    except (OSError, edge.EdgeError) as error:
        raise edge.bad_input(path, error) from None
    prompts = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                prompts.append(_parse(line))
            except ValueError as error:
                raise BadInputError(f"{path}:{number}: {error}") from None
    if not prompts:
        raise BadInputError(f"{path}: holds no prompt")
    return tuple(prompts)


def _parse(line: str) -> Prompt:
    """One line of a file.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        data: Any = edge.parse_json(line)
    except edge.EdgeError as error:
        raise ValueError(str(error).replace(" at line 1 column", " at column")) from None
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, found {type(data).__name__}")
    if ("prompt" in data) == ("messages" in data):
        raise ValueError("needs either 'prompt' or 'messages'")
    kind = _text(data["kind"], "kind").strip() if "kind" in data else ""
    if len(kind) > _NAME or not kind.isprintable():  # it stands in tables and in a script's comment
        raise ValueError(f"kind: expected a name in one line, of {_NAME} letters at most")
    if "prompt" in data:
        return replace(Prompt.of(_text(data["prompt"], "prompt")), kind=kind)
    messages = data["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages: expected a list with at least one message")
    return Prompt(tuple(_message(one, index) for index, one in enumerate(messages)), kind)


def _message(data: Any, index: int) -> tuple[str, str]:
    where = f"messages[{index}]"
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object, found {type(data).__name__}")
    if data.get("role") not in _ROLES:
        raise ValueError(f"{where}.role: expected one of {', '.join(_ROLES)}")
    return str(data["role"]), _text(data.get("content"), f"{where}.content")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: holds half of a surrogate pair") from None
    return value


def lengthened(prompts: Sequence[Prompt], letters: int) -> tuple[Prompt, ...]:
    """The same questions after texts to read: those of the set, over and over.

    Args:
        prompts: of one kind.
        letters: how long a prompt becomes, a little less at most; longer ones stay as they are.
    """
    texts = [prompt.text for prompt in prompts]
    found = []
    for number, prompt in enumerate(prompts):
        room = int(_FILLED * letters) - len(prompt.text)
        around = "\n\n".join([*texts[number + 1 :], *texts[: number + 1]])
        filler = (f"{around}\n\n" * (room // (len(around) + 2) + 1))[: max(room, 0)]
        found.append(prompt.after(filler) if filler.strip() else prompt)
    return tuple(found)
