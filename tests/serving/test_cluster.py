"""Servers on a cluster, without one: groups, the look at nodes, what runs there, the plugin."""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from autotune.cluster import connect
from autotune.cluster.crew import Seat
from autotune.core import BadInputError, MissingEnvironmentError
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving.cluster import plugin
from autotune.serving.cluster.launcher import GroupLauncher, gpus_of, most_gpus
from autotune.serving.cluster.look import Looked, NodeFacts, folders, judged, look_here
from autotune.serving.cluster.node import LogTail, NodeMeasurer, Watch, leave_threads, place_json
from autotune.serving.job import local_measurer
from autotune.serving.make_plan import make_plan
from autotune.serving.memory.fit import boot_bytes
from autotune.serving.server.secret_flags import secrets_of
from autotune.serving.server.server import ServeSettings
from tests.serving.test_spec_job import make_request
from tests.serving.tiny_models import TinyModels, tiny_models

__all__ = ["tiny_models"]

GIB = 2**30
SPARK = NodeFacts(
    host="spark-1",
    node="a" * 56,
    autotune="0.1.0",
    vllm="0.33.0",
    missing=None,
    gpus=("NVIDIA GB10",),
    free=1,
    memory=MemoryReading(119 * GIB, 100 * GIB, MemoryKind.UNIFIED, "NVIDIA GB10 (unified)"),
    models=(("/models/gemma", "digest"),),
    cpus=20,
    lent=20.0,
)
OTHER = dataclasses.replace(SPARK, host="spark-2", node="b" * 56)


def served(*args: str) -> ServeSettings:
    return ServeSettings("/models/gemma", extra_args=args)


# ---------------------------------------------------------------------------- the look


def test_two_sparks_serve_two_servers_or_one_of_both() -> None:
    more = dataclasses.replace(
        OTHER, memory=dataclasses.replace(OTHER.memory, free=90 * GIB), host="spark-2"
    )
    found = judged([SPARK, more])
    assert (found.gpus, found.per_node) == (("NVIDIA GB10",), 1)
    assert found.memory.free == 90 * GIB, "the one with the least decides"
    assert (found.places(1), found.places(2)) == (2, 1)
    with pytest.raises(MissingEnvironmentError, match=r"needs 3 free GPUs.*spark-1 1 of 1"):
        found.places(3)


def test_a_server_that_fits_a_machine_is_not_spread() -> None:
    eight = [dataclasses.replace(SPARK, gpus=("H100",) * 8, free=n, host=f"h{n}") for n in (3, 8)]
    found = judged(eight)
    assert [found.places(n) for n in (1, 2, 4, 8)] == [11, 5, 2, 1]
    assert found.places(10) == 1, "11 are free, on two machines"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"autotune": "0.0.9"}, "spark-2 (bbbbbbbb) has autotune 0.0.9, and this is"),
        ({"missing": "vLLM is not installed for /usr/bin/python"}, "vLLM is not installed"),
        ({"free": 0}, "none of its 1 GPUs is free; see `ray status`"),
        ({"models": (("/models/gemma", None),)}, "has no /models/gemma/config.json; copy"),
        (
            {"memory": MemoryReading(119 * GIB, 0, MemoryKind.UNIFIED, "its GPU")},
            "no memory is free on its GPU",
        ),
    ],
)
def test_each_thing_that_a_node_lacks_is_a_line(changes: dict[str, Any], said: str) -> None:
    lacking = dataclasses.replace(OTHER, **changes)
    with pytest.raises(MissingEnvironmentError) as caught:
        judged([SPARK, lacking])
    assert said in str(caught.value)
    assert str(caught.value).startswith("--ray: node spark-2")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_the_odd_one_out_is_named_and_several_faults_are_several_lines() -> None:
    odd = dataclasses.replace(OTHER, vllm="0.32.0", models=(("/models/gemma", "another"),))
    with pytest.raises(MissingEnvironmentError) as caught:
        judged([SPARK, dataclasses.replace(SPARK, host="spark-3"), odd])
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("has vLLM 0.32.0, and others 0.33.0; make them the same")
    assert "is another model there" in lines[1]
    assert len(lines) == 2


