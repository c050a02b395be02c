"""What ``autotune spec`` has decided before it starts."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autotune.core import BadInputError, Basis, Candidate, Scalar
from autotune.decide.stats import LEAST_PAIRS
from autotune.engine.arguments import argument_value, whole_value
from autotune.engine.variables import ROUTING
from autotune.machine.environment import environment, exported
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving.forecast.acceptance import distinct_experts
from autotune.serving.measure.prompts import Prompt
from autotune.serving.measure.tasks import Tasks
from autotune.serving.memory.fit import check_fit
from autotune.serving.pair.methods import NO_DRAFTER
from autotune.serving.pair.pairing import Pair, check_gamma, check_pair, is_stretched
from autotune.serving.recipe import GAMMA, Recipe
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.launchers import DockerLauncher, LocalLauncher
from autotune.serving.server.mounts import Mount
from autotune.serving.server.server import Launcher
from autotune.space.space import Space
from autotune.util.finding import Finding, Severity, refuse, warn

FINALISTS = 2
"""Settings that meet the baseline again in fresh boots; of a Pareto front, its knee and ends."""
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
        mounts: of the container, as given by the user.
        retry_failed: whether settings that failed for the moment are tried again.
        schedule: whether gamma by batch size is tried.
        utilization: range of the memory utilization that is searched, in hundredths.
        tasks: of lm-eval, of which no score may fall; None evaluates none.
        context: tokens of a request that the utilization must hold; None is the server's limit.
        force: try what the checks before the start refuse.
        findings: what these checks said when the plan was made.
    """

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
    context: int | None = None
    tasks: Tasks | None = None
    force: bool = False
    findings: tuple[Finding, ...] = ()

    @property
    def basis(self) -> Basis:
        """Synthetic where vLLM is told how much to accept."""
        return Basis.SYNTHETIC if self.recipe.synthetic else Basis.MEASURED

    @functools.cached_property
    def points(self) -> list[Candidate]:
        """The points of the space that the drafter can do."""
        allowed = {g for g in self.gammas if not any(f.refuses for f in check_gamma(self.pair, g))}
        return [c for c in self.space.feasible({}) if c.int(GAMMA) in allowed]

    @functools.cached_property
    def refused(self) -> Mapping[Candidate, str]:
        """Points that cannot start with the memory that is there, and why; none if forced."""
        if self.force:
            return {}
        memory = self.memory
        if self.utilization is not None:  # boots tell what starts, and may be of another day
            memory = replace(memory, free=memory.total)
        said = {
            candidate: "; ".join(f.message for f in found if f.refuses)
            for candidate, found in _fits(self, self.points, memory).items()
        }
        return {candidate: why for candidate, why in said.items() if why}

    @functools.cached_property
    def grid(self) -> list[Candidate]:
        """What may be started: the points that are not refused."""
        return [candidate for candidate in self.points if candidate not in self.refused]

    @property
    def gammas(self) -> tuple[int, ...]:
        """Numbers of drafted tokens asked for, ascending."""
        values = dict(self.space.parameters)[GAMMA]
        return tuple(sorted(value for value in values if isinstance(value, int)))

    @property
    def drafting(self) -> str:
        """The drafter in words."""
        named = self.scenario.drafting
        return (
            named if self.recipe.method == NO_DRAFTER else f"{named} (method {self.recipe.method})"
        )

    @property
    def baseline(self) -> Candidate:
        """No speculation, the first value of everything else."""
        params: dict[str, Scalar] = {name: values[0] for name, values in self.space.parameters}
        return Candidate.of(params | {GAMMA: 0})

    @property
    def rivals(self) -> set[Candidate]:
        """What may be started beside the baseline."""
        return {*self.grid} - {self.baseline}

    @property
    def finalists(self) -> int:
        """Settings at most that meet the baseline again in fresh boots."""
        return FINALISTS + (self.scenario.objective == "pareto")

    @property
    def confirmed(self) -> int:
        """Settings at most in a round of fresh boots: baseline, finalists and the schedule."""
        rivals = len(self.rivals)
        several = len(self.scenario.concurrency) > 1 and len(self.gammas) > 1
        return min(self.finalists, rivals) + 1 + (self.schedule and several) if rivals else 0

    @property
    def searched(self) -> int:
        """Boots of the search at most: every candidate and the baseline."""
        return 1 + len(self.rivals)

    @property
    def compared(self) -> int:
        """Further boots at most that are made for their outputs alone."""
        plain = {Candidate.of({**c.params, GAMMA: 0}) for c in self.grid}
        return 0 if self.recipe.synthetic else len(plain - self.rivals - {self.baseline})

    @property
    def replacing(self) -> int:
        """Fresh boots at most of settings that take the place of failed ones."""
        return max(0, min(self.finalists, len(self.rivals) - self.finalists))

    @property
    def bisected(self) -> int:
        """Boots at most of the two bisections of the memory utilization."""
        if self.utilization is None:
            return 0
        return 2 * (self.utilization[1] - self.utilization[0]).bit_length()

    @property
    def boots(self) -> int:
        """Servers started at most."""
        confirming = self.confirm_rounds * self.confirmed + self.replacing
        return self.searched + self.compared + self.bisected + confirming

    @property
    def estimated_seconds(self) -> float:
        """A rough upper estimate of the starts alone; the loads come on top."""
        return self.boots * START_ESTIMATE_S[self.memory.kind]

    def growth(self) -> Callable[[int], float]:
        """How a verification's time grows with its rows: as the experts read, in a MoE model."""
        target = self.pair.target
        experts = target.experts
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
        local = self.launcher if isinstance(self.launcher, LocalLauncher) else None
        return {
            "basis": self.basis.value,
            "recipe": {"name": self.recipe.method} | self.recipe.as_json(),
            **self.launcher.as_json(),
            "vllm": local.version() if local is not None else None,
            "gpus": [gpu["name"] for gpu in environment()["gpus"]],
            "cpus": environment()["cpus"],
        }


