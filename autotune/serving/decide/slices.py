"""The verdict for each kind of prompt and each length: the mean over them hides what each wants.

On a real small model four drafted tokens were 2.6 times as fast where a text was rewritten, and no
gain on chat (docs/how-to/tune-by-kind-of-text.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from autotune.core import Candidate, Outcome, Trial
from autotune.decide.stats import Ratio, paired_ratio
from autotune.serving.decide.confirm import repeats_by
from autotune.serving.decide.objectives import recommendable
from autotune.serving.job import Result
from autotune.serving.measure.levels import rate_of
from autotune.serving.report.tables import setting
from autotune.serving.scenario import Slice


@dataclass(frozen=True)
class Alone:
    """One slice of the load by itself; ratios are speed over no speculation, in it alone.

    Attributes:
        slice: which.
        best: the setting for it; the baseline where nothing is clearly faster.
        ratio: of ``best``; None where that is the baseline.
        chosen: of what was chosen for the mix, which may be below 1.
        fresh: whether ``ratio`` is of fresh boots, or of those of the search.
    """

    slice: Slice
    best: Candidate
    ratio: Ratio | None
    chosen: Ratio | None
    fresh: bool


def alone(result: Result) -> list[Alone]:
    """Judge every slice by itself; empty where the load has one."""
    scenario = result.plan.scenario
    return [_alone(result, one) for one in scenario.slices] if scenario.is_mixed else []


def _alone(result: Result, one: Slice) -> Alone:
    home, scenario = result.baseline.candidate, result.plan.scenario

    def median_us(trial: Trial) -> float:
        levels = trial.measurement.details["slices"][one.name]
        return scenario.microseconds({c: rate_of(levels[str(c)]) for c in scenario.concurrency})

    able = [t for t in recommendable(result) if one.name in t.measurement.details["slices"]]
    best = min(able, key=lambda t: (median_us(t), t.sequence)).candidate if able else home
    ratio, fresh = _ratio(result, best, one)
    gains = ratio is not None and ratio.value >= 1 + result.plan.min_gain
    known = ratio is not None and 0 < ratio.low <= 1
    if not gains or known:
        best, ratio = home, None
    chosen, _ = _ratio(result, result.selection.winner.candidate, one)
    return Alone(one, best, ratio, chosen, fresh)


def _ratio(result: Result, candidate: Candidate, one: Slice) -> tuple[Ratio | None, bool]:
    """Speed over the baseline's in a slice: in fresh boots if there are any; whether it is."""
    home, scenario = result.baseline.candidate, result.plan.scenario
    if candidate == home:
        return None, False
    searched = {t.candidate: [t] for t in result.trials}
    confirmed = {} if result.confirmed is None else result.confirmed.trials

    def samples(trials: Sequence[Trial]) -> list[float]:
        if any(t.measurement.outcome is not Outcome.OK for t in trials):
            return []
        return [s for t in trials for s in repeats_by(t, scenario, scenario.measure, one.name)]

    for fresh, known in ((True, confirmed), (False, searched)):
        before, after = (samples(known.get(c, ())) for c in (home, candidate))
        if before and len(before) == len(after):
            return paired_ratio(before, after), fresh
    return None, False


def slice_rows(result: Result) -> list[dict[str, Any]]:
    """One row for each slice, as JSON values: what is best for it, and what the choice does there.

    ``tok_s`` is measured, by setting and concurrency, in the search; ``speedup`` in fresh boots
    where ``confirmed``, else in those of the search.
    """
    return [
        {
            "slice": found.slice.name,
            "kind": found.slice.kind or None,
            "context": found.slice.context,
            "candidate": found.best.params,
            "setting": setting(found.best),
            "is_baseline": found.best == result.baseline.candidate,
            "speedup": found.ratio.value if found.ratio else None,
            "interval": _ends(found.ratio),
            "confirmed": found.fresh,
            "chosen_speedup": found.chosen.value if found.chosen else None,
            "chosen_interval": _ends(found.chosen),
            "serve": result.plan.launcher.shell_line(result.plan.recipe.settings(found.best)),
            "tok_s": {
                setting(t.candidate): {c: rate_of(level) for c, level in levels.items()}
                for t in result.trials
                if (levels := t.measurement.details.get("slices", {}).get(found.slice.name))
            },
        }
        for found in alone(result)
    ]


def _ends(ratio: Ratio | None) -> list[float] | None:
    return [ratio.low, ratio.high] if ratio and ratio.low > 0 else None


def mix_words(result: Result) -> str:
    """What the verdict of a mix hides; empty for a load of one kind and length."""
    found = alone(result)
    if not found:
        return ""
    names = ", ".join(one.slice.name for one in found)
    if len({one.best for one in found}) == 1:
        return f"; this is a mix of {names}, and each by itself wants {_wanted(found[0], result)}"
    each = "; ".join(f"{one.slice.name}: {_wanted(one, result)}" for one in found)
    return f"; this is a MIX of {names}, which want different settings: {each}"


def _wanted(one: Alone, result: Result) -> str:
    if one.ratio is not None:
        how = "" if one.fresh else ", one boot"
        return f"{setting(one.best)} ({one.ratio.value:.2f}×{how})"
    if one.chosen is None:
        return setting(one.best)
    chosen = setting(result.selection.winner.candidate)
    return f"{setting(one.best)} ({chosen} is {one.chosen.value:.2f}× there)"
