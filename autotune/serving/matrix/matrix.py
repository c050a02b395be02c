"""Several targets with one drafter and the same flags: who gains what.

Every target is a study of its own, with its own files; the matrix is read off their results. So it
can be killed and taken up at any point, and a target that is refused or fails stops no other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from autotune.core import (
    AutotuneError,
    BadInputError,
    Candidate,
    NoFeasibleCandidateError,
    Outcome,
    Trial,
    digest,
)
from autotune.serving.cluster.look import Looked
from autotune.serving.decide.conclusion import verdict
from autotune.serving.forecast.forecast import level_rates
from autotune.serving.job import Result
from autotune.serving.make_plan import make_plan
from autotune.serving.plan import Plan, default_study
from autotune.serving.preflight import refusal
from autotune.serving.recipe import GAMMA
from autotune.serving.report.tables import setting
from autotune.serving.request import SpecRequest
from autotune.util.finding import Finding


class Status(StrEnum):
    """How far a target has come."""

    WAITING = "waiting"
    REFUSED = "refused"
    """By the checks before the start."""
    FAILED = "failed"
    """Its server without speculation does not work, or its study cannot be used."""
    DONE = "done"


@dataclass
class Entry:
    """A target: what the checks say, and what came of it.

    Attributes:
        target: as given.
        study: the name of its own study.
        plan: None where it could not be made.
        findings: of the preflight.
        status: how far it has come.
        reason: why it was refused or failed.
        result: once it is done.
    """

    target: str
    study: str
    plan: Plan | None = None
    findings: list[Finding] = field(default_factory=list)
    status: Status = Status.WAITING
    reason: str = ""
    result: Result | None = None


def matrix_study(request: SpecRequest) -> str:
    """The name under which the matrix is filed; its targets' studies begin with it, if given."""
    return request.study or default_study("matrix", request.only_drafter)


def study_names(request: SpecRequest) -> list[str]:
    """A study for every target; two whose folders have one name are told apart by their paths."""
    targets = request.target
    if request.study is None:
        names = [default_study(target, request.only_drafter) for target in targets]
    else:
        parts = [default_study(target, "").removeprefix("spec-").rstrip("-") for target in targets]
        names = [f"{request.study[:60]}-{part}"[:100] for part in parts]
    return [
        f"{name[:92]}-{digest(target)[:6]}" if names.count(name) > 1 else name
        for name, target in zip(names, targets, strict=True)
    ]


def prepare(request: SpecRequest, nodes: Looked | None = None, *, pull: bool = True) -> list[Entry]:
    """Plans and checks for every target, before the first server starts.

    Args:
        request: the flags.
        nodes: of a cluster, on which servers are to be started; None starts them here.
        pull: whether an image that is not here may be pulled.

    Raises:
        BadInputError: a target twice.
        AutotuneError: none of them can be tried; with the reasons.
    """
    targets = request.target
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice is not None:
        raise BadInputError(f"--target {twice}: is given twice")
    entries: list[Entry] = []
    errors: list[AutotuneError] = []
    for target, study in zip(targets, study_names(request), strict=True):
        entry = Entry(target, study)
        entries.append(entry)
        try:
            entry.plan = make_plan(request.of_target(target, study), nodes, pull=pull)
            entry.findings = list(entry.plan.findings)
            if not request.force:
                refusal(entry.findings)
        except AutotuneError as error:
            entry.status, entry.reason = Status.REFUSED, str(error)
            errors.append(error)
    if len(errors) == len(entries):  # most likely a flag, of which all say the same
        raise type(errors[0])("; ".join(dict.fromkeys(map(str, errors))))
    return entries


