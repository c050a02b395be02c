"""``autotune spec --ray`` on a real cluster of several nodes on this machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune.cluster.connect import connected
from autotune.core import Job, Measurement, Outcome, Phase
from autotune.kind import Run, tune
from autotune.serving.cluster.fleet import Fleet, place_of
from autotune.serving.cluster.launcher import GroupLauncher
from autotune.serving.cluster.measurer import cluster_measurer, look_at_nodes
from autotune.serving.job import local_measurer
from autotune.serving.make_plan import make_plan
from autotune.serving.plan import Plan
from autotune.store.store import Store
from autotune.tune import Progress, measure_all
from tests.serving.real_server import CACHE_ARGS, CPU_ARGS, CPU_ENV
from tests.serving.test_spec_job import BINARY, FAKE, make_request
from tests.serving.tiny_models import TinyModels, tiny_models
from tests.support.processes import gone, wait_for
from tests.support.ray_cluster import Nodes, nodes

__all__ = ["tiny_models"]

pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes({"num_cpus": 1}) as made:
        yield made


def command(target: Path, out: Path, ray: str, *more: str, **serving: Any) -> list[str]:
    """A quick run on servers that sleep for their work."""
    given = json.dumps({"boots": str(out / "boots"), **serving})
    words = [str(BINARY), "spec", f"--target={target}", "--drafter=ngram", f"--vllm={FAKE}"]
    words += ["--concurrency=1", "--max-tokens=16", "--repeats=6", "--waves=1", "--confirm-boots=1"]
    words += [
        "--no-dial",
        "--no-schedule",
        "--force",
        "--check-tokens=0",
        f"--env=FAKE_SERVING={given}",
        "--json",
    ]
    return [*words, f"--out={out}/out", f"--db=sqlite:///{out}/a.db", f"--ray={ray}", *more]


def servers(out: Path) -> list[psutil.Process]:
    """The fake servers of a run."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = str(out / "boots") in process.environ().get("FAKE_SERVING", "")
            if mine and Path(process.cmdline()[1]).name == "fake_serving.py":
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


START_S = 150.0
"""A machine with two busy cores takes most of a minute until the first server."""


