"""From the texts of ``autotune spec``'s flags to a plan. Errors name the flag, in one line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.core import BadInputError, Scalar
from autotune.engine.arguments import argument_value
from autotune.engine.variables import FOLDER
from autotune.export.files import at_home
from autotune.machine.environment import environment, visible_gpus
from autotune.machine.memory import MemoryReading, first_gpu, read_memory
from autotune.serving.forecast.acceptance import Rates, check_reached
from autotune.serving.measure.prompts import load_prompts, prompts_key
from autotune.serving.measure.stopping import parse_slo
from autotune.serving.measure.tasks import Tasks, check_tasks
from autotune.serving.memory.search import at_utilization, within_free
from autotune.serving.memory.utilization import parse_range
from autotune.serving.pair.methods import NO_DRAFTER
from autotune.serving.pair.pairing import Pair, load_pair
from autotune.serving.plan import MOST_GAMMA, Plan, default_study, preflight
from autotune.serving.recipe import (
    GAMMA,
    KV_DTYPE,
    LOCKED_OUT,
    MOE_CONFIG,
    UTILIZATION,
    Recipe,
    check_server_args,
    flag_of,
    taken,
)
from autotune.serving.scenario import OBJECTIVES, SpecScenario
from autotune.serving.server.launching import devices_of, make_launcher, make_mounts
from autotune.serving.server.moe_config import digest_of, parse_moe_config
from autotune.serving.server.mounts import Mount, mounts_of
from autotune.serving.server.server import Launcher
from autotune.space.space import Space, load_space
from autotune.util import flags

GAMMAS = "0-6"
_MOST_CONCURRENCY = 4096
_NAME = re.compile(r"[a-z][a-z0-9_-]*")


@dataclass(frozen=True)
class Request:
    """The flags as typed; None was not given. See ``autotune spec --help``."""

    target: str
    drafter: str
    gamma: str | None
    kv_cache_dtype: str | None
    gpu_memory_utilization: str | None
    sets: Sequence[str]
    space: str | None
    concurrency: str
    prompts: str
    max_tokens: int
    ignore_eos: bool
    repeats: int
    waves: int
    objective: str
    confirm_boots: int
    min_gain: float
    budget_s: float | None
    server_args: Sequence[str]
    env: Sequence[str]
    moe_config: str | None
    synthetic: str | None
    program: str | None
    image: str | None
    start_timeout: str
    request_timeout: str
    study: str | None
    command: str
    launcher: str = "local"
    mounts: Sequence[str] = ()
    retry_failed: bool = False
    gpus: str = "all"
    docker_args: Sequence[str] = ()
    schedule: bool = True
    slo: str | None = None
    context: int | None = None
    quality: str | None = None
    quality_tolerance: float = 0.02
    quality_limit: int | None = None
    quality_tasks: Path | None = None
    quality_timeout: str = "1h"
    force: bool = False


def make_plan(request: Request) -> Plan:
    """Read what the flags name and check that it fits together.

    Raises:
        BadInputError: a flag, a file or a combination that cannot be used.
        MissingEnvironmentError: a hub id, and the hub cannot be reached.
    """
    request = _at_home(request)
    flags.within(request.confirm_boots, "--confirm-boots", 1, 100)
    tuned = () if request.moe_config is None else parse_moe_config(request.moe_config)
    space = _with_moe(_space(request), tuned)
    args = _server_args(request, space)
    prompts = load_prompts(request.prompts)
    mounts = make_mounts(request.mounts)
    pair = load_pair(request.target, request.drafter)
    recipe = _recipe(request, pair, space, args, tuned)
    scenario = scenario_of(request, prompts_key(prompts), chat=pair.target.chat is not False)
    plan = Plan(
        study=request.study or default_study(request.target, request.drafter),
        pair=pair,
        recipe=recipe,
        space=space,
        scenario=scenario,
        prompts=prompts,
        launcher=_launcher(request, mounts),
        memory=_memory(request, recipe),
        confirm_rounds=request.confirm_boots,
        min_gain=request.min_gain,
        budget_s=request.budget_s,
        start_timeout_s=flags.seconds(request.start_timeout, "--start-timeout"),
        request_timeout_s=request_timeout(request),
        image=_image(request.image),
        mounts=mounts,
        schedule=request.schedule,
        command=request.command,
        retry_failed=request.retry_failed,
        force=request.force,
    )
    plan = _with_range(plan, request)
    _check_points(plan)
    if plan.image is not None:  # what docker cannot mount ends here, not when all is measured
        for mount in mounts_of(recipe.settings(plan.points[-1]), mounts):
            mount.volume()
    plan = _with_tasks(plan, request)
    return replace(plan, findings=tuple(preflight(plan)))


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


def _at_home(request: Request) -> Request:
    """The request with ``~`` replaced in paths: a shell leaves it alone in ``--target=~/model``."""
    return replace(
        request,
        target=at_home(request.target),
        drafter=at_home(request.drafter),
        prompts=at_home(request.prompts),
        space=None if request.space is None else at_home(request.space),
        mounts=[at_home(text) for text in request.mounts],
        quality_tasks=None
        if request.quality_tasks is None
        else Path(at_home(str(request.quality_tasks))),
    )


def _server_args(request: Request, space: Space) -> tuple[str, ...]:
    args = tuple(word for text in request.server_args for word in _words(text, "--server-arg"))
    check_server_args(args, [name for name, _ in space.parameters if name != GAMMA])
    return args


def _with_moe(space: Space, tuned: Sequence[str]) -> Space:
    """The space with the folders of tuned files, where there are several to compare."""
    if len(tuned) < 2:
        return space
    return replace(space, parameters=(*space.parameters, (MOE_CONFIG, tuple(tuned))))


def _recipe(
    request: Request, pair: Pair, space: Space, args: tuple[str, ...], tuned: Sequence[str]
) -> Recipe:
    """What all servers share."""
    return Recipe(
        request.target,
        pair.method,
        request.drafter if pair.drafter is not None else None,
        _synthetic(request.synthetic, space),
        args,
        _environment(request, tuned),
        digest_of(tuned) if tuned else None,
    )


def _memory(request: Request, recipe: Recipe) -> MemoryReading:
    """Of the first GPU that the servers will see; a container knows nothing of our environment."""
    contained = request.launcher == "docker"
    given = devices_of(request.gpus) if contained else None
    visible = recipe.env.get("CUDA_VISIBLE_DEVICES", None if contained else visible_gpus())
    visible = argument_value(recipe.server_args, "--device-ids") or visible
    uuids = [gpu["uuid"] for gpu in environment()["gpus"]]
    return read_memory(first_gpu(uuids, given, visible))


def _launcher(request: Request, mounts: tuple[Mount, ...]) -> Launcher:
    return make_launcher(
        request.launcher,
        program=_words(request.program, "--vllm") if request.program is not None else (),
        image=_image(request.image),
        mounts=mounts,
        options=[word for text in request.docker_args for word in _words(text, "--docker-arg")],
        gpus=request.gpus,
    )


def scenario_of(request: Request, key: str, *, chat: bool) -> SpecScenario:
    """The load that the flags describe."""
    if request.objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise BadInputError(f"--objective {request.objective}: not one of {known}")
    levels = flags.counts(request.concurrency, "--concurrency", 1, _MOST_CONCURRENCY)
    flags.within(request.max_tokens, "--max-tokens", 2, 1_000_000)
    flags.within(request.repeats, "--repeats", 1, 1000)
    flags.within(request.waves, "--waves", 1, 1000)
    return SpecScenario(
        request.target,
        request.drafter,
        request.prompts,
        key,
        levels,
        request.max_tokens,
        request.ignore_eos,
        chat,
        request.repeats,
        request.waves,
        request.objective,
        slo=parse_slo(request.slo),
    )


def _space(request: Request) -> Space:
    """From a file, or from the flags."""
    own = {
        "--gamma": request.gamma,
        f"{flag_of(KV_DTYPE)}": request.kv_cache_dtype,
        f"{flag_of(UTILIZATION)}": request.gpu_memory_utilization,
        "--set": request.sets or None,
    }
    if request.space is not None:
        given = next((flag for flag, value in own.items() if value is not None), None)
        if given is not None:
            raise BadInputError(f"--space and {given} exclude each other")
        return _checked(load_space(request.space, "spec"), f"space {request.space}: ")
    parameters: dict[str, tuple[Scalar, ...]] = {
        GAMMA: parse_gammas(_default_gammas(request) if request.gamma is None else request.gamma)
    }
    if request.kv_cache_dtype is not None:
        parameters[KV_DTYPE] = _values(request.kv_cache_dtype, flag_of(KV_DTYPE))
    if _is_range(request):  # the search of the borders says which one
        parameters[UTILIZATION] = ("1",)
    elif request.gpu_memory_utilization is not None:
        parameters[UTILIZATION] = _values(request.gpu_memory_utilization, flag_of(UTILIZATION))
    for text in request.sets:
        name, values = _set(text)
        if name in parameters:
            raise BadInputError(f"--set {name}: given twice")
        parameters[name] = values
    return _checked(Space("flags", tuple(parameters.items())), "--set ")


def _default_gammas(request: Request) -> str:
    return "0" if request.drafter == NO_DRAFTER else GAMMAS


def _with_tasks(plan: Plan, request: Request) -> Plan:
    """The plan with the tasks that lm-eval evaluates, which are looked for now."""
    if request.quality is None:
        return plan
    if plan.recipe.synthetic:
        raise BadInputError("--quality: synthetic acceptance gives text of no quality")
    folder = request.quality_tasks
    if folder is not None and not folder.is_dir():
        raise BadInputError(f"--quality-tasks {folder}: no such folder")
    flags.within(request.quality_limit, "--quality-limit", 1, 1_000_000)
    tasks = Tasks(
        _values(request.quality, "--quality"),
        request.quality_tolerance,
        request.quality_limit,
        folder.absolute() if folder is not None else None,
        flags.seconds(request.quality_timeout, "--quality-timeout"),
    )
    check_tasks(tasks)
    return replace(plan, tasks=tasks, scenario=replace(plan.scenario, tasks=tasks.key))


def _is_range(request: Request) -> bool:
    return ":" in (request.gpu_memory_utilization or "")


def _with_range(plan: Plan, request: Request) -> Plan:
    """The plan with the range of utilizations that is searched, at its upper end for now."""
    if not _is_range(request):
        if request.context is not None:
            raise BadInputError("--context: goes with a range of --gpu-memory-utilization")
        return plan
    low, high = parse_range(request.gpu_memory_utilization or "")
    fixed = argument_value(plan.recipe.server_args, "--kv-cache-memory-bytes")
    if fixed is not None:
        raise BadInputError(
            "--gpu-memory-utilization: --kv-cache-memory-bytes decides the KV cache's size, so "
            "there is no range to search; leave one out"
        )
    context = request.context
    if context is not None and context <= plan.scenario.max_tokens:
        raise BadInputError(
            f"--context {context}: has no room for --max-tokens {plan.scenario.max_tokens}"
        )
    plan = replace(plan, utilization=(low, high), context=context)
    return at_utilization(plan, within_free(low, high, plan.memory))


def _check_names(names: Iterable[str], where: str) -> None:
    for name in names:
        if flag_of(name) == flag_of(MOE_CONFIG):
            raise BadInputError(f"{where}{name}: is no flag of vLLM; use --moe-config A,B")
        if name != GAMMA and (why := taken(flag_of(name))) is not None:
            raise BadInputError(f"{where}{name}: {why}")


def _checked(space: Space, where: str) -> Space:
    """A space from a file or from flags, whose values can be what their names say.

    Args:
        space: the parameters.
        where: they were given, for messages.
    """
    parameters = dict(space.parameters)
    _check_names(parameters, where)
    if GAMMA not in parameters:
        raise BadInputError(f"space {space.name}: has no parameter {GAMMA}")
    for value in parameters[GAMMA]:
        if type(value) is not int or not 0 <= value <= MOST_GAMMA:
            raise BadInputError(f"gamma: {value!r} is not a whole number from 0 to {MOST_GAMMA}")
    for share in parameters.get(UTILIZATION, ()):
        try:
            fits = 0 < float(share) <= 1
        except ValueError:
            fits = False
        if not fits:
            raise BadInputError(f"{flag_of(UTILIZATION)}: {share} is not above 0 and at most 1")
    if space.constraints:
        raise BadInputError(f"space {space.name}: unknown constraint {space.constraints[0]!r}")
    return space


def parse_gammas(text: str) -> tuple[int, ...]:
    """``0-4`` or ``0,2,4`` or both, to ascending numbers.

    Raises:
        BadInputError: not of that form, or above :data:`MOST_GAMMA`.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip(), re.ASCII)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high or high > MOST_GAMMA:
            raise BadInputError(
                f"--gamma {text}: expected numbers from 0 to {MOST_GAMMA}, such as 0-6 or 0,2,4"
            )
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def _values(text: str, flag: str) -> tuple[str, ...]:
    values = tuple(part.strip() for part in text.split(","))
    if not all(values):
        raise BadInputError(f"{flag} {text}: an empty value")
    twice = next((v for v in values if values.count(v) > 1), None)
    if twice is not None:
        raise BadInputError(f"{flag}: {twice} is given twice")
    return values


