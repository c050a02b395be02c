"""What can be said of a job before it starts: at once while it is queued, or in full when asked."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from autotune.cli import requests
from autotune.core import AutotuneError, ExitCode
from autotune.store.records import NewJob
from autotune.store.store import Store
from autotune.util.edge import parse_json
from autotune.util.request import Request
from autotune.web.kinds import KINDS, command_of, shown_command
from autotune.web.problems import ProblemError, field_of
from autotune.web.runner import Settings

PLAN_S = 90


def check(job: NewJob, store: Store, visible: str | None) -> None:
    """Refuse a job whose command would refuse it whenever it started.

    Only flags, files of this machine and the study's record are looked at. What the moment decides
    (memory, locks, disk, the hub, vLLM, a cluster, what an earlier job is to write) is asked when
    the job's turn comes, or by :func:`plan_of`.

    Args:
        job: of checked flags.
        store: with the study, if there is one.
        visible: ``CUDA_VISIBLE_DEVICES``, if set.

    Raises:
        ProblemError: what the command would say.
    """
    try:
        _check(KINDS[job.kind].model_validate(job.args), store, visible)
    except AutotuneError as error:
        raise refused(error.exit_code, str(error), []) from None


def _check(request: Request, store: Store, visible: str | None) -> None:
    if not isinstance(request, requests.Moe | requests.Spec) or request.ray is not None:
        return  # a cluster may hold other devices
    if isinstance(request, requests.Spec):
        from autotune.serving.make_plan import check as check_pair  # noqa: PLC0415 - slow import

        check_pair(request)
    elif request.launcher == "local":  # else another vLLM plans, in its container
        from autotune.kernels.make_plan import check as check_kernel  # noqa: PLC0415 - slow import

        plan = check_kernel(request, visible)
        if plan is not None and store.find_study(plan.study) is not None:
            store.study(plan.study, plan.kind, plan.identity())


def refused(code: int, detail: str, said: list[str]) -> ProblemError:
    """Make the problem of what a command refuses.

    Args:
        code: the command's exit code.
        detail: its last line.
        said: the lines before.
    """
    status = 422 if code == ExitCode.BAD_INPUT else 409
    return ProblemError(
        status, detail, None, exit_code=int(code), field=field_of(detail), said=said
    )


def plan_of(job: NewJob, settings: Settings) -> dict[str, Any]:
    """Say what the command says before it starts, by its ``--dry-run``.

    Raises:
        ProblemError: what it refuses, in its words; or it takes too long.
    """
    command = shown_command(job.kind, job.args)
    if "dry_run" not in KINDS[job.kind].model_fields:
        return {"command": command, "plan": None, "said": []}
    request = KINDS[job.kind].model_validate(job.args | {"dry_run": True, "as_json": True})
    words = command_of(job.kind, request, db=settings.db, out=settings.root)
    try:
        ran = subprocess.run(  # noqa: S603 - checked by the request and the policy
            [sys.executable, "-m", "autotune", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PLAN_S,
            cwd=settings.root,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise ProblemError(504, f"no plan within {PLAN_S} s") from None
    said = [line for line in ran.stderr.splitlines() if line.strip()]
    if ran.returncode != ExitCode.DONE:
        detail = said[-1].removeprefix("autotune: ") if said else f"exit code {ran.returncode}"
        raise refused(ran.returncode, detail, said[:-1])
    return {"command": command, "plan": parse_json(ran.stdout), "said": said}
