"""A finished job in rows: JSON values first, text for people after."""

from __future__ import annotations

from typing import Any

from autotune.core import Candidate, Outcome, Trial
from autotune.spec.forecast import level_rates, others
from autotune.spec.job import Result
from autotune.spec.quality import BAR
from autotune.spec.recipe import GAMMA


def setting(candidate: Candidate) -> str:
    """Such as ``gamma=2 kv_cache_dtype=fp8``."""
    rest = [f"{name}={value}" for name, value in others(candidate)]
    return " ".join([f"{GAMMA}={candidate[GAMMA]}", *rest])


def trial_rows(result: Result) -> list[dict[str, Any]]:
    """One row per setting tried in the search, the baseline first.

    ``us_per_token`` is measured, by the objective; ``times_baseline`` of the search's single boot.
    """
    return [_trial_row(result, trial) for trial in result.trials]


def _trial_row(result: Result, trial: Trial) -> dict[str, Any]:
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
        "tok_s": {c: level["tok_s"] for c, level in levels.items()},
        "levels": levels,
        "identical_share": result.identical.get(trial.candidate)
        if trial.candidate[GAMMA]
        else None,
        "kv_cache_tokens": details.get("kv_cache_tokens"),
        "memory_bytes": details.get("memory_bytes"),
        "start_s": details.get("start_s"),
        "log": details.get("log"),
    }


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
    """One row per setting that was booted again: µs per token of each boot, speed over baseline."""
    if result.confirmed is None:
        return []
    rows = []
    for candidate, trials in result.confirmed.trials.items():
        ratio = result.confirmed.ratios.get(candidate)
        known = ratio is not None and ratio.low > 0
        rows.append(
            {
                "setting": setting(candidate),
                "boots_us_per_token": [t.measurement.value for t in trials],
                "outcomes": [t.measurement.outcome.value for t in trials],
                "speedup": ratio.value if ratio else None,
                "interval": [ratio.low, ratio.high] if ratio and known else None,
            }
        )
    return rows


def verdict(result: Result) -> str:
    """The result in a sentence or two."""
    winner, objective = result.selection.winner, result.plan.scenario.objective
    if result.selection.kept_incumbent:
        said = f"no setting is clearly faster than no speculation ({objective})"
        if result.confirmed is not None:
            names = ", ".join(setting(c) for c in result.confirmed.ratios)
            said += f"; in fresh boots {names or 'no finalist'} did not win: a tie, or slower"
    else:
        said = f"best: {setting(winner.candidate)}"
        speedup, interval = result.selection.speedup, result.selection.interval
        if speedup is not None:
            said += f", {speedup:.3f}× the baseline's tok/s ({objective})"
        if interval is not None:
            said += f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
        if result.confirmed is not None and result.confirmed.ties:
            tied = ", ".join(map(setting, result.confirmed.ties))
            said += f"; not clearly faster than {tied}: a tie with it"
    return said


def warnings(result: Result) -> list[str]:
    """What a user must know beside the numbers."""
    said = []
    if result.plan.recipe.synthetic:
        said.append(
            "SYNTHETIC acceptance: vLLM was told how many drafted tokens to accept; the speed is "
            "real, the text is not, and outputs were not compared"
        )
    for candidate, share in result.identical.items():
        if share is not None and share < BAR and candidate[GAMMA] != 0:
            said.append(
                f"{setting(candidate)}: {share:.0%} of the outputs are those without speculation, "
                f"less than {BAR:.0%}: not recommended"
            )
    if result.out_of_time:
        said.append("the budget ended the search; run the same command again to go on")
    pairs = result.plan.confirm_rounds * result.plan.scenario.repeats
    if result.confirmed is not None and pairs < 6:
        said.append(
            f"{pairs} pairs of repeats give no 95 % interval, so nothing can win: raise --repeats "
            "or --confirm-boots until their product is 6"
        )
    return said


def moe_line(result: Result) -> str | None:
    """The command that tunes the MoE kernel for what the winner decodes; None for dense models."""
    plan = result.plan
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    if not any(plan.pair.target.size(name) for name in names):
        return None
    gamma = result.selection.winner.candidate.int(GAMMA)
    sizes = sorted({(gamma + 1) * b for b in plan.scenario.concurrency})
    listed = ",".join(map(str, sizes))
    return f"autotune moe --device auto --model {plan.recipe.target} --batch-sizes {listed}"


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    """A figure for people; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"
