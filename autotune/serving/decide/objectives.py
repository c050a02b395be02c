"""The best setting by every objective, and the Pareto front; whatever the search was led by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from autotune.core import Outcome, Trial
from autotune.serving.decide.pareto import Point, front, knee, point_of
from autotune.serving.forecast.forecast import level_rates
from autotune.serving.job import Result
from autotune.serving.report.tables import confirmed_ratio, setting
from autotune.serving.scenario import STATIC_OBJECTIVES


def recommendable(result: Result) -> list[Trial]:
    """Trials with a value that keep their SLO, and whose outputs are not known to be wrong."""
    return [
        t
        for t in result.trials
        if t.measurement.outcome is Outcome.OK
        and not t.measurement.details.get("slo_missed")
        and not ((c := result.compared.get(t.candidate)) and c.against)
    ]


def objective_rows(result: Result) -> list[dict[str, Any]]:
    """The best setting measured, one row for each objective.

    ``times_baseline`` is of the search's single boot; ``speedup`` and ``interval`` of fresh boots,
    None for settings that were not booted again.
    """
    scenario, rows = result.plan.scenario, []
    home = result.baseline

    def value(trial: Trial, objective: str) -> float:
        return scenario.microseconds(level_rates(trial), objective)

    for objective in STATIC_OBJECTIVES if recommendable(result) else ():
        best = min(recommendable(result), key=lambda t: (value(t, objective), t.sequence))
        ratio = confirmed_ratio(result, best.candidate, replace(scenario, objective=objective))
        rows.append(
            {
                "objective": objective,
                "candidate": best.candidate.params,
                "setting": setting(best.candidate),
                "us_per_token": value(best, objective),
                "times_baseline": value(home, objective) / value(best, objective),
                "speedup": ratio.value if ratio else None,
                "interval": [ratio.low, ratio.high] if ratio and ratio.low > 0 else None,
            }
        )
    return rows


def front_rows(result: Result) -> list[dict[str, Any]]:
    """The Pareto front of measured tok/s, the fastest single stream first."""
    found = (point_of(t.candidate, level_rates(t)) for t in recommendable(result))
    ordered = front([point for point in found if point is not None])
    best = knee(ordered) if ordered else None
    booted = result.confirmed.trials if result.confirmed is not None else {}
    return [
        {
            "candidate": point.candidate.params,
            "setting": setting(point.candidate),
            "single_tok_s": point.single,
            "aggregate_tok_s": point.aggregate,
            "place": _place(point, ordered, best),
            "booted_again": point.candidate in booted,
        }
        for point in ordered
    ]


def _place(point: Point, ordered: list[Point], best: Point | None) -> str:
    """Its ends, and between them the knee: two points have none."""
    names = ["single end"] * (point is ordered[0]) + ["aggregate end"] * (point is ordered[-1])
    return ", ".join(names + ["knee"] * (point is best and len(ordered) > 2))
