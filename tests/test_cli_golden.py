"""Every command and flag of commit 5efff5a exists today and means the same; new ones may come."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import typer

from autotune.cli import app

GOLDEN: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "cli.json").read_text()
)
"""By command ("" is `autotune` itself): its parameters as Typer 0.29 saw them."""


def kind_of(annotation: Any) -> str:
    """``str``, ``int``, ``bool``, ``Path`` or ``list``: what a flag's text becomes."""
    origin = get_origin(annotation) or annotation
    if origin is list:
        assert get_args(annotation)[0] in {str, Path}
    return str(origin.__name__)


def described(param: Any) -> dict[str, Any]:
    """A parameter in the words of the golden file."""
    argument = isinstance(param, typer.core.TyperArgument)
    return {
        "kind": "argument" if argument else "option",
        "opts": list(param.opts),
        "negative": list(param.secondary_opts),
        "required": param.required,
        "multiple": getattr(param, "multiple", False),
        "nargs": param.nargs,
        "is_flag": getattr(param, "is_flag", False),
        "min": getattr(param, "min", None),
        "max": getattr(param, "max", None),
        "default": repr(param.default) if isinstance(param.default, Path) else param.default,
        "type": kind_of(param.type_descriptor.annotation),
    }


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return {"": group, **group.commands}


def today(command: str) -> Iterator[dict[str, Any]]:
    return map(described, commands()[command].params)


@pytest.mark.parametrize("command", GOLDEN)
def test_a_command_has_every_flag_that_it_had(command: str) -> None:
    """Arguments in their order; flags, which people write by name, in any order."""
    now = list(today(command))
    before = [{k: v for k, v in param.items() if k != "name"} for param in GOLDEN[command]]
    assert [p for p in now if p["kind"] == "argument"] == [
        p for p in before if p["kind"] == "argument"
    ]
    flags = {param["opts"][0]: param for param in now}
    for param in before:
        assert flags.get(param["opts"][0]) == param


def test_a_new_flag_asks_nothing_of_an_old_command_line() -> None:
    for command, before in GOLDEN.items():
        known = {param["opts"][0] for param in before}
        new = [param for param in today(command) if param["opts"][0] not in known]
        assert not [param["opts"] for param in new if param["required"]]


def test_the_golden_list_is_whole() -> None:
    assert len(GOLDEN) == 12
    assert sum(map(len, GOLDEN.values())) == 132
