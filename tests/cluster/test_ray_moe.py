"""``autotune moe --ray`` on a real cluster of several nodes on this machine."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import ray_gpus
from tests.support.commands import MISSING, Command, check
from tests.support.processes import alive, wait_for
from tests.support.ray_cluster import Nodes, nodes
from tests.web.served import REAL, Served

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.compile, pytest.mark.kill]

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


MORE = FEW.replace("[64, 128]", "[32, 64, 128, 256]")


def moe(command: Command, folder: Path, space: str, *more: str) -> tuple[list[Any], bytes, str]:
    """The rows of a prediction for a GB10, its file, and what was said."""
    folder.mkdir()
    (folder / "few.yaml").write_text(space)
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


@pytest.mark.parametrize(
    ("kill", "space"),
    [(Nodes.kill, FEW), pytest.param(Nodes.kill_raylet, MORE, marks=pytest.mark.nightly)],
    ids=["node", "raylet"],
)
def test_predictions_over_nodes_equal_those_without_ray_though_a_node_dies(
    in_process: Command, tmp_path: Path, kill: Callable[[Nodes, int], None], space: str
) -> None:
    """Same seed, same rows; the dead node's compiles are done by the others.

    Workers outlive their raylet for a moment, so that they must have more to do.
    """
    with nodes({"num_cpus": 1}) as cluster:
        ended = threading.Event()

        def kill_at_work() -> None:
            wait_for(lambda: ended.is_set() or compiling(cluster, 1), 600.0)
            kill(cluster, 1)

        killer = threading.Thread(target=kill_at_work)
        killer.start()
        try:
            there = moe(in_process, tmp_path / "there", space, f"--ray={cluster.address}")
        finally:
            ended.set()
            killer.join()
        assert alive(cluster.workers[0].all_processes["raylet"][0].process.pid), "it goes on"
    assert "is lost: " in there[2]
    assert "state-dump" not in there[2], "what a raylet leaves fills pages"
    alone = moe(in_process, tmp_path / "alone", space, "--workers=1")
    assert there[:2] == alone[:2]


def stored(folder: Path) -> int:
    """How many trials are in the database by now."""
    return ray_gpus.trials(folder / "a.db")


@pytest.mark.nightly
def test_a_command_whose_head_dies_says_so_and_goes_on_later(
    in_process: Command, tmp_path: Path
) -> None:
    """Ray itself would end the command after a minute, with exit code 1 and its own words."""
    (tmp_path / "few.yaml").write_text(MORE)
    words = ["moe", "--device=gb10", "--predict", "--json", "--batch-sizes=64,512", "--study=s"]
    words += [f"--space={tmp_path}/few.yaml", "--effort=exhaustive", f"--out={tmp_path}/out"]
    words += [f"--db=sqlite:///{tmp_path}/a.db"]
    with nodes({"num_cpus": 1}) as cluster:
        command = [sys.executable, "-m", "autotune", *words, f"--ray={cluster.address}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as ran:
            wait_for(lambda: stored(tmp_path) >= 2, 300.0)
            cluster.kill_head()
            said, errors = ran.communicate(timeout=200)
    last = errors.decode().rstrip("\n").split("\n")[-1]
    assert (ran.returncode, said) == (3, b""), errors.decode()
    assert "the head of the cluster" in last
    assert "the same command goes on" in last
    assert b"Traceback" not in errors
    before = stored(tmp_path)
    code, told, _ = in_process(*words, "--workers=1")
    assert code == 0
    assert stored(tmp_path) > before >= 2
    assert json.loads(told)["compiled"] < 2 * stored(tmp_path), "what was compiled there is kept"


@pytest.mark.nightly
def test_clusters_that_cannot_do_it_are_one_line_before_anything_starts(
    in_process: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    with nodes() as cluster:
        words = [f"--ray={cluster.address}", f"--db=sqlite:///{tmp_path}/a.db"]
        measured = in_process("moe", "--device=auto", *words)
        check(measured, MISSING, "--predict needs none: node ", ": has no GPU")
        for ours, said in (
            (("2.59.0", platform.python_version()), "Ray: 2.59.0"),
            ((ray.__version__, "3.14.0"), "Python: 3.14.0"),
        ):
            monkeypatch.setattr("ray._private.utils.compute_version_info", lambda ours=ours: ours)
            predicted = in_process("moe", "--device=gb10", "--predict", *words)
            check(predicted, MISSING, f"--ray {cluster.address}: Version mismatch", said)
    assert not (tmp_path / "a.db").exists()


@pytest.mark.nightly
def test_a_job_of_the_service_is_done_on_a_cluster(tmp_path: Path) -> None:
    """The operator allows the address; its file is what the command writes without Ray."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "few.yaml").write_text(FEW)
    with nodes({"num_cpus": 1}) as cluster:
        served = Served(tmp_path / "root", REAL, "--allow", f"ray={cluster.address}")
        try:
            args = {"device": "gb10", "predict": True, "batch_sizes": "64", "study": "over"}
            args |= {"space": "few.yaml", "effort": "exhaustive", "ray": cluster.address}
            job = served.call("POST", "/jobs", {"kind": "moe", "args": args})
            wait_for(lambda: compiling(cluster, 1), 200.0)
            ended = served.wait(job["id"], within_s=300)
            assert (ended["state"], ended["exit_code"]) == ("SUCCEEDED", 0), ended
            with pytest.raises(urllib.error.HTTPError) as refused:
                served.call("POST", "/jobs", {"kind": "moe", "args": {**args, "ray": "local"}})
            assert refused.value.code in {403, 422}
        finally:
            served.stop()
    assert list((tmp_path / "root").rglob("E=*.json"))
