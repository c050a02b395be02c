"""Markdown tables of measured loads, from rows of JSON values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.serving.measure.levels import rate_of
from autotune.serving.scenario import SpecScenario
from autotune.util.markdown import escape

Row = Mapping[str, Any]
"""``setting`` (text) and ``levels``: what was measured, by concurrency."""


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    """A figure for people; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def described(scenario: SpecScenario) -> str:
    """The load in words."""
    eos = ", end of text ignored" if scenario.ignore_eos else ""
    form = "chat template" if scenario.chat else "plain completion"
    return (
        f"prompts {scenario.prompts}, {scenario.max_tokens} output tokens at most{eos}, {form}, "
        f"{scenario.repeats} repeats of {scenario.waves} × concurrency requests after a warm-up; "
        "greedy"
    )


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """Write the lines of a table, cells escaped; the first column is text, the others figures."""
    aligned = [":--", *["--:"] * (len(heads) - 1)]
    escaped = [[escape(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(cells)} |" for cells in ([*map(escape, heads)], aligned, *escaped)]


def rate(level: Mapping[str, Any] | None) -> str:
    """Tokens per second, median and standard deviation over the repeats."""
    return "–" if level is None else f"{rate_of(level):.1f} ± {level['tok_s_std']:.1f}"


def latency(rows: Sequence[Row]) -> list[str]:
    """Times of single requests in ms, and preemptions."""
    lines = []
    for row in rows:
        for concurrency, level in row["levels"].items():
            spreads = [level[name] for name in ("ttft_ms", "tpot_ms", "itl_ms")]
            request = level["request_tok_s"]
            lines.append(
                [
                    row["setting"],
                    concurrency,
                    number(request and request["mean"]),
                    *(f"{s['p50']:.1f}, {s['p99']:.1f}" if s else "–" for s in spreads),
                    number(level.get("preemptions"), 0),
                ]
            )
    heads = ["setting", "concurrency", "tok/s per request", "TTFT", "TPOT", "ITL", "preemptions"]
    return table(heads, lines)


def acceptance(rows: Sequence[Row]) -> list[str]:
    """The section on what was accepted; nothing where nothing was drafted."""
    lines = []
    for row in rows:
        for concurrency, level in row["levels"].items():
            if "reached" in level:
                rates = " / ".join(f"{share:.3f}" for share in level["reached"])
                length = number(level["acceptance_length"], 2)
                lines.append([row["setting"], concurrency, length, rates])
    if not lines:
        return []
    said = "Share of drafts of which all tokens up to the position were accepted."
    heads = ["setting", "concurrency", "tokens per draft", "by position"]
    return ["## Acceptance", "", said, "", *table(heads, lines), ""]