def run_each(
    entries: Sequence[Entry],
    tune: Callable[[Plan], Result],
    on_change: Callable[[Sequence[Entry]], None],
) -> None:
    """Tune one target after the other; what stops one does not stop the others.

    Args:
        entries: from :func:`prepare`; changed as it goes.
        tune: does one, with its files.
        on_change: told after each.

    Raises:
        NoFeasibleCandidateError: none of them works.
        MissingEnvironmentError: what none can do without is missing, such as vLLM or disk space.
    """
    for entry in entries:
        if entry.plan is None or entry.status is not Status.WAITING:
            continue
        try:
            entry.result = tune(entry.plan)
            entry.status = Status.DONE
        except (BadInputError, NoFeasibleCandidateError) as error:
            entry.status, entry.reason = Status.FAILED, str(error)
        on_change(entries)
    if not any(entry.result for entry in entries):
        said = "; ".join(f"{entry.target}: {entry.reason}" for entry in entries)
        raise NoFeasibleCandidateError(f"none of the targets works: {said}")


def matrix_row(entry: Entry) -> dict[str, Any]:
    """A target as JSON values; rates are aggregate tokens per second by concurrency.

    ``best`` is the setting chosen, or where none was chosen the fastest other that was measured,
    which may be slower than the baseline: ``wins`` says which.
    """
    row: dict[str, Any] = {
        "target": entry.target,
        "study": entry.study,
        "status": entry.status.value,
        "reason": entry.reason,
    }
    if entry.plan is not None:
        target = entry.plan.pair.target
        row |= {"quantisation": target.quantisation, "chat_template": target.chat}
    result = entry.result
    if result is None:
        return row
    best = _best(result)
    if best is None and result.failures:
        row["reason"] = result.failures[0].measurement.message
    return row | {
        "basis": result.plan.basis.value,
        "baseline": {
            "setting": setting(result.baseline.candidate),
            "tok_s": _rates(result, result.baseline),
        },
        "best": None if best is None else _best_row(result, best),
        "wins": not result.selection.kept_incumbent,
        "verdict": verdict(result),
        "boots": result.boots,
        "fresh_boots": result.fresh_boots,
    }


def _best(result: Result) -> Trial | None:
    """The choice, else the fastest other setting measured."""
    if not result.selection.kept_incumbent:
        chosen = result.selection.winner.candidate
        return next((t for t in result.trials if t.candidate == chosen), result.selection.winner)
    rest = [t for t in result.trials if t.candidate != result.baseline.candidate]
    ok = [t for t in rest if t.measurement.outcome is Outcome.OK]
    return min(ok, key=lambda t: t.measurement.value or 0.0, default=None)


def _best_row(result: Result, best: Trial) -> dict[str, Any]:
    candidate, levels = best.candidate, best.measurement.details.get("levels", {})
    speedup, interval = _speedup(result, best)
    lengths = {c: level.get("acceptance_length") for c, level in levels.items()}
    return {
        "candidate": candidate.params,
        "setting": setting(candidate),
        "tok_s": _rates(result, best),
        "speedup": speedup,
        "interval": interval,
        "acceptance_length": lengths if candidate[GAMMA] else {},
        "identical_share": result.identical.get(candidate),
    }


def _speedup(result: Result, best: Trial) -> tuple[float | None, list[float] | None]:
    """Over the baseline: in the fresh boots where it was booted again, else in the search's."""
    ratio = result.confirmed.ratios.get(best.candidate) if result.confirmed else None
    if ratio is not None:
        return ratio.value, [ratio.low, ratio.high] if ratio.low > 0 else None
    before, value = result.baseline.measurement.value, best.measurement.value
    return (before / value if before and value else None), None


def _rates(result: Result, trial: Trial) -> dict[str, float]:
    """Mean over the fresh boots, else the search's one."""
    found = _confirmed(result, trial.candidate) or [trial]
    rates = [level_rates(one) for one in found]
    return {str(c): statistics.fmean(rate[c] for rate in rates) for c in rates[0]}


def _confirmed(result: Result, candidate: Candidate) -> list[Trial]:
    if result.confirmed is None:
        return []
    trials = result.confirmed.trials.get(candidate, ())
    return [t for t in trials if t.measurement.outcome is Outcome.OK]
