"""The sections of a page that are the words of a finished job."""

from __future__ import annotations

import json
from collections.abc import Sequence

from autotune.core import Trial
from autotune.report.page import Block, Code, Section, Table, Text
from autotune.serving.report import plots
from autotune.serving.report.figures import interval, number, percent, rate
from autotune.serving.report.tables import setting
from autotune.serving.report.verdict import Confirmation, Memory, Soak, Verdict
from autotune.serving.scenario import Beside
from autotune.space.published import Published

_SOAK_ROWS = 12


def serve(words: Verdict) -> Section:
    """How to serve the best setting."""
    blocks: list[Block] = []
    if words.best is not None and words.best.serve:
        blocks.append(Code(words.best.serve))
    if words.best is not None and words.best.moe:
        blocks.append(Text("Tune the MoE kernel for what it decodes, M = (γ+1)·b:"))
        blocks.append(Code(words.best.moe))
    return Section("Serve it", blocks, brief=True)


def objectives(words: Verdict) -> Section:
    """The best setting by every objective."""
    rows = [
        [
            row.objective,
            row.setting,
            number(row.times_baseline, 3),
            number(row.speedup, 3),
            interval(row.interval),
        ]
        for row in words.objectives
    ]
    heads = ("objective", "best measured", "× baseline", "in fresh boots", "95 % interval")
    blocks = [Table(heads, rows, words=2)] if rows else []
    return Section("Best by objective", blocks, brief=True)


def slices(words: Verdict, trials: Sequence[Trial]) -> Section:
    """What each kind of prompt and each length wants by itself, and how fast each setting is.

    Args:
        words: of the job; they say nothing of it where one server was measured as it ran.
        trials: of the search, those with a value.
    """
    rates = [
        [setting(trial.candidate), name, *map(rate, levels.values())]
        for trial in trials
        for name, levels in trial.measurement.details.get("slices", {}).items()
    ]
    rows = [
        [
            row.slice,
            row.setting,
            number(row.speedup, 3),
            interval(row.interval),
            ("yes" if row.confirmed else "no") if row.speedup else "–",
            number(row.chosen_speedup, 3),
            interval(row.chosen_interval),
        ]
        for row in words.slices
    ]
    heads = ("part of the load", "best for it alone", "× baseline", "95 % interval", "fresh boots",
             "the choice for all ×", "its interval")  # fmt: skip
    blocks: list[Block] = []
    if rates:
        text = (
            "Everything else on this page is of the mix, equal numbers of requests of each part. "
            "Here each part counts by itself; what was not booted again is of the one boot of the "
            "search."
        )
        levels = trials[0].measurement.details["levels"]
        by_setting = Table(("setting", "part", *(f"tok/s at {c}" for c in levels)), rates, words=2)
        best = [Table(heads, rows, words=2, narrow=4)] if rows else []
        blocks = [Text(text), *best, by_setting]
    return Section("By kind of prompt and length", blocks, brief=True)


def schedule(words: Verdict) -> Section:
    """γ by batch size, in vLLM's own form."""
    title, found = "γ by batch size", words.schedule
    if found is None:
        return Section(title, [])
    if not found.serve:
        return Section(title, [Text(f"No schedule: {found.said}.")])
    ranges = json.dumps(found.num_speculative_tokens_per_batch_size)
    against = f" against {found.against}" if found.against else ""
    verdict = "Recommended" if found.recommended else "Not recommended"
    said = f"num_speculative_tokens_per_batch_size {ranges}{against}: {found.said}. {verdict}."
    return Section(title, [Text(said), Code(found.serve)], brief=True)


def forecast(words: Verdict, basis: str) -> Section:
    """PREDICTED against measured."""
    found = words.forecast.rows if words.forecast is not None else ()
    if not found:
        return Section("Forecast against measured", [])
    rows = [
        [
            str(row.gamma),
            str(row.concurrency),
            number(row.predicted_tok_s),
            number(row.measured_tok_s),
            "made from it" if row.is_input else percent(row.error, 1),
        ]
        for row in found
    ]
    heads = ("γ", "concurrency", "PREDICTED tok/s", f"{basis} tok/s", "error")
    drawn = plots.forecast([row.model_dump() for row in found], basis)
    return Section("Forecast against measured", [*drawn, Table(heads, rows)])


