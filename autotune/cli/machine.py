"""``autotune devices`` and ``autotune doctor`` tell what this machine is and has."""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape
from rich.table import Table

from autotune.cli.common import print_json
from autotune.cli.consoles import out
from autotune.cli.requests import Devices, Doctor
from autotune.core import ExitCode
from autotune.machine.devices import (
    Device,
    detect_gpus,
    get_device,
    load_devices,
    no_gpu,
    resolve_device,
)
from autotune.machine.environment import visible_gpus
from autotune.report.terminal import FULL_WIDTH


def devices(request: Devices) -> None:
    """Print the devices."""
    if request.as_json:
        print_json(known_devices())
        return
    known, here = load_devices(), detect_gpus()
    wide = out.width >= FULL_WIDTH  # the title only repeats vLLM's name, more readably
    titles = ["title"] if wide else []
    shown = Table("name", *titles, "sm", "SMs", "GB/s", "smem/block", "L2 MB", box=None)
    shown.add_column("name in vLLM", overflow="fold")  # it is there to be copied
    for d in known.values():
        shown.add_row(
            d.name,
            *([d.title] if wide else []),
            str(d.arch),
            str(d.sm_count),
            f"{d.memory_bandwidth_gbs:g}",
            str(d.shared_memory_per_block),
            f"{d.l2_bytes / 2**20:g}",
            d.vllm_name,
        )
    out.print(shown)
    names = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in here)
    out.print(f"In this machine: {escape(names) or 'no GPU that nvidia-smi shows'}")
    out.print("Every figure's source stands in search_spaces/devices/*.yaml.")


def known_devices() -> dict[str, Any]:
    """What can be tuned for, and the GPUs of this machine, as JSON values."""
    return {
        "known": [device.model_dump(mode="json") for device in load_devices().values()],
        "here": [gpu.as_json() for gpu in detect_gpus()],
    }


def doctor(request: Doctor) -> None:
    """Print how the machine stands and what to run next.

    Raises:
        typer.Exit: something is missing, with the code of a missing environment.
    """
    from autotune.kernels.check.doctor import diagnose  # noqa: PLC0415

    visible = visible_gpus()
    findings = diagnose(device_asked_for(request.device, visible), visible)
    if request.as_json:
        print_json([finding.as_json() for finding in findings])
    else:
        marks = {
            "ok": "[green]ok  [/green]",
            "warning": "[yellow]warn[/yellow]",
            "error": "[red]fail[/red]",
            "next": "[bold]then[/bold]",
        }
        for finding in findings:
            said = f"{finding.check:<9} {escape(finding.text)}"
            copied = finding.level == "next"  # a command, which no line break may cut
            line = f"{marks[finding.level]} {said}"
            out.print(line, soft_wrap=True) if copied else out.say(line, hang=15)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(ExitCode.MISSING_ENVIRONMENT)


def device_asked_for(ref: str | None, visible: str | None) -> Device:
    """The device asked for, else the one that is here, else the one that most have asked about."""
    if ref is None:
        return get_device("gb10") if no_gpu(visible) else resolve_device("auto", visible)
    return resolve_device(ref, visible)
