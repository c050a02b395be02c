"""This module looks for what speaks against a plan before the first server starts."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Iterator, Sequence

from autotune.core import BadInputError
from autotune.decide.stats import LEAST_PAIRS
from autotune.engine.arguments import argument_value, whole_value
from autotune.engine.speculative_keys import speculative_keys
from autotune.engine.variables import ROUTING, STARTUP_PLAN
from autotune.machine.environment import exported
from autotune.machine.memory import MemoryKind
from autotune.serving.pair.pairing import check_gamma, check_pair, is_stretched
from autotune.serving.plan import SIDE_BY_SIDE, Plan, memory_findings
from autotune.serving.recipe import DRAFTER_OPTION, GAMMA, UTILIZATION, VARIABLE
from autotune.serving.scenario import tokens_of
from autotune.serving.server.launchers import LocalLauncher
from autotune.util.finding import Finding, Severity, note, refuse, warn


def preflight(plan: Plan) -> list[Finding]:
    """List everything that speaks against the plan, the worst first. No server is started.

    Raises:
        BadInputError: a size in a configuration, or a length among the flags, that cannot be read.
    """
    length = whole_value(plan.recipe.server_args, "--max-model-len")
    findings = [*check_pair(plan.pair, max_model_len=length), *_check_synthetic(plan)]
    findings += _check_length(plan, length)
    findings += _unless_all(list(check_gamma(plan.pair, gamma)) for gamma in plan.gammas if gamma)
    pairs = plan.confirm_rounds * plan.scenario.repeats
    if pairs < LEAST_PAIRS and plan.confirm != SIDE_BY_SIDE:
        findings.append(
            warn(
                "few-pairs",
                f"--repeats times --confirm-boots is {pairs}, which gives no 95 % interval: "
                f"nothing can win below {LEAST_PAIRS}",
            )
        )
    findings += [*_check_options(plan), *_check_dummy(plan), *_check_startup_plan(plan)]
    findings += _memory_findings(plan)
    if not any(finding.refuses for finding in findings):  # it may take vLLM seconds to say
        findings += _check_program(plan)
    order = list(Severity)
    return sorted(dict.fromkeys(findings), key=lambda finding: order.index(finding.severity))


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
    context = max(plan.scenario.context, default=0)
    if longest is not None and context > longest:
        yield refuse(
            "context",
            f"--context {tokens_of(context)} is longer than the {longest} tokens that are served "
            "(--max-model-len, or the model's own length); ask for less",
        )


def _check_options(plan: Plan) -> Iterator[Finding]:
    """Options of the drafter that this vLLM lacks, and what vLLM's own of ngram are like."""
    names = [name for name, _ in plan.space.parameters if name.startswith(DRAFTER_OPTION)]
    ours = isinstance(plan.launcher, LocalLauncher) and not plan.launcher.program
    known = speculative_keys() if ours else None
    for name in names if known else ():
        key = name.removeprefix(DRAFTER_OPTION)
        if known is not None and key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            yield refuse("spec-set", f"--spec-set {key}: no key of this vLLM's speculation{hint}")
    looks_up = any(name.startswith(f"{DRAFTER_OPTION}prompt_lookup_") for name in names)
    if plan.recipe.method == "ngram" and not looks_up:
        yield note(
            "ngram-lookup",
            "ngram drafts where the last 5 tokens occurred before, unless told otherwise; fewer "
            "repeat more often: --spec-set prompt_lookup_min=2 --spec-set prompt_lookup_max=4,5",
        )


def _check_program(plan: Plan) -> Iterator[Finding]:
    """Anything can be called by ``--vllm``; what is vLLM tells its version.

    Raises:
        MissingEnvironmentError: the program is not there.
    """
    launcher = plan.launcher
    if plan.nodes is not None:  # each of them was looked at
        return
    if isinstance(launcher, LocalLauncher):
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


def _check_startup_plan(plan: Plan) -> Iterator[Finding]:
    """VLLM finds a stored plan by everything but the memory utilization that it was measured with.

    ``compute_plan_fingerprint`` (0.32 ``v1/worker/startup_plan.py``) rests on a hash that leaves
    ``gpu_memory_utilization`` and the number of drafted tokens out, and a plan overrides the share.
    """
    local = isinstance(plan.launcher, LocalLauncher)
    value = plan.recipe.env.get(STARTUP_PLAN, exported(STARTUP_PLAN) if local else None)
    tried = dict(plan.space.parameters)
    if value in {None, "", "0"} and f"{VARIABLE}{STARTUP_PLAN}" not in tried:
        return
    said = (
        f"{STARTUP_PLAN}: vLLM takes the KV cache of an earlier boot whatever share of the memory "
        "that boot was given"
    )
    if plan.memory.kind is MemoryKind.UNIFIED:
        yield refuse("startup-plan", f"{said}, which can freeze this machine: leave it out")
    elif plan.utilization is not None or len(tried.get(UTILIZATION, ())) > 1:
        yield refuse("startup-plan", f"{said}, so shares cannot be compared: leave it out")
    else:
        yield warn(
            "startup-plan",
            f"{said}: delete startup_plan in vLLM's cache folder when you change "
            "--gpu-memory-utilization",
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
    """Merge the findings of several settings; what refuses only some of them is a warning."""
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
    by_candidate = memory_findings(plan, [plan.baseline, *plan.points], plan.memory)
    against = [f for f in by_candidate.pop(plan.baseline) if f.refuses]
    others = [
        [f for f in group if f.refuses or candidate.int(GAMMA)]  # what is noted is noted once
        for candidate, group in by_candidate.items()
    ]
    if not against or all(any(f.refuses for f in group) for group in others):
        return [*against, *_unless_all(others)]
    advice = "the baseline has the first value of every parameter: give one first that fits"
    return [refuse(f.code, f"{f.message}; {advice}") for f in against]


def refusal(findings: Sequence[Finding]) -> None:
    """End the command where a finding refuses; ``--force`` passes over it.

    Raises:
        BadInputError: the refusals, in one line.
    """
    refused = [finding.message for finding in findings if finding.refuses]
    if refused:
        raise BadInputError(f"{'; '.join(refused)} (--force goes on)")