@pytest.mark.kill
@pytest.mark.nightly
def test_a_node_that_dies_in_the_middle_costs_nothing_that_was_measured(
    cluster: Nodes, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """Nor does a kill of the command: the same one goes on, and no server stays."""
    cluster.add(num_cpus=1)
    words = command(tiny_models.qwen3, tmp_path, cluster.address, "--gamma=0,1,2,3", base_ms=10.0)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as first:
        try:
            wait_for(lambda: servers(tmp_path), START_S)
        finally:
            first.send_signal(signal.SIGKILL)
        left = [process.pid for process in servers(tmp_path)]
    assert gone(left, 30.0), "kill -9 of the command leaves no server"

    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as second:
        wait_for(lambda: len(servers(tmp_path)) >= 2, START_S)  # the control boots
        victim = next(
            index
            for index, node in enumerate(cluster.workers)
            if index and has_server(node.all_processes["raylet"][0].process.pid, tmp_path)
        )
        cluster.kill(victim)
        said, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    assert "is lost: " in errors
    document = json.loads(said)
    assert [t["outcome"] for t in document["trials"]] == ["ok"] * len(document["trials"])
    assert document["best"]["candidate"]["gamma"] > 0
    assert not servers(tmp_path)
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        (search,) = store.get_study(document["study"]).searches
        details = [d.trial.measurement.details for d in store.dated_trials(search)]
    rows = [one["place"] for one in details]
    assert len({row["nodes"][0] for row in rows}) >= 2
    assert all(row["hosts"][0] and len(row["nodes"][0]) == 56 for row in rows)
    # The command's own folder, not the node's; these servers write nothing.
    assert all(Path(one["log"]).is_relative_to(tmp_path / "out") for one in details)


def has_server(raylet: int, out: Path) -> bool:
    under = {child.pid for child in psutil.Process(raylet).children(recursive=True)}
    return any(process.pid in under for process in servers(out))


def real_plan(tiny_models: TinyModels, nodes: Any, *args: str) -> Plan:
    request = make_request(
        tiny_models.qwen3,
        "chat",
        gamma="0,2",
        max_tokens=8,
        repeats=2,
        check_tokens=0,
        env=[f"{name}={value}" for name, value in CPU_ENV.items()],
        server_arg=[" ".join((*CPU_ARGS, *CACHE_ARGS, *args))],
        start_timeout="240s",
        vllm=None,
    )
    return make_plan(request, nodes)


def measured_on(
    cluster: Nodes, tiny_models: TinyModels, out: Path
) -> tuple[list[Progress], list[str]]:
    """Both settings, on as many nodes as there are, stored by a run like any other."""
    lost: list[str] = []

    def steps(run: Run[Plan, Fleet]) -> list[Progress]:
        jobs = [Job(candidate, run.plan.scenario) for candidate in run.plan.grid]
        found: list[Progress] = []
        measure_all(jobs, Phase.SEARCH, run.measurer, run.log, found.append)
        return found

    with connected(cluster.address):
        found = look_at_nodes([str(tiny_models.qwen3)], ())
        plan = real_plan(tiny_models, found)
        sent = local_measurer(plan, out / "logs")
        fleet = cluster_measurer(plan, found, sent, out / "logs", lost.append)
        with Store.open(f"sqlite:///{out}/a.db") as store:
            return tune(plan, store, fleet, lambda _: None, steps), lost


def check(found: Sequence[Progress], out: Path) -> None:
    assert [p.trial.measurement.outcome for p in found] == [Outcome.OK] * 2, [
        p.trial.measurement.message for p in found
    ]
    for progress in found:
        details = progress.trial.measurement.details
        log = Path(details["log"])
        assert log.parent == out / "logs"
        assert "Application startup complete" in log.read_text()
        assert details["place"]["hosts"][0]


LOCAL = """
import os, subprocess, sys
from autotune.cluster.connect import connected
with connected("local"):
    import ray
    here = ray.remote(num_cpus=0)(lambda: (os.environ["RAY_AUTH_TOKEN"] != "", os.nice(0)))
    token, nice = ray.get(here.remote())
    print(len(ray.nodes()), token, nice - os.nice(0), os.environ["RAY_AUTH_MODE"])
"""


def test_a_cluster_of_this_machine_asks_for_a_token_and_is_not_nice() -> None:
    """Ray reads the mode when it is loaded, so that this needs a process which has not."""
    ran = subprocess.run(
        [sys.executable, "-c", LOCAL], capture_output=True, text=True, timeout=200, check=False
    )
    assert ran.stdout == "1 True 0 token\n", ran.stderr


@pytest.mark.server
@pytest.mark.nightly
def test_two_nodes_serve_vllm_at_once(
    cluster: Nodes, tiny_models: TinyModels, tmp_path: Path
) -> None:
    while len(cluster.workers) < 2:
        cluster.add(num_cpus=1)
    found, lost = measured_on(cluster, tiny_models, tmp_path)
    check(found, tmp_path)
    assert not lost
    places = {place_of(p.trial.measurement.details) for p in found}
    assert len(places) == 2


@pytest.mark.kill
@pytest.mark.nightly
def test_a_server_over_two_nodes_is_not_blamed_for_the_death_of_one(
    cluster: Nodes, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """Its server runs on one node; the other one dies under it, and a third takes its place."""
    from autotune.serving.cluster.groups import Group, Wanted, opener  # Ray may be absent

    first = len(cluster.workers)
    for _ in range(3):
        cluster.add(num_cpus=1, num_gpus=1)
    dies = json.dumps({"dies": [2]})
    request = make_request(tiny_models.qwen3, "chat", gamma="0,2", env=[f"FAKE_SERVING={dies}"])
    plan = make_plan(request)
    plan = replace(plan, launcher=GroupLauncher(tuple(FAKE.split())))
    lost: list[str] = []
    with connected(cluster.address):
        opening = opener(Wanted(2, 1.0, 1, False), local_measurer(plan, tmp_path), tmp_path, {})
        with Fleet(opening, 1, plan.basis, on_lost=lost.append) as fleet:
            group = fleet.places[0]
            assert isinstance(group, Group)
            home, other = (seat.node for seat in group.seats)
            assert home != other
            ids = [cluster.id_of(index) for index in range(len(cluster.workers))]
            job = Job(plan.grid[-1], plan.scenario)
            (crashed,) = (e for e in fleet.measure([job]) if isinstance(e, Measurement))
            assert crashed.outcome is not Outcome.OK, "it dies, on nodes that live: its own fault"
            assert not lost
            assert ids.index(other) >= first
            cluster.kill(ids.index(other))
            (again,) = (e for e in fleet.measure([job]) if isinstance(e, Measurement))
    assert len(lost) == 1
    assert again.details["place"]["nodes"][1] != other
    assert again.outcome is crashed.outcome
