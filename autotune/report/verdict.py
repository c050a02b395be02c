"""What finished jobs concluded, read back: of the database, or else of files that they left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from autotune.kind import Plan
from autotune.store.records import SearchRecord
from autotune.store.store import Store
from autotune.util import edge


class Words(BaseModel):
    """A part of a verdict; what an older or newer job said beside it is left out."""

    model_config = ConfigDict(extra="ignore", frozen=True)


V = TypeVar("V", bound=Words)


def verdicts(
    model: type[V], store: Store, search: SearchRecord, files: Iterable[Path]
) -> Iterator[V]:
    """Yield the undamaged verdicts on ``search``, the newest first, then those of ``files``.

    A run made before verdicts were stored left its own in a file alone.
    """
    for document in (*store.verdicts(search), *_readable(files)):
        try:
            yield model.model_validate(document)
        except ValidationError:
            continue


def _readable(files: Iterable[Path]) -> Iterator[Any]:
    for path in files:
        try:
            yield edge.read_json(path, edge.LARGE)
        except (OSError, edge.EdgeError):
            continue


def keep_verdict(store: Store, plan: Plan, verdict: Mapping[str, Any]) -> None:
    """Store what the job that this process just finished concluded, for pages made later.

    Args:
        store: with the run.
        plan: of the job.
        verdict: the document of its result.
    """
    study = store.study(plan.study, plan.kind, plan.identity())
    store.set_verdict(store.search(study, plan.setup()), verdict)