def test_nodes_of_another_kind_are_left_out_by_name() -> None:
    laptop = dataclasses.replace(SPARK, host="laptop", gpus=(), missing="no vLLM", free=0)
    other = dataclasses.replace(SPARK, host="h100", gpus=("NVIDIA H100",))
    found = judged([laptop, SPARK, OTHER, other])
    assert [node.host for node in found.nodes] == ["spark-1", "spark-2"]
    assert judged([other, OTHER, SPARK]).nodes == found.nodes, "in whatever order Ray has them"
    assert found.left_out == ("laptop (no GPU)", "h100 (NVIDIA H100)")
    with pytest.raises(MissingEnvironmentError, match="no node"):
        judged([])


def test_a_node_tells_what_it_has(tiny_models: TinyModels) -> None:
    here = str(tiny_models.qwen3)
    found = look_here("n", 0, 2.0, [here, "/nowhere"], (sys.executable,))
    assert found.missing is None
    assert dict(found.models)["/nowhere"] is None
    assert dict(found.models)[here] is not None
    assert found.memory.free > 0
    assert look_here("n", 0, 2.0, [], ("no-such-vllm",)).missing is not None
    assert folders([here, "google/gemma", None]) == [here]


# ------------------------------------------------------------------ servers of several GPUs


def test_how_many_gpus_a_server_takes() -> None:
    assert gpus_of(served()) == 1
    assert gpus_of(served("-tp", "2", "--pipeline-parallel-size=3")) == 6
    assert most_gpus([served(), served("--tensor-parallel-size", "2")]) == 2
    with pytest.raises(BadInputError, match="each replica"):
        gpus_of(served("-dp", "2"))
    with pytest.raises(BadInputError, match="vLLM's Ray executor"):
        most_gpus([served("-tp", "2", "--distributed-executor-backend", "mp")])
    assert most_gpus([served("--distributed-executor-backend", "mp")]) == 1


def test_a_group_is_packed_on_a_machine_that_has_as_many() -> None:
    groups = pytest.importorskip("autotune.serving.cluster.groups")
    on_one = groups.Wanted(2, 20.0, 8, False)
    assert (on_one.strategy, on_one.bundles) == ("STRICT_PACK", [{"CPU": 1.0, "GPU": 1.0}] * 2)
    assert groups.Wanted(2, 20.0, 1, True).strategy == "PACK"
    assert groups.Wanted(0, 3.0, 0, False).bundles == [{"CPU": 3.0}]


def test_the_plan_of_a_cluster_has_its_nodes_and_vllms_ray_executor(
    tiny_models: TinyModels,
) -> None:
    request = make_request(tiny_models.qwen3, "chat", gamma="0,2", server_arg=["-tp 2"])
    plan = make_plan(request, Looked((SPARK, OTHER)))
    assert isinstance(plan.launcher, GroupLauncher)
    assert plan.launcher.shell_line(served("-tp", "2")).endswith(
        "-tp 2 --distributed-executor-backend ray"
    )
    assert plan.memory == SPARK.memory
    setup = plan.setup()
    assert (setup["gpus"], setup["cpus"], setup["vllm"]) == (["NVIDIA GB10"], 20, "0.33.0")
    assert setup["executor"] == "ray"
    alone = make_plan(make_request(tiny_models.qwen3, "chat", gamma="0,2"), Looked((SPARK,)))
    assert not isinstance(alone.launcher, GroupLauncher), "as without a cluster"
    cpus = dataclasses.replace(SPARK, gpus=())
    with pytest.raises(BadInputError, match="it needs GPUs"):
        make_plan(request, Looked((cpus,)))


def test_each_of_two_sparks_holds_half_of_the_weights(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.serving.memory.fit.weight_bytes", lambda _: 150 * GIB)
    fixed = ["--kv-cache-memory-bytes 1073741824 -tp 2"]
    request = make_request(tiny_models.qwen3, "chat", gamma="0,2", server_arg=fixed)
    plan = make_plan(request, Looked((SPARK, OTHER)))
    settings = plan.recipe.settings(plan.baseline)
    alone = boot_bytes(plan.pair, plan.memory, settings)
    spread = boot_bytes(plan.pair, plan.memory, settings, per_machine=1)
    assert alone - spread == 75 * GIB


def test_a_server_is_told_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "")
    print_env = (sys.executable, "-c", "import os; print(dict(os.environ), flush=True)")
    made = GroupLauncher(print_env).within("abcd", "10.0.0.1:6379", (1, 0, 2), tmp_path)

    def environment(*args: str) -> str:
        log = tmp_path / "log"
        handle = made.launch(served(*args), log)
        while handle.poll() is None:
            time.sleep(0.01)
        handle.stop()
        return log.read_text()

    said = environment("-tp", "2")
    assert "'AUTOTUNE_PLACEMENT_GROUP': 'abcd'" in said
    assert "'RAY_ADDRESS': '10.0.0.1:6379'" in said
    assert "'VLLM_RAY_BUNDLE_INDICES': '1,0'" in said, "those of its own node first"
    assert "'VLLM_PLUGINS': 'autotune_placement_group'" in said
    assert str(tmp_path) in said.partition("'PYTHONPATH': ")[2][:200]
    assert "VLLM_RAY_BUNDLE_INDICES" not in environment("-tp", "3")
    (entry,) = tmp_path.glob("*.dist-info/entry_points.txt")
    assert "autotune_placement_group:register" in entry.read_text()


