"""What a search proposes: the rows that it tries first, where they come from, then a sampler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autotune.core import Candidate, Phase, Proposer, Selection, Trial, Workload, digest
from autotune.kernels.config_file import look_up, shipped
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.plan import Plan
from autotune.kernels.predict.cost_model import predict
from autotune.kernels.predict.measurer import estimated_resources, tile_of
from autotune.kernels.published import clamped, published_for, published_rows
from autotune.propose.proposers import OptunaProposer, OrderedProposer
from autotune.tune import TrialLog

PRIOR_SEEDS = 24
"""Candidates that the cost model puts first before compiling, proposed before the sampler."""
DEFAULT, MODEL, SEARCH = "vLLM's default", "the cost model's order", "found by the search"


def rank(plan: Plan, m: int) -> list[Candidate]:
    """The feasible candidates by the cost model with estimated resources, best first."""
    workload = MoeWorkload(plan.shape, m)

    def predicted(candidate: Candidate) -> float:
        resources = estimated_resources(candidate, plan.shape, plan.device)
        tile = tile_of(candidate, plan.shape)
        return predict(workload, tile, (resources, resources), plan.device).us

    return sorted(plan.feasible_at(m), key=lambda c: (predicted(c), c.key))


def first_rows(
    plan: Plan, m: int, default: Candidate, ranked: Sequence[Candidate]
) -> dict[Candidate, str]:
    """Return what is tried before the sampler, in this order, with where each row comes from.

    Args:
        plan: names the shape, the device and the files.
        m: tokens.
        default: vLLM's own row.
        ranked: feasible candidates by the cost model, best first.
    """
    found = {default: DEFAULT}
    for file in plan.first:
        for row in file.at(m):
            found.setdefault(clamped(row, plan.shape), f"--first {file.path}")
    published = published_rows(published_for(plan.device.name), plan.shape, m)
    for row, origin in published.items():
        found.setdefault(row, origin)
    for name, rows in shipped(plan.kernel.path.parent / "configs", plan.shape):
        found.setdefault(look_up(rows, m), f"shipped with vLLM: {name}")
    for row in ranked[:PRIOR_SEEDS]:
        found.setdefault(row, MODEL)
    return found


def proposers(
    plan: Plan, defaults: Mapping[int, Candidate]
) -> tuple[dict[int, Proposer], dict[str, dict[Candidate, str]]]:
    """Return a proposer for every M, and by workload where what it tries first comes from."""
    chosen: dict[int, Proposer] = {}
    origins: dict[str, dict[Candidate, str]] = {}
    for m in plan.batch_sizes:
        workload = MoeWorkload(plan.shape, m)
        ranked = rank(plan, m)
        origins[workload.key] = first_rows(plan, m, defaults[m], ranked)
        if plan.effort == "exhaustive":
            chosen[m] = OrderedProposer(ranked)
            continue
        chosen[m] = OptunaProposer(
            plan.space,
            ranked,
            sampler=plan.sampler,
            seed=int(digest([plan.seed, workload.key]), 16) % 2**32,
            first=list(origins[workload.key]),
        )
    return chosen, origins


class OriginLog:
    """A log that notes with each searched trial where its candidate came from."""

    def __init__(self, log: TrialLog, origins: Mapping[str, Mapping[Candidate, str]]) -> None:
        """Wrap ``log``; ``origins`` are those of :func:`first_rows`, by the workload's key."""
        self._log, self._origins = log, origins
        self.load = log.load
        self.load_parts = log.load_parts
        self.append_part = log.append_part

    def append(self, workload: Workload, trial: Trial) -> None:
        """Store the trial, with its origin."""
        origin = self._origins.get(workload.key, {}).get(trial.candidate)
        if trial.phase is Phase.SEARCH and origin is not None:
            details = {**trial.measurement.details, "origin": origin}
            trial = replace(trial, measurement=replace(trial.measurement, details=details))
        self._log.append(workload, trial)


def origin_of(candidate: Candidate, default: Candidate | None, trials: Sequence[Trial]) -> str:
    """Where a chosen row came from, by the stored trials of its batch size."""
    if candidate == default:
        return DEFAULT
    searched = [t for t in trials if t.phase is Phase.SEARCH and t.candidate == candidate]
    said: list[Any] = [t.measurement.details.get("origin") for t in searched]
    return next((text for text in said if text), SEARCH)


def trials_by_workload(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """Return trials in their order, by the keys of their workloads."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(trial.workload_key, []).append(trial)
    return found


def origins_of(
    shape: MoeShape, selections: Mapping[int, Selection], trials: Sequence[Trial]
) -> dict[int, str]:
    """Return :func:`origin_of` by batch size, for the rows of a file."""
    by_workload, found = trials_by_workload(trials), {}
    for m, selection in selections.items():
        default = selection.incumbent.candidate if selection.incumbent else None
        own = by_workload.get(MoeWorkload(shape, m).key, [])
        found[m] = origin_of(selection.winner.candidate, default, own)
    return found


def grouped(origins: Mapping[int, str]) -> list[str]:
    """Return one line per origin other than vLLM's default, with its batch sizes."""
    by_origin: dict[str, list[str]] = {}
    for m, said in sorted(origins.items()):
        if said != DEFAULT:
            by_origin.setdefault(said, []).append(str(m))
    return [f"M={', '.join(batch_sizes)}: {said}" for said, batch_sizes in by_origin.items()]
