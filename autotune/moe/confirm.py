"""After the search: finalists against the default, and the file between its keys.

Everything here is measured side by side, in fresh processes, with fresh routings.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autotune.core import Candidate, Outcome, Phase, Selection, Trial
from autotune.moe.config_file import look_up
from autotune.moe.gpu import Compared, GpuMeasurer
from autotune.moe.shape import MoeShape, MoeWorkload
from autotune.selection import select_confirmed
from autotune.stats import paired_ratio
from autotune.tune import Progress, TrialLog

OnProgress = Callable[[Progress], None]
LEAST_LOSS = 0.01
"""Between keys, a loss against the default below this is not worth a key of its own."""
_CONFIRM_SEED, _BETWEEN_SEED = 1_000_000, 2_000_000


def held_out(ms: Sequence[int]) -> tuple[int, ...]:
    """Batch sizes between the keys, and one above: about where the look-up changes its mind.

    For each two neighbours the middle, rounded up; vLLM takes the nearest key, so that there the
    file's row is farthest from where it was tuned.
    """
    ordered = sorted(ms)
    middles = [(a + b + 1) // 2 for a, b in itertools.pairwise(ordered) if b - a > 1]
    return (*middles, 2 * ordered[-1])


def confirm(
    shape: MoeShape,
    finalists: Mapping[int, Sequence[Candidate]],
    measurer: GpuMeasurer,
    log: TrialLog,
    *,
    min_gain: float,
    seed: int,
    on_progress: OnProgress,
) -> dict[int, Selection]:
    """Measure the finalists of every M with the default, and choose.

    Args:
        shape: of the workloads.
        finalists: of each M, the default first.
        measurer: measures side by side.
        log: takes the confirming trials; those of an earlier command are used again.
        min_gain: least gain as a fraction.
        seed: of the routings.
        on_progress: told after every trial.

    Raises:
        NoFeasibleCandidateError: if at some M neither the default nor a finalist works.
    """
    groups = {MoeWorkload(shape, m): list(candidates) for m, candidates in finalists.items()}
    trials = side_by_side(groups, measurer, log, seed + _CONFIRM_SEED, on_progress, check=True)
    return {
        workload.m: select_confirmed(workload, found[0], found, min_gain)
        for workload, found in trials.items()
    }


def select_stored(
    workload: MoeWorkload, default: Candidate, trials: Sequence[Trial], min_gain: float
) -> Selection | None:
    """The selection of one M by its latest stored comparison, if there was one."""
    keys = [key for t in trials if (key := t.measurement.details.get("compared"))]
    # A comparison that was cut off and repeated has two trials of a candidate: the later is whole.
    group = {
        t.candidate: t for t in trials if keys and t.measurement.details.get("compared") == keys[-1]
    }
    if not group:
        return None
    return select_confirmed(workload, group.get(default), list(group.values()), min_gain)


def side_by_side(
    groups: Mapping[MoeWorkload, Sequence[Candidate]],
    measurer: GpuMeasurer,
    log: TrialLog,
    seed: int,
    on_progress: OnProgress,
    *,
    check: bool,
) -> dict[MoeWorkload, list[Trial]]:
    """Compare each group; a group that is stored with all its candidates is not measured again.

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
    results = measurer.compare(((w, c, seed) for w, c in missing.items()), check=check)
    for workload, compared in zip(missing, results, strict=True):
        trials = _logged(workload, compared, len(stored[workload]), log, on_progress)
        order = missing[workload]
        found[workload] = sorted(trials, key=lambda trial: order.index(trial.candidate))
    return {workload: found[workload] for workload in groups}


def _whole_comparison(
    stored: Sequence[Trial], candidates: Sequence[Candidate], seed: int
) -> dict[Candidate, Trial] | None:
    """The latest stored comparison with this seed that holds all candidates."""
    comparisons: dict[str, dict[Candidate, Trial]] = {}
    for trial in stored:
        details = trial.measurement.details
        if details.get("seed") == seed and "compared" in details:
            comparisons.setdefault(details["compared"], {})[trial.candidate] = trial
    whole = [c for c in comparisons.values() if all(candidate in c for candidate in candidates)]
    return whole[-1] if whole else None


def _logged(
    workload: MoeWorkload,
    compared: Sequence[Compared],
    start: int,
    log: TrialLog,
    on_progress: OnProgress,
) -> list[Trial]:
    trials = []
    for sequence, one in enumerate(compared, start=start):
        trial = Trial(one.candidate, workload.key, Phase.CONFIRM, sequence, one.measurement)
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
    measurer: GpuMeasurer,
    log: TrialLog,
    *,
    seed: int,
    on_progress: OnProgress,
) -> Checked:
    """Measure the file between its keys; where it loses, the default becomes a key of its own.

    Args:
        shape: of the workloads.
        selections: of the keys.
        defaults: at least for the keys and :func:`held_out` of them.
        measurer: measures side by side.
        log: takes the trials.
        seed: of the routings.
        on_progress: told after every trial.
    """
    rows = {m: s.winner.candidate for m, s in selections.items()}
    chosen = {m: look_up(rows, m) for m in held_out(list(selections))}
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
            kept[m] = Selection(workload.key, default, default, 1.0, kept_incumbent=True)
    return Checked(dict(sorted(kept.items())), seen)


def _between(m: int, key: int, default: Trial, file: Trial) -> Between:
    if file.measurement.outcome is not Outcome.OK:
        return Between(m, key, 0.0, 0.0, 0.0, pinned=True)
    ratio = paired_ratio(default.measurement.samples, file.measurement.samples)
    loses = ratio.high < 1 and ratio.value < 1 - LEAST_LOSS
    return Between(m, key, ratio.value, ratio.low, ratio.high, pinned=loses)
