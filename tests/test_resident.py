"""Who holds the memory: real processes, and what an nvidia-smi says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autotune.machine import resident
from autotune.machine.guard import GIB
from autotune.machine.resident import residents, shortage, who_holds

HOLD = "import sys, time; held = bytearray(300 << 20); print('held', flush=True); time.sleep(600)"
SERVE = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {HOLD!r}])
"""
"""A server whose engine is a process of its own."""


def smi(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: str) -> None:
    program = folder / "nvidia-smi"
    engine = "*process_name*) echo 'GPU-0, 999999999, VLLM::EngineCore' ;;"
    text = f"case $1 in *pid,used_memory*) printf '{rows}' ;; {engine} esac\n"
    program.write_text(f"#!/bin/sh\n{text}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@contextmanager
def running(*command: str) -> Iterator[int]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            os.killpg(process.pid, 9)


@contextmanager
def server(folder: Path) -> Iterator[int]:
    """``vllm serve Qwen/Qwen3-8B``."""
    program = folder / "vllm"
    program.write_text(f"#!{sys.executable}\n{SERVE}")
    program.chmod(0o755)
    command = [sys.executable, str(program), "serve", "Qwen/Qwen3-8B", "--port", "1"]
    with running(*command) as pid:
        yield pid


@pytest.fixture
def not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The children of the tests count as somebody else's."""
    monkeypatch.setattr(resident, "_family", lambda _: [])


@pytest.mark.usefixtures("not_ours")
def test_a_server_is_named_with_all_that_its_processes_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(tmp_path) as pid:
        smi(tmp_path, monkeypatch, f"{pid}, 92160 MiB\\n")
        first, *_ = residents(least=200 << 20)
        assert (first.pid, first.name) == (pid, "vllm serve Qwen/Qwen3-8B")
        assert 90 * GIB + (300 << 20) < first.size < 92 * GIB
        assert who_holds([first]) == (
            f"vllm serve Qwen/Qwen3-8B (process {pid}) holds {first.size / GIB:.1f} GiB"
        )


def test_what_we_started_is_not_named() -> None:
    with running(sys.executable, "-c", HOLD) as pid:
        assert pid not in {one.pid for one in residents(least=200 << 20)}


def test_a_process_of_another_container_is_told_by_the_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(tmp_path, monkeypatch, "999999999, 2048\\n1, [N/A]\\nNo running processes found\\n")
    found = {one.pid: one for one in residents(least=GIB)}
    assert found[999999999].size == 2 * GIB
    assert found[999999999].name == "VLLM::EngineCore"


def test_a_container_says_that_it_does_not_see_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "container", lambda: "docker")
    assert "look on the host" in who_holds([])
    monkeypatch.setattr(resident, "container", lambda: None)
    assert "no single program" in who_holds([])


def test_a_shortage_is_one_line_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "residents", list)
    said = shortage("measuring", 16 * GIB, 20 * GIB)
    assert said.startswith("measuring takes about 16.0 GiB")
    assert "20.0 GiB are available, of which 8 stay with the host" in said
    assert "\n" not in said
