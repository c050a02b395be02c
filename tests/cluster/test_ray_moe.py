"""``autotune moe --ray`` on a real cluster of several nodes on this machine."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.processes import alive, wait_for
from tests.support.ray_cluster import Nodes, nodes

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.compile, pytest.mark.kill]

Command = Callable[..., tuple[int, str, str]]

FEW = """
name: few
title: Few candidates, one of them compiled by each node at a time
source: this test
parameters:
  BLOCK_SIZE_M: {values: [64], why: few}
  BLOCK_SIZE_N: {values: [64, 128], why: few}
  BLOCK_SIZE_K: {values: [64], why: few}
  GROUP_SIZE_M: {values: [1], why: few}
  num_warps: {values: [4], why: few}
  num_stages: {values: [3], why: few}
constraints: [fits_shared_memory]
"""


def moe(command: Command, folder: Path, *more: str) -> tuple[list[Any], bytes, str]:
    """The rows of a prediction for a GB10, its file, and what was said."""
    folder.mkdir()
    (folder / "few.yaml").write_text(FEW)
    words = ["moe", "--device=gb10", "--predict", "--json", "--batch-sizes=64"]
    words += ["--effort=exhaustive", f"--space={folder}/few.yaml"]
    words += [f"--out={folder}/out", f"--db=sqlite:///{folder}/a.db"]
    code, said, errors = command(*words, *more)
    assert code == 0, errors
    return json.loads(said)["rows"], next((folder / "out").rglob("E=*.json")).read_bytes(), errors


def compiling(cluster: Nodes, index: int) -> bool:
    """Whether a worker process of ours is under a node: then it has been given a task."""
    raylet = psutil.Process(cluster.workers[index].all_processes["raylet"][0].process.pid)
    for child in raylet.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "multiprocessing.spawn" in " ".join(child.cmdline()):
                return True
    return False


def test_predictions_over_nodes_equal_those_without_ray_though_a_node_dies(
    in_process: Command, tmp_path: Path
) -> None:
    """Same seed, same rows; the dead node's compiles are done by the others."""
    with nodes({"num_cpus": 1}) as cluster:
        ended = threading.Event()

        def kill_at_work() -> None:
            wait_for(lambda: ended.is_set() or compiling(cluster, 1), 600.0)
            cluster.kill(1)

        killer = threading.Thread(target=kill_at_work)
        killer.start()
        try:
            there = moe(in_process, tmp_path / "there", f"--ray={cluster.address}")
        finally:
            ended.set()
            killer.join()
        assert alive(cluster.workers[0].all_processes["raylet"][0].process.pid), "it goes on"
    assert "is lost: " in there[2]
    alone = moe(in_process, tmp_path / "alone", "--workers=1")
    assert there[:2] == alone[:2]