def _set(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--")
    if not equals or _NAME.fullmatch(name) is None:
        raise BadInputError(f"--set {text}: expected FLAG=VALUE,VALUE such as max-num-seqs=8,16")
    plain = name.replace("-", "_")
    if plain in {GAMMA, KV_DTYPE, UTILIZATION}:
        raise BadInputError(f"--set {name}: has a flag of its own, {flag_of(plain)}")
    return plain, _values(values, f"--set {name}")


def _words(text: str, flag: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadInputError(f"{flag} {text}: {error}".rstrip(".")) from None
    if not words:
        raise BadInputError(f"{flag}: is empty")
    return [at_home(word) for word in words]


def request_timeout(request: Request) -> float:
    """Seconds that a request may take.

    Raises:
        BadInputError: not a time.
    """
    return flags.seconds(request.request_timeout, "--request-timeout")


def _environment(request: Request, tuned: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in request.env:
        name, equals, value = text.partition("=")
        if not equals or re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is None:
            raise BadInputError(f"--env {text}: expected NAME=VALUE")
        if name == "VLLM_API_KEY":
            raise BadInputError(f"--env {name}: {LOCKED_OUT}")
        found[name] = value
    if tuned and FOLDER in found:
        raise BadInputError(f"--env {FOLDER}: and --moe-config say two things; give one")
    if len(tuned) == 1:
        found[FOLDER] = tuned[0]
    return found


def _synthetic(text: str | None, space: Space) -> Rates:
    if text is None:
        return ()
    try:
        rates = check_reached([float(part) for part in text.split(",")])
    except ValueError as error:
        raise BadInputError(f"--synthetic-acceptance {text}: {error}") from None
    most = max(value for value in dict(space.parameters)[GAMMA] if isinstance(value, int))
    if len(rates) < most:
        raise BadInputError(
            f"--synthetic-acceptance {text}: {len(rates)} rates, and gamma goes to {most}"
        )
    return rates


def _image(text: str | None) -> str | None:
    if text is not None and (not text.strip() or not text.isprintable() or " " in text):
        raise BadInputError(f"--image {text!r}: expected a docker image's name")
    return text
