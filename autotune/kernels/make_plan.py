"""This module makes a plan of a request: what is tuned, where, measured or predicted."""

from __future__ import annotations

from autotune.engine.quantization import Weights
from autotune.kernels.cluster import Team
from autotune.kernels.compile.job import kernel_info
from autotune.kernels.config_file import FIELDS
from autotune.kernels.measure.available import cannot_measure
from autotune.kernels.moe.from_model import (
    explicit_shape,
    is_on_hub,
    load_config,
    shape_from_config,
)
from autotune.kernels.moe.notes import check_refined, notes_on, unread
from autotune.kernels.moe.routing import parse_routing
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.plan import Plan, default_study
from autotune.kernels.published import given_files, published_note
from autotune.kernels.request import MoeRequest
from autotune.machine.devices import Device, GpuInfo, present_gpus, refuse_slices, resolve_device
from autotune.machine.environment import usable_cpus
from autotune.space.space import load_space
from autotune.util import flags

DEFAULT_MODEL = "gemma-4-26b-a4b"


def make_plan(request: MoeRequest, visible: str | None, team: Team | None = None) -> Plan:
    """Decide everything, and whether it is measured or predicted.

    Args:
        request: what is asked for.
        visible: ``CUDA_VISIBLE_DEVICES``, if set.
        team: of a cluster, which then does the work.

    Raises:
        BadInputError: values that do not go together, or name nothing.
        MissingEnvironmentError: vLLM, or the GPU of ``auto``.
        NoFeasibleCandidateError: the device can run nothing of the space.
    """
    plan = _planned(request, visible, team)
    _ = plan.trials_per_m  # before anything is written: is any candidate feasible?
    return plan


def _planned(request: MoeRequest, visible: str | None, team: Team | None) -> Plan:
    device = _device(request, visible, team)
    shape, model, notes = _layer(request, device)
    routing = parse_routing(request.routing)
    routing.weights(shape.global_experts)  # refuses a file for another number of experts
    gpus, unmeasured = _to_measure_on(request, device, visible)
    if team is not None:
        gpus, unmeasured = team.gpus, ""
    # The processes that measure, and the one that searches, must not wait for a compiler's CPU.
    spare = 1 + len(gpus) if gpus else 0
    kernel = kernel_info()
    check_refined(request, shape, kernel.vllm_version)
    return Plan(
        study=request.study or default_study(device, shape),
        device=device,
        model=model,
        shape=shape,
        batch_sizes=request.ladder,
        space=load_space(request.space, "moe", whole=FIELDS),
        effort=request.effort,
        budget_s=None if request.budget is None else flags.seconds(request.budget, "--budget"),
        sampler=request.sampler,
        seed=request.seed,
        min_gain=flags.fraction(request.min_gain, "--min-gain"),
        workers=request.workers or _workers(spare, team),
        kernel=kernel,
        command=request.command or request.command_line("moe"),
        gpus=gpus,
        routing=routing,
        memory_limit_mib=flags.mebibytes(request.memory_limit),
        retry_failed=request.retry_failed,
        first=given_files(request.first, shape),
        notes=(*notes, *published_note(device.name, shape)),
        unmeasured=unmeasured,
    )


def check(request: MoeRequest, visible: str | None) -> Plan | None:
    """Refuse what no later moment makes right, in a fraction of a second; nothing is started.

    The hub is not asked, the rows of ``--first`` are not read, for an earlier job may be to make
    them, and the space is not searched for what the device can run.

    Args:
        request: what is asked for, to be done on this machine.
        visible: ``CUDA_VISIBLE_DEVICES``, if set.

    Returns:
        The plan as a prediction, whatever it will be; None for a model of the hub.

    Raises:
        AutotuneError: as :func:`make_plan`.
    """
    if is_on_hub(request.model or DEFAULT_MODEL):
        resolve_device(request.device, visible)
        load_space(request.space, "moe", whole=FIELDS)
        return None
    return _planned(request.model_copy(update={"predict": True, "first": ()}), visible, None)


def _device(request: MoeRequest, visible: str | None, team: Team | None) -> Device:
    """Return the device; ``auto`` is what the team has, or the first GPU of this machine."""
    if request.device == "auto" and team is not None and team.gpus:
        return resolve_device(team.gpus[0].name, visible)
    return resolve_device(request.device, visible)


def _workers(spare: int, team: Team | None) -> int:
    """Count compile processes: of the team where it predicts, else of this machine."""
    if team is not None and not team.gpus:
        return sum(count for _, count in team.seats)
    return max(1, usable_cpus() - spare)


def _layer(request: MoeRequest, device: Device) -> tuple[MoeShape, str, tuple[str, ...]]:
    """Return the shape, the model's name for people, and what else vLLM asks for."""
    if all(size is None for size in request.sizes.values()):
        model = DEFAULT_MODEL if request.model is None else request.model
        config = load_config(model)
        shape = shape_from_config(
            config,
            dtype=request.dtype,
            tp=request.tp,
            ep=request.ep,
            scheme=request.scheme,
            layer=request.layer,
        )
        return shape, model, notes_on(config, request, shape, device)
    shape = explicit_shape(
        **request.sizes,
        dtype=request.dtype,
        scheme=request.scheme,
        tp=request.tp,
        ep=request.ep,
    )
    weights = Weights(shape.variant.name, shape.scheme.value)
    return shape, "given by its sizes", unread(weights, shape, request, device, {})


def _to_measure_on(
    request: MoeRequest, device: Device, visible: str | None
) -> tuple[tuple[GpuInfo, ...], str]:
    """Choose the GPUs to measure on, or none and why those that are here are left alone."""
    gpus = () if request.predict else present_gpus(device, visible)
    lacking = cannot_measure() if gpus else None
    if gpus and not lacking:
        refuse_slices(gpus)
    return ((), lacking) if lacking else (gpus, "")
