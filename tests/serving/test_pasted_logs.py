"""Logs as people paste them: Docker Compose, Kubernetes, journald, Ray, WSL, the hub, compilers.

``tests/data/pasted-logs.json`` holds them, each short and made by hand, with the phrases that vLLM
0.32, torch, Triton, NCCL, Docker, systemd and the hub write; beside each stand the class of its
failure and a piece of the line that tells.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autotune.serving.server.explain import explain

LOGS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "pasted-logs.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", LOGS)
def test_the_telling_line_and_its_class(name: str) -> None:
    pasted = LOGS[name]
    found = explain("\n".join(pasted["log"]).encode())
    assert (found.kind.value if found.kind else None) == pasted["failure"]
    assert pasted["telling"] in found.cause
    assert found.failed or pasted["failure"] in {None, "stopped"}


@pytest.mark.parametrize("name", LOGS)
def test_windows_line_ends_and_a_cut_beginning_change_nothing(name: str) -> None:
    pasted = LOGS[name]
    found = explain(("\ufeff" + "\r\n".join(pasted["log"]) + "\r\n").encode())
    assert (found.kind.value if found.kind else None) == pasted["failure"]
