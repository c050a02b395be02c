"""What a measured job leaves behind: the rows of the table, the report, the provenance."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from autotune.core import Selection
from autotune.decide.stats import mad
from autotune.kernels.config_file import FIELDS
from autotune.kernels.job import MeasuredFacts, Result
from autotune.kernels.moe.shape import MoeWorkload
from autotune.kernels.predict.cost_model import least_work
from autotune.kernels.stored import overall_speedup
from autotune.util.markdown import escape

NOTE = (
    "MEASURED on the GPU named below: the whole fused_experts call in CUDA graphs, finalists and "
    "vLLM's default side by side in a fresh process with fresh routings, outputs checked against "
    "float32."
)


def facts(result: Result) -> MeasuredFacts:
    """The facts of a measured job.

    Raises:
        ValueError: if it was a prediction.
    """
    if result.measured is None:
        raise ValueError("not a measured result")
    return result.measured


def table(result: Result) -> list[dict[str, Any]]:
    """One row per M, for the terminal, the report and ``--json``. Times in µs."""
    return [_row(result, m, s) for m, s in sorted(result.selections.items())]


def _row(result: Result, m: int, selection: Selection) -> dict[str, Any]:
    winner, incumbent = selection.winner.measurement, selection.incumbent
    seen = facts(result).facts
    needed = least_work(MoeWorkload(result.plan.shape, m), result.plan.routing)
    us = winner.value or float("nan")
    eight_bit = result.plan.shape.weight_dtype != "bf16"
    tflops = seen["bf16_tflops"] * (2 if eight_bit else 1)
    default_us = None if incumbent is None else incumbent.measurement.value
    return {
        "m": m,
        "config": {name: selection.winner.candidate.int(name) for name in FIELDS},
        "is_default": selection.kept_incumbent,
        "us": winner.value,
        "us_mad": mad(winner.samples),
        "default_us": default_us,
        "speedup": selection.speedup,
        "speedup_low": selection.interval[0] if selection.interval else None,
        "speedup_high": selection.interval[1] if selection.interval else None,
        "relative_error": winner.details.get("error"),
        "bandwidth_share": needed.bytes / us / 1e3 / seen["copy_gbs"],
        "tensor_share": needed.flops / us / 1e6 / tflops,
    }


def provenance(result: Result) -> dict[str, Any]:
    """What a measured result adds to the provenance."""
    measured = facts(result)
    return {
        "measured_on": measured.facts,
        "spent": measured.spent,
        "between_keys": [asdict(between) for between in measured.between],
        "geometric_mean_speedup": overall(result),
    }


def overall(result: Result) -> float:
    """See :func:`overall_speedup`."""
    return overall_speedup(selection.speedup for selection in result.selections.values())


def summary(result: Result) -> str:
    """How many rows differ from vLLM's default, and what they gain."""
    changed = sum(not selection.kept_incumbent for selection in result.selections.values())
    said = f"{changed} of {len(result.selections)} rows differ from vLLM's default"
    return f"{said}; {overall(result):.3f}× in the geometric mean over all keys"


def cells(row: dict[str, Any]) -> list[str]:
    """A row of :func:`table` as text."""
    default = row["default_us"]
    low, high = row["speedup_low"], row["speedup_high"]
    error = row["relative_error"]
    return [
        str(row["m"]),
        "/".join(str(value) for value in row["config"].values()),
        f"{row['us']:.1f}",
        "fails" if default is None else f"{default:.1f}",
        "default" if row["is_default"] else f"{row['speedup']:.3f}×" if row["speedup"] else "",
        "" if low is None else f"{low:.3f} to {high:.3f}",
        f"{row['bandwidth_share']:.0%}",
        f"{row['tensor_share']:.0%}",
        "" if error is None else f"{error:.4f}",
    ]


def report_lines(result: Result) -> list[str]:
    """The measured part of the Markdown report."""
    measured = facts(result)
    seen, spent = measured.facts, measured.spent
    lines = [
        f"- Measured on {seen['gpu']}, driver {result.plan.gpus[0].driver}, torch {seen['torch']}, "
        f"Triton {seen['triton']}, vLLM {seen['vllm']}, CUDA {seen['cuda']}",
        f"- Ceilings measured there: copy {seen['copy_gbs']:.0f} GB/s (read plus write), bf16 "
        f"product {seen['bf16_tflops']:.0f} TFLOP/s",
        f"- Routing: {escape(result.plan.routing.name)}",
        f"- Time: {result.seconds:.0f} s in all; "
        + ", ".join(
            f"{name.removesuffix('_s')} {value:.1f} s"
            for name, value in spent.items()
            if name.endswith("_s")
        )
        + f"; loading, capturing and replaying candidates {spent['measuring']:.0f} s, compilers "
        f"{spent['compile_cpu']:.0f} s",
        "",
        f"{summary(result)}. A row replaces the default where the whole 95 % interval of its "
        f"speed-up is above 1 and the median gains more than {result.plan.min_gain:.1%}.",
        "",
        "| M | BM/BN/BK/G/warps/stages | µs | default µs | speed-up | 95 % interval | of copy "
        "bandwidth | of tensor rate | relative error |",
        "|--:|:--|--:|--:|--:|:--|--:|--:|--:|",
    ]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in table(result)]
    lines += [
        "",
        "Medians over rounds, each with fresh routings; the default and the finalists take turns. "
        "*Of copy bandwidth* counts the least bytes the call must move (each expert in use once), "
        "*of tensor rate* its operations against the rate of the bf16 product (8-bit: twice that).",
        "",
        "## Between the keys",
        "",
        "vLLM takes the nearest key. The file's row against vLLM's default at batch sizes between "
        "(default over file, above 1 the file is faster):",
        "",
        "| M | uses key | ratio | 95 % interval | |",
        "|--:|--:|--:|:--|:--|",
    ]
    lines += [
        f"| {b.m} | {b.key} | {b.ratio:.3f} | {b.low:.3f} to {b.high:.3f} | "
        f"{'lost: pinned to the default' if b.pinned else ''} |"
        for b in measured.between
    ]
    return lines
