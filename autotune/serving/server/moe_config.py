"""``--moe-config``: the folders of tuned MoE files that servers are given, or compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autotune.core import BadInputError, digest
from autotune.engine.variables import FOLDER
from autotune.export.files import expand_user
from autotune.machine.environment import exported
from autotune.util import edge

DEFAULT = "default"
"""In place of a folder: none, so that vLLM takes a file that it ships, or its heuristics."""


def parse_moe_config(text: str) -> tuple[str, ...]:
    """``FOLDER``, or several to compare, such as ``default,FOLDER``; folders from the root.

    Raises:
        BadInputError: no such folder, none that holds a file, one given twice; or
            :data:`DEFAULT` alone, or where the environment gives all servers a folder.
    """
    whole = _from_root(text)
    names = [text] if Path(whole).is_dir() and text != DEFAULT else text.split(",")
    names = [name.strip() for name in names]
    values = tuple(name if name == DEFAULT else _folder(name) for name in names)
    if len(set(values)) < len(values):
        raise BadInputError(f"--moe-config {text}: names one twice")
    if values == (DEFAULT,):
        raise BadInputError(f"--moe-config {text}: is what servers run anyway; name a folder too")
    if DEFAULT in values and exported(FOLDER):
        raise BadInputError(
            f"--moe-config {text}: {FOLDER} is exported here, and servers would take its files in "
            "place of their default; unset it"
        )
    return values


def digest_of(values: Sequence[str]) -> str:
    """Of the files in folders: one keeps its name when it is tuned again.

    Raises:
        BadInputError: a file cannot be read.
    """
    found = {}
    for value in values:
        if value == DEFAULT:
            continue
        try:
            found[value] = {p.name: edge.read_text(p) for p in Path(value).glob("E=*.json")}
        except (OSError, edge.EdgeError) as error:
            where = f"{error.filename}: " if isinstance(error, OSError) else ""
            raise edge.bad_input(f"--moe-config {where or value}", error) from None
    return digest(found if len(values) > 1 else found[values[0]])


def _from_root(name: str) -> str:
    return str(Path(expand_user(name)).absolute())


def _folder(name: str) -> str:
    folder = Path(_from_root(name))
    if not name or not folder.is_dir():
        raise BadInputError(f"--moe-config {name}: no such folder")
    if not any(folder.glob("E=*.json")):
        raise BadInputError(f"--moe-config {name}: holds no file E=….json")
    return str(folder)
