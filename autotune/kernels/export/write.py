"""What a finished job leaves behind: vLLM's file, its provenance, a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autotune.core import Basis, Trial
from autotune.export.files import write_whole
from autotune.kernels.config_file import FIELDS, render
from autotune.kernels.export.earlier import check_keys_stay
from autotune.kernels.first import grouped
from autotune.kernels.job import Result
from autotune.kernels.predict.choose import least_gain
from autotune.kernels.report import measured
from autotune.util.markdown import escape, in_code

SPARSE = 12
"""Fewer keys than this leave wide gaps; a sparse file once cost 2.35 % (a vLLM pull request)."""

FP16_WARNING = (
    "fp8 operands end up in fp16 tensor-core instructions (HMMA) with Triton {triton}: half the "
    "rate. On sm_121 Triton 3.6.0 to 3.7.1 does so everywhere and 3.8.0 uses QMMA; on sm_90 and "
    "sm_100 tiles below 64 rows and columns do. Tune with the Triton that will serve: a tuned file "
    "is for one Triton generation."
)
PREDICTED_NOTE = (
    "PREDICTED, not measured: the real kernel was compiled for the device, its time was computed "
    "by a cost model (docs/explanation/cost-model.md). Measure before you rely on it, and do not "
    "send it upstream."
)


def folder_of(out: Path, study: str, basis: Basis) -> Path:
    """Where the files of a study go."""
    return out / study / basis.value


def table(result: Result) -> list[dict[str, Any]]:
    """One row per M, for the terminal, the report and ``--json``. Times in µs, memory in bytes."""
    if result.measured is not None:
        return measured.table(result)
    rows = []
    for m, selection in sorted(result.selections.items()):
        winner = selection.winner
        details = winner.measurement.details
        gemms = details["compiled"]
        rows.append(
            {
                "m": m,
                "config": {name: winner.candidate.int(name) for name in FIELDS},
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
        )
    return rows


def _value(trial: Trial | None) -> float | None:
    return None if trial is None else trial.measurement.value


def provenance(result: Result) -> dict[str, Any]:
    """Everything needed to know what the file is worth and to make it again."""
    plan = result.plan
    more = measured.provenance(result) if result.measured is not None else {}
    return more | {
        "basis": plan.basis.value,
        "note": note(result),
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
        "rows": [row | {"origin": result.origins.get(row["m"])} for row in table(result)],
    }


def note(result: Result) -> str:
    """What the numbers are."""
    return measured.NOTE if result.measured is not None else PREDICTED_NOTE


def few_keys(number: int) -> str | None:
    """A warning of a file with gaps; None where there are enough keys."""
    if number >= SPARSE:
        return None
    return (
        f"few keys in the file ({number}): vLLM uses the nearest one at every batch size and never "
        "falls back to its defaults"
    )


def warnings(result: Result) -> list[str]:
    """What a user must know beside the numbers."""
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


def report(result: Result) -> str:
    """The Markdown report."""
    plan = result.plan
    lines = [
        f"# {escape(plan.study)}: {plan.basis.value}",
        "",
        f"> {note(result)}",
        "",
        *(f"> **Warning:** {escape(text)}\n" for text in warnings(result)),
        f"- Model: {escape(plan.model)}; E={plan.shape.experts}, N={plan.shape.intermediate}, "
        f"K={plan.shape.hidden}, topk={plan.shape.topk}, {plan.shape.weight_dtype} "
        f"({plan.shape.scheme.value})",
        f"- Device: {escape(plan.device.title)} (sm_{plan.device.arch}); "
        f"{'used' if plan.measured else 'none was used'}",
        f"- Kernel: vLLM {plan.kernel.vllm_version}, fused_moe.py sha256 "
        f"{plan.kernel.sha256[:16]}, Triton {plan.kernel.triton_version}",
        f"- Search: space {escape(plan.space.name)}, {len(plan.feasible)} of "
        f"{plan.space.size} feasible, "
        f"effort {plan.effort}{_earlier(result)}, sampler {result.setup['sampler']}, "
        f"seed {plan.seed}",
        f"- Trials: {', '.join(f'{n} {name}' for name, n in result.counts.items())}",
        f"- Command: `{in_code(plan.command)}`",
        *(measured.report_lines(result) if result.measured else _predicted_lines(result)),
        *_origin_lines(result),
        "",
        "Try it: `VLLM_TUNED_CONFIG_FOLDER=<this folder> vllm serve …`; vLLM then logs "
        "«Using configuration from …».",
    ]
    return "\n".join(lines) + "\n"


def _origin_lines(result: Result) -> list[str]:
    lines = grouped(result.origins)
    head = ["", "Where rows other than the default's came from:", ""]
    return [*head, *(f"- {escape(line)}" for line in lines)] if lines else []


def _earlier(result: Result) -> str:
    """A study grows by commands that may have been of other efforts and batch sizes."""
    kept = result.trials - result.fresh
    return f" ({kept} of {result.trials} trials are of earlier commands)" if kept else ""


def _predicted_lines(result: Result) -> list[str]:
    lines = [
        "",
        "A row stays vLLM's own default unless the prediction gains more than "
        f"{least_gain(result.plan.min_gain):.1%}, which the model can tell: {summary(result)}.",
        "",
        "| M | BM/BN/BK/G/warps/stages | predicted µs | default µs (predicted) | speed-up "
        "| limited by | registers | spilled B | shared B | tensor cores |",
        "|--:|:--|--:|--:|--:|:--|--:|--:|--:|:--|",
    ]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in table(result)]
    return [
        *lines,
        "",
        "Two figures in a cell are GEMM 1 (gate and up) and GEMM 2 (down). *Limited by* names what "
        "takes longest in the longer GEMM: `bytes` from memory, `l2`, `tensor cores`, `shared "
        "memory`, `latency`, or the last partial `waves`. The model hardly tells candidates apart "
        "where the memory limits, and is not good enough to pick winners at large M.",
    ]


def summary(result: Result) -> str:
    """How many rows differ from vLLM's default."""
    if result.measured is not None:
        return measured.summary(result)
    changed = sum(not selection.kept_incumbent for selection in result.selections.values())
    said = f"{changed} of {len(result.selections)} rows differ from vLLM's default"
    if changed == 0:
        said += ": by the prediction there is nothing to gain, the file only ends vLLM's warning"
    return said


