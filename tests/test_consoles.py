"""What a terminal of few columns is shown: words stay whole, plans aligned, commands uncut."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.cli import machine, moe_terminal
from autotune.cli.consoles import SafeConsole
from autotune.cli.requests import Doctor
from autotune.kernels.check import doctor
from autotune.machine.health import Health

PLAN = "Plan   gemma: E=128\n       18 batch sizes and the default, [b]space stock[/b]\n       done"


def console(columns: int, *, terminal: bool = True) -> tuple[SafeConsole, io.StringIO]:
    shown = io.StringIO()
    return SafeConsole(file=shown, force_terminal=terminal, width=columns, highlight=False), shown


def test_what_follows_a_break_is_indented_as_far() -> None:
    narrow, shown = console(30)
    narrow.say(PLAN, hang=7)
    lines = shown.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert [line.rstrip() for line in lines] == [
        "Plan   gemma: E=128",
        "       18 batch sizes and the",
        "       default, space stock",
        "       done",
    ]


def test_a_pipe_gets_lines_as_they_are() -> None:
    narrow, shown = console(30, terminal=False)
    narrow.say(PLAN, hang=7)
    assert shown.getvalue() == PLAN.replace("[b]", "").replace("[/b]", "") + "\n"


def test_no_line_break_cuts_the_command_that_doctor_names(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, shown = console(40)
    command = "`autotune moe --launcher docker --image vllm/vllm-openai:v0.33.0 --device auto`"
    found = [Health("held", "ok", "a word " * 12), Health("next", "next", command)]
    monkeypatch.setattr(machine, "out", narrow)
    monkeypatch.setattr(doctor, "diagnose", lambda *_: found)
    machine.doctor(Doctor(device="gb10"))
    lines = shown.getvalue().splitlines()
    assert command in lines[-1]
    assert len(lines) > 3
    assert all(line.startswith(" " * 15) and len(line) <= 40 for line in lines[1:-1])


def test_a_log_gets_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    piped, shown = console(80, terminal=False)
    now = [0.0]
    monkeypatch.setattr(moe_terminal, "err", piped)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    step: Any = SimpleNamespace(workload=SimpleNamespace(label="M=64"))
    with moe_terminal.progress(100) as update:
        for _ in range(40):
            now[0] += 4.0
            update(step)
    assert shown.getvalue() == "15 of 100 trials, M=64, 1 min\n30 of 100 trials, M=64, 2 min\n"
