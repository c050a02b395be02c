"""The file that an earlier command left: one of another setup takes no keys away from it.

vLLM has no fall-back once a file exists, so that a file with fewer keys changes every batch size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from autotune.core import BadInputError, Phase, digest
from autotune.kernels.config_file import read
from autotune.kernels.plan import Plan
from autotune.kernels.stored import Tuned
from autotune.store.records import SearchRecord
from autotune.store.store import Store
from autotune.util import edge


class _Between(BaseModel):
    m: int
    pinned: bool


class _Left(BaseModel):
    """What of ``provenance.json`` is needed; all of it may be missing."""

    setup: dict[str, Any] | None = None
    between_keys: list[_Between] = []


def stored_keys(store: Store, plan: Plan) -> set[int]:
    """The batch sizes that earlier commands of this setup searched; they stay in the file."""
    key = digest(plan.setup())
    study = store.find_study(plan.study)
    for search in () if study is None else study.searches:
        if search.key == key:
            return _searched(store, search)
    return set()


def left_out(store: Store, tuned: Tuned) -> str | None:
    """A warning of keys that only searches of the study under another setup have, if any."""
    keys: set[int] = set()
    for search in store.get_study(tuned.study).searches:
        if search.setup != tuned.setup and search.setup.get("basis") == tuned.basis.value:
            keys |= _searched(store, search)
    lost = keys - set(tuned.rows) - set(tuned.unconfirmed)
    if not lost:
        return None
    return (
        f"not in the file: M={_listed(lost)}, tuned in this study under another setup (versions, "
        "driver, seed, space or routing); tune them with the last command's setup too"
    )


def _searched(store: Store, search: SearchRecord) -> set[int]:
    """Batch sizes that were searched, without those that were compared between them."""
    keys = {trial.workload_key for trial in store.trials(search, phase=Phase.SEARCH)}
    return {int(w.spec["m"]) for w in store.workloads(search) if w.key in keys}


def check_keys_stay(
    plan: Plan,
    keys: Collection[int],
    folder: Path,
    *,
    tuned: bool = False,
    failed: Collection[int] = (),
) -> None:
    """Refuse to replace a file by one that lacks some of its keys.

    Keys that the check between the keys had added do not count: it is made anew for every file.

    Args:
        plan: what is tuned.
        keys: of the file that is to be written.
        folder: where it is to go.
        tuned: whether the work is done already; before it, more can be asked for.
        failed: batch sizes that were tried and gave no row.

    Raises:
        BadInputError: keys would be lost; names them, the reason, and what to do.
    """
    path = folder / plan.file_name
    left = _left(folder / "provenance.json")
    there = _keys(path) - {between.m for between in left.between_keys if between.pinned}
    lost = sorted(there - set(keys))
    if not lost:
        return
    advice = (
        f"tune all with --batch-sizes {_listed(there | set(keys))}, or leave that file with --study"
        " NAME"
    )
    if tuned:
        advice = (
            f"what was tuned is saved, `autotune export {plan.study} --to folder --dest DIR` "
            "writes it elsewhere"
        )
    cause = _cause(left.setup, plan.setup())
    if set(lost) <= set(failed):
        cause = "nothing worked there this time"
        advice = "the same command with --retry-failed tries again; the file there stays"
    raise BadInputError(f"{path}: would lose M={_listed(lost)}: {cause}; {advice}")


def _listed(batch_sizes: Collection[int]) -> str:
    return ",".join(map(str, sorted(batch_sizes)))


def _cause(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    if before is None:
        return "no provenance.json beside it says how it was tuned"
    differing = [
        _difference(name, before.get(name), now.get(name))
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if not differing:
        return "its trials are not in this database (--db)"
    return f"it was tuned under another {', '.join(differing)}, and setups do not mix"


def _difference(name: str, before: object, now: object) -> str:
    """Such as ``driver (580.1, now 590.2)``; of what is no short text, the name alone."""
    if isinstance(before, Mapping) or isinstance(now, Mapping) or name == "device":
        return name
    return f"{name} ({str(before)[:16]}, now {str(now)[:16]})"


def _keys(path: Path) -> set[int]:
    """Of a configuration file; none where there is none that vLLM could read."""
    try:
        return set(read(path))
    except BadInputError:
        return set()


def _left(path: Path) -> _Left:
    try:
        return _Left.model_validate(edge.read_json(path))
    except (OSError, edge.EdgeError, ValidationError):
        return _Left()
