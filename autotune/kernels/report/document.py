"""A finished job as JSON values: provenance.json, and the verdict that the database keeps."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autotune.core import Selection, Trial
from autotune.decide.stats import mad
from autotune.kernels.config_file import FIELDS
from autotune.kernels.job import MeasuredFacts, Result
from autotune.kernels.predict.roofline import Ceilings, share
from autotune.kernels.report.notes import FP16_WARNING, few_keys, note
from autotune.kernels.stored import overall_speedup


def provenance(result: Result) -> dict[str, Any]:
    """Collect everything needed to know what the file is worth and to make it again."""
    plan, measured = result.plan, result.measured
    return (_of_measured(result, measured) if measured else {}) | {
        "basis": plan.basis.value,
        "note": note(plan.basis),
        "warnings": warnings(result),
        "command": plan.command,
        "study": plan.study,
        "model": plan.model,
        "device": plan.device.name,
        "device_present": plan.measured,
        "shape": plan.shape.as_json(),
        "batch_sizes": sorted(result.selections),
        "effort": plan.effort,
        "budget_s": plan.budget_s,
        "min_gain": plan.min_gain,
        "feasible": len(plan.feasible),
        "space_size": plan.space.size,
        "setup": result.setup,
        "environment": result.environment,
        "counts": result.counts,
        "rows": [row | {"origin": result.origins.get(row["m"])} for row in rows(result)],
    }


def _of_measured(result: Result, measured: MeasuredFacts) -> dict[str, Any]:
    speedups = (selection.speedup for selection in result.selections.values())
    return {
        "measured_on": measured.facts,
        "spent": measured.spent,
        "between_keys": [asdict(between) for between in measured.between],
        "geometric_mean_speedup": overall_speedup(speedups),
    }


def warnings(result: Result) -> list[str]:
    """Say what a user must know beside the numbers."""
    said = []
    if result.plan.unmeasured:
        said.append(f"{result.plan.device.title} is here, but {result.plan.unmeasured}")
    if result.fp16_fallback:
        said.append(FP16_WARNING.format(triton=result.plan.kernel.triton_version))
    if few := few_keys(len(result.selections)):
        said.append(f"{few}; without --batch-sizes it gets the standard 18")
    if result.out_of_budget:
        cut = ", ".join(map(str, result.out_of_budget))
        said.append(f"the budget ended before the search did at M={cut}; run again to go on")
    return said + result.noticed


def rows(result: Result) -> list[dict[str, Any]]:
    """Return one row per M. Times in µs, memory in bytes."""
    chosen = sorted(result.selections.items())
    if result.measured is None:
        return [_predicted_row(m, selection) for m, selection in chosen]
    return [_measured_row(result, result.measured, m, selection) for m, selection in chosen]


def _predicted_row(m: int, selection: Selection) -> dict[str, Any]:
    winner = selection.winner
    details = winner.measurement.details
    gemms = details["compiled"]
    return {
        "m": m,
        "config": _config(winner),
        "is_default": selection.kept_incumbent,
        "predicted_us": winner.measurement.value,
        "default_predicted_us": _value(selection.incumbent),
        "predicted_speedup": selection.speedup,
        "limit": details["limit"],
        "registers": [gemm["registers"] for gemm in gemms],
        "spill_bytes": [gemm["spill_bytes"] for gemm in gemms],
        "shared_bytes": [gemm["shared_bytes"] for gemm in gemms],
        "tensor_cores": [gemm["mma"] for gemm in gemms],
    }


def _measured_row(
    result: Result, measured: MeasuredFacts, m: int, selection: Selection
) -> dict[str, Any]:
    winner, plan = selection.winner.measurement, result.plan
    ceilings = Ceilings.measured(measured.facts, plan.shape)
    reached = share(plan.shape, m, winner.value or float("nan"), ceilings, plan.routing)
    return {
        "m": m,
        "config": _config(selection.winner),
        "is_default": selection.kept_incumbent,
        "us": winner.value,
        "us_mad": mad(winner.samples),
        "default_us": _value(selection.incumbent),
        "speedup": selection.speedup,
        "speedup_low": selection.interval[0] if selection.interval else None,
        "speedup_high": selection.interval[1] if selection.interval else None,
        "relative_error": winner.details.get("error"),
        "bandwidth_share": reached.bandwidth,
        "tensor_share": reached.tensor,
    }


def _config(trial: Trial) -> dict[str, int]:
    return {name: trial.candidate.int(name) for name in FIELDS}


def _value(trial: Trial | None) -> float | None:
    return None if trial is None else trial.measurement.value
