"""This module makes a plan of a request: it reads and checks what the flags name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from autotune.core import AutotuneError, BadInputError
from autotune.engine.arguments import argument_value, is_given, whole_value
from autotune.engine.hub import is_on_hub
from autotune.engine.variables import FOLDER
from autotune.machine.containers import ENGINES
from autotune.machine.environment import environment, visible_gpus
from autotune.machine.memory import MemoryKind, MemoryReading, first_gpu, read_memory
from autotune.propose.study import check_sampler
from autotune.serving import parse
from autotune.serving.cluster.launcher import GroupLauncher, most_gpus
from autotune.serving.cluster.look import Looked
from autotune.serving.dial.trust import why_not
from autotune.serving.measure.prompts import Prompt, kinds_of, load_prompts, prompts_key
from autotune.serving.measure.stopping import parse_slo
from autotune.serving.measure.tasks import Tasks, check_tasks
from autotune.serving.memory.model import FIXED_SHARE, UNIFIED_SHARE
from autotune.serving.memory.search import at_utilization, within_free
from autotune.serving.memory.utilization import parse_range
from autotune.serving.pair.methods import NO_DRAFTER
from autotune.serving.pair.pairing import Pair, check_pair, load_pair
from autotune.serving.plan import Plan, default_study
from autotune.serving.preflight import preflight, refusal
from autotune.serving.recipe import (
    CAPTURE,
    GAMMA,
    UTILIZATION,
    Recipe,
    check_server_args,
    flag_of,
)
from autotune.serving.request import SpecRequest
from autotune.serving.scenario import SpecScenario
from autotune.serving.server.capture import CAPTURED, FIX_GRAPHS
from autotune.serving.server.launchers import DockerLauncher, LocalLauncher
from autotune.serving.server.launching import devices_of, looked_up, make_mounts
from autotune.serving.server.moe_config import digest_of, parse_moe_config
from autotune.serving.server.mounts import Mount, mounts_of
from autotune.serving.server.secret_flags import environment_of, token_to_environment
from autotune.serving.server.server import Launcher
from autotune.serving.space import read_space
from autotune.space.space import Space
from autotune.util import flags
from autotune.util.finding import Finding, note


def make_plan(request: SpecRequest, nodes: Looked | None = None, *, pull: bool = True) -> Plan:
    """Read what the flags name and check that it fits together.

    Args:
        request: the flags.
        nodes: of a cluster, on which servers are to be started; None starts them here.
        pull: whether an image that is not here may be pulled.

    Raises:
        BadInputError: a flag, a file or a combination that cannot be used.
        MissingEnvironmentError: a hub id, and the hub cannot be reached.
    """
    tuned = () if request.moe_config is None else parse_moe_config(request.moe_config)
    space = read_space(request, tuned)
    args = _server_args(request, space)
    prompts = load_prompts(request.prompts)
    mounts = make_mounts(request.mount)
    pair = load_pair(request.only_target, request.only_drafter)
    recipe = _recipe(request, pair, space, args, tuned)
    scenario = scenario_of(
        request,
        target=request.only_target,
        drafter=request.only_drafter,
        prompts=prompts,
        chat=pair.target.chat is not False,
    )
    plan = Plan(
        study=request.study or default_study(request.only_target, request.only_drafter),
        pair=pair,
        recipe=recipe,
        space=space,
        scenario=scenario,
        prompts=prompts,
        launcher=_launcher(request, mounts),
        memory=_memory(request, recipe) if nodes is None else nodes.memory,
        confirm_rounds=request.confirm_boots,
        confirm=request.confirm,
        soak_s=0 if request.soak is None else math.ceil(flags.seconds(request.soak, "--soak")),
        min_gain=flags.fraction(request.min_gain, "--min-gain"),
        budget_s=None if request.budget is None else flags.seconds(request.budget, "--budget"),
        start_timeout_s=flags.seconds(request.start_timeout, "--start-timeout"),
        request_timeout_s=flags.seconds(request.request_timeout, "--request-timeout"),
        image=request.image,
        mounts=mounts,
        schedule=request.schedule,
        command=request.command or request.command_line("spec"),
        retry_failed=request.retry_failed,
        force=request.force,
        # What vLLM is told to accept makes its text noise.
        check_tokens=0 if recipe.synthetic else request.check_tokens,
        nodes=nodes,
        sampler=check_sampler(request.sampler),
        seed=request.seed,
    )
    plan = _with_group(plan)
    plan = _with_share(_with_range(plan, request))
    _check_points(plan)
    if plan.image is not None:  # what docker cannot mount ends here, not when all is measured
        for mount in mounts_of(recipe.settings(plan.points[-1]), mounts):
            mount.volume()
    plan = _with_tasks(plan, request)
    contained = isinstance(plan.launcher, DockerLauncher)
    plan, notes = (plan, []) if contained else _with_dial(plan, request)
    findings = [*preflight(plan), *notes]
    stays = plan.force or not any(finding.refuses for finding in findings)
    if isinstance(plan.launcher, DockerLauncher) and stays:
        launcher, more = looked_up(plan.launcher, request.launcher, pull=pull)
        plan, notes = _with_dial(replace(plan, launcher=launcher), request)
        findings = [*more, *findings, *notes]
    return replace(plan, findings=tuple(findings))


def check(request: SpecRequest) -> None:
    """Refuse what no later moment makes right, without a server, the hub or another program.

    Memory is not read, which others free, nor the folders of ``--moe-config``, which an earlier job
    may be to make.

    Raises:
        AutotuneError: as :func:`make_plan`; or the pair's files speak against it.
    """
    errors: list[AutotuneError] = []
    for target in request.target if request.launcher != "url" else ():
        try:
            _check_target(request.of_target(target, request.study or ""))
        except AutotuneError as error:
            errors.append(error)
    if errors and len(errors) == len(request.target):  # of several, the others are tuned
        raise errors[0]


def _check_target(request: SpecRequest) -> None:
    target, drafter = request.only_target, request.only_drafter
    space = read_space(request, ())
    args = _server_args(request, space)
    prompts, _ = load_prompts(request.prompts), make_mounts(request.mount)
    if any(is_on_hub(ref) for ref in (target, drafter)):
        return
    pair = load_pair(target, drafter)
    _recipe(request, pair, space, args, ())
    chat = pair.target.chat is not False
    scenario_of(request, target=target, drafter=drafter, prompts=prompts, chat=chat)
    if not request.force:
        refusal(check_pair(pair, max_model_len=whole_value(args, "--max-model-len")))


def _with_group(plan: Plan) -> Plan:
    """Have servers of several GPUs of a cluster started in a placement group."""
    if plan.nodes is None or not isinstance(plan.launcher, LocalLauncher):
        return plan
    gpus = most_gpus(plan.recipe.settings(candidate) for candidate in plan.points)
    if gpus == 1:
        return plan
    if not plan.nodes.gpus:
        raise BadInputError(
            "--tensor-parallel-size: with --ray it needs GPUs; vLLM's Ray executor "
            "has none for CPUs"
        )
    return replace(plan, launcher=GroupLauncher(plan.launcher.program))


def _with_dial(plan: Plan, request: SpecRequest) -> tuple[Plan, list[Finding]]:
    """Turn gamma by the dial where servers are started here, of a vLLM that may be able to.

    A dialled server captures CUDA graphs for every gamma and so for larger batches than vLLM would
    by default. For its figures to hold, the others capture the same: which is faster as well.
    """
    launcher = plan.launcher
    if not request.dial or len({c.int(GAMMA) for c in plan.column}) < 2:
        return plan, []
    if not isinstance(launcher, LocalLauncher | DockerLauncher):
        return plan, []
    version = launcher.vllm if isinstance(launcher, DockerLauncher) else launcher.version()
    if plan.nodes is not None:
        version = plan.nodes.nodes[0].vllm
    if why := why_not(version):
        return plan, [note("no-dial", f"every gamma boots a server of its own: {why}")]
    asked = request.space is not None or request.capture_sizes is not None
    fixed = any(is_given(plan.recipe.server_args, flag) for flag in FIX_GRAPHS)
    if not asked and not fixed and plan.memory.kind is not MemoryKind.CPU:
        captures = (CAPTURE, (str(CAPTURED),))
        space = replace(plan.space, parameters=(*plan.space.parameters, captures))
        recipe = replace(plan.recipe, captured=plan.gammas)
        plan = replace(plan, space=space, recipe=recipe)
    return replace(plan, dial=True), []


def _check_points(plan: Plan) -> None:
    """See that there is something to compare, and nothing to draft without a drafter.

    Raises:
        BadInputError: it is not so.
    """
    none = plan.recipe.method == NO_DRAFTER
    if none and any(plan.gammas):
        raise BadInputError("--drafter none: drafts nothing, so gamma can only be 0")
    if none and plan.recipe.synthetic:
        raise BadInputError("--synthetic-acceptance: without a drafter nothing is accepted")
    speculates = any(candidate.int(GAMMA) for candidate in plan.points)
    if not speculates and len(plan.points) < 2 and plan.utilization is None:
        more = "name several values of another flag" if none else "name one above 0"
        raise BadInputError(f"--gamma: nothing to compare with no speculation; {more}")


def _server_args(request: SpecRequest, space: Space) -> tuple[str, ...]:
    args = [word for text in request.server_arg for word in parse.parse_words(text, "--server-arg")]
    check_server_args(args, [name for name, _ in space.parameters if name != GAMMA])
    return tuple(args)


def _recipe(
    request: SpecRequest, pair: Pair, space: Space, args: tuple[str, ...], tuned: Sequence[str]
) -> Recipe:
    """Gather what all servers share."""
    args, env = token_to_environment(args, _environment(request, tuned))
    environment_of(env)  # a reference that leads nowhere ends here
    return Recipe(
        request.only_target,
        pair.method,
        request.only_drafter if pair.drafter is not None else None,
        _synthetic(request.synthetic_acceptance, space),
        args,
        env,
        digest_of(tuned) if tuned else None,
    )


def _memory(request: SpecRequest, recipe: Recipe) -> MemoryReading:
    """Read the first GPU that the servers will see; a container has an environment of its own."""
    contained = request.launcher in ENGINES
    given = devices_of(request.gpus) if contained else None
    visible = recipe.env.get("CUDA_VISIBLE_DEVICES", None if contained else visible_gpus())
    visible = argument_value(recipe.server_args, "--device-ids") or visible
    uuids = [gpu["uuid"] for gpu in environment()["gpus"]]
    return read_memory(first_gpu(uuids, given, visible))


def _launcher(request: SpecRequest, mounts: tuple[Mount, ...]) -> Launcher:
    options = [w for text in request.docker_arg for w in parse.parse_words(text, "--docker-arg")]
    program = () if request.vllm is None else parse.parse_words(request.vllm, "--vllm")
    if request.launcher in ENGINES and request.image is not None:
        gpus = "" if request.gpus == "none" else request.gpus
        return DockerLauncher(request.image, mounts, tuple(options), gpus)
    return LocalLauncher(tuple(program))


def scenario_of(
    request: SpecRequest, *, target: str, drafter: str, prompts: tuple[Prompt, ...], chat: bool
) -> SpecScenario:
    """Make the load that the flags describe, put on this target."""
    kinds = kinds_of(prompts)
    return SpecScenario(
        target,
        drafter,
        request.prompts,
        prompts_key(prompts),
        parse.parse_concurrency(request.concurrency),
        request.max_tokens,
        request.ignore_eos,
        chat,
        request.repeats,
        request.waves,
        request.objective,
        slo=parse_slo(request.slo),
        kinds=kinds if len(kinds) > 1 else (),
        context=request.contexts,
    )


def _with_tasks(plan: Plan, request: SpecRequest) -> Plan:
    """Add the tasks that lm-eval evaluates, which are looked for now."""
    if request.quality is None:
        return plan
    if plan.recipe.synthetic:
        raise BadInputError("--quality: synthetic acceptance gives text of no quality")
    folder = request.quality_tasks
    if folder is not None and not folder.is_dir():
        raise BadInputError(f"--quality-tasks {folder}: no such folder")
    tasks = Tasks(
        parse.parse_values(request.quality, "--quality"),
        flags.fraction(request.quality_tolerance, "--quality-tolerance"),
        request.quality_limit,
        folder.absolute() if folder is not None else None,
        flags.seconds(request.quality_timeout, "--quality-timeout"),
    )
    check_tasks(tasks)
    return replace(plan, tasks=tasks, scenario=replace(plan.scenario, tasks=tasks.key))


def _with_range(plan: Plan, request: SpecRequest) -> Plan:
    """Add the range of utilizations that is searched, at its upper end for now."""
    shares = request.gpu_memory_utilization
    if shares is None or not parse.is_range(shares):
        return plan
    low, high = parse_range(shares)
    fixed = argument_value(plan.recipe.server_args, "--kv-cache-memory-bytes")
    if fixed is not None:
        raise BadInputError(
            "--gpu-memory-utilization: --kv-cache-memory-bytes decides the KV cache's size, so "
            "there is no range to search; leave one out"
        )
    plan = replace(plan, utilization=(low, high))
    return at_utilization(plan, within_free(low, high, plan.memory))


def _with_share(plan: Plan) -> Plan:
    """Give servers on unified memory a share where none is asked for: vLLM's starves the host.

    With ``--kv-cache-memory-bytes`` vLLM only looks whether so much is free when it starts.
    """
    asked = UTILIZATION in dict(plan.space.parameters)
    asked |= is_given(plan.recipe.server_args, flag_of(UTILIZATION))
    if asked or plan.memory.kind is not MemoryKind.UNIFIED:
        return plan
    fixed = is_given(plan.recipe.server_args, "--kv-cache-memory-bytes")
    return at_utilization(plan, round(100 * (FIXED_SHARE if fixed else UNIFIED_SHARE)))


def _environment(request: SpecRequest, tuned: Sequence[str]) -> dict[str, str]:
    """Collect the variables for every server; one folder of MoE files is one of them."""
    variables = dict(parse.parse_variable(text) for text in request.env)
    if tuned and FOLDER in variables:
        raise BadInputError(f"--env {FOLDER}: and --moe-config say two things; give one")
    if len(tuned) == 1:
        variables[FOLDER] = tuned[0]
    return variables


def _synthetic(text: str | None, space: Space) -> tuple[float, ...]:
    """Read the acceptance that vLLM shall produce, for every position that is drafted."""
    if text is None:
        return ()
    rates = parse.parse_rates(text)
    most = max(value for value in dict(space.parameters)[GAMMA] if isinstance(value, int))
    if len(rates) < most:
        raise BadInputError(
            f"--synthetic-acceptance {text}: {len(rates)} rates, and gamma goes to {most}"
        )
    return rates
