"""``autotune moe`` tunes a fused-MoE kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from autotune.cli.common import check_study, print_json, warn_setup_changed
from autotune.cli.consoles import err
from autotune.cli.requests import Moe
from autotune.core import BadInputError
from autotune.machine.environment import visible_gpus

if TYPE_CHECKING:
    from autotune.kernels.cluster import Team


def moe(request: Moe) -> None:
    """Run the job and show what came of it, here or in a container."""
    if request.server is not None:
        from autotune.cli.remote import run_there  # noqa: PLC0415 - keeps `--help` fast

        run_there(request, "moe")
        return
    if request.ray is not None and request.launcher != "local":
        raise BadInputError("--ray starts no containers: start Ray inside the image instead")
    if request.launcher != "local":
        from autotune.cli.contained import run_contained  # noqa: PLC0415 - keeps `--help` fast

        run_contained(request)
        return
    if request.ray is None:
        _tune(request, None)
        return
    with _on_nodes(request) as team:
        _tune(request, team)


@contextmanager
def _on_nodes(request: Moe) -> Iterator[Team]:
    """Be connected to the cluster of ``--ray``, and know who takes part.

    Raises:
        MissingEnvironmentError: it is not there, or nobody can.
    """
    from autotune.cli.cluster import on_cluster, waiting  # noqa: PLC0415 - keeps `--help` fast
    from autotune.kernels.cluster import team_of  # noqa: PLC0415
    from autotune.machine.devices import get_device  # noqa: PLC0415

    device = None if request.device == "auto" else get_device(request.device)
    with on_cluster(str(request.ray)):
        with waiting("--ray: asking every node what it has"):
            team = team_of(device, measured=not request.predict)
        for said in team.left_out:
            _warn(f"left out: {said}")
        yield team


def _warn(said: str) -> None:  # a function, for a measurer is pickled with it
    err.warn(said)


def _tune(request: Moe, team: Team | None) -> None:
    from autotune.cli.events import kernel_plan, told  # noqa: PLC0415
    from autotune.cli.moe_terminal import (  # noqa: PLC0415 - keeps `--help` fast
        progress,
        show_plan,
        show_result,
    )
    from autotune.export.files import check_writable  # noqa: PLC0415
    from autotune.kernels.estimate import check_scratch  # noqa: PLC0415
    from autotune.kernels.export import write as export  # noqa: PLC0415
    from autotune.kernels.export.earlier import check_keys_stay, stored_keys  # noqa: PLC0415
    from autotune.kernels.job import run  # noqa: PLC0415
    from autotune.kernels.make_plan import make_plan  # noqa: PLC0415
    from autotune.kernels.measurers import cluster_measurer, local_measurer  # noqa: PLC0415
    from autotune.kernels.memory import memory_of, within_memory  # noqa: PLC0415
    from autotune.kernels.report.document import provenance  # noqa: PLC0415
    from autotune.kernels.report.page import page_of  # noqa: PLC0415
    from autotune.kernels.stored import folder_of  # noqa: PLC0415
    from autotune.report.verdict import keep_verdict  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    plan = make_plan(request, visible_gpus(), team)
    place = folder_of(request.out, plan.study, plan.basis)
    plan = within_memory(plan, memory_of(plan.device, plan.gpus))
    check_scratch(plan)
    with Store.open(request.db) as store:
        named = (plan.study, plan.kind, plan.identity(), plan.setup())
        otherwise = check_study(store, *named, only_read=request.dry_run)
        if not request.dry_run:
            check_writable(place)
        check_keys_stay(plan, {*stored_keys(store, plan), *plan.batch_sizes}, place)
        warn_setup_changed(plan.study, otherwise)
        show_plan(plan)
        described = kernel_plan(plan)
        if request.dry_run:
            if request.as_json:
                print_json(described)
            return
        with progress(plan.steps) as update, told(request.events, described, update) as tell:
            measurer = (
                local_measurer(plan, store.path.parent)
                if team is None
                else cluster_measurer(plan, team, _warn)
            )
            result = run(plan, store, measurer, tell)
        document = provenance(result)
        keep_verdict(store, plan, document)
        page = page_of(store, plan.study, setup=plan.setup(), device=plan.device)
        files = export.write(result, page, request.out)
    if request.as_json:
        document |= {"files": [str(path) for path in files]}
        counts = {"compiled": result.compiled, "cached": result.cached}
        print_json(document | counts | {"notes": list(plan.notes)})
        return
    show_result(result, page, files)
