"""The sections of a page that are the words of a finished job, read from its ``best.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from autotune.report.page import Block, Code, Section, Table, Text
from autotune.serving.report import plots
from autotune.serving.report.markdown import number

Words = Mapping[str, Any]


def serve(left: Words) -> Section:
    """How to serve the best setting."""
    best = left.get("best") or {}
    blocks: list[Block] = []
    if best.get("serve"):
        blocks.append(Code(str(best["serve"])))
    if best.get("moe"):
        blocks.append(Text("Tune the MoE kernel for what it decodes, M = (γ+1)·b:"))
        blocks.append(Code(str(best["moe"])))
    return Section("Serve it", blocks)


def objectives(left: Words) -> Section:
    """The best setting by every objective."""
    rows = [
        [
            str(row["objective"]),
            str(row["setting"]),
            number(row["times_baseline"], 3),
            number(row["speedup"], 3),
            _interval(row["interval"]),
        ]
        for row in left.get("objectives", ())
    ]
    heads = ("objective", "best measured", "× baseline", "in fresh boots", "95 % interval")
    return Section("Best by objective", [Table(heads, rows, words=2)] if rows else [])


def _interval(ends: list[float] | None) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else "–"


def schedule(left: Words) -> Section:
    """γ by batch size, in vLLM's own form."""
    found = left.get("schedule") or {}
    if not found.get("serve"):
        said = found.get("said")
        return Section("γ by batch size", [Text(f"No schedule: {said}.")] if said else [])
    ranges = json.dumps(found["num_speculative_tokens_per_batch_size"])
    against = f" against {found['against']}" if found.get("against") else ""
    verdict = "Recommended" if found["recommended"] else "Not recommended"
    said = f"num_speculative_tokens_per_batch_size {ranges}{against}: {found['said']}. {verdict}."
    return Section("γ by batch size", [Text(said), Code(str(found["serve"]))])


def forecast(left: Words, basis: str) -> Section:
    """PREDICTED against measured."""
    found = [dict(row) for row in (left.get("forecast") or {}).get("rows", ())]
    if not found:
        return Section("Forecast against measured", [])
    rows = [
        [
            str(row["gamma"]),
            str(row["concurrency"]),
            number(row["predicted_tok_s"]),
            number(row["measured_tok_s"]),
            "made from it"
            if row["is_input"]
            else number(None if row["error"] is None else 100 * row["error"], 1, " %"),
        ]
        for row in found
    ]
    heads = ("γ", "concurrency", "PREDICTED tok/s", f"{basis} tok/s", "error")
    drawn = plots.forecast(found, basis)
    return Section("Forecast against measured", [*drawn, Table(heads, rows)])


def memory(left: Words) -> Section:
    """What was found in a range of memory utilization."""
    found = left.get("memory_utilization") or {}
    rows = [
        [
            f"{row['utilization']:.2f}",
            "yes" if row["sustained"] else "no",
            str(row["failure"] or row["outcome"]),
            number(row["kv_cache_tokens"], 0),
            number(row["preemptions"], 0),
            str(row["message"] or "–"),
        ]
        for row in found.get("evidence", ())
    ]
    if not rows:
        return Section("Memory utilization", [])
    text = (
        f"Least that holds {found['tokens_at_once']} tokens at once without preemption: "
        f"{number(found['least'], 2)}; most that survives the full load: "
        f"{number(found['most'], 2)}. Every row is a boot."
    )
    heads = ("utilization", "holds it", "outcome", "KV tokens", "preemptions", "telling line")
    return Section("Memory utilization", [Text(text), Table(heads, rows)])


def scores(left: Words) -> Section:
    """What lm-eval made of the settings, with standard errors."""
    rows = [
        [str(r["setting"]), str(r["score"]), f"{r['value']:.4f} ± {r['stderr']:.4f}"]
        for r in left.get("scores", ())
    ]
    heads = ("setting", "score", "value")
    return Section("Scores", [Table(heads, rows, words=2)] if rows else [])


def not_tried(left: Words) -> Section:
    """What no server was started for, and why."""
    rows = [[str(r["setting"]), str(r["why"])] for r in left.get("not_tried", ())]
    return Section("Not tried", [Table(("setting", "why"), rows, words=2)] if rows else [])


def published(left: Words) -> Section:
    """Figures of others, named as such."""
    found = left.get("published") or {}
    rows = [
        [
            ", ".join(f"{name}={value}" for name, value in figure["setting"].items()),
            str(figure.get("target") or "the space's own"),
            str(figure.get("note") or "–"),
            str(figure["concurrency"]),
            number(figure["tok_s"]),
        ]
        for figure in found.get("figures", ())
    ]
    if not rows:
        return Section("Published, not ours", [])
    said = (
        f"Published figures on {found['hardware']}, not measured by this study: {found['source']}"
    )
    heads = ("setting", "target", "note", "concurrency", "published tok/s")
    return Section("Published, not ours", [Text(said), Table(heads, rows, words=3)])