def confirmation(words: Confirmation | None, beside: Beside | None) -> str:
    """How the servers that confirm ran, and what it costs where they were not up at once.

    Args:
        words: of the job; None of an older one.
        beside: how the servers ran.
    """
    if beside is not None:
        said = (
            f"Servers of one gamma that were up at once on one device, loaded in turn in "
            f"{beside.rounds} rounds, each with {beside.kv_bytes / 2**30:.2f} GiB of KV cache: "
            "what changes with time does so for all of them."
        )
        left_out = ", ".join(words.left_out) if words is not None else ""
        return f"{said} Not booted again, see the search: {left_out}." if left_out else said
    said = "Fresh boots that took turns, one after the other"
    if words is None or not words.why_not:
        return f"{said}."
    said = f"{said} ({words.why_not})."
    spread = words.spread_between_boots
    if spread is None:
        return f"{said} How far boots of one setting are apart is not known from one boot each."
    return (
        f"{said} Boots of one setting differ by up to {spread:.1%} here, which side by side would "
        "cancel: a smaller difference between settings is not told apart."
    )


def soak(words: Soak | None) -> Section:
    """What the chosen setting does after minutes."""
    if words is None:
        return Section("Soak", [])
    said = f"{words.setting} under load for {words.seconds / 60:.3g} min on a server of its own. "
    said += "; ".join(words.failures) or "Nothing speaks against it"
    heads = ("after", "tok/s", "accepted by position", "empty", "repeating", "host memory GiB")
    step = -(-len(words.windows) // _SOAK_ROWS) or 1
    rows = [
        [
            f"{window.age_s:.0f} s",
            number(window.tok_s),
            " / ".join(f"{share:.3f}" for share in window.reached) or "–",
            f"{window.empty} of {window.requests}",
            f"{window.repeating} of {window.requests}",
            number(window.memory_bytes / 2**30 if window.memory_bytes else None, 2),
        ]
        for window in (*words.windows[step - 1 : -1 : step], *words.windows[-1:])
    ]
    return Section("Soak", [Text(f"{said}."), Table(heads, rows)], brief=bool(words.failures))


def memory(words: Verdict) -> Section:
    """What was found in a range of memory utilization."""
    found = words.memory_utilization
    if found is None or not found.evidence:
        return Section("Memory utilization", [])
    rows = [
        [
            f"{row.utilization:.2f}",
            "yes" if row.sustained else "no",
            row.failure or row.outcome,
            number(row.kv_cache_tokens, 0),
            number(row.preemptions, 0),
            percent(row.peak_kv_usage),
            row.message or "–",
        ]
        for row in found.evidence
    ]
    said = _borders(found)
    text = Text(f"{said[0].upper()}{said[1:]}. Every row is a boot.")
    heads = ("utilization", "holds it", "outcome", "KV tokens", "preemptions", "KV cache used",
             "telling line")  # fmt: skip
    return Section("Memory utilization", [text, Table(heads, rows, narrow=6)], brief=True)


def _borders(found: Memory) -> str:
    """The borders in words; those of an older job from its figures."""
    return found.said or (
        f"Least that holds {found.tokens_at_once} tokens at once without preemption: "
        f"{number(found.least, 2)}; most that survives the full load: {number(found.most, 2)}"
    )


def scores(words: Verdict) -> Section:
    """What lm-eval made of the settings, with standard errors."""
    rows = [[r.setting, r.score, f"{r.value:.4f} ± {r.stderr:.4f}"] for r in words.scores]
    if not rows:
        return Section("Scores", [])
    said = "By lm-eval on the servers of the first round, with standard errors"
    if words.task_tolerance is not None:
        said += (
            f"; a fall of more than {words.task_tolerance:g} and one standard error is not "
            "recommended"
        )
    return Section("Scores", [Text(f"{said}."), Table(("setting", "score", "value"), rows, 2)])


def not_tried(words: Verdict) -> Section:
    """What no server was started for, and why."""
    rows = [[row.setting, row.why] for row in words.not_tried]
    blocks = [Table(("setting", "why"), rows, words=2)] if rows else []
    return Section("Not tried", blocks, brief=True)


def published(found: Published | None) -> Section:
    """Figures of others, named as such; of other targets too."""
    if found is None:
        return Section("Published, not ours", [])
    rows = [
        [
            ", ".join(f"{name}={value}" for name, value in figure.setting.items()) or "–",
            figure.target or "the space's own",
            figure.note or "–",
            str(figure.concurrency),
            number(figure.tok_s, 2),
            number(found.times_baseline(figure), 2),
        ]
        for figure in found.figures
    ]
    said = f"Published figures on {found.hardware}, not measured by this study: {found.source}"
    heads = ("setting", "target", "note", "concurrency", "published tok/s", "× its baseline")
    return Section("Published, not ours", [Text(said), Table(heads, rows, words=3)])
