"""From the texts of ``autotune spec``'s flags to a plan. Errors name the flag, in one line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.core import BadInputError, Scalar
from autotune.space import Space, load_space
from autotune.spec.acceptance import Rates, check_reached
from autotune.spec.launchers import LocalLauncher
from autotune.spec.meminfo import read_memory
from autotune.spec.pairing import load_pair
from autotune.spec.plan import MOST_GAMMA, Plan, default_study
from autotune.spec.prompts import load_prompts, prompts_key
from autotune.spec.recipe import GAMMA, KV_DTYPE, UTILIZATION, Recipe, check_server_args, flag_of
from autotune.spec.scenario import OBJECTIVES, SpecScenario

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
    moe_config: Path | None
    synthetic: str | None
    program: str | None
    image: str | None
    start_timeout: str
    request_timeout: str
    study: str | None
    command: str


def make_plan(request: Request) -> Plan:
    """Read what the flags name and check that it fits together.

    Raises:
        BadInputError: a flag, a file or a combination that cannot be used.
        MissingEnvironmentError: a hub id, and the hub cannot be reached.
    """
    space = _space(request)
    args = tuple(word for text in request.server_args for word in _words(text, "--server-arg"))
    check_server_args(args, [name for name, _ in space.parameters if name != GAMMA])
    prompts = load_prompts(request.prompts)
    program = tuple(_words(request.program, "--vllm")) if request.program is not None else ()
    pair = load_pair(request.target, request.drafter)
    recipe = Recipe(
        request.target,
        pair.method,
        request.drafter if pair.drafter is not None else None,
        _synthetic(request.synthetic, space),
        args,
        _environment(request),
    )
    scenario = _scenario(request, prompts_key(prompts), chat=pair.target.chat is not False)
    plan = Plan(
        study=request.study or default_study(request.target, request.drafter),
        pair=pair,
        recipe=recipe,
        space=space,
        scenario=scenario,
        prompts=prompts,
        launcher=LocalLauncher(program),
        memory=read_memory(),
        confirm_rounds=_between(request.confirm_boots, "--confirm-boots", 1, 100),
        min_gain=request.min_gain,
        budget_s=request.budget_s,
        start_timeout_s=_seconds(request.start_timeout, "--start-timeout"),
        request_timeout_s=_seconds(request.request_timeout, "--request-timeout"),
        image=_image(request.image),
        command=request.command,
    )
    if not any(candidate.int(GAMMA) for candidate in plan.grid) and len(plan.grid) < 2:
        raise BadInputError("--gamma: nothing to compare with no speculation; name one above 0")
    return plan


def _scenario(request: Request, key: str, *, chat: bool) -> SpecScenario:
    """The load that the flags describe."""
    if request.objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise BadInputError(f"--objective {request.objective}: not one of {known}")
    levels = tuple(sorted(_numbers(request.concurrency, "--concurrency", 1, _MOST_CONCURRENCY)))
    return SpecScenario(
        request.target,
        request.drafter,
        request.prompts,
        key,
        levels,
        _between(request.max_tokens, "--max-tokens", 2, 1_000_000),
        request.ignore_eos,
        chat,
        _between(request.repeats, "--repeats", 1, 1000),
        _between(request.waves, "--waves", 1, 1000),
        request.objective,
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
        return _checked(load_space(request.space, "spec"))
    parameters: dict[str, tuple[Scalar, ...]] = {
        GAMMA: parse_gammas(GAMMAS if request.gamma is None else request.gamma)
    }
    if request.kv_cache_dtype is not None:
        parameters[KV_DTYPE] = _values(request.kv_cache_dtype, flag_of(KV_DTYPE))
    if request.gpu_memory_utilization is not None:
        parameters[UTILIZATION] = _values(request.gpu_memory_utilization, flag_of(UTILIZATION))
    for text in request.sets:
        name, values = _set(text)
        if name in parameters:
            raise BadInputError(f"--set {name}: given twice")
        parameters[name] = values
    return _checked(Space("flags", tuple(parameters.items())))


def _checked(space: Space) -> Space:
    """A space from a file or from flags, whose values can be what their names say."""
    parameters = dict(space.parameters)
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
    if f"--{name}" in {"--host", "--port", "--speculative-config", "--model"}:
        raise BadInputError(f"--set {name}: is set by the tuner itself")
    return plain, _values(values, f"--set {name}")


def _numbers(text: str, flag: str, least: int, most: int) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInputError(f"{flag} {text}: expected numbers such as 1,4,8") from None
    for one in numbers:
        _between(one, flag, least, most)
        if numbers.count(one) > 1:
            raise BadInputError(f"{flag}: {one} is given twice")
    return numbers


def _between(value: int, flag: str, least: int, most: int) -> int:
    if not least <= value <= most:
        raise BadInputError(f"{flag} {value}: expected {least} to {most}")
    return value


def _words(text: str, flag: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise BadInputError(f"{flag} {text}: {error}".rstrip(".")) from None
    if not words:
        raise BadInputError(f"{flag}: is empty")
    return words


def _seconds(text: str, flag: str) -> float:
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smh]?)", text.strip(), re.ASCII)
    value = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if value <= 0:
        raise BadInputError(f"{flag} {text}: expected a time such as 90s, 10m or 1h")
    return value


def _environment(request: Request) -> dict[str, str]:
    found = {}
    for text in request.env:
        name, equals, value = text.partition("=")
        if not equals or re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) is None:
            raise BadInputError(f"--env {text}: expected NAME=VALUE")
        found[name] = value
    if request.moe_config is not None:
        if not request.moe_config.is_dir():
            raise BadInputError(f"--moe-config {request.moe_config}: no such folder")
        if not any(request.moe_config.glob("E=*.json")):
            raise BadInputError(f"--moe-config {request.moe_config}: holds no file E=….json")
        found["VLLM_TUNED_CONFIG_FOLDER"] = str(request.moe_config.absolute())
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
