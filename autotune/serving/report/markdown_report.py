"""The Markdown report of a finished job."""

from __future__ import annotations

from autotune.core import Trial
from autotune.serving.decide.conclusion import verdict, warnings
from autotune.serving.decide.objectives import front_table, objective_table
from autotune.serving.decide.stopped import is_stopped, stopped_section
from autotune.serving.job import Result
from autotune.serving.memory.search import memory_section
from autotune.serving.report.markdown import acceptance, described, latency, number, rate, table
from autotune.serving.report.schedule_report import schedule_section
from autotune.serving.report.tables import (
    confirm_rows,
    forecast_rows,
    moe_line,
    score_table,
    setting,
    trial_rows,
)
from autotune.space.published import Published, cell
from autotune.util.markdown import code_line, escape, in_code


def report(result: Result) -> str:
    """All tables, with what is predicted and what measured."""
    plan, scenario = result.plan, result.plan.scenario
    settings = plan.recipe.settings(result.selection.winner.candidate)
    moe = moe_line(result)
    lines = [
        f"# {escape(plan.study)}: {plan.basis.value}",
        "",
        f"**Result:** {escape(verdict(result))}.",
        "",
        *(f"> **Warning:** {escape(text)}\n" for text in warnings(result)),
        f"- Target: {escape(scenario.target)} with {escape(plan.drafting)}",
        f"- Load: {escape(described(scenario))}",
        f"- Objective: {scenario.objective} over concurrency "
        f"{', '.join(map(str, scenario.concurrency))}",
        f"- Servers started: {result.boots}, {result.fresh_boots} of them by this command",
        f"- Command: `{in_code(plan.command)}`",
        "",
        "Serve it:",
        "",
        code_line(plan.launcher.shell_line(settings) or ""),
        "",
        *(
            ["Tune the MoE kernel for what it decodes, M = (γ+1)·b:", "", code_line(moe or ""), ""]
            * bool(moe)
        ),
        *_searched(result),
        *_objectives(result),
        *acceptance(trial_rows(result)),
        *_forecast(result),
        *_left_out(result),
        *_confirmed(result),
        *schedule_section(result),
        *_scores(result),
        *memory_section(result.borders),
        *stopped_section(result),
        *_failures([t for t in result.failures if not is_stopped(t)]),
        *published_table(result.plan.space.published),
    ]
    return "\n".join(lines) + "\n"


def _searched(result: Result) -> list[str]:
    levels = [str(c) for c in result.plan.scenario.concurrency]
    heads = ["setting", *(f"tok/s at {c}" for c in levels), "× baseline", "identical"]
    heads += ["KV tokens", "host memory GiB", "start s"]
    published = result.plan.space.published
    if published is not None:
        heads.append(f"published tok/s, not ours: {published.hardware}")
    rows = []
    for row in trial_rows(result):
        memory = row["memory_bytes"]
        rows.append(
            [
                row["setting"],
                *(rate(row["levels"].get(c)) for c in levels),
                number(row["times_baseline"], 3),
                number(None if (share := row["identical_share"]) is None else 100 * share, 0, " %"),
                number(row["kv_cache_tokens"], 0),
                number(memory and memory / 2**30, 2),
                number(row["start_s"]),
                *([] if published is None else [cell(published.of(row["candidate"]))]),
            ]
        )
    said = "One boot each; median ± standard deviation over the repeats; the first is the baseline."
    times = [
        "Latency of the same boots, in ms (median, 99th percentile):",
        "",
        *latency(trial_rows(result)),
    ]
    return ["## Measured", "", said, "", *table(heads, rows), "", *times, ""]


def _objectives(result: Result) -> list[str]:
    best = "The best of the settings measured by every objective; what chose them is one boot each."
    front = "What no other setting measured beats for one stream and for all of them together."
    lines = ["## By objective", "", best, "", *table(*objective_table(result)), ""]
    return [*lines, "## Pareto front", "", front, "", *table(*front_table(result)), ""]


def published_table(found: Published | None) -> list[str]:
    """Everything that others published for a space, of other targets too."""
    if found is None:
        return []
    rows = [
        [
            figure.target or "the recipe's",
            " ".join(f"{name}={value}" for name, value in figure.setting.items()) or "–",
            str(figure.concurrency),
            f"{figure.tok_s:.2f}",
            number(found.times_baseline(figure), 2),
            figure.note or "–",
        ]
        for figure in found.figures
    ]
    said = f"Published for {escape(found.hardware)} by {escape(found.source)}. Not measured here."
    heads = ["target", "setting", "concurrency", "tok/s", "× its baseline", "note"]
    return ["## Published by others", "", said, "", *table(heads, rows), ""]


def _forecast(result: Result) -> list[str]:
    rows = [
        [
            str(row["gamma"]),
            str(row["concurrency"]),
            number(row["predicted_tok_s"]),
            number(row["measured_tok_s"]),
            "made from it" if row["is_input"] else number(_percent(row["error"]), 1, " %"),
        ]
        for row in forecast_rows(result)
    ]
    if not rows:
        return []
    heads = ["gamma", "concurrency", "predicted tok/s", "measured tok/s", "error"]
    said = "The rates from the baseline and one probe at the largest gamma; see `autotune.serving`."
    return [
        "## Predicted against measured",
        "",
        said,
        "",
        *table(heads, rows),
        "",
    ]


def _left_out(result: Result) -> list[str]:
    lines = [
        f"- {escape(setting(candidate))}: {escape(why)}"
        for candidate, why in result.left_out.items()
    ]
    return ["## Not tried", "", *lines, ""] if lines else []


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _confirmed(result: Result) -> list[str]:
    rows = []
    levels = result.plan.scenario.concurrency
    for row in confirm_rows(result):
        values = [v for v in row["boots_us_per_token"] if v is not None]
        spread = _percent(max(values) / min(values) - 1) if len(values) > 1 else None
        interval = row["interval"]
        rows.append(
            [
                row["setting"],
                ", ".join(number(v) for v in row["boots_us_per_token"]),
                number(spread, 1, " %"),
                number(row["speedup"], 3),
                f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "–",
                *(number(row["at"].get(str(c)), 3) for c in levels),
            ]
        )
    if not rows:
        return []
    heads = ["setting", "µs per token, each boot", "between boots", "× baseline", "95 % interval"]
    heads += [f"× at {c}" for c in levels]
    said = "Fresh boots that took turns, measured; pairs have the same prompts."
    against = [
        f"- {escape(r['setting'])}: {escape(r['message'])}"
        for r in confirm_rows(result)
        if r["message"]
    ]
    return ["## Confirmed", "", said, "", *table(heads, rows), "", *against, *[""] * bool(against)]


def _scores(result: Result) -> list[str]:
    tasks = result.plan.tasks
    if tasks is None or result.confirmed is None:
        return []
    rows = [
        [row["setting"], row["score"], f"{row['value']:.4f} ± {row['stderr']:.4f}"]
        for row in score_table(result)
    ]
    said = (
        f"By lm-eval on the servers of the first round, with standard errors; a fall of more than "
        f"{tasks.tolerance:g} and one standard error is not recommended."
    )
    return ["## Scores", "", said, "", *table(["setting", "score", "value"], rows), ""]


def _failures(trials: list[Trial]) -> list[str]:
    rows = [
        [
            setting(t.candidate),
            t.measurement.outcome.value,
            t.measurement.message,
        ]
        for t in trials
    ]
    if not rows:
        return []
    return ["## Failed", "", *table(["setting", "outcome", "telling line"], rows), ""]
