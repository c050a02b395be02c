"""A database that others made or changed: its studies are of no shape that autotune wrote."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autotune.core import BadInputError

_UNFIT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What values of another shape make of code that trusts what is stored."""


@contextmanager
def reading_back(db: str, study: str | None) -> Iterator[None]:
    """Say in one line, with the place in our code, that a stored study has not its kind's shape.

    The columns' types are checked when they are read (:class:`autotune.store.database.Session`);
    what a kind keeps in them is the kind's own, and old studies have less of it than new ones. Only
    for commands that do nothing but read studies: elsewhere such an error is ours.

    Args:
        db: the database, as the user named it.
        study: its name; None for all.

    Raises:
        BadInputError: the study cannot be read back.
    """
    try:
        yield
    except _UNFIT as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:120]
        what = f"study {study!r}" if study else "a study"
        raise BadInputError(
            f"{db}: {what} cannot be read back ({type(error).__name__}: {said}; "
            f"{Path(last.filename).stem}:{last.lineno}); if autotune wrote it so, report that"
        ) from error
