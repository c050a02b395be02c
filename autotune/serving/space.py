"""This module reads what is tried: parameters of ``vllm serve`` and their values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from autotune.core import BadInputError, Scalar
from autotune.serving import parse
from autotune.serving.pair.methods import NO_DRAFTER
from autotune.serving.recipe import (
    CAPTURE,
    DRAFTER_OPTION,
    GAMMA,
    KV_DTYPE,
    MOE_CONFIG,
    UTILIZATION,
    VARIABLE,
    flag_of,
    taken,
)
from autotune.serving.request import SpecRequest
from autotune.space.space import Space, load_space

DEFAULT_GAMMAS = "0-6"


def read_space(request: SpecRequest, moe_folders: Sequence[str]) -> Space:
    """Read the space of a file or of the flags; several folders of MoE files are a parameter.

    Raises:
        BadInputError: no such space, or a parameter or value that ``vllm serve`` cannot have.
    """
    if request.space is not None:
        space = _checked(load_space(request.space, "spec"), f"space {request.space}: ")
    else:
        space = _checked(Space("flags", tuple(_parameters(request).items())), "--set ")
    if len(moe_folders) < 2:
        return space
    return replace(space, parameters=(*space.parameters, (MOE_CONFIG, tuple(moe_folders))))


def _parameters(request: SpecRequest) -> dict[str, tuple[Scalar, ...]]:
    """Collect the values to compare of each parameter that a flag names."""
    default = "0" if request.only_drafter == NO_DRAFTER else DEFAULT_GAMMAS
    parameters: dict[str, tuple[Scalar, ...]] = {
        GAMMA: parse.parse_gammas(default if request.gamma is None else request.gamma)
    }
    if request.kv_cache_dtype is not None:
        parameters[KV_DTYPE] = parse.parse_values(request.kv_cache_dtype, flag_of(KV_DTYPE))
    shares = request.gpu_memory_utilization
    if parse.is_range(shares):  # the search of the borders says which one
        parameters[UTILIZATION] = ("1",)
    elif shares is not None:
        parameters[UTILIZATION] = parse.parse_values(shares, flag_of(UTILIZATION))
    for text in request.set:
        name, values = parse.parse_set(text)
        if name in parameters:
            raise BadInputError(f"--set {name}: given twice")
        parameters[name] = values
    for text in request.spec_set:
        name, values = parse.parse_option(text)
        _add(parameters, f"{DRAFTER_OPTION}{name}", values, f"--spec-set {name}")
    for text in request.env_set:
        name, values = parse.parse_variables(text)
        _add(parameters, f"{VARIABLE}{name}", values, f"--env-set {name}")
    if request.capture_sizes is not None:
        parameters[CAPTURE] = parse.parse_captures(request.capture_sizes)
    return parameters


def _add(
    parameters: dict[str, tuple[Scalar, ...]], name: str, values: tuple[Scalar, ...], given: str
) -> None:
    if name in parameters:
        raise BadInputError(f"{given}: given twice")
    parameters[name] = values


def _check_names(names: Iterable[str], where: str) -> None:
    for name in names:
        if name.startswith(DRAFTER_OPTION):
            why = parse.SET_BY_US.get(name.removeprefix(DRAFTER_OPTION))
            if why is not None:
                raise BadInputError(f"{where}{name}: {why}")
            continue
        if name.startswith(VARIABLE):
            continue
        if flag_of(name) == flag_of(MOE_CONFIG):
            raise BadInputError(f"{where}{name}: is no flag of vLLM; use --moe-config A,B")
        if name != GAMMA and (why := taken(flag_of(name))) is not None:
            raise BadInputError(f"{where}{name}: {why}")


def _checked(space: Space, where: str) -> Space:
    """Check that the values of a space can be what their names say.

    Args:
        space: the parameters.
        where: they were given, for messages.
    """
    parameters = dict(space.parameters)
    _check_names(parameters, where)
    if GAMMA not in parameters:
        raise BadInputError(f"space {space.name}: has no parameter {GAMMA}")
    for value in parameters[GAMMA]:
        if type(value) is not int or not 0 <= value <= parse.MOST_GAMMA:
            raise BadInputError(
                f"gamma: {value!r} is not a whole number from 0 to {parse.MOST_GAMMA}"
            )
    for share in parameters.get(UTILIZATION, ()):
        parse.check_share(share, flag_of(UTILIZATION))
    if space.constraints:
        raise BadInputError(f"space {space.name}: unknown constraint {space.constraints[0]!r}")
    return space
