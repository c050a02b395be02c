"""YAML files checked against a model, with errors that name file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from autotune.core import BadInputError
from autotune.util import edge

_LIMIT = 1 << 18
"""Bytes. The largest file of ours has some 4 KiB."""
_NODES = 20_000
"""Values: PyYAML reads some 10,000 a second."""
_DIGITS = 40
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Stops at the budget while it reads, and builds from the tree that was checked."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._left = _NODES

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count, then as PyYAML does."""
        self._left -= 1
        if self._left < 0:
            raise yaml.YAMLError(f"over {_NODES} values")
        return super().compose_node(parent, index)


def _within_budget(root: yaml.Node, path: Path) -> None:
    """Refuse what is small as text and huge as data: aliases of aliases, merges, long numbers.

    Every node counts as often as it is used, so that this ends at the budget, not at the end.
    """
    left, used = [root], 0
    while left:
        node = left.pop()
        used += 1
        if used > _NODES:
            raise BadInputError(f"{path}: not YAML: over {_NODES} values, aliases counted")
        if isinstance(node, yaml.MappingNode):
            left.extend(one for pair in node.value for one in pair)
        elif isinstance(node, yaml.SequenceNode):
            left.extend(node.value)
        elif len(node.value) > _DIGITS and node.tag in _NUMBERS:
            line = node.start_mark.line + 1
            raise BadInputError(f"{path}:{line}: not YAML: a number of over {_DIGITS} digits")


def _duplicates(node: yaml.Node, path: Path, visited: set[int]) -> None:
    """PyYAML keeps the last of two equal keys in silence; a search space must not."""
    if id(node) in visited:  # an alias
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if str(key.value) in seen:
                raise BadInputError(
                    f"{path}:{key.start_mark.line + 1}: {key.value}: key given twice"
                )
            seen.add(str(key.value))
            _duplicates(value, path, visited)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _duplicates(item, path, visited)


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line of the deepest node on the way to ``location`` that the file has."""
    line = 1 if node is None else node.start_mark.line + 1
    for step in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            if step >= len(node.value):  # what a tuple lacks
                return line
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def load_yaml(path: Path, model: type[Model], context: Any = None) -> Model:
    """Read ``path`` and check it against ``model``; its validators are given ``context``.

    Raises:
        BadInputError: one line ``PATH:LINE: key.path: what is wrong``.
    """
    try:
        text = edge.read_text(path, _LIMIT)
    except (OSError, edge.EdgeError) as error:
        raise edge.bad_input(path, error) from None
    try:
        loader = _Loader(text)
        node, data = loader.get_single_node(), None
        if node is not None:
            _within_budget(node, path)
            _duplicates(node, path, set())
            data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInputError(f"{path}:{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: the date 2024-13-45, for one
        raise BadInputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BadInputError(f"{path}: not YAML: nested too deep") from None
    if not isinstance(data, dict):
        raise BadInputError(f"{path}:1: expected a mapping of keys, found {type(data).__name__}")
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        found = [(_steps(e["loc"]), _sentence(e["msg"])) for e in error.errors()]
        steps = found[0][0]
        where = ".".join(map(str, steps)) or "file"
        wrong = " or ".join(dict.fromkeys(text for place, text in found if place == steps))
        raise BadInputError(f"{path}:{_line(node, steps)}: {where}: {wrong}") from None


def _steps(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """What the file has of ``location``: a union reports its branches as steps of the path."""
    branches = {"int", "str", "bool", "float"}
    return tuple(s for s in location if isinstance(s, int) or s not in branches)


def _sentence(message: str) -> str:
    """Pydantic's message without its prefix, to go on after a colon."""
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
