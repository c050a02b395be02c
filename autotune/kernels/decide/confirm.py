"""After the search: finalists against the default, and the file between its keys.

Everything here is measured side by side, in fresh processes, with fresh routings.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from autotune.core import (
    Candidate,
    Group,
    Measurement,
    Outcome,
    Phase,
    Selection,
    SideBySide,
    Trial,
)
from autotune.decide.selection import select_confirmed
from autotune.decide.stats import Ratio, paired_ratio
from autotune.kernels.config_file import look_up
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.plan import FINALISTS
from autotune.store.retry import TRANSIENT
from autotune.tune import OnProgress, Progress, TrialLog, compared

LEAST_LOSS = 0.01
"""A look-up between keys that costs less is not worth a key of its own."""
_CONFIRM_SEED, _BETWEEN_SEED = 1_000_000, 2_000_000


def midpoints(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """Batch sizes between the keys, and one above: about where the look-up changes its mind.

    For each two neighbours the middle, rounded up; vLLM takes the nearest key, so that there the
    file's row is farthest from where it was tuned.
    """
    ordered = sorted(batch_sizes)
    middles = [(a + b + 1) // 2 for a, b in itertools.pairwise(ordered) if b - a > 1]
    return (*middles, 2 * ordered[-1])


@dataclass(frozen=True)
class Confirmed:
    """The selections, and of the batch sizes that have none the reason."""

    selections: dict[int, Selection]
    failed: dict[int, str]


def confirm(
    shape: MoeShape,
    finalists: Mapping[int, Sequence[Candidate]],
    measurer: SideBySide,
    log: TrialLog,
    *,
    min_gain: float,
    seed: int,
    on_progress: OnProgress,
) -> Confirmed:
    """Measure the finalists of every M with the default, and choose.

    Args:
        shape: of the workloads.
        finalists: of each M, the default first, then the best of the search; those beyond the
            first ``FINALISTS`` take the places of such as fail.
        measurer: measures side by side.
        log: takes the confirming trials; those of an earlier command are used again.
        min_gain: least gain as a fraction.
        seed: of the routings.
        on_progress: told after every trial.
    """
    places = 1 + FINALISTS
    order = {MoeWorkload(shape, m): list(candidates) for m, candidates in finalists.items()}
    groups = {workload: candidates[:places] for workload, candidates in order.items()}
    given = (measurer, log, seed + _CONFIRM_SEED, on_progress)
    trials = side_by_side(groups, *given, check=True)
    refilled = {w: _refilled(found, order[w][places:]) for w, found in trials.items()}
    side_by_side({w: group for w, group in refilled.items() if group}, *given, check=True)
    confirmed = Confirmed({}, {})
    for workload, found in trials.items():
        stored = log.load(workload, Phase.CONFIRM)
        selection = select_stored(workload, found[0].candidate, stored, min_gain)
        if selection is None:
            confirmed.failed[workload.m] = _why(workload, found[0].measurement)
        else:
            confirmed.selections[workload.m] = selection
    return confirmed


def _refilled(trials: Sequence[Trial], reserve: Sequence[Candidate]) -> list[Candidate]:
    """Where finalists failed: the default and those that worked once more, with the next best.

    Empty where none failed, nobody is left, or there is no default to compare with.
    """
    works = [t.candidate for t in trials if t.measurement.outcome is Outcome.OK]
    joining = list(reserve[: len(trials) - len(works)])
    return [*works, *joining] if joining and trials[0].candidate in works else []


def _why(workload: MoeWorkload, default: Measurement) -> str:
    return (
        f"{workload.label}: vLLM's default fails beside the finalists ({default.outcome.value}: "
        f"{default.message})"
    )


def comparisons(trials: Sequence[Trial]) -> list[dict[Candidate, Trial]]:
    """Trials that were measured side by side, by candidate; the latest comparison is the last.

    One that was cut off and repeated may have two trials of a candidate: the later counts.
    """
    found: dict[str, dict[Candidate, Trial]] = {}
    for trial in trials:
        name = trial.measurement.details.get("compared")
        if name is not None:
            found[name] = found.pop(name, {}) | {trial.candidate: trial}
    return list(found.values())


def deciding(trials: Sequence[Trial], default: Candidate) -> dict[Candidate, Trial]:
    """The latest comparison that can decide a key, of which the outputs were checked; or none."""
    for group in reversed(comparisons(trials)):
        checked = any(t.measurement.details.get("error") is not None for t in group.values())
        if checked and _settled(group, default):
            return group
    return {}


def select_stored(
    workload: MoeWorkload, default: Candidate, trials: Sequence[Trial], min_gain: float
) -> Selection | None:
    """The selection of one M by its stored comparisons, if one can decide it."""
    group = deciding(trials, default)
    if not group:
        return None
    return select_confirmed(workload, group[default], list(group.values()), min_gain)


def _settled(group: Mapping[Candidate, Trial], default: Candidate) -> bool:
    """Whether something works, and the default too unless it fails for good."""
    if default not in group or group[default].measurement.outcome in TRANSIENT:
        return False
    return any(trial.measurement.outcome is Outcome.OK for trial in group.values())


def side_by_side(
    groups: Mapping[MoeWorkload, Sequence[Candidate]],
    measurer: SideBySide,
    log: TrialLog,
    seed: int,
    on_progress: OnProgress,
    *,
    check: bool,
) -> dict[MoeWorkload, list[Trial]]:
    """Compare each group, the default first; one that is stored and settled is not measured again.

    Returns:
        Of each workload its trials, in the order of its candidates.
    """
    found: dict[MoeWorkload, list[Trial]] = {}
    stored = {workload: log.load(workload, Phase.CONFIRM) for workload in groups}
    for workload, candidates in groups.items():
        known = _whole_comparison(stored[workload], candidates, seed)
        if known is not None:
            found[workload] = [known[candidate] for candidate in candidates]
            for trial in found[workload]:
                on_progress(Progress(workload, trial, reused=True))
    missing = {w: list(candidates) for w, candidates in groups.items() if w not in found}
    wanted = (Group(workload, tuple(c), seed) for workload, c in missing.items())
    results = compared(wanted, measurer, log, check=check)
    for workload, result in zip(missing, results, strict=True):
        trials = _logged(workload, result, len(stored[workload]), log, on_progress)
        order = missing[workload]
        found[workload] = sorted(trials, key=lambda trial: order.index(trial.candidate))
    return {workload: found[workload] for workload in groups}


def _whole_comparison(
    stored: Sequence[Trial], candidates: Sequence[Candidate], seed: int
) -> dict[Candidate, Trial] | None:
    """The latest stored comparison with this seed that holds all candidates and is settled."""
    for group in reversed(comparisons(stored)):
        seeds = {trial.measurement.details.get("seed") for trial in group.values()}
        whole = seeds == {seed} and all(candidate in group for candidate in candidates)
        if whole and _settled(group, candidates[0]):
            return group
    return None


def _logged(
    workload: MoeWorkload,
    result: Mapping[Candidate, Measurement],
    start: int,
    log: TrialLog,
    on_progress: OnProgress,
) -> list[Trial]:
    trials = []
    for sequence, (candidate, measurement) in enumerate(result.items(), start=start):
        details = dict(measurement.details)
        # Of its own, so that the trials of a comparison that is made again do not mix.
        details["compared"] = f"{details['compared']}-{start}"
        named = replace(measurement, details=details)
        trial = Trial(candidate, workload.key, Phase.CONFIRM, sequence, named)
        log.append(workload, trial)
        trials.append(trial)
        on_progress(Progress(workload, trial, reused=False))
    return trials


@dataclass(frozen=True)
class Between:
    """A batch size between the keys: the file's row against the default, side by side.

    ``ratio`` is default over file (above 1 the file is faster), with its 95 % ends; 1 where both
    are the same row.
    """

    m: int
    key: int
    ratio: float
    low: float
    high: float
    pinned: bool


@dataclass(frozen=True)
class Checked:
    """Selections with the keys that the check added, and what it saw."""

    selections: dict[int, Selection]
    between: list[Between]


def check_between(
    shape: MoeShape,
    selections: Mapping[int, Selection],
    defaults: Mapping[int, Candidate],
    measurer: SideBySide,
    log: TrialLog,
    *,
    seed: int,
    on_progress: OnProgress,
) -> Checked:
    """Measure the file between its keys; where it loses, the default becomes a key of its own.

    Args:
        shape: of the workloads.
        selections: of the keys.
        defaults: at least for the keys and :func:`midpoints` of them.
        measurer: measures side by side.
        log: takes the trials.
        seed: of the routings.
        on_progress: told after every trial.
    """
    rows = {m: s.winner.candidate for m, s in selections.items()}
    chosen = {m: look_up(rows, m) for m in midpoints(list(selections))}
    groups = {
        MoeWorkload(shape, m): [defaults[m], row] for m, row in chosen.items() if row != defaults[m]
    }
    trials = side_by_side(groups, measurer, log, seed + _BETWEEN_SEED, on_progress, check=False)
    kept, seen = dict(selections), []
    for m, row in chosen.items():
        key = look_up({key: key for key in rows}, m)
        if row == defaults[m]:
            seen.append(Between(m, key, 1.0, 1.0, 1.0, pinned=False))
            continue
        workload = MoeWorkload(shape, m)
        default, file = trials[workload]
        if default.measurement.outcome is not Outcome.OK:
            continue  # nothing to lose against
        between = _between(m, key, default, file)
        seen.append(between)
        if between.pinned:
            kept[m] = Selection(default, default, 1.0, kept_incumbent=True)
    return Checked(dict(sorted(kept.items())), seen)


def _between(m: int, key: int, default: Trial, file: Trial) -> Between:
    if file.measurement.outcome is not Outcome.OK:
        return Between(m, key, 0.0, 0.0, 0.0, pinned=True)
    ratio = paired_ratio(default.measurement.samples, file.measurement.samples)
    return Between(m, key, ratio.value, ratio.low, ratio.high, pinned=loses(ratio))


def loses(ratio: Ratio) -> bool:
    """Whether a row is slower than the default beyond the interval, by more than ``LEAST_LOSS``."""
    return ratio.high < 1 and ratio.value < 1 - LEAST_LOSS