def test_the_plugin_answers_vllm_with_the_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray_util = pytest.importorskip("ray.util")
    before = ray_util.get_current_placement_group
    monkeypatch.setattr(ray_util, "get_current_placement_group", before)
    plugin.register()
    assert ray_util.get_current_placement_group is before, "no server of ours"
    group = "0123456789abcdef0123456789abcdef0123"
    monkeypatch.setenv(plugin.GROUP, group)
    plugin.register()
    plugin.register()
    assert ray_util.get_current_placement_group().id.hex() == group
    assert f"{plugin.IN_PLACE}{group}" in capsys.readouterr().out


# ------------------------------------------------------------------------- on a node


def test_the_log_comes_in_pieces_and_begins_anew_with_each_boot(tmp_path: Path) -> None:
    tail, log = LogTail(tmp_path), tmp_path / "a.log"
    log.write_bytes(b"one")
    assert tail.news() == [("a.log", 0, b"one")]
    with log.open("ab") as file:
        file.write(b" two")
    assert tail.news() == [("a.log", 3, b" two")]
    assert tail.news() == []
    log.write_bytes(b"x")
    assert tail.news() == [("a.log", 0, b"x")]


def test_a_measurer_on_a_node_knows_its_secrets_and_folder(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.chdir(tmp_path)
    secrets = secrets_of(["${HF_TOKEN}", "plain", "a=${HF_TOKEN}"])
    assert secrets == {"HF_TOKEN": "hf_abcdefgh"}
    plan = make_plan(make_request(tiny_models.qwen3, "chat", gamma="0,2"))
    sent = pickle.loads(pickle.dumps(local_measurer(plan, Path("/theirs"))))
    seats = [Seat("spark-1", "a" * 56, 0, "GPU-1"), Seat("spark-2", "b" * 56, 0, "GPU-2")]
    monkeypatch.setattr("autotune.serving.cluster.node.lock_folders", lambda: (tmp_path / "l",))
    monkeypatch.delenv("HF_TOKEN")
    made = NodeMeasurer(sent, seats, secrets, folder=tmp_path)
    made.hold()
    assert os.environ["HF_TOKEN"] == "hf_abcdefgh"
    assert [p.name for p in (tmp_path / "l").iterdir()] == ["gpu-GPU-1.lock"], "its own GPU alone"
    assert place_json(seats)["name"] == "spark-1/GPU-1 + spark-2/GPU-2"
    made.close()
    elsewhere = NodeMeasurer(sent, seats, {}, folder=tmp_path / "nowhere")
    with pytest.raises(MissingEnvironmentError, match="give full paths"):
        elsewhere.hold()
    elsewhere.close()


@pytest.mark.parametrize(("started_with", "left"), [(None, None), ("4", "4")])
def test_a_server_has_the_threads_of_its_node_and_not_those_of_rays_worker(
    monkeypatch: pytest.MonkeyPatch, started_with: str | None, left: str | None
) -> None:
    """Ray sets the number where the node was started without one."""
    given = {} if started_with is None else {"OMP_NUM_THREADS": started_with}
    monkeypatch.setattr(psutil.Process, "environ", lambda _: given)
    monkeypatch.setenv("OMP_NUM_THREADS", started_with or "1")
    leave_threads()
    assert os.environ.get("OMP_NUM_THREADS") == left


def test_the_watch_kills_vllms_workers_and_nobody_else() -> None:
    def named(title: str) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(["bash", "-c", f"exec -a {title} sleep 60"])
        while psutil.Process(made.pid).cmdline()[:1] != [title]:
            time.sleep(0.01)
        return made

    made = [named("VLLM::Worker_TP0")]
    watch = Watch([], unified=False, raylet=os.getpid())
    watch.hold()
    made += map(named, ("ray::RayWorkerProc", "VLLM::Worker_TP1", "ray::IDLE"))
    try:
        watch.end()
        assert [one.wait(10.0) for one in made[1:3]] == [-9, -9]
        assert [one.poll() for one in (made[0], made[3])] == [None, None], "of another; no worker"
        assert watch.take_fall() is None
        watch._seen.fall = SimpleNamespace(__str__=lambda: "x")  # type: ignore[assignment]
        assert watch.take_fall() is not None
        assert watch.take_fall() is None
    finally:
        watch.close()
        for one in made:
            one.kill()
            one.wait()


# ------------------------------------------------------------------------ the connection


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("127.0.0.1:1", "nobody answers there"),
        ("ray://127.0.0.1:10001", "expected local, auto or HOST:PORT"),
        ("127.0.0.1:99999", "nobody answers"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(where: str, said: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(MissingEnvironmentError, match=said) as caught, connect.connected(where):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", None])
def test_what_listens_but_is_no_ray_is_one_line(
    monkeypatch: pytest.MonkeyPatch, says: bytes | None
) -> None:
    """Ray would wait for it for minutes: its dashboard, our own service, a hung process."""
    pytest.importorskip("ray")
    monkeypatch.setattr(connect, "_ANSWER_S", 0.5 if says is None else 60.0)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as there:
                there.recv(1000)
                if says is not None:
                    there.sendall(says)
                else:
                    there.recv(1)  # until the other one has had enough

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(MissingEnvironmentError, match="nobody answers there") as caught:
            connect._check_answers(address)
        thread.join()
    assert "\n" not in str(caught.value)


def test_without_ray_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingEnvironmentError, match=r"in a clone: pip install '\.\[ray\]'"),
        connect.connected("local"),
    ):
        pass


def test_a_ray_that_lets_anybody_in_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "__version__", "2.51.2")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it was started"))
    with (
        pytest.raises(MissingEnvironmentError, match=r"Ray 2\.51\.2 .* lets anybody in"),
        connect.connected("local"),
    ):
        pass


