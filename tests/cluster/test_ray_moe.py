"""``autotune moe --ray`` on a real cluster of several nodes on this machine."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.ray_cluster import nodes

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.compile,
    pytest.mark.kill,
    pytest.mark.nightly,
    pytest.mark.timeout(300),
]


FEW = """
name: few
title: Four candidates, one of them compiled by each node at a time
source: this test
parameters:
  BLOCK_SIZE_M: {values: [64], why: few}
  BLOCK_SIZE_N: {values: [64, 128], why: few}
  BLOCK_SIZE_K: {values: [64, 128], why: few}
  GROUP_SIZE_M: {values: [1], why: few}
  num_warps: {values: [4], why: few}
  num_stages: {values: [3], why: few}
constraints: [fits_shared_memory]
"""


def moe(out: Path, *more: str) -> list[str]:
    (out / "few.yaml").write_text(FEW)
    words = [sys.executable, "-m", "autotune", "moe", "--device=gb10", "--predict", "--json"]
    words += ["--batch-sizes=64", "--effort=exhaustive", f"--space={out}/few.yaml"]
    return [*words, f"--out={out}/out", f"--db=sqlite:///{out}/a.db", *more]


def compiling(raylet: int) -> int:
    """Worker processes of ours under a node."""
    found = 0
    for child in psutil.Process(raylet).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += "multiprocessing.spawn" in " ".join(child.cmdline())
    return found


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
            time.sleep(0.5)
            cluster.kill(1)
            said, errors = run.communicate(timeout=200)
    assert run.returncode == 0, errors
    assert "is lost: " in errors
    expected = subprocess.run(moe(alone), capture_output=True, text=True, check=True)
    assert json.loads(said)["rows"] == json.loads(expected.stdout)["rows"]
    files = [next((folder / "out").rglob("E=*.json")).read_bytes() for folder in (alone, there)]
    assert files[0] == files[1]
