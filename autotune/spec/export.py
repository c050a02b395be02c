"""What a finished job leaves behind: the best setting, how to serve it, a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autotune.files import write_whole
from autotune.spec.job import Result
from autotune.spec.launchers import CONTAINER_PORT
from autotune.spec.report import report
from autotune.spec.server import ServeSettings, serve_args, shell_line
from autotune.spec.tables import (
    confirm_rows,
    forecast_rows,
    moe_line,
    setting,
    trial_rows,
    verdict,
    warnings,
)


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
        "best": {
            "candidate": selection.winner.candidate.params,
            "setting": setting(selection.winner.candidate),
            "is_baseline": selection.kept_incumbent,
            "speedup": selection.speedup,
            "interval": list(selection.interval) if selection.interval else None,
            "identical_share": result.identical.get(selection.winner.candidate),
            "speculative_config": winner.speculative,
            "serve": shell_line(winner),
            "moe": moe_line(result),
        },
        "study": plan.study,
        "command": plan.command,
        "scenario": plan.scenario.as_json(),
        "setup": plan.setup(),
        "environment": result.environment,
        "boots": result.boots,
        "fresh_boots": result.fresh_boots,
        "confirm_boots": plan.confirm_rounds,
        "trials": trial_rows(result),
        "forecast": {"basis": "predicted", "rows": forecast_rows(result)},
        "not_tried": [
            {"setting": setting(candidate), "why": why}
            for candidate, why in result.left_out.items()
        ],
        "confirmed": confirm_rows(result),
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
        files[folder / "compose.yaml"] = compose(settings, plan.image)
    text = json.dumps(document(result), indent=2, sort_keys=True, ensure_ascii=False)
    files[folder / "best.json"] = text + "\n"
    for path, content in files.items():
        write_whole(path, content.encode())
    return list(files)


def _script(result: Result, settings: ServeSettings) -> str:
    line = shell_line(settings)
    said = verdict(result).replace("\n", " ")
    return f"#!/bin/sh\n# {said}\n# Found by: {result.plan.command.splitlines()[0]}\n{line}\n"


def compose(settings: ServeSettings, image: str) -> str:
    """A compose file that serves the settings; folders among them are mounted where they are.

    Nothing here has started it. Strings are JSON, which YAML includes.
    """
    folders = [settings.model, dict(settings.speculative or {}).get("model", "")]
    folders.append(settings.env.get("VLLM_TUNED_CONFIG_FOLDER", ""))
    mounts = [Path(f).absolute() for f in dict.fromkeys(folders) if f and Path(f).is_dir()]
    args = serve_args(settings, "0.0.0.0", CONTAINER_PORT)  # noqa: S104  (inside a container)
    lines = ["# Made from the best setting; autotune has not started it."]
    lines += ["services:", "  vllm:", f"    image: {json.dumps(image)}", "    command:"]
    # A dollar sign begins a variable in a compose file; doubled it is itself.
    lines += [f"      - {json.dumps(_absolute(arg, mounts)).replace('$', '$$')}" for arg in args]
    lines += ["    ports:", f'      - "127.0.0.1:8000:{CONTAINER_PORT}"', "    ipc: host"]
    if settings.env:
        lines.append("    environment:")
        lines += [
            f"      {json.dumps(k)}: {json.dumps(v).replace('$', '$$')}"
            for k, v in sorted(settings.env.items())
        ]
    if mounts:
        lines.append("    volumes:")
        lines += [
            f"      - {json.dumps(f'{path}:{path}:ro').replace('$', '$$')}" for path in mounts
        ]
    lines += ["    deploy:", "      resources:", "        reservations:", "          devices:"]
    lines += ["            - driver: nvidia", "              count: all"]
    lines += ["              capabilities: [gpu]"]
    return "\n".join(lines) + "\n"


def _absolute(arg: str, mounts: list[Path]) -> str:
    """A folder given relative to here is mounted under its full path."""
    path = Path(arg)
    return (
        str(path.absolute())
        if arg and not arg.startswith("-") and path.absolute() in mounts
        else arg
    )
