"""What a finished job leaves behind: the best setting, how to serve it, a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune.export.files import write_whole
from autotune.serving.decide.conclusion import verdict, warnings
from autotune.serving.decide.objectives import front_rows, objective_rows
from autotune.serving.decide.stopped import stopped_rows
from autotune.serving.job import Result
from autotune.serving.memory.search import memory_document
from autotune.serving.plan import Plan
from autotune.serving.report.markdown_report import report
from autotune.serving.report.schedule_report import schedule_document
from autotune.serving.report.tables import (
    confirm_rows,
    forecast_rows,
    moe_line,
    score_table,
    setting,
    trial_rows,
)
from autotune.serving.server.launchers import CONTAINER_PORT, DockerLauncher
from autotune.serving.server.mounts import Mount, mounts_of, with_full_paths
from autotune.serving.server.server import ServeSettings, serve_args
from autotune.util import secret


def folder_of(out: Path, study: str) -> Path:
    """Where the files of a study go."""
    return out / study / "spec"


def document(result: Result) -> dict[str, Any]:
    """Everything needed to know what the result is worth and to make it again.

    Times are µs per output token by the objective, rates tokens per second.
    """
    plan, selection = result.plan, result.selection
    winner = plan.recipe.settings(selection.winner.candidate)
    return {
        "basis": plan.basis.value,
        "verdict": verdict(result),
        "warnings": warnings(result),
        "checks": [asdict(finding) for finding in plan.findings],
        "best": {
            "candidate": selection.winner.candidate.params,
            "setting": setting(selection.winner.candidate),
            "is_baseline": selection.kept_incumbent,
            "speedup": selection.speedup,
            "interval": list(selection.interval) if selection.interval else None,
            "identical_share": result.identical.get(selection.winner.candidate),
            "speculative_config": winner.speculative,
            "serve": plan.launcher.shell_line(winner),
            "moe": moe_line(result),
        },
        "study": plan.study,
        "command": plan.command,
        "scenario": plan.scenario.as_json(),
        "setup": plan.setup(),
        "environment": result.environment,
        "boots": result.boots,
        "boots_of_load": result.boots_of_load,
        "fresh_boots": result.fresh_boots,
        "confirm_boots": plan.confirm_rounds,
        "trials": trial_rows(result),
        "objectives": objective_rows(result),
        "pareto_front": front_rows(result),
        "schedule": schedule_document(result),
        "stopped": stopped_rows(result),
        "scores": score_table(result),
        "memory_utilization": memory_document(result.borders),
        "forecast": {"basis": "predicted", "rows": forecast_rows(result)},
        "not_tried": [
            {"setting": setting(candidate), "why": why}
            for candidate, why in result.left_out.items()
        ],
        "confirmed": confirm_rows(result),
        "published": published.as_json() if (published := plan.space.published) else None,
    }


def write(result: Result, out: Path) -> list[Path]:
    """Write the files, each whole; ``best.json`` last.

    Raises:
        BadInputError: the folder cannot be written.
        MissingEnvironmentError: no space is left.
    """
    plan = result.plan
    folder = folder_of(out, plan.study)
    settings = plan.recipe.settings(result.selection.winner.candidate)
    files = {
        folder / "serve.sh": _script(result, settings),
        folder / "report.md": report(result),
    }
    if plan.image is not None:
        files[folder / "compose.yaml"] = compose(
            settings, plan.image, plan.mounts, _gpus(plan), _options(plan)
        )
    files[folder / "schedule.json"] = _json(schedule_document(result))
    files[folder / "best.json"] = _json(document(result))
    for path, content in files.items():
        write_whole(path, content.encode())
    return list(files)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _script(result: Result, settings: ServeSettings) -> str:
    line = result.plan.launcher.shell_line(settings)
    said = verdict(result).replace("\n", " ")
    return f"#!/bin/sh\n# {said}\n# Found by: {result.plan.command.splitlines()[0]}\n{line}\n"


def _gpus(plan: Plan) -> str:
    return plan.launcher.gpus if isinstance(plan.launcher, DockerLauncher) else "all"


def _options(plan: Plan) -> tuple[str, ...]:
    return plan.launcher.options if isinstance(plan.launcher, DockerLauncher) else ()


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
