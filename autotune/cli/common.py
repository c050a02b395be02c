"""What the commands share: flags, JSON to stdout, the study that a command is to work on."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from autotune.cli.consoles import err
from autotune.cli.requests import Stored
from autotune.machine.environment import outside
from autotune.util.escape import for_json
from autotune.util.secret import MASK, masked

if TYPE_CHECKING:
    from autotune.store.store import Store

Asked = TypeVar("Asked", bound=Stored)


def print_json(value: Any) -> None:
    """One document to stdout, which a terminal shows and does not obey."""
    typer.echo(for_json(json.dumps(masked(value), indent=2, ensure_ascii=False)))


def reads_studies(run: Callable[[Asked], None]) -> Callable[[Asked], None]:
    """Make a command that only reads studies end in one line where one is of no known shape."""

    @functools.wraps(run)
    def command(request: Asked) -> None:
        from autotune.store.foreign import reading_back  # noqa: PLC0415 - keeps `--help` fast

        with reading_back(request.db, getattr(request, "study", None)):
            run(request)

    return command


def this_command(secret: Collection[str] = ()) -> str:
    """The command as typed, for the database and the files.

    Args:
        secret: flags whose values stand there as ``***``.

    Returns:
        In a container that another command started: that one.
    """
    started = outside()
    if started is not None:
        return started.command
    words = ["autotune"]
    for before, word in pairwise(["autotune", *sys.argv[1:]]):
        flag, equals, _ = word.partition("=")
        if before in secret:
            words.append(MASK)
        elif flag in secret and equals:
            words.append(f"{flag}={MASK}")
        else:
            words.append(word)
    return shlex.join(words)


def check_study(
    store: Store,
    name: str,
    kind: str,
    identity: Mapping[str, Any],
    setup: Mapping[str, Any],
    *,
    only_read: bool = False,
) -> str | None:
    """Tell before the plan is shown that the study is of something else, or being tuned.

    Args:
        store: with the study.
        name: of the study.
        kind: of the study.
        identity: what the study is about.
        setup: that is to be measured under.
        only_read: for a dry run, which may look at a study while another process tunes it.

    Returns:
        How the setup differs from the one measured under, for :func:`warn_setup_changed`.

    Raises:
        BadInputError: another shape or pair stands under this name, or another process tunes it.
    """
    if store.find_study(name) is None:
        return None  # nothing to be at odds with, and nothing to leave behind if it is refused yet
    study = store.study(name, kind, identity)
    if not only_read:
        with store.lock_study(name):
            pass
    return store.measured_otherwise(study, setup)


def warn_setup_changed(study: str, otherwise: str | None) -> None:
    """Say that what was measured under another setup cannot be gone on from."""
    if otherwise:
        err.warn(f"Study {study}: {otherwise}; they stay, and this command begins anew")