def preflight(plan: Plan) -> list[Finding]:
    """Everything that speaks against the plan, the worst first. No server is started.

    Raises:
        BadInputError: a size in a configuration, or a length among the flags, that cannot be read.
    """
    length = whole_value(plan.recipe.server_args, "--max-model-len")
    found = [*check_pair(plan.pair, max_model_len=length), *_check_synthetic(plan)]
    found += _check_length(plan, length)
    found += _unless_all(list(check_gamma(plan.pair, gamma)) for gamma in plan.gammas if gamma)
    pairs = plan.confirm_rounds * plan.scenario.repeats
    if pairs < LEAST_PAIRS:
        found.append(
            warn(
                "few-pairs",
                f"--repeats times --confirm-boots is {pairs}, which gives no 95 % interval: "
                f"nothing can win below {LEAST_PAIRS}",
            )
        )
    found += [*_check_dummy(plan), *_memory_findings(plan)]
    if not any(finding.refuses for finding in found):  # it may take vLLM seconds to say
        found += _check_program(plan)
    order = list(Severity)
    return sorted(dict.fromkeys(found), key=lambda finding: order.index(finding.severity))


def _check_length(plan: Plan, max_model_len: int | None) -> Iterator[Finding]:
    """VLLM refuses a request whose prompt and output are longer than what it serves."""
    target = plan.pair.target
    own = None if is_stretched(target) else target.size("max_position_embeddings")
    searched = any("max-model-len" in candidate.params for candidate in plan.grid)
    longest = None if searched else max_model_len or own
    if longest is not None and plan.scenario.max_tokens >= longest:
        yield refuse(
            "max-tokens",
            f"--max-tokens {plan.scenario.max_tokens} leaves no room for a prompt: {longest} "
            "tokens are served (--max-model-len); ask for fewer",
        )


