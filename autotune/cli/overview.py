"""What a stored study amounts to so far. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.core import Phase, Trial
from autotune.serving.measure.levels import rate_of
from autotune.serving.report.tables import setting
from autotune.serving.stored import Served
from autotune.store.records import StudyDetail


def best_rows(detail: StudyDetail, trials: Mapping[int, Sequence[Trial]]) -> list[dict[str, Any]]:
    """The best trial of every (search, workload) beside vLLM's default, as JSON values.

    Args:
        detail: the study.
        trials: of each of its searches, by id.
    """
    labels = {workload.key: workload.label for workload in detail.workloads}
    best: dict[tuple[int, str], tuple[float, Trial]] = {}
    default: dict[tuple[int, str], float | None] = {}
    for search_id, found in trials.items():
        for trial in found:
            key = (search_id, trial.workload_key)
            value = trial.measurement.value
            if trial.phase is Phase.BASELINE:
                default[key] = value
            if value is not None and (key not in best or value < best[key][0]):
                best[key] = (value, trial)
    return [
        {
            "search": key[0],
            "workload": labels[key[1]],
            "basis": trial.measurement.basis.value,
            "best_us": value,
            "default_us": default.get(key),
            "config": trial.candidate.params,
        }
        for key, (value, trial) in best.items()
    ]


def served_rows(served: Served) -> list[dict[str, Any]]:
    """Every setting of a load of a ``spec`` study, the baseline first, as JSON values.

    ``times_baseline`` is of the search's single boot, ``fresh_boots`` of the boots that took turns.
    """
    before = None if served.baseline is None else served.baseline.measurement.value
    rows = []
    for trial in served.searched:
        measurement, ratio = trial.measurement, served.confirmed_ratio(trial.candidate)
        value, levels = measurement.value, measurement.details.get("levels", {})
        rows.append(
            {
                "setting": setting(trial.candidate),
                "outcome": measurement.outcome.value,
                "tok_s": {c: rate_of(level) for c, level in levels.items()},
                "times_baseline": before / value if before and value else None,
                "fresh_boots": None if ratio is None else ratio.value,
                "identical_share": served.identical(trial),
            }
        )
    return rows
