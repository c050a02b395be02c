"""``autotune moe --ray`` on a real cluster of several nodes on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.ray_cluster import nodes

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.compile, pytest.mark.kill, pytest.mark.timeout(300)]


def moe(out: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "autotune", "moe", "--device=gb10", "--predict", "--json"]
    words += [
        "--batch-sizes=1,64",
        "--effort=quick",
        f"--out={out}/out",
        f"--db=sqlite:///{out}/a.db",
    ]
    return [*words, *more]


def rows(document: dict[str, Any]) -> Any:
    """What must not depend on where it was compiled."""
    return document["rows"] if "rows" in document else document["selections"]


def compiling(raylet: int) -> int:
    """Worker processes of ours under a node."""
    under = psutil.Process(raylet).children(recursive=True)
    return sum("multiprocessing" in " ".join(child.cmdline()) for child in under)


def test_predictions_over_nodes_equal_those_without_ray_though_a_node_dies(tmp_path: Path) -> None:
    """Same seed, same rows; the dead node's compiles are done by the others."""
    alone, there = tmp_path / "alone", tmp_path / "there"
    for folder in (alone, there):
        folder.mkdir()
    with nodes({"num_cpus": 1}) as cluster:
        command = moe(there, f"--ray={cluster.address}")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as run:
            raylet = cluster.workers[1].all_processes["raylet"][0].process.pid
            end = time.monotonic() + 120
            while not compiling(raylet):
                assert run.poll() is None, run.communicate()
                assert time.monotonic() < end
                time.sleep(0.1)
            time.sleep(2.0)
            cluster.kill(1)
            said, errors = run.communicate(timeout=200)
    assert run.returncode == 0, errors
    assert "is lost: " in errors
    expected = subprocess.run(moe(alone), capture_output=True, text=True, check=True)
    assert rows(json.loads(said)) == rows(json.loads(expected.stdout))
    files = [next((folder / "out").rglob("E=*.json")).read_bytes() for folder in (alone, there)]
    assert files[0] == files[1]