def _check_program(plan: Plan) -> Iterator[Finding]:
    """Anything can be called by ``--vllm``; what is vLLM tells its version.

    Raises:
        MissingEnvironmentError: the program, or docker or its daemon, is not there.
    """
    launcher = plan.launcher
    if isinstance(launcher, LocalLauncher | DockerLauncher):
        launcher.require()
    if isinstance(launcher, LocalLauncher) and launcher.program and launcher.version() is None:
        program = shlex.join(launcher.program)
        yield warn(
            "vllm-version",
            f"--vllm: `{program} --version` fails, hangs or says nothing; is it vLLM? Trials of "
            "its versions cannot be told apart",
        )


def _check_dummy(plan: Plan) -> Iterator[Finding]:
    """Eight of 128 experts in most of Gemma 4's layers (`benchmarks/dummy_routing.py`)."""
    tried = dict(plan.space.parameters).get("load_format", ())
    dummy = "dummy" in {argument_value(plan.recipe.server_args, "--load-format"), *tried}
    inherited = exported(ROUTING) if isinstance(plan.launcher, LocalLauncher) else None
    simulated = plan.recipe.env.get(ROUTING, inherited)
    if dummy and plan.pair.target.experts and not simulated:
        yield warn(
            "dummy-routing",
            "--load-format dummy: made-up weights may send all tokens to the same few experts, so "
            "that large batches and gammas look cheaper than they are; add --env "
            f"{ROUTING}=uniform_random",
        )


def _check_synthetic(plan: Plan) -> Iterator[Finding]:
    """VLLM 0.32 asserts that its CPU sampler is not asked for it (v1/sample/rejection_sampler)."""
    if plan.recipe.synthetic and plan.memory.kind is MemoryKind.CPU:
        yield refuse(
            "synthetic-cpu",
            "--synthetic-acceptance: vLLM has it on GPUs only, and nvidia-smi shows none here; on "
            "a CPU the server starts and dies at its first request",
        )


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


def _memory_findings(plan: Plan) -> list[Finding]:
    """Refused is a plan of which the baseline cannot start, or nothing but the baseline can."""
    found = _fits(plan, [plan.baseline, *plan.points], plan.memory)
    against = [f for f in found.pop(plan.baseline) if f.refuses]
    others = [
        [f for f in group if f.refuses or candidate.int(GAMMA)]  # what is noted is noted once
        for candidate, group in found.items()
    ]
    if not against or all(any(f.refuses for f in group) for group in others):
        return [*against, *_unless_all(others)]
    said = "the baseline has the first value of every parameter: give one first that fits"
    return [refuse(f.code, f"{f.message}; {said}") for f in against]


def _fits(
    plan: Plan, candidates: Iterable[Candidate], memory: MemoryReading
) -> dict[Candidate, list[Finding]]:
    """What the memory says of each; the number of drafted tokens makes no difference above 0."""
    known: dict[Candidate, list[Finding]] = {}
    found = {}
    for candidate in candidates:
        like = Candidate.of({**candidate.params, GAMMA: min(1, candidate.int(GAMMA))})
        if like not in known:
            settings = plan.recipe.settings(like)
            known[like] = check_fit(plan.pair, settings, plan.scenario.concurrency[-1], memory)
        found[candidate] = known[like]
    return found


def refusal(findings: Sequence[Finding]) -> None:
    """End the command where a finding refuses; ``--force`` passes over it.

    Raises:
        BadInputError: the refusals, in one line.
    """
    refused = [finding.message for finding in findings if finding.refuses]
    if refused:
        raise BadInputError(f"{'; '.join(refused)} (--force goes on)")


def default_study(target: str, drafter: str) -> str:
    """Such as ``spec-gemma-4-26b-a4b-it-ngram``."""
    parts = [re.sub(r"[^\w.+-]", "-", Path(name).name or name) for name in (target, drafter)]
    return f"spec-{'-'.join(parts)}"[:100].lower()
