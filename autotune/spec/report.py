"""The Markdown report of a finished job."""

from __future__ import annotations

from typing import Any

from autotune.core import Trial
from autotune.spec.job import Result
from autotune.spec.server import shell_line
from autotune.spec.tables import (
    confirm_rows,
    forecast_rows,
    moe_line,
    number,
    setting,
    trial_rows,
    verdict,
    warnings,
)


def report(result: Result) -> str:
    """All tables, with what is predicted and what measured."""
    plan, scenario = result.plan, result.plan.scenario
    settings = plan.recipe.settings(result.selection.winner.candidate)
    moe = moe_line(result)
    lines = [
        f"# {plan.study}: {plan.basis.value}",
        "",
        f"**Result:** {verdict(result)}.",
        "",
        *(f"> **Warning:** {text}\n" for text in warnings(result)),
        f"- Target: {scenario.target}; drafter: {scenario.drafter} (method {plan.recipe.method})",
        f"- Load: prompts {scenario.prompts}, {scenario.max_tokens} output tokens at most"
        f"{', end of text ignored' if scenario.ignore_eos else ''}, "
        f"{'chat template' if scenario.chat else 'plain completion'}, {scenario.repeats} repeats "
        f"of {scenario.waves} × concurrency requests after a warm-up; greedy",
        f"- Objective: {scenario.objective} over concurrency "
        f"{', '.join(map(str, scenario.concurrency))}",
        f"- Servers started: {result.boots}, {result.fresh_boots} of them by this command",
        f"- Command: `{plan.command}`",
        "",
        "Serve it:",
        "",
        f"    {shell_line(settings)}",
        "",
        *(
            ["Tune the MoE kernel for what it decodes, M = (γ+1)·b:", "", f"    {moe}", ""]
            * bool(moe)
        ),
        *_searched(result),
        *_acceptance(result),
        *_forecast(result),
        *_left_out(result),
        *_confirmed(result),
        *_failures(result.failures),
    ]
    return "\n".join(lines) + "\n"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    aligned = [":--", *["--:"] * (len(heads) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (heads, aligned, *rows)]


def _searched(result: Result) -> list[str]:
    levels = [str(c) for c in result.plan.scenario.concurrency]
    heads = ["setting", *(f"tok/s at {c}" for c in levels), "× baseline", "identical"]
    heads += ["KV tokens", "host memory GiB", "start s"]
    rows = []
    for row in trial_rows(result):
        memory = row["memory_bytes"]
        rows.append(
            [
                row["setting"],
                *(_rate(row["levels"].get(c)) for c in levels),
                number(row["times_baseline"], 3),
                number(None if (share := row["identical_share"]) is None else 100 * share, 0, " %"),
                number(row["kv_cache_tokens"], 0),
                number(memory and memory / 2**30, 2),
                number(row["start_s"]),
            ]
        )
    said = "One boot each; mean ± standard deviation over the repeats; the first is the baseline."
    times = ["Latency of the same boots, in ms (median, 99th percentile):", "", *_latency(result)]
    return ["## Measured", "", said, "", *_table(heads, rows), "", *times, ""]


def _rate(level: dict[str, Any] | None) -> str:
    return "–" if level is None else f"{level['tok_s']:.1f} ± {level['tok_s_std']:.1f}"


def _latency(result: Result) -> list[str]:
    rows = []
    for row in trial_rows(result):
        for concurrency, level in row["levels"].items():
            spreads = [level[name] for name in ("ttft_ms", "tpot_ms", "itl_ms")]
            request = level["request_tok_s"]
            rows.append(
                [
                    row["setting"],
                    concurrency,
                    number(request and request["mean"]),
                    *(f"{s['p50']:.1f}, {s['p99']:.1f}" if s else "–" for s in spreads),
                    number(level.get("preemptions"), 0),
                ]
            )
    heads = ["setting", "concurrency", "tok/s per request", "TTFT", "TPOT", "ITL", "preemptions"]
    return _table(heads, rows)


def _acceptance(result: Result) -> list[str]:
    rows = []
    for row in trial_rows(result):
        for concurrency, level in row["levels"].items():
            if "reached" in level:
                rates = " / ".join(f"{rate:.3f}" for rate in level["reached"])
                length = number(level["acceptance_length"], 2)
                rows.append([row["setting"], concurrency, length, rates])
    if not rows:
        return []
    said = "Share of drafts of which all tokens up to the position were accepted."
    heads = ["setting", "concurrency", "tokens per draft", "by position"]
    return ["## Acceptance", "", said, "", *_table(heads, rows), ""]


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
    said = "The rates from the baseline and one probe at the largest gamma; see `autotune.spec`."
    return [
        "## Predicted against measured",
        "",
        said,
        "",
        *_table(heads, rows),
        "",
    ]


def _left_out(result: Result) -> list[str]:
    lines = [f"- {setting(candidate)}: {why}" for candidate, why in result.left_out.items()]
    return ["## Not tried", "", *lines, ""] if lines else []


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _confirmed(result: Result) -> list[str]:
    rows = []
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
            ]
        )
    if not rows:
        return []
    heads = ["setting", "µs per token, each boot", "between boots", "× baseline", "95 % interval"]
    said = "Fresh boots that took turns, measured; pairs have the same prompts."
    return ["## Confirmed", "", said, "", *_table(heads, rows), ""]


def _failures(trials: list[Trial]) -> list[str]:
    rows = [
        [
            setting(t.candidate),
            t.measurement.outcome.value,
            t.measurement.message.replace("|", "\\|"),
        ]
        for t in trials
    ]
    if not rows:
        return []
    return ["## Failed", "", *_table(["setting", "outcome", "telling line"], rows), ""]
