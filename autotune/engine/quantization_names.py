"""Names and values of a quantisation's configuration: lists that must be lists, names that match.

Source: vLLM 0.32 ``model_executor/layers/quantization/utils`` (``config_utils.py``,
``quant_utils.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from autotune.core import BadInputError
from autotune.engine.quantization import Layer

_ONE_CHARACTER = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)\s*[*+{]|\(\?[a-zA-Z]*x|\(\?P=")
_LONGEST_PATTERN = 2000
_MOST_REPEATS, _MOST_OPTIONS = 5, 10
"""Of a pattern: matching a name of 60 characters then takes some million steps at most."""


def expression_of(text: str) -> re.Pattern[str]:
    """A pattern out of a checkpoint; one that may take for ever is refused.

    That is a group that is repeated, for what is in it may match in many ways, and many repeats
    one after the other.
    """
    plain = _ONE_CHARACTER.sub("c", text) if len(text) <= _LONGEST_PATTERN else "(c)*"
    repeats, options = sum(map(plain.count, "*+{")), plain.count("?") - plain.count("(?")
    many = repeats > _MOST_REPEATS or options > _MOST_OPTIONS
    if many or _REPEATED_GROUP.search(plain):
        raise BadInputError(
            f"config.json: quantization_config: the pattern {text[:60]!r} repeats a repetition, "
            "which may take for ever"
        )
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInputError(
            f"config.json: quantization_config: {text[:60]!r} is no pattern: {error}"
        ) from None


def equal_or_pattern(name: str, target: str) -> bool:
    """``is_equal_or_regex_match`` of vLLM's ``utils/config_utils.py``."""
    if target.startswith("re:"):
        return expression_of(target[3:]).match(name) is not None
    return target == name


def is_listed(layer: Layer, listed: Iterable[str], *, by_suffix: bool = False) -> bool:
    """``is_layer_skipped``: exact names; of experts, the beginning of an expert's own name."""
    if by_suffix:
        return any(n == e or n.endswith(f".{e}") for n in layer.names for e in listed)
    if layer.experts:
        inside = [entry for entry in listed if "experts" in entry]
        return any(name in entry for name in layer.names for entry in inside)
    return any(name in listed for name in layer.names)


def block_of(value: object) -> tuple[int, int] | None:
    """A block size as (n, k); None stays None.

    Raises:
        BadInputError: it is no pair of whole numbers.
    """
    if value is None:
        return None
    if (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(isinstance(b, int) and not isinstance(b, bool) and b > 0 for b in value)
    ):
        return value[0], value[1]
    raise BadInputError(f"config.json: quantization_config: block size {value!r} is not [n, k]")


def names_in(value: object, where: str) -> list[str]:
    """The names of an ignore list; None is an empty one.

    Raises:
        BadInputError: it is no list of names.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise BadInputError(f"config.json: quantization_config.{where}: expected a list of names")
    return value


def table_in(value: object, where: str) -> Mapping[str, Any]:
    """An object of the configuration; None is an empty one.

    Raises:
        BadInputError: it is no object.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadInputError(f"config.json: quantization_config.{where}: expected an object")
    return value
