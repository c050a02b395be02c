"""The measurer of a plan whose servers are started on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from autotune.machine.memory import MemoryKind
from autotune.serving.cluster.fleet import Fleet
from autotune.serving.cluster.launcher import most_gpus
from autotune.serving.cluster.look import Looked, folders, judged
from autotune.serving.measure.measurer import ServingMeasurer
from autotune.serving.plan import Plan
from autotune.serving.server.secret_flags import secrets_of


def look_at_nodes(models: Sequence[str | None], program: Sequence[str]) -> Looked:
    """Look at the nodes of the cluster that we are connected to.

    Args:
        models: target and drafter; those that are folders must be on every node.
        program: what stands for vLLM; empty is the Python's of the node.

    Raises:
        MissingEnvironmentError: one of them cannot serve; a line for each thing that it lacks.
    """
    from autotune.serving.cluster.groups import look  # noqa: PLC0415 - Ray is an extra

    return judged(look(folders(models), tuple(program)))


def cluster_measurer(
    plan: Plan,
    nodes: Looked,
    measurer: ServingMeasurer,
    logs: Path,
    on_lost: Callable[[str], None],
) -> Fleet:
    """Make the measurer; nothing is started on a node yet.

    Args:
        plan: made for these nodes.
        nodes: of the cluster that we are connected to.
        measurer: what each of them is sent.
        logs: the folder of this machine for what servers write.
        on_lost: told of every node that is lost.

    Raises:
        MissingEnvironmentError: too few GPUs are free.
    """
    from autotune.serving.cluster.groups import Wanted, opener  # noqa: PLC0415 - Ray is an extra

    settings = [plan.recipe.settings(candidate) for candidate in plan.points]
    gpus = most_gpus(settings) if nodes.gpus else 0
    unified = plan.memory.kind is MemoryKind.UNIFIED
    lent = min(node.lent for node in nodes.nodes)
    wanted = Wanted(gpus, max(1.0, lent), nodes.per_node, unified)
    secrets = secrets_of(text for one in settings for text in (*one.extra_args, *one.env.values()))
    models = [Path(model) for model in (plan.recipe.target, plan.recipe.drafter) if model]
    relative = any(model.exists() and not model.is_absolute() for model in models)
    opening = opener(wanted, measurer, logs, secrets, Path.cwd() if relative else None)
    return Fleet(opening, nodes.places(gpus), plan.basis, on_lost=on_lost)
