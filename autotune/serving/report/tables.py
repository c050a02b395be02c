"""A finished job in rows: JSON values first, text for people after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from autotune.core import Candidate, Outcome, Trial
from autotune.decide.stats import Ratio, paired_ratio
from autotune.serving.decide.confirm import Confirmed, repeats_by
from autotune.serving.decide.quality import Compared
from autotune.serving.forecast.forecast import level_rates, others
from autotune.serving.job import Result
from autotune.serving.measure.levels import rate_of
from autotune.serving.measure.tasks import scores_of
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import SpecScenario


def setting(candidate: Candidate) -> str:
    """Such as ``gamma=2 kv_cache_dtype=fp8``."""
    rest = [f"{name}={value}" for name, value in others(candidate)]
    return " ".join([f"{GAMMA}={candidate[GAMMA]}", *rest])


def trial_row(result: Result, trial: Trial) -> dict[str, Any]:
    """One setting of the search as JSON values.

    ``us_per_token`` is measured, by the objective; ``times_baseline`` of the search's single boot.
    """
    measurement, details = trial.measurement, trial.measurement.details
    before, value = result.baseline.measurement.value, measurement.value
    levels = details.get("levels", {})
    return {
        "candidate": trial.candidate.params,
        "setting": setting(trial.candidate),
        "outcome": measurement.outcome.value,
        "message": measurement.message,
        "us_per_token": value,
        "times_baseline": before / value if before and value else None,
        "tok_s": {c: rate_of(level) for c, level in levels.items()},
        "levels": levels,
        "identical_share": result.identical.get(trial.candidate)
        if trial.candidate[GAMMA]
        else None,
        "outputs": outputs_row(result.compared.get(trial.candidate)),
        "kv_cache_tokens": details.get("kv_cache_tokens"),
        "memory_bytes": details.get("memory_bytes"),
        "start_s": details.get("start_s"),
        "repeats_of_earlier_runs": details.get("repeats_of_earlier_runs", 0),
        "log": details.get("log"),
        "moe_used": details.get("moe_used", []),
        "moe_missing": details.get("moe_missing", []),
    }


def outputs_row(found: Compared | None) -> dict[str, Any] | None:
    """What the gate says of a setting's long texts; None where it was not asked."""
    judged = None if found is None else found.judged
    return None if judged is None else {**asdict(judged), "passes": judged.passes}


def forecast_rows(result: Result) -> list[dict[str, Any]]:
    """PREDICTED against measured aggregate tok/s, by gamma and concurrency.

    Two of the gammas are what the prediction was made from: 0 and the probe's (``is_input``).
    """
    if result.forecast is None:
        return []
    home = others(result.baseline.candidate)
    measured = {
        t.candidate.int(GAMMA): level_rates(t)
        for t in result.trials
        if others(t.candidate) == home and t.measurement.outcome is Outcome.OK
    }
    rows = []
    for gamma, rates in result.forecast.tok_s.items():
        for concurrency, predicted in rates.items():
            actual = measured.get(gamma, {}).get(concurrency)
            rows.append(
                {
                    "gamma": gamma,
                    "concurrency": concurrency,
                    "predicted_tok_s": predicted,
                    "measured_tok_s": actual,
                    "error": None if actual is None else predicted / actual - 1,
                    "is_input": gamma in {0, result.forecast.probe_gamma},
                }
            )
    return rows


def confirm_rows(result: Result) -> list[dict[str, Any]]:
    """One row per setting that was booted again: µs per token of each boot, speed over baseline.

    ``message`` says what a failed boot said, or a task that speaks against the setting. ``at`` has
    the tok/s over the baseline's at each concurrency.
    """
    if result.confirmed is None:
        return []
    rows = []
    dropped = {candidate: [trial] for candidate, trial in result.confirmed.dropped.items()}
    for candidate, trials in [*result.confirmed.trials.items(), *dropped.items()]:
        ratio = result.confirmed.ratios.get(candidate)
        known = ratio is not None and ratio.low > 0
        rows.append(
            {
                "setting": setting(candidate),
                "boots_us_per_token": [t.measurement.value for t in trials],
                "outcomes": [t.measurement.outcome.value for t in trials],
                "message": said_against(result.confirmed, candidate, trials),
                "speedup": ratio.value if ratio else None,
                "interval": [ratio.low, ratio.high] if ratio and known else None,
                "at": {str(c): value for c, value in by_concurrency(result, candidate).items()},
            }
        )
    return rows


def by_concurrency(result: Result, candidate: Candidate) -> dict[int, float]:
    """Tok/s over the baseline's in the fresh boots, median of the pairs, at each concurrency.

    Empty for the baseline, and for a setting that was not there in all rounds.
    """
    if result.confirmed is None or result.confirmed.ratios.get(candidate) is None:
        return {}
    scenario = result.plan.scenario
    found = {}
    for c in scenario.concurrency:
        alone = replace(scenario, concurrency=(c,), objective="aggregate")
        ratio = confirmed_ratio(result, candidate, alone)
        if ratio is not None:
            found[c] = ratio.value
    return found


def confirmed_ratio(result: Result, candidate: Candidate, load: SpecScenario) -> Ratio | None:
    """Speed over the baseline's in the fresh boots, by the objective and the levels of ``load``.

    None where one of the boots was not there.
    """
    if result.confirmed is None or candidate == result.baseline.candidate:
        return None
    samples = [
        [s for trial in trials for s in repeats_by(trial, load, load.measure)]
        for c in (result.baseline.candidate, candidate)
        if (trials := result.confirmed.trials.get(c))
        and all(t.measurement.outcome is Outcome.OK for t in trials)
    ]
    return paired_ratio(*samples) if len(samples) == 2 else None


def score_table(result: Result) -> list[dict[str, Any]]:
    """Scores of tasks, one row for each setting evaluated and score."""
    if result.confirmed is None:
        return []
    return [
        {
            "setting": setting(candidate),
            "score": score,
            "value": one["value"],
            "stderr": one["stderr"],
        }
        for candidate, trial in result.confirmed.first_boots.items()
        for score, one in scores_of(trial).items()
    ]


def said_against(confirmed: Confirmed, candidate: Candidate, trials: Sequence[Trial]) -> str:
    """What failed boots and tasks say against a setting; empty if nothing."""
    messages = [t.measurement.message for t in trials if t.measurement.outcome is not Outcome.OK]
    return "; ".join([*messages, *confirmed.fell.get(candidate, ())])


def moe_line(result: Result) -> str | None:
    """The command that tunes the MoE kernel for what the winner decodes; None for dense models."""
    plan = result.plan
    if not plan.pair.target.experts:
        return None
    gamma = result.selection.winner.candidate.int(GAMMA)
    sizes = sorted({(gamma + 1) * b for b in plan.scenario.concurrency})
    listed = ",".join(map(str, sizes))
    return f"autotune moe --device auto --model {plan.recipe.target} --batch-sizes {listed}"
