"""A :class:`Plan` holds what ``autotune spec`` has decided before it starts."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from autotune.core import Basis, Candidate, Scalar
from autotune.kind import SPEC
from autotune.machine.environment import environment
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.propose.names import MODEL
from autotune.serving.cluster.look import Looked
from autotune.serving.decide.quality import without_speculation
from autotune.serving.forecast.acceptance import distinct_experts
from autotune.serving.forecast.forecast import others
from autotune.serving.measure.prompts import Prompt
from autotune.serving.measure.tasks import Tasks
from autotune.serving.memory.fit import check_fit
from autotune.serving.pair.methods import NO_DRAFTER
from autotune.serving.pair.pairing import Pair, check_gamma
from autotune.serving.recipe import GAMMA, Recipe
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.launchers import DockerLauncher, LocalLauncher
from autotune.serving.server.mounts import Mount
from autotune.serving.server.server import Launcher, ServeSettings
from autotune.space.space import Space
from autotune.util.finding import Finding

AUTO, SIDE_BY_SIDE, IN_TURN = CONFIRM = ("auto", "side-by-side", "in-turn")
"""How the servers of a confirmation run: all at once where the memory holds them, or not."""
FINALISTS = 2
"""Settings that meet the baseline again in fresh boots; of a Pareto front, its knee and ends."""
START_ESTIMATE_S = {MemoryKind.CPU: 30.0, MemoryKind.GPU: 160.0, MemoryKind.UNIFIED: 240.0}
"""For the estimate only: a tiny model on a CPU; Gemma 4 26B-A4B on an H200 (138 to 165 s); unified
memory is a guess."""


@dataclass(frozen=True)
class Plan:
    """The plan holds everything that ``autotune spec`` has decided before it starts.

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
        mounts: of the container, as given by the user.
        retry_failed: whether settings that failed for the moment are tried again.
        schedule: whether gamma by batch size is tried.
        utilization: range of the memory utilization that is searched, in hundredths.
        tasks: of lm-eval, of which no score may fall; None evaluates none.
        force: try what the checks before the start refuse.
        findings: what these checks said when the plan was made.
        dial: whether a dial turns gamma, so that one boot measures all of them (``dial/``).
        confirm: one of :data:`CONFIRM`.
        check_tokens: of each text that the gate on outputs judges (``gate/``); 0 judges none.
        soak_s: seconds for which the chosen setting is loaded in the end; 0 is not at all.
        nodes: of a cluster, on which servers are started; None starts them here.
        sampler: orders the boots of the search: one of :data:`autotune.propose.names.NAMED`, or
            MODULE:CLASS.
        seed: of the sampler.
    """

    kind: ClassVar[str] = SPEC
    study: str
    pair: Pair
    recipe: Recipe
    space: Space
    scenario: SpecScenario
    prompts: tuple[Prompt, ...]
    launcher: Launcher
    memory: MemoryReading
    confirm_rounds: int
    min_gain: float
    budget_s: float | None
    start_timeout_s: float
    request_timeout_s: float
    image: str | None
    command: str
    mounts: tuple[Mount, ...] = ()
    retry_failed: bool = False
    schedule: bool = True
    utilization: tuple[int, int] | None = None
    tasks: Tasks | None = None
    force: bool = False
    findings: tuple[Finding, ...] = ()
    dial: bool = False
    confirm: str = AUTO
    check_tokens: int = 0
    soak_s: int = 0
    nodes: Looked | None = None
    sampler: str = MODEL
    seed: int = 0

    @property
    def basis(self) -> Basis:
        """Synthetic where vLLM is told how much to accept."""
        return Basis.SYNTHETIC if self.recipe.synthetic else Basis.MEASURED

    @functools.cached_property
    def points(self) -> list[Candidate]:
        """Return the points of the space that the drafter can do."""
        allowed = {g for g in self.gammas if not any(f.refuses for f in check_gamma(self.pair, g))}
        home = self.baseline
        return [
            c
            for c in self.space.feasible({})
            if c.int(GAMMA) in allowed and (c.int(GAMMA) or c == without_speculation(c, home))
        ]

    @functools.cached_property
    def refused(self) -> Mapping[Candidate, str]:
        """Points that cannot start with the memory that is there, and why; none if forced."""
        if self.force:
            return {}
        memory = self.memory
        if self.utilization is not None:  # boots tell what starts, and may be of another day
            memory = replace(memory, free=memory.total)
        reasons = {
            candidate: "; ".join(f.message for f in findings if f.refuses)
            for candidate, findings in memory_findings(self, self.points, memory).items()
        }
        return {candidate: why for candidate, why in reasons.items() if why}

    @functools.cached_property
    def grid(self) -> list[Candidate]:
        """Return what may be started: the points that are not refused."""
        return [candidate for candidate in self.points if candidate not in self.refused]

    @property
    def gammas(self) -> tuple[int, ...]:
        """Return the numbers of drafted tokens asked for, ascending."""
        values = dict(self.space.parameters)[GAMMA]
        return tuple(sorted(value for value in values if isinstance(value, int)))

    @property
    def drafting(self) -> str:
        """Describe the drafter."""
        named = self.scenario.drafting
        return (
            named if self.recipe.method == NO_DRAFTER else f"{named} (method {self.recipe.method})"
        )

    @property
    def baseline(self) -> Candidate:
        """Return the baseline: no speculation, the first value of everything else."""
        params: dict[str, Scalar] = {name: values[0] for name, values in self.space.parameters}
        return Candidate.of(params | {GAMMA: 0})

    @property
    def rivals(self) -> set[Candidate]:
        """Return what may be started besides the baseline."""
        return {*self.grid} - {self.baseline}

    @property
    def finalists(self) -> int:
        """Return how many settings at most meet the baseline again in fresh boots."""
        return FINALISTS + (self.scenario.objective == "pareto")

    @property
    def confirmed(self) -> int:
        """Count a round of fresh boots at most: baseline, finalists and the schedule."""
        rivals = len(self.rivals)
        several = len(self.scenario.concurrency) > 1 and len(self.gammas) > 1
        return min(self.finalists, rivals) + 1 + (self.schedule and several) if rivals else 0

    @property
    def column(self) -> list[Candidate]:
        """Return the settings that share the baseline's server where a dial turns gamma."""
        home = others(self.baseline)
        return [self.baseline, *(c for c in self.grid if c in self.rivals and others(c) == home)]

    @property
    def searched(self) -> int:
        """Count the boots of the search at most: every candidate or column, and the baseline."""
        if self.dial:
            return len({others(c) for c in [self.baseline, *self.grid]})
        return 1 + len(self.rivals)

    @property
    def compared(self) -> int:
        """Count further boots at most that are made for their outputs alone."""
        plain = {without_speculation(c, self.baseline) for c in self.grid}
        return 0 if self.recipe.synthetic else len(plain - self.rivals - {self.baseline})

    @property
    def replacing(self) -> int:
        """Count fresh boots at most of settings that take the place of failed ones."""
        return max(0, min(self.finalists, len(self.rivals) - self.finalists))

    @property
    def bisected(self) -> int:
        """Count the boots at most of the two bisections of the memory utilization.

        On unified memory the upper border is climbed to first.
        """
        if self.utilization is None:
            return 0
        times = 3 if self.memory.kind is MemoryKind.UNIFIED else 2
        return times * (self.utilization[1] - self.utilization[0]).bit_length()

    @property
    def boots(self) -> int:
        """Count the servers started at most."""
        confirming = self.confirm_rounds * self.confirmed + self.replacing
        soaking = int(self.soak_s > 0)
        return self.searched + self.compared + self.bisected + confirming + soaking

    @property
    def estimated_seconds(self) -> float:
        """Estimate an upper bound of the starts alone; the loads come on top."""
        return self.boots * START_ESTIMATE_S[self.memory.kind]

    def growth(self) -> Callable[[int], float]:
        """Return how a verification's time grows with its rows: as a MoE model's experts read."""
        target = self.pair.target
        experts = target.experts
        chosen = target.size("num_experts_per_tok") or target.size("top_k_experts")
        if experts is None or chosen is None or not 1 <= chosen <= experts:
            return float
        return functools.partial(distinct_experts, experts, chosen)

    def identity(self) -> dict[str, Any]:
        """Return what the study is about, which must not change between two commands."""
        return {"target": self.recipe.target, "drafter": self.scenario.drafter}

    def setup(self) -> dict[str, Any]:
        """Return what trials must share to be compared: part of the search's key.

        Not the space: a wider one goes on from what a narrower one measured.
        """
        launcher, nodes, here = self.launcher, self.nodes, environment()
        version = launcher.version() if isinstance(launcher, LocalLauncher) else None
        version = version if nodes is None else nodes.nodes[0].vllm
        if isinstance(launcher, DockerLauncher):
            version = launcher.vllm
        return {
            "basis": self.basis.value,
            "recipe": {"name": self.recipe.method} | self.recipe.as_json(),
            **self.launcher.as_json(),
            "vllm": version,
            "gpus": [gpu["name"] for gpu in here["gpus"]] if nodes is None else list(nodes.gpus),
            "cpus": here["cpus"] if nodes is None else nodes.nodes[0].cpus,
        }


