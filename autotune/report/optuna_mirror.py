"""Mirrors stored studies into an Optuna storage file, which optuna-dashboard opens.

The file is a copy for looking at: it is made anew each time, and nothing is ever read back from
it. It is a journal (``optuna.storages.JournalStorage``) and not an SQL database because Optuna
takes 32 ms for every trial that it adds to one, and 0.15 ms in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from autotune.core import Outcome, Scalar, canonical_json
from autotune.export.files import write_whole
from autotune.store.records import DatedTrial, SearchRecord, StudyDetail, WorkloadRecord

optuna.logging.set_verbosity(optuna.logging.WARNING)

MOST_TEXT = 2000
"""Characters of a failure's message that are mirrored: the dashboard shows it in a table's cell."""


class _Memory(BaseJournalBackend):
    """Collects what a journal would hold."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Those from the given number on."""
        return iter(self.logs[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keep them."""
        self.logs += logs


def mirror(
    studies: Iterable[tuple[StudyDetail, Mapping[int, Sequence[DatedTrial]]]], path: Path
) -> list[str]:
    """Write studies to ``path`` as Optuna studies, one for each search and workload.

    The file is replaced whole, so that a dashboard never sees half of it.

    Args:
        studies: each with the trials of its searches, by the search's id.
        path: of the file.

    Returns:
        The names of the Optuna studies.

    Raises:
        BadInputError: the place cannot be written.
        MissingEnvironmentError: no space is left.
    """
    memory = _Memory()
    storage = JournalStorage(memory)
    names = []
    for detail, trials in studies:
        for search in detail.searches:
            found = trials.get(search.id, ())
            workloads = [w for w in detail.workloads if w.search_id == search.id]
            labels = Counter(workload.label for workload in workloads)
            for workload in workloads:
                own = [t for t in found if t.trial.workload_key == workload.key]
                if own:
                    # Loads of one concurrency differ in prompts or repeats, which no label says.
                    load = f" ({workload.key[:8]})" if labels[workload.label] > 1 else ""
                    names.append(_add(storage, detail, search, workload, own, load))
    lines = (json.dumps(log, separators=(",", ":")) + "\n" for log in memory.logs)
    write_whole(path, "".join(lines).encode())
    return names


def open_mirror(path: Path) -> JournalStorage:
    """The storage that :func:`mirror` wrote."""
    return JournalStorage(JournalFileBackend(str(path)))


def _add(
    storage: JournalStorage,
    detail: StudyDetail,
    search: SearchRecord,
    workload: WorkloadRecord,
    trials: Sequence[DatedTrial],
    load: str,
) -> str:
    basis = trials[0].trial.measurement.basis.value
    which = f", search {search.id}" if len(detail.searches) > 1 else ""
    name = f"{detail.study.name} {workload.label}{load}, {basis}{which}"
    study = optuna.create_study(storage=storage, study_name=name, direction="minimize")
    attributes = {
        "kind": detail.study.kind,
        "basis": basis,
        "identity": canonical_json(detail.study.identity),
        "setup": canonical_json(search.setup),
        "workload": canonical_json(workload.spec),
    }
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    distributions = _distributions(trials)
    study.add_trials([_frozen(dated, distributions) for dated in trials])
    return name


def _distributions(trials: Sequence[DatedTrial]) -> dict[str, BaseDistribution]:
    """Of every parameter the values that occur, in order: Optuna wants one set for all trials."""
    seen: dict[str, dict[str, Scalar]] = {}
    for dated in trials:
        for name, value in dated.trial.candidate.items:
            seen.setdefault(name, {})[canonical_json(value)] = value
    ordered = {name: sorted(values.values(), key=_rank) for name, values in seen.items()}
    return {name: CategoricalDistribution(values) for name, values in ordered.items()}


def _rank(value: Scalar) -> tuple[bool, float, str]:
    """Numbers by their size, then texts."""
    if isinstance(value, str):
        return True, 0.0, value
    return False, float(value), ""


def _frozen(dated: DatedTrial, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    trial, measurement = dated.trial, dated.trial.measurement
    attributes: dict[str, Any] = {
        "phase": trial.phase.value,
        "basis": measurement.basis.value,
        "outcome": measurement.outcome.value,
        "sequence": trial.sequence,
        "run": dated.run_id,
    }
    if measurement.message:
        attributes["message"] = measurement.message[:MOST_TEXT]
    ok = measurement.outcome is Outcome.OK
    made = create_trial(
        state=TrialState.COMPLETE if ok else TrialState.FAIL,
        value=measurement.value,
        params=trial.candidate.params,
        distributions={name: distributions[name] for name, _ in trial.candidate.items},
        user_attrs=attributes,
    )
    made.datetime_complete = _like(made.datetime_complete, dated.created_at)
    made.datetime_start = made.datetime_complete - timedelta(seconds=measurement.seconds)
    return made


def _like(given: datetime | None, moment: datetime) -> datetime:
    """Optuna 5 keeps aware times, Optuna 4 naive local ones."""
    aware = given is not None and given.tzinfo is not None
    return moment if aware else moment.astimezone().replace(tzinfo=None)
