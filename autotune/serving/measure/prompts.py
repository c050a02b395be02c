"""What the server is asked: our own sets by category, or a file of the user's.

Acceptance of drafted tokens depends on the text, hence the categories. The sets are written for
this project and stand under its licence; they come with the program
(`search_spaces/prompts/*.jsonl`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.core import BadInputError, digest
from autotune.util import edge
from autotune.util.resources import data_root

CATEGORIES = ("chat", "code", "prose", "rewriting", "structured")
_ROLES = ("system", "user", "assistant", "developer", "tool")


@dataclass(frozen=True)
class Prompt:
    """A conversation to be continued: pairs of role and text, a user's text last as a rule."""

    messages: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, text: str) -> Prompt:
        """One text of the user's."""
        return cls((("user", text),))

    @property
    def text(self) -> str:
        """All texts with blank lines between, for a completion without chat template."""
        return "\n\n".join(text for _, text in self.messages)

    def as_messages(self) -> list[dict[str, str]]:
        """In the form of OpenAI's chat API."""
        return [{"role": role, "content": text} for role, text in self.messages]


def load_prompts(source: str) -> tuple[Prompt, ...]:
    """A set of ours by its category's name, else the file ``source``.

    A file has one JSON object in a line, with ``prompt`` (a text) or ``messages`` (a list of
    ``{"role": …, "content": …}``); other keys and empty lines are passed over.

    Raises:
        BadInputError: one line ``FILE:LINE: what is wrong``.
    """
    if source in CATEGORIES:
        return _read(data_root() / "search_spaces" / "prompts" / f"{source}.jsonl")
    if source.endswith((".jsonl", ".json")) or Path(source).exists():
        return _read(Path(source))
    names = ", ".join(CATEGORIES)
    raise BadInputError(f"{source}: no set of prompts; there are {names}, or name a FILE.jsonl")


def prompts_key(prompts: tuple[Prompt, ...]) -> str:
    """The identity of a set: equal for equal prompts in equal order."""
    return digest([list(map(list, prompt.messages)) for prompt in prompts])


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
    if "prompt" in data:
        return Prompt.of(_text(data["prompt"], "prompt"))
    messages = data["messages"]
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages: expected a list with at least one message")
    return Prompt(tuple(_message(one, index) for index, one in enumerate(messages)))


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