def memory_findings(
    plan: Plan, candidates: Iterable[Candidate], memory: MemoryReading
) -> dict[Candidate, list[Finding]]:
    """Check each against the memory; above 0, the number of drafted tokens changes nothing."""
    by_kind: dict[Candidate, list[Finding]] = {}
    findings = {}
    for candidate in candidates:
        like = Candidate.of({**candidate.params, GAMMA: min(1, candidate.int(GAMMA))})
        if like not in by_kind:
            by_kind[like] = _fits(plan, plan.recipe.settings(like), memory)
        findings[candidate] = by_kind[like]
    return findings


def _fits(plan: Plan, settings: ServeSettings, memory: MemoryReading) -> list[Finding]:
    """What speaks against a start; then, of requests of a given length, against so many at once."""
    requests, context = plan.scenario.concurrency[-1], max(plan.scenario.context, default=0)
    found = check_fit(plan.pair, settings, requests, memory)
    if not context or any(finding.refuses for finding in found):
        return found
    args = (*settings.extra_args, "--max-model-len", str(context))
    return check_fit(plan.pair, replace(settings, extra_args=args), requests, memory)


def default_study(target: str, drafter: str) -> str:
    """Name a study by its models, such as ``spec-gemma-4-26b-a4b-it-ngram``."""
    parts = [re.sub(r"[^\w.+-]", "-", Path(name).name or name) for name in (target, drafter)]
    return f"spec-{'-'.join(parts)}"[:100].lower()
