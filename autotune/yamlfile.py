"""YAML files checked against a model, with errors that name file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from autotune.core import BadInputError

Model = TypeVar("Model", bound=BaseModel)


def _duplicates(node: yaml.Node, path: Path) -> None:
    """PyYAML keeps the last of two equal keys in silence; a search space must not."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                raise BadInputError(
                    f"{path}:{key.start_mark.line + 1}: {key.value}: key given twice"
                )
            seen.add(key.value)
            _duplicates(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _duplicates(item, path)


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
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def load_yaml(path: Path, model: type[Model]) -> Model:
    """Read ``path`` and check it against ``model``.

    Raises:
        BadInputError: one line ``PATH:LINE: key.path: what is wrong``.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path}: not UTF-8 at byte {error.start}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _duplicates(node, path)
        data: Any = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInputError(f"{path}:{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BadInputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise BadInputError(f"{path}:1: expected a mapping of keys, found {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        # A union reports its branches as steps of the path: only what the file has is shown.
        steps = [s for s in first["loc"] if isinstance(s, int) or not _is_branch(s)]
        where = ".".join(map(str, steps)) or "file"
        raise BadInputError(
            f"{path}:{_line(node, tuple(steps))}: {where}: {first['msg'].lower()}"
        ) from None


def _is_branch(step: str) -> bool:
    return step in {"int", "str", "bool", "float"}
