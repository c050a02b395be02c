"""What a serving study says of a fused-MoE file: the same settings served without and with it.

Either one search compared them (``--moe-config default,FOLDER``), or two searches differ in it.

Plain values, so that an export of the MoE half can show what the serving half measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from autotune.core import BadInputError, Basis, Outcome, Phase, Trial
from autotune.engine.arguments import argument_value
from autotune.engine.variables import FOLDER, ROUTING
from autotune.kernels.config_file import LIMIT
from autotune.kind import SPEC
from autotune.store.records import SearchRecord
from autotune.store.store import Store
from autotune.util import edge

_FILES = "moe_files"
"""Under which a recipe has the digest of that folder's files."""
_PARAMETER, _DEFAULT = "moe_config", "default"
"""Of a setting, where one search compares folders."""
Rates = dict[tuple[str, int], list[float]]
"""Output tokens per second of every repeat, by setting and concurrency."""


def with_and_without(store: Store, study: str, file_name: str, data: bytes) -> dict[str, Any]:
    """The rows of a table: each load served without the file and with it.

    Args:
        store: with the study.
        study: of `autotune spec`, run with ``--moe-config default,FOLDER``, or once without and
            once with ``--moe-config``.
        file_name: that the folder must hold.
        data: what it must hold there.

    Raises:
        BadInputError: no such study, no such pair of searches, or another file was served.
    """
    detail = store.get_study(study, SPEC)
    for after in reversed(detail.searches):
        trials = store.trials(after)
        found = _within(trials, file_name, data) or _across(store, after, trials, detail.searches)
        if found is None:
            continue
        served, how, before, with_it = found
        _check_file(study, Path(served) / file_name, data)
        rows = _rows(before, with_it)
        if rows:
            how = "; ".join([how, *_made_up(after)])
            return {"how": f" (vLLM {after.setup.get('vllm')}; {how})", "rows": rows}
    raise BadInputError(
        f"--serve-study {study}: was not run both without --moe-config and with it, all else "
        "equal, nor with --moe-config default,FOLDER"
    )


def _made_up(record: SearchRecord) -> list[str]:
    """What of the servers was not the model's own, for who reads the table."""
    said = ["acceptance synthetic"] if record.setup.get("basis") == Basis.SYNTHETIC.value else []
    recipe = record.setup.get("recipe", {})
    if argument_value(recipe.get("server_args", []), "--load-format") == "dummy":
        said.append("weights made up")
    routing = recipe.get("env", {}).get(ROUTING)
    if routing:
        said.append(f"experts drawn by {routing}")
    return said


def _within(
    trials: Sequence[Trial], file_name: str, data: bytes
) -> tuple[str, str, Rates, Rates] | None:
    """Of one search: the folder, how it was compared, rates without and with it."""
    values = [t.candidate.params[_PARAMETER] for t in trials if _PARAMETER in t.candidate.params]
    folders = [str(value) for value in dict.fromkeys(values) if value != _DEFAULT]
    if not folders:
        return None
    holding = (f for f in folders if _holds(Path(f) / file_name, data))
    served = next(holding, folders[0])
    fresh = [trial for trial in trials if trial.phase is Phase.CONFIRM]
    for some, how in ((fresh, "fresh boots, round by round"), (trials, "one boot each")):
        before, after = (
            _rates([t for t in some if t.candidate.params.get(_PARAMETER) == value])
            for value in (_DEFAULT, served)
        )
        if before.keys() & after.keys():
            return served, how, before, after
    return None


def _across(
    store: Store, after: SearchRecord, trials: Sequence[Trial], searches: Sequence[SearchRecord]
) -> tuple[str, str, Rates, Rates] | None:
    """The same of two searches that differ in nothing but the folder."""
    before = _same_without(after, searches)
    if before is None:
        return None
    rates = _rates(store.trials(before)), _rates(trials)
    return _env(after)[FOLDER], "separate boots, not in turns", *rates


def _env(record: SearchRecord) -> dict[str, str]:
    return dict(record.setup.get("recipe", {}).get("env", {}))


def _same_without(after: SearchRecord, searches: Sequence[SearchRecord]) -> SearchRecord | None:
    """The search that differs in nothing but the folder and its files."""
    if FOLDER not in _env(after):
        return None
    env = {name: value for name, value in _env(after).items() if name != FOLDER}
    recipe = {name: value for name, value in after.setup["recipe"].items() if name != _FILES}
    wanted = after.setup | {"recipe": recipe | {"env": env}}
    return next((record for record in searches if record.setup == wanted), None)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return edge.read_bytes(path, LIMIT) == data
    except (OSError, edge.EdgeError):
        return False


def _check_file(study: str, path: Path, data: bytes) -> None:
    if not _holds(path, data):
        raise BadInputError(
            f"--serve-study {study}: {path}, which was served, is not (or no longer) the file "
            "that is exported"
        )


def _rates(trials: Sequence[Trial]) -> Rates:
    found: Rates = {}
    for trial in trials:
        if trial.measurement.outcome is not Outcome.OK:
            continue
        items = trial.candidate.items
        setting = ", ".join(f"{name}={value}" for name, value in items if name != _PARAMETER)
        levels: Mapping[str, Any] = trial.measurement.details.get("levels", {})
        for concurrency, level in levels.items():
            found.setdefault((setting, int(concurrency)), []).extend(level["repeats"])
    return found


def _rows(before: Rates, after: Rates) -> list[dict[str, str]]:
    rows = []
    for setting, concurrency in sorted(before.keys() & after.keys()):
        old, new = before[setting, concurrency], after[setting, concurrency]
        rows.append(
            {
                "load": f"{setting}, {concurrency} at once",
                "before": _spread(old),
                "after": _spread(new),
                "ratio": f"{median(new) / median(old):.3f}",
                "range": f"{min(new) / max(old):.3f} to {max(new) / min(old):.3f}",
            }
        )
    return rows


def _spread(rates: Sequence[float]) -> str:
    return f"{median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f}, {len(rates)} repeats)"
