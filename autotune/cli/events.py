"""What ``--dry-run`` and ``--events`` tell programs: a plan, and each of its steps."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.cli.consoles import err
from autotune.core import BadInputError
from autotune.util.secret import masked

if TYPE_CHECKING:
    from autotune.kernels.plan import Plan as KernelPlan
    from autotune.serving.plan import Plan as ServingPlan
    from autotune.serving.running.job import ExistingPlan
    from autotune.tune import Progress


def kernel_plan(plan: KernelPlan) -> dict[str, Any]:
    """Describe the plan of ``autotune moe`` as JSON values."""
    from autotune.kernels import estimate  # noqa: PLC0415 - slow import

    return {
        "kind": plan.kind,
        "study": plan.study,
        "basis": plan.basis.value,
        "device": plan.device.name,
        "model": plan.model,
        "file": plan.file_name,
        "batch_sizes": list(plan.batch_sizes),
        "candidates": plan.trials_per_m,
        "feasible": len(plan.feasible),
        "compilations": estimate.compilations(plan),
        "minutes": max(1, round(estimate.seconds(plan) / 60)),
        "total": plan.steps,
        "unit": "trials",
        "value": "µs per call",
        "notes": list(plan.notes),
    }


def serving_plan(plan: ServingPlan) -> dict[str, Any]:
    """Describe the plan of ``autotune spec`` as JSON values; ``minutes`` are of starting alone."""
    return {
        "kind": plan.kind,
        "study": plan.study,
        "basis": plan.basis.value,
        "target": plan.scenario.target,
        "drafting": str(plan.drafting),
        "parameters": {name: list(values) for name, values in plan.space.parameters},
        "settings": len(plan.rivals),
        "boots": plan.boots,
        "minutes": max(1, round(plan.estimated_seconds / 60)),
        "total": plan.boots,
        "unit": "boots",
        "value": "µs per output token",
        "notes": [f"{finding.severity.value}: {finding.message}" for finding in plan.findings],
        "findings": [asdict(finding) for finding in plan.findings],
    }


def existing_plan(plan: ExistingPlan) -> dict[str, Any]:
    """Describe the plan of measuring a server that runs already."""
    return {
        "kind": plan.kind,
        "study": plan.study,
        "basis": "measured",
        "target": plan.server.model,
        "total": 1,
        "unit": "servers",
        "notes": [],
    }


@contextmanager
def told(
    path: Path | None, plan: Mapping[str, Any], also: Callable[[Progress], None]
) -> Iterator[Callable[[Progress], None]]:
    """Give what takes each step: it goes to ``also``, and to the file if there is one.

    The file is only added to: each line is written whole, and a reader may follow. Where it takes
    no more, as when a pipe's reader has gone, that is said once, and the work goes on without it.

    Raises:
        BadInputError: the file cannot be written.
    """
    if path is None:
        yield also
        return
    try:
        # A pipe that nobody reads would be waited for; it is refused.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o666)
        os.set_blocking(descriptor, True)
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}; name another file with --events") from None
    taken = True

    def write(event: Mapping[str, Any]) -> None:
        nonlocal taken
        try:
            if taken:
                _write(descriptor, event)
        except OSError as error:
            taken = False
            said = f"{path}: {error.strerror}: no more events are written; the work goes on"
            err.warn(f"Warning: {said}")

    def tell(step: Progress) -> None:
        write(step_event(step))
        also(step)

    try:
        write({"event": "plan", **plan})
        yield tell
    finally:
        os.close(descriptor)


def _write(descriptor: int, event: Mapping[str, Any]) -> None:
    line = json.dumps(masked(dict(event)), ensure_ascii=False)
    left = line.encode("utf-8", "backslashreplace") + b"\n"
    while left:  # a disk that is nearly full takes a part
        left = left[os.write(descriptor, left) :]


def step_event(step: Progress) -> dict[str, Any]:
    """Describe a step as JSON values."""
    trial, measurement = step.trial, step.trial.measurement
    return {
        "event": "step",
        "phase": trial.phase.value,
        "at": step.workload.label,
        "candidate": trial.candidate.params,
        "outcome": measurement.outcome.value,
        "value": measurement.value,
        "message": measurement.message[:500],
        "known": step.reused,
    }
