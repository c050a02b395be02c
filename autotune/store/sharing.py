"""A stored study made into a bundle, and a bundle taken into a database."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from autotune import __version__
from autotune.core import BadInputError, Candidate, Trial, digest
from autotune.store.bundle import (
    FORMAT,
    MESSAGE,
    VERSION,
    Bundle,
    BundledSearch,
    BundledTrial,
)
from autotune.store.records import RunRecord, RunStatus, SearchRecord
from autotune.store.store import Store, utc_now

SAID = ("texts",)
"""Details that hold what a model answered to its user's prompts: they are not given away."""
MARK = "bundle"
"""In a setup: the trials are of a bundle, and no command here goes on from them."""


def make_bundle(store: Store, study: str, clean: Callable[[Any], Any]) -> Bundle:
    """Make a bundle of a study, as it is now.

    Args:
        store: with the study.
        study: its name.
        clean: takes out of a JSON value what tells of people and machines.

    Raises:
        BadInputError: no such study, or it has no trials.
    """
    detail = store.get_study(study)
    places = {record.id: place for place, record in enumerate(detail.environments)}
    runs = {
        search.id: [r for r in detail.all_runs if r.search_id == search.id]
        for search in detail.searches
    }
    searches = [
        _search(store, search, runs[search.id], places, clean)
        for search in detail.searches
        if runs[search.id]
    ]
    searches = [search for search in searches if search["trials"]]
    if not searches:
        raise BadInputError(f"study {study!r} has no trials yet: there is nothing to give away")
    about = detail.study
    name = re.sub(r"[^\w.+ -]", "", clean(about.name)).lstrip(".+ -") or about.kind
    head = {"name": name, "kind": about.kind, "identity": clean(about.identity)}
    return Bundle.model_validate(
        {
            "format": FORMAT,
            "version": VERSION,
            "autotune": __version__,
            "study": head | {"created_at": about.created_at},
            "environments": [clean(record.details) for record in detail.environments],
            "searches": searches,
        }
    )


def _search(
    store: Store,
    search: SearchRecord,
    runs: Sequence[RunRecord],
    places: dict[int, int],
    clean: Callable[[Any], Any],
) -> dict[str, Any]:
    workloads: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    for workload in store.workloads(search):
        spec = clean(workload.spec)
        key = workload.key if spec == workload.spec else digest(spec)
        numbers[workload.key] = len(workloads)
        workloads.append({"key": key, "label": clean(workload.label), "spec": spec})
    run_numbers = {run.id: number for number, run in enumerate(runs)}
    trials = []
    for dated in store.dated_trials(search):
        trial, measured = dated.trial, dated.trial.measurement
        trials.append(
            {
                "run": run_numbers[dated.run_id],
                "workload": numbers[trial.workload_key],
                "phase": trial.phase,
                "sequence": trial.sequence,
                "candidate": clean(trial.candidate.params),
                "outcome": measured.outcome,
                "basis": measured.basis,
                "value": measured.value,
                "samples": list(measured.samples),
                "message": clean(measured.message)[:MESSAGE],
                "details": clean({k: v for k, v in measured.details.items() if k not in SAID}),
                "seconds": measured.seconds,
                "created_at": dated.created_at,
            }
        )
    verdicts = store.verdicts(search)
    return {
        "setup": clean(search.setup),
        "verdict": clean(_without_commands(verdicts[0])) if verdicts else None,
        "runs": [
            {
                "environment": places[run.environment_id],
                "started_at": run.started_at,
                "ended_at": run.ended_at,
                "status": run.status,
            }
            for run in runs
        ],
        "workloads": workloads,
        "trials": trials,
    }


def _without_commands(value: Any) -> Any:
    """A verdict without the commands in it, whose words may be of any kind."""
    if isinstance(value, dict):
        return {
            key: "(left out)" if key in {"command", "serve"} and one else _without_commands(one)
            for key, one in value.items()
        }
    return [_without_commands(one) for one in value] if isinstance(value, list) else value


def merge_bundle(url: str, bundle: Bundle, name: str, command: str) -> int:
    """Take a bundle into a database as a study; what is there of it already is left alone.

    Its trials are dated as they were made. Each search is marked as the bundle's own, so that no
    command here goes on from what another machine measured.

    Args:
        url: of the database.
        bundle: checked.
        name: of the study.
        command: as typed; stands for the commands that made the trials.

    Returns:
        How many trials are new.

    Raises:
        BadInputError: another study has this name, or is being tuned.
    """
    latest, clock = utc_now(), _Clock(utc_now())
    added = 0
    with Store.open(url, now=clock) as store:
        known = store.find_study(name)
        if known is not None and any(s.setup.get(MARK) != bundle.key for s in known.searches):
            raise BadInputError(
                f"study {name!r} is in {store.path} already, and not of this bundle; give --study "
                "another name"
            )
        with store.lock_study(name):
            clock.time = min(bundle.study.created_at, latest)
            study = store.study(name, bundle.study.kind, bundle.study.identity)
            for bundled in bundle.searches:
                search = store.search(study, bundled.setup | {MARK: bundle.key})
                added += _add(store, search, bundled, bundle, command, clock)
    return added


class _Clock:
    """Tells the time that it was set to: that of a trial which was made elsewhere."""

    def __init__(self, time: datetime) -> None:
        self.time = time

    def __call__(self) -> datetime:
        return self.time


def _add(
    store: Store,
    search: SearchRecord,
    bundled: BundledSearch,
    bundle: Bundle,
    command: str,
    clock: _Clock,
) -> int:
    """Add the trials of a search that are not there; after a kill the rest of them."""
    latest = utc_now()
    there = {(t.workload_key, t.phase, t.sequence) for t in store.trials(search)}
    keys = [workload.key for workload in bundled.workloads]
    added = 0
    of_run: dict[int, list[BundledTrial]] = {}
    for trial in bundled.trials:  # once: a bundle may have as many runs as it likes
        if (keys[trial.workload], trial.phase, trial.sequence) not in there:
            of_run.setdefault(trial.run, []).append(trial)
    for number, run in enumerate(bundled.runs):
        own = of_run.get(number, [])
        is_last = number == len(bundled.runs) - 1
        if not own and not (is_last and bundled.verdict and not store.verdicts(search)):
            continue
        clock.time = min(run.started_at, latest)
        environment = store.environment(bundle.environments[run.environment])
        record = store.start_run(search, environment, command)
        for batch in _batches(own):
            workload = store.workload(search, bundled.workloads[batch[0].workload])
            clock.time = min(batch[0].created_at, latest)
            made = [
                Trial(Candidate.of(t.candidate), workload.key, t.phase, t.sequence, t.measurement())
                for t in batch
            ]
            store.add_trials(record, workload.id, made)
        if is_last and bundled.verdict:
            store.set_verdict(search, bundled.verdict)
        clock.time = min(run.ended_at or run.started_at, latest)
        done = run.status if run.status is not RunStatus.RUNNING else RunStatus.KILLED
        store.end_run(record, done)
        added += len(own)
    return added


def _batches(trials: Sequence[BundledTrial]) -> list[list[BundledTrial]]:
    """Trials in their order, those of one workload and time together."""
    return [list(batch) for _, batch in groupby(trials, attrgetter("workload", "created_at"))]
