"""Figures and loads as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.serving.measure.levels import rate_of
from autotune.serving.scenario import SpecScenario, tokens_of


def number(value: float | None, digits: int = 1, unit: str = "") -> str:
    """A figure for people; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def percent(share: float | None, digits: int = 0) -> str:
    """A share of one as per cent; a dash where there is none."""
    return number(None if share is None else 100 * share, digits, " %")


def interval(ends: Sequence[float] | None) -> str:
    """Both ends of an interval; a dash where there is none."""
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "–"


def described(scenario: SpecScenario) -> str:
    """The load in words."""
    eos = ", end of text ignored" if scenario.ignore_eos else ""
    form = "chat template" if scenario.chat else "plain completion"
    mix = f", each of {', '.join(one.name for one in scenario.slices)}" if scenario.is_mixed else ""
    lengths = ", ".join(tokens_of(length) for length in scenario.context)
    filled = f" in requests of {lengths} tokens" if lengths else ""
    return (
        f"prompts {scenario.prompts}{filled}, {scenario.max_tokens} output tokens at most{eos}, "
        f"{form}, {scenario.repeats} repeats of {scenario.waves} × concurrency requests{mix} after "
        "a warm-up; greedy"
    )


def rate(level: Mapping[str, Any] | None) -> str:
    """Tokens per second, median and standard deviation over the repeats."""
    return "–" if level is None else f"{rate_of(level):.1f} ± {level['tok_s_std']:.1f}"
