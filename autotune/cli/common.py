"""What the commands share: flags, JSON to stdout, the study that a command is to work on."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from autotune.cli.consoles import err
from autotune.core import BadInputError

if TYPE_CHECKING:
    from autotune.machine.devices import Device
    from autotune.store.store import Store


def print_json(value: Any) -> None:
    """One document to stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


_HEADER = "--header"
"""Its values may be credentials, which are written nowhere."""


def this_command() -> str:
    """The command as typed, but for what is secret, for the database and the files."""
    words = ["autotune"]
    for before, word in pairwise(["autotune", *sys.argv[1:]]):
        if before == _HEADER:
            words.append("***")
        elif word.startswith(f"{_HEADER}="):
            words.append(f"{_HEADER}=***")
        else:
            words.append(word)
    return shlex.join(words)


def check_study(
    store: Store, name: str, kind: str, identity: Mapping[str, Any], setup: Mapping[str, Any]
) -> str | None:
    """Tell before the plan is shown that the study is of something else, or being tuned.

    Returns:
        How the setup differs from the one measured under, for :func:`tell_of`.

    Raises:
        BadInputError: another shape or pair stands under this name, or another process tunes it.
    """
    if store.find_study(name) is None:
        return None  # nothing to be at odds with, and nothing to leave behind if it is refused yet
    study = store.study(name, kind, identity)
    with store.lock_study(name):
        pass
    return store.measured_otherwise(study, setup)


def tell_of(study: str, otherwise: str | None) -> None:
    """Say that what was measured under another setup cannot be gone on from."""
    if otherwise:
        err.print(
            f"[yellow]Study {escape(study)}: {escape(otherwise)}; they stay, and this command "
            "begins anew[/yellow]",
            soft_wrap=True,
        )


def tuned_for(store: Store, study: str, ref: str) -> Device:
    """The device of ``--device``, which must be the study's own.

    Raises:
        BadInputError: no such device, or the study is of another one.
    """
    from autotune.machine.devices import get_device  # noqa: PLC0415 - slow import

    device = get_device(ref)
    name = store.get_study(study).study.identity.get("device")
    if device.name != name:
        raise BadInputError(f"--device {ref}: study {study!r} was made for {name}")
    return device
