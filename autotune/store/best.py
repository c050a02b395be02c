"""The best trials of a stored study. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.core import Phase, Trial
from autotune.store.records import StudyDetail


def best_rows(detail: StudyDetail, trials: Mapping[int, Sequence[Trial]]) -> list[dict[str, Any]]:
    """Return the best trial of every (search, workload) and vLLM's default, as JSON values.

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