def test_signals_are_ours_when_a_cluster_is_joined_and_stdout_is_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = pytest.importorskip("ray")
    worker = pytest.importorskip("ray._private.worker")
    given: dict[str, Any] = {}

    def init(**options: Any) -> None:
        given.update(options)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: given.update(ended=True))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    before = signal.getsignal(signal.SIGTERM)
    with connect.connected("local"):
        assert signal.getsignal(signal.SIGTERM) is before
        said = {
            "lines": ["The node is dead\n[state-dump] of a page"],
            "pid": "raylet",
            "is_err": False,
        }
        worker.print_to_stdstream(said, ignore_prefix=False)
    shown = capsys.readouterr()
    assert shown.out == "", "a JSON document may stand there"
    assert "The node is dead" in shown.err
    assert "state-dump" not in shown.err
    assert given["ended"]
    assert (given["namespace"], given["include_dashboard"]) == ("autotune", False)


def test_a_head_that_is_gone_for_half_a_minute_ends_the_command_and_a_hiccup_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, there, asked = [0.0], [True], list[float]()

    def connects(place: tuple[str, int], timeout: float) -> io.BytesIO:
        assert (place, timeout) == (("192.0.2.1", 6379), 1.0)
        asked.append(now[0])
        if not there[0]:
            raise ConnectionRefusedError(111, "Connection refused")
        return io.BytesIO()

    monkeypatch.setattr(socket, "create_connection", connects)
    head = connect.Head("192.0.2.1:6379", lambda: now[0])
    steps = [(4, True), (10, True), (20, False), (39, False), (45, True), (50, False), (74, False)]
    for now[0], there[0] in [*steps, (76, False)]:
        head.check()
    assert asked == [10, 20, 39, 45, 50, 74], "every few seconds"
    now[0] = 80
    said = r"192\.0\.2\.1:6379\) is gone \(Connection refused\).* the same command goes on"
    with pytest.raises(MissingEnvironmentError, match=said):
        head.check()


def test_whoever_asked_is_told_when_the_head_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    context = types.SimpleNamespace(gcs_address="192.0.2.1:6379")
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(connect, "_ANSWER_S", 0.0)
    monkeypatch.setattr(connect, "_GONE_S", 0.0)

    def refuses(*_: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuses)
    told = queue.Queue[str]()
    with connect.connected("local", told.put):
        assert "the head of the cluster (192.0.2.1:6379) is gone" in told.get(timeout=60.0)
