"""A finished job as JSON values: best.json, and the verdict that the database keeps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autotune.serving.decide.conclusion import boots_spread, verdict, warnings
from autotune.serving.decide.objectives import front_rows, objective_rows
from autotune.serving.decide.slices import slice_rows
from autotune.serving.decide.stopped import stopped_rows
from autotune.serving.job import Result
from autotune.serving.memory.search import memory_document
from autotune.serving.report.tables import (
    confirm_rows,
    forecast_rows,
    moe_line,
    score_table,
    setting,
    trial_row,
)


def document(result: Result) -> dict[str, Any]:
    """Collect everything needed to know what the result is worth and to make it again.

    Times are µs per output token by the objective, rates tokens per second.
    """
    plan, selection = result.plan, result.selection
    winner = plan.recipe.settings(selection.winner.candidate)
    return {
        "basis": plan.basis.value,
        "verdict": verdict(result),
        "warnings": warnings(result),
        "checks": [asdict(finding) for finding in plan.findings],
        "best": {
            "candidate": selection.winner.candidate.params,
            "setting": setting(selection.winner.candidate),
            "is_baseline": selection.kept_incumbent,
            "speedup": selection.speedup,
            "interval": list(selection.interval) if selection.interval else None,
            "identical_share": result.identical.get(selection.winner.candidate),
            "speculative_config": winner.speculative,
            "serve": plan.launcher.shell_line(winner),
            "moe": moe_line(result),
        },
        "study": plan.study,
        "command": plan.command,
        "scenario": plan.scenario.as_json(),
        "setup": plan.setup(),
        "environment": result.environment,
        "boots": result.boots,
        "boots_of_load": result.boots_of_load,
        "fresh_boots": result.fresh_boots,
        "confirm_boots": plan.confirm_rounds,
        "control": result.control.as_json() if plan.nodes is not None else None,
        "trials": [trial_row(result, t) for t in (*result.trials, *result.references)],
        "objectives": objective_rows(result),
        "slices": slice_rows(result),
        "pareto_front": front_rows(result),
        "schedule": schedule_document(result),
        "stopped": stopped_rows(result.trials),
        "scores": score_table(result),
        "task_tolerance": plan.tasks.tolerance if plan.tasks is not None else None,
        "memory_utilization": memory_document(result.borders),
        "forecast": {"basis": "predicted", "rows": forecast_rows(result)},
        "not_tried": [
            {"setting": setting(candidate), "why": why}
            for candidate, why in result.left_out.items()
        ],
        "confirmed": confirm_rows(result),
        "confirmation": confirmation_document(result),
        "soak": soak_document(result),
        "published": published.as_json() if (published := plan.space.published) else None,
    }


def confirmation_document(result: Result) -> dict[str, Any] | None:
    """How the servers of the confirmation ran; None where there was none."""
    if result.confirmed is None:
        return None
    way = result.confirmed.way
    return {
        "side_by_side": way.beside is not None,
        "why_not": way.why,
        "rounds": None if way.beside is None else way.beside.rounds,
        "kv_bytes": None if way.beside is None else way.beside.kv_bytes,
        "rivals": None if way.beside is None else way.beside.rivals,
        "left_out": [setting(candidate) for candidate in way.left_out],
        "spread_between_boots": boots_spread(result),
    }


def soak_document(result: Result) -> dict[str, Any] | None:
    """The windows of the soak, and what speaks against the setting; None where none was made."""
    soak = result.soak
    if soak is None:
        return None
    return {
        "setting": setting(soak.trial.candidate),
        "seconds": result.plan.soak_s,
        "outcome": soak.trial.measurement.outcome.value,
        "failures": list(soak.failures),
        "windows": list(soak.windows),
    }


def schedule_document(result: Result) -> dict[str, Any]:
    """The schedule for JSON; rates are measured tokens per second by gamma and concurrency.

    ``num_speculative_tokens_per_batch_size`` is in vLLM's own form, None where there is none.
    """
    found = result.schedule
    settings = None if found.candidate is None else result.plan.recipe.settings(found.candidate)
    known = found.ratio is not None and found.ratio.low > 0
    return {
        "recommended": found.recommended,
        "said": found.said,
        "num_speculative_tokens_per_batch_size": None
        if found.ranges is None
        else [list(entry) for entry in found.ranges],
        "speculative_config": settings.speculative if settings else None,
        "serve": result.plan.launcher.shell_line(settings) if settings else None,
        "against": None if found.against is None else setting(found.against),
        "speedup": found.ratio.value if found.ratio else None,
        "interval": [found.ratio.low, found.ratio.high] if found.ratio and known else None,
        "identical_share": found.compared.identical,
        "basis": result.plan.basis.value,
        "measured_tok_s": {
            str(g): {str(c): r for c, r in v.items()} for g, v in found.table.items()
        },
    }