def cells(row: dict[str, Any]) -> list[str]:
    """A row of :func:`table` as text."""
    if "us" in row:
        return measured.cells(row)
    default = row["default_predicted_us"]
    config = "/".join(str(value) for value in row["config"].values())
    return [
        str(row["m"]),
        config,
        f"{row['predicted_us']:.1f}",
        "not feasible" if default is None else f"{default:.1f}",
        "default" if row["is_default"] else _times(row["predicted_speedup"]),
        row["limit"],
        *(_pair(row[name]) for name in ("registers", "spill_bytes", "shared_bytes")),
        _pair(row["tensor_cores"]),
    ]


def _times(speedup: float | None) -> str:
    return "" if speedup is None else f"{speedup:.3f}×"


def _pair(values: list[Any]) -> str:
    first, second = values
    return str(first) if first == second else f"{first}, {second}"


def write(result: Result, out: Path) -> list[Path]:
    """Write the three files, each whole; the configuration file last.

    Raises:
        BadInputError: the folder cannot be written, or holds a file with keys that this one lacks.
        MissingEnvironmentError: no space is left.
    """
    plan = result.plan
    folder = folder_of(out, plan.study, plan.basis)
    check_keys_stay(plan, result.selections, folder, tuned=True, failed=result.failed)
    rows = {m: s.winner.candidate for m, s in result.selections.items()}
    config = render(rows, plan.kernel.triton_version)
    document = json.dumps(provenance(result), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    files = {
        folder / "provenance.json": document.encode(),
        folder / "report.md": report(result).encode(),
        folder / plan.file_name: config,
    }
    for path, data in files.items():
        write_whole(path, data)
    return list(files)
