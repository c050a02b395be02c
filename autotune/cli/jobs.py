"""``autotune jobs`` asks a service for its jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from autotune.cli.common import print_json
from autotune.cli.consoles import out
from autotune.cli.requests import Jobs
from autotune.core import BadInputError
from autotune.util.edge import EdgeError, bad_input, parse_json, read_json
from autotune.util.escape import for_terminal
from autotune.util.flags import seconds

if TYPE_CHECKING:
    from autotune.cli.remote import Remote

_MOST_INPUT = 1 << 20


def jobs(request: Jobs) -> None:
    """Do what is asked."""
    from autotune.cli import remote as far  # noqa: PLC0415 - keeps `--help` fast

    remote = far.Remote(request.server, request.token_file)
    with far.understood(remote):
        _do(request, remote)


def _do(request: Jobs, remote: Remote) -> None:
    from autotune.cli import remote as far  # noqa: PLC0415 - keeps `--help` fast

    if request.action == "list":
        _list(remote.get("GET", "/jobs?limit=200"), as_json=request.as_json)
        return
    if request.action == "submit":
        job = remote.submit(_read(str(request.job)))
        print_json(job) if request.as_json else typer.echo(for_terminal(str(job["id"])))
        return
    job_id = _number(str(request.job))
    if request.action == "show":
        _show(remote.get("GET", f"/jobs/{job_id}"), as_json=request.as_json)
    elif request.action == "cancel":
        _show(remote.get("POST", f"/jobs/{job_id}:cancel", {}), as_json=request.as_json)
    elif request.action == "logs" and not request.follow:
        from autotune.serving.server.web import UnansweredError  # noqa: PLC0415 - as above

        try:
            for _, line in far.log_lines(remote, job_id):
                typer.echo(for_terminal(line))
        except UnansweredError as error:
            raise remote.silent(str(error)) from None
    else:
        limit = None if request.max_wait is None else seconds(request.max_wait, "--max-wait")
        far.watch(remote, job_id, log=request.action == "logs", limit_s=limit)


def _read(place: str) -> Any:
    try:
        if place == "-":
            return parse_json(sys.stdin.buffer.read(_MOST_INPUT))
        return read_json(Path(place), _MOST_INPUT)
    except (EdgeError, OSError) as error:
        raise bad_input(place, error) from None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise BadInputError(f"job {text}: expected a number, as `autotune jobs list` shows it")
    return int(text)


def _list(found: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    shown = Table("job", "kind", "state", "progress", "best so far", "what", box=None)
    for job in found["jobs"]:
        progress = job["progress"] or {}
        best = progress.get("best_so_far")
        cells = (
            *(str(job["id"]), job["kind"], job["state"].lower()),
            f"{progress['done']} of {progress['total']}" if progress.get("total") else "",
            "" if best is None else f"{best:.3f}×",
            job["name"] or job["command"],
        )
        shown.add_row(*(cell.replace("[", "\\[") for cell in cells))
    out.print(shown)


def _show(job: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(job)
        return
    progress = job["progress"] or {}
    lines = [f"job {job['id']} is {job['state'].lower()}", f"  {job['command']}"]
    lines += [f"  {job['reason']}"] if job["reason"] else []
    lines += [f"  number {job['place']} in the queue"] if job.get("place") else []
    if progress.get("study"):  # else it has not said its plan yet
        lines.append(f"  {progress['done']} of {progress['total']} {progress['unit'] or ''}")
        lines.append(f"  study {progress['study']}, {progress['basis']}")
    for line in lines:
        out.print(for_terminal(line), markup=False, soft_wrap=True)
