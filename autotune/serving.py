"""What a serving study says of a fused-MoE file: the same settings served without and with it.

Plain values, so that an export of the MoE half can show what the serving half measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from autotune.core import BadInputError, Basis, Outcome, Trial
from autotune.records import SearchRecord
from autotune.store import Store

FOLDER = "VLLM_TUNED_CONFIG_FOLDER"
_FILES = "moe_files"
"""Under which a recipe has the digest of that folder's files."""
Rates = dict[tuple[str, int], list[float]]
"""Output tokens per second of every repeat, by setting and concurrency."""


def with_and_without(store: Store, study: str, file_name: str, data: bytes) -> dict[str, Any]:
    """The rows of a table: each load served without the file and with it.

    Args:
        store: with the study.
        study: of `autotune spec`, run once without and once with ``--moe-config``.
        file_name: that the folder must hold.
        data: what it must hold there.

    Raises:
        BadInputError: no such study, no such pair of searches, or another file was served.
    """
    detail = store.get_study(study)
    if detail.study.kind != "spec":
        raise BadInputError(f"--serve-study {study}: of kind {detail.study.kind}, not spec")
    for after in reversed(detail.searches):
        before = _same_without(after, detail.searches)
        if before is not None:
            _check_file(study, Path(_env(after)[FOLDER]) / file_name, data)
            rows = _rows(_rates(store.trials(before)), _rates(store.trials(after)))
            if rows:
                synthetic = after.setup.get("basis") == Basis.SYNTHETIC.value
                how = f" (vLLM {after.setup.get('vllm')}; separate boots, not in turns"
                how += ", acceptance synthetic)" if synthetic else ")"
                return {"how": how, "rows": rows}
    raise BadInputError(
        f"--serve-study {study}: was not run both without --moe-config and with it, all else equal"
    )


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


def _check_file(study: str, path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        raise BadInputError(
            f"--serve-study {study}: {path}, which was served, is not (or no longer) the file "
            "that is exported"
        )


def _rates(trials: Sequence[Trial]) -> Rates:
    found: Rates = {}
    for trial in trials:
        if trial.measurement.outcome is not Outcome.OK:
            continue
        setting = ", ".join(f"{name}={value}" for name, value in trial.candidate.items)
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
