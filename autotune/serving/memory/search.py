"""Before the search: between which utilizations the hungriest setting serves the full load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autotune.core import BadInputError, Candidate, Job, Measurer, Phase
from autotune.machine.guard import RESERVE
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving.memory.model import kv_bytes_per_token
from autotune.serving.memory.sustain import FullLoad
from autotune.serving.memory.utilization import Borders, Evidence, find_borders
from autotune.serving.pair.methods import GEMMA4_ASSISTANTS
from autotune.serving.plan import Plan
from autotune.serving.recipe import GAMMA, UTILIZATION
from autotune.tune import OnProgress, TrialLog, measure_all

_DRIFT = 2
"""Hundredths by which free memory moves from one command to the next though nothing changed."""


def within_free(low: int, high: int, memory: MemoryReading) -> int:
    """The upper end in hundredths: vLLM does not start where it asks for more than is free.

    Of unified memory it leaves the host its reserve.
    """
    unified = memory.kind is MemoryKind.UNIFIED
    free = memory.free - RESERVE if unified else memory.free
    return max(low, min(high, 100 * free // memory.total))


def at_utilization(plan: Plan, percent: int) -> Plan:
    """The plan with this utilization for every setting."""
    parameters = dict(plan.space.parameters) | {UTILIZATION: (f"{percent / 100:g}",)}
    return replace(plan, space=replace(plan.space, parameters=tuple(parameters.items())))


def search_utilization(
    plan: Plan, measurer: Measurer, log: TrialLog, on_progress: OnProgress
) -> tuple[Plan, Borders | None]:
    """The plan at the most that survives, and both borders; as it is where no range is given.

    The setting is that of the largest gamma and the first value of everything else.

    Raises:
        NoFeasibleCandidateError: no utilization in the range serves.
    """
    if plan.utilization is None:
        return plan, None
    low, high = plan.utilization
    load = FullLoad(
        plan.recipe.target,
        plan.scenario.drafter,
        plan.scenario.concurrency[-1],
        max(plan.scenario.context, default=None),
        plan.scenario.max_tokens,
    )

    def probe(percent: int) -> Evidence:
        candidate = hungriest(at_utilization(plan, percent))
        job = Job(candidate, load)
        return Evidence(*measure_all([job], Phase.SEARCH, measurer, log, on_progress))

    free = within_free(low, high, plan.memory)
    settings = {hungriest(at_utilization(plan, p)): p for p in range(low, high + 1)}
    stored = [trial.candidate for trial in log.load(load, Phase.SEARCH)]
    top = first_step(free, [settings[c] for c in stored if c in settings])
    unified = plan.memory.kind is MemoryKind.UNIFIED
    top = min(top, free) if unified else top
    slope = _slope(plan)
    found = find_borders(low, top, load.concurrency, probe, slope, upwards=unified)
    assert found.most is not None  # noqa: S101 - else find_borders raises
    found.free = free
    return at_utilization(plan, found.most), found


def first_step(free: int, stored: Sequence[int]) -> int:
    """The utilization that is tried first, in hundredths.

    All later steps follow from it, so a command that goes on must begin where the earlier one did,
    whatever is free by now; unless so much more is free that it is worth measuring anew.

    Args:
        free: the largest of the range that is free now.
        stored: those in the range that were measured already.
    """
    known = max(stored, default=free)
    return free if free - known > _DRIFT else known


def hungriest(plan: Plan) -> Candidate:
    """The setting that needs most memory beside its KV cache: the largest gamma, the drafter's."""
    return Candidate.of({**plan.baseline.params, GAMMA: max(c.int(GAMMA) for c in plan.points)})


def _slope(plan: Plan) -> float | None:
    """PREDICTED tokens of KV cache in a hundredth of the memory; None where sizes are unknown."""
    models = [plan.pair.target]
    if plan.pair.drafter is not None and plan.pair.drafter.model_type not in GEMMA4_ASSISTANTS:
        models.append(plan.pair.drafter)
    try:
        size = sum(kv_bytes_per_token(model) for model in models)
    except BadInputError:
        return None
    return plan.memory.total / 100 / size if size else None


def memory_document(found: Borders | None) -> dict[str, Any] | None:
    """The borders and every boot behind them as JSON values; utilizations are shares."""
    if found is None:
        return None
    return {
        "least": None if found.least is None else found.least / 100,
        "most": None if found.most is None else found.most / 100,
        "range": [found.low / 100, found.high / 100],
        "free_now": None if found.free is None else found.free / 100,
        "tokens_at_once": found.tokens,
        "said": memory_said(found),
        "evidence": [
            {
                "utilization": percent / 100,
                "outcome": one.trial.measurement.outcome.value,
                "failure": one.trial.measurement.details.get("failure"),
                "message": one.trial.measurement.message,
                "sustained": one.sustains(found.tokens),
                **{
                    name: one.trial.measurement.details.get(name)
                    for name in ("kv_cache_tokens", "preemptions", "peak_kv_usage", "peak_waiting")
                },
            }
            for percent, one in sorted(found.evidence.items())
        ],
    }


def memory_said(found: Borders) -> str:
    """The result in a sentence."""
    held = f"{found.tokens} tokens at once without preemption"
    least = f"at least {(found.least or 0) / 100:.2f} holds {held}"
    if found.least is None and not found.told:
        least = f"which holds {held} is not known, for the server does not tell"
    elif found.least is None:
        least = f"none holds {held}"
    elif found.least == found.low:
        least = f"{found.low / 100:.2f}, the least asked for, holds {held}"
    said = f"{least}; at most {(found.most or 0) / 100:.2f} survives the full load"
    if found.free is not None and found.free < (found.most or 0):
        said += (
            f", by an earlier command: {found.free / 100:.2f} is free now, and a new start at more "
            "fails"
        )
    return said
