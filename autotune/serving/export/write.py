"""What a finished job leaves behind: the best setting, how to serve it, a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.export.files import Exporter, json_file, write_files
from autotune.report import files
from autotune.report.page import Page
from autotune.serving.decide.conclusion import verdict
from autotune.serving.decide.slices import slice_rows
from autotune.serving.job import Result
from autotune.serving.report.document import document, schedule_document
from autotune.serving.server.launchers import CONTAINER_PORT, DockerLauncher
from autotune.serving.server.mounts import Mount, mounts_of, with_full_paths
from autotune.serving.server.server import ServeSettings, serve_args
from autotune.serving.stored import folder_of
from autotune.util import secret


@dataclass(frozen=True)
class Finished:
    """A job's result, and the page made of what it stored."""

    result: Result
    page: Page

    @property
    def settings(self) -> ServeSettings:
        """Of the best setting."""
        winner = self.result.selection.winner.candidate
        return self.result.plan.recipe.settings(winner)


def script(done: Finished) -> bytes:
    """Return ``serve.sh``, which serves the best setting."""
    plan = done.result.plan
    line = plan.launcher.shell_line(done.settings)
    said = verdict(done.result).replace("\n", " ")
    found = plan.command.splitlines()[0]
    others = "".join(
        f"# For {row['slice']} alone: {row['serve']}\n"
        for row in slice_rows(done.result)
        if row["serve"] != line
    )
    return f"#!/bin/sh\n# {said}\n# Found by: {found}\n{others}{line}\n".encode()


def compose_file(done: Finished) -> bytes | None:
    """Return ``compose.yaml``, which does the same; None without ``--image``."""
    plan = done.result.plan
    if plan.image is None:
        return None
    docker = plan.launcher if isinstance(plan.launcher, DockerLauncher) else None
    gpus, options = (docker.gpus, docker.options) if docker else ("all", ())
    return compose(done.settings, plan.image, plan.mounts, gpus, options).encode()


FILES: dict[str, Exporter[Finished]] = {
    "report.html": lambda done: files.html(done.page),
    "serve.sh": script,
    "report.md": lambda done: files.markdown(done.page),
    "compose.yaml": compose_file,
    "schedule.json": lambda done: json_file(schedule_document(done.result)),
    "best.json": lambda done: json_file(document(done.result)),
}
"""Each file and what makes it, in the order in which they are written."""


def write(result: Result, page: Page, out: Path) -> list[Path]:
    """Write the files, each whole; ``best.json`` last.

    Raises:
        BadInputError: the folder cannot be written.
        MissingEnvironmentError: no space is left.
    """
    return write_files(folder_of(out, result.plan.study), FILES, Finished(result, page))


def compose(
    settings: ServeSettings,
    image: str,
    given: Sequence[Mount] = (),
    gpus: str = "all",
    options: Sequence[str] = (),
) -> str:
    """A compose file that serves the settings, with the mounts given and those that they need.

    Nothing here has started it. Strings are JSON, which YAML includes. ``gpus`` is docker's
    ``--gpus``; ``options`` of ``docker run`` have other names in compose, and stand as a comment.
    """
    mounts = mounts_of(settings, given)
    args = serve_args(with_full_paths(settings), "0.0.0.0", CONTAINER_PORT)  # noqa: S104  (inside a container)
    lines = ["# Made from the best setting; autotune has not started it."]
    if options:
        lines.append(f"# docker run was given as well: {' '.join(map(json.dumps, options))}")
    lines += ["services:", "  vllm:", f"    image: {_quoted(image)}"]
    lines += ["    entrypoint:", '      - "vllm"', '      - "serve"', "    command:"]
    lines += [f"      - {_quoted(arg)}" for arg in args]
    lines += ["    ports:", f'      - "127.0.0.1:8000:{CONTAINER_PORT}"', "    ipc: host"]
    if settings.env:
        lines.append("    environment:")
        lines += [f"      {json.dumps(k)}: {_quoted(v)}" for k, v in sorted(settings.env.items())]
    if mounts:
        lines.append("    volumes:")
        lines += [f"      - {_quoted(mount.volume())}" for mount in mounts]
    if gpus:
        lines += ["    deploy:", "      resources:", "        reservations:", "          devices:"]
        lines += ["            - driver: nvidia", f"              {_devices(gpus)}"]
        lines += ["              capabilities: [gpu]"]
    return "\n".join(lines) + "\n"


def _devices(gpus: str) -> str:
    """``all``, a number or ``device=0,1`` as compose says it."""
    name, _, devices = gpus.strip('"').partition("=")
    if name == "device":
        return f"device_ids: {json.dumps(devices.split(','))}"
    return f"count: {gpus if gpus.isdecimal() else 'all'}"


def _quoted(text: str) -> str:
    """A dollar sign begins a variable in a compose file; doubled it is itself.

    A reference to a secret stays a variable.
    """
    pieces = secret.split(text)
    inner = (
        piece if known else json.dumps(piece)[1:-1].replace("$", "$$") for piece, known in pieces
    )
    return f'"{"".join(inner)}"'
