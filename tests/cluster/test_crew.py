"""How tasks are pulled, given back and pinned, on a crew in memory."""

from __future__ import annotations

import contextlib
import io
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.cli import cluster
from autotune.cli.consoles import SafeConsole
from autotune.cluster.crew import MOST_LOST, NOBODY_S, ClusterPool, Lost, Queue, Setting, Task
from autotune.core import MissingEnvironmentError
from autotune.kernels import cluster as kernels_cluster
from autotune.kernels.cluster import NodeFacts, Team, _new_files, compilers, timers
from autotune.kernels.compile.kernel_source import KernelInfo
from autotune.machine.devices import GpuInfo
from autotune.measure.pool import TaskResult, TaskStatus
from tests.support.commands import BAD, MISSING, Command, refused

SETTING = Setting("compile", print)


class CrewInMemory:
    """Seats that end a task after as many looks as it takes; some die at their n-th task."""

    def __init__(self, seats: int, dies: dict[str, int] | None = None, back: bool = False) -> None:
        self.given: dict[str, deque[tuple[Task, int]]] = {f"s{n}": deque() for n in range(seats)}
        self.dies = dict(dies or {})
        self.back = back
        self.began: dict[str, int] = dict.fromkeys(self.given, 0)
        self.done: dict[str, list[Any]] = {seat: [] for seat in self.given}
        self.cleared: list[str] = []

    @property
    def seats(self) -> dict[str, int]:
        return {seat: len(tasks) for seat, tasks in self.given.items()}

    def begin(self, seat: str, task: Task) -> None:
        self.began[seat] += 1
        self.given[seat].append((task, task.item))

    def wait(self, seconds: float) -> list[tuple[Task, TaskResult[Any] | Lost]]:
        ended: list[tuple[Task, TaskResult[Any] | Lost]] = []
        for seat in list(self.given):
            tasks = self.given[seat]
            if not tasks:
                continue
            if len(self.done[seat]) == self.dies.get(seat, -1):
                ended += [(task, Lost(f"{seat} died")) for task, _ in tasks]
                tasks.clear()
                if self.back:
                    self.dies.pop(seat)
                else:
                    del self.given[seat]
                continue
            task, left = tasks.popleft()
            if left > 1:
                tasks.appendleft((task, left - 1))
                continue
            self.done[seat].append(task.item)
            ended.append((task, TaskResult(TaskStatus.OK, (seat, task.item))))
        return ended

    def clear(self, setting: Setting) -> None:
        self.cleared.append(setting.name)


def results(crew: CrewInMemory, items: list[int], lost: list[str] | None = None) -> list[Any]:
    pool = ClusterPool(Queue(crew, (lost if lost is not None else []).append), SETTING)
    return [one.value for one in pool.map_ordered(abs, items, 1.0)]


def test_answers_come_in_order_whoever_gives_them() -> None:
    crew = CrewInMemory(3)
    items = [6, 1, 1, 6, 1, 1, 1, 6]
    assert [item for _, item in results(crew, items)] == items
    assert sum(crew.began.values()) == len(items)


def test_work_is_pulled_not_dealt() -> None:
    """A seat with a long task gets no more while the others are free."""
    crew = CrewInMemory(2)
    results(crew, [14, *[1] * 40])
    assert crew.done["s0"][0] == 14
    assert len(crew.done["s1"]) >= 25, "20 each if they were dealt"


def test_what_a_lost_worker_had_is_done_by_others() -> None:
    crew, lost = CrewInMemory(3, {"s1": 2}), list[str]()
    items = [2, 1] * 10
    found = results(crew, items, lost)
    assert [item for _, item in found] == items
    assert all(seat != "s1" or index < 12 for index, (seat, _) in enumerate(found))
    assert set(lost) == {"s1 died"}
    assert "s1" not in crew.seats


def test_a_task_that_takes_every_worker_with_it_is_a_crash() -> None:
    crew = CrewInMemory(MOST_LOST + 2, {f"s{n}": 0 for n in range(MOST_LOST + 2)})
    (result,) = ClusterPool(Queue(crew), SETTING).map_ordered(abs, [1], 1.0)
    assert result.status is TaskStatus.CRASH
    assert f"{MOST_LOST} workers were lost" in result.message
    assert len(crew.seats) == 2, "the others go on"


def test_what_waits_behind_a_task_that_takes_workers_with_it_is_not_blamed() -> None:
    """Three seats die over the first task, each with two more given to it."""
    crew = CrewInMemory(MOST_LOST + 1, {f"s{n}": 0 for n in range(MOST_LOST)})
    lost = list[str]()
    queue = Queue(crew, lost.append)
    tasks = [Task(SETTING, abs, item, 1.0) for item in range(1, 4)]
    for number in range(MOST_LOST):
        for task in tasks:
            queue._begin(f"s{number}", task)
        line = crew.wait(0.0)
        for task, what in line if number % 2 else reversed(line):  # Ray tells them in any order
            assert isinstance(what, Lost)
            under_way = queue._left_line(task, lost=True)
            assert under_way is (task is tasks[0])
            queue._take_back(task, what.why, under_way=under_way)
        queue._waiting.clear()
    assert [len(task.lost) for task in tasks] == [MOST_LOST, 0, 0]
    assert lost == [f"s{n} died" for n in range(MOST_LOST)], "each loss is told once"
    assert tasks[0].result is not None
    assert tasks[0].result.status is TaskStatus.CRASH
    for task in tasks[1:]:
        queue.add(task)
    assert [queue.wait_for(task).value for task in tasks[1:]] == [("s3", 2), ("s3", 3)]


def test_a_seat_that_came_back_is_told_from_what_it_had_before() -> None:
    """What was behind is still on its way back when the seat has a task again and dies again."""
    crew = CrewInMemory(1)
    queue = Queue(crew)
    first, behind, after = (Task(SETTING, abs, item, 1.0) for item in range(3))
    for task in (first, behind):
        queue._begin("s0", task)
    assert queue._left_line(first, lost=True)
    queue._begin("s0", after)
    assert queue._left_line(after, lost=True)
    assert not queue._left_line(behind, lost=True)


def test_two_purposes_of_a_seat_go_on_at_once() -> None:
    queue = Queue(CrewInMemory(1))
    search = Task(SETTING, abs, 1, 1.0)
    compared = Task(replace(SETTING, name="compare"), abs, 2, 1.0)
    for task in (search, compared):
        queue._begin("s0", task)
    assert queue._left_line(search, lost=True)
    assert queue._left_line(compared, lost=True)


def test_without_anybody_the_command_ends_and_says_that_it_can_go_on() -> None:
    clock = iter(range(0, 10 * int(NOBODY_S), 30))
    crew = CrewInMemory(1, {"s0": 0})
    pool = ClusterPool(Queue(crew, clock=lambda: next(clock)), SETTING)
    with pytest.raises(MissingEnvironmentError, match="same command goes on"):
        list(pool.map_ordered(abs, [1, 2], 1.0))


def test_a_control_runs_once_on_every_seat() -> None:
    crew = CrewInMemory(3)
    found = ClusterPool(Queue(crew), SETTING).each(abs, 1, 1.0)
    assert {seat: result.value for seat, result in found.items()} == {
        seat: (seat, 1) for seat in ("s0", "s1", "s2")
    }


def test_a_control_of_a_lost_seat_is_nobody_elses() -> None:
    found = ClusterPool(Queue(CrewInMemory(2, {"s1": 0})), SETTING).each(abs, 1, 1.0)
    assert found["s0"].value == ("s0", 1)
    assert found["s1"].status is TaskStatus.CRASH


def test_what_is_left_of_a_closed_stream_is_not_begun() -> None:
    crew = CrewInMemory(1)
    pool = ClusterPool(Queue(crew), SETTING)
    stream = pool.map_ordered(abs, [1] * 50, 1.0)
    next(stream)
    stream.close()
    began = sum(crew.began.values())
    assert pool.start(abs, 2, 1.0)().value == ("s0", 2)
    assert sum(crew.began.values()) == began + 1
    pool.close()
    assert crew.cleared == ["compile"]


# ------------------------------------------------------------------------------------------
# who takes part

KERNEL = KernelInfo(Path("fused_moe.py"), "a" * 64, "0.33.0", "3.8.0")
H100 = GpuInfo(0, "NVIDIA H100 80GB HBM3", "GPU-1", "580.1", "81559", "9.0")
HERE = NodeFacts("here", "x86_64", "0.1", KERNEL, None, None, (H100,))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": "aarch64"}, "is aarch64, and this machine x86_64"),
        ({"autotune": "0.0"}, "has autotune 0.0, and this is 0.1"),
        ({"kernel": replace(KERNEL, triton_version="3.7.1")}, "has Triton 3.7.1"),
        ({"kernel": replace(KERNEL, sha256="b" * 64)}, "has the kernel of vLLM 0.33.0 (bbbbbbbb)"),
        ({"kernel": None, "missing": "vLLM is not installed"}, "vLLM is not installed"),
    ],
)
def test_a_node_that_compiles_otherwise_is_named_and_left_out(
    change: dict[str, Any], said: str
) -> None:
    other = replace(HERE, host="other", **change)
    found: dict[str, NodeFacts | str] = {"n1": HERE, "n2": other}
    team = compilers(found, {"n1": 2, "n2": 4}, HERE)
    assert team.seats == (("n1", 2),)
    (line,) = team.left_out
    assert line.startswith("--ray: node other (n2): ")
    assert said in line
    with pytest.raises(MissingEnvironmentError) as caught:
        compilers({"n2": other}, {"n2": 4}, HERE)
    assert said in str(caught.value)
    assert caught.value.exit_code == 3


def test_only_gpus_of_one_name_and_driver_measure() -> None:
    found: dict[str, NodeFacts | str] = {
        "n1": replace(HERE, gpus=(H100, replace(H100, index=1))),
        "n2": replace(HERE, host="newer", gpus=(replace(H100, driver="590.1"),)),
        "n3": replace(HERE, host="other", gpus=(replace(H100, name="NVIDIA GB10"),)),
        "n4": replace(HERE, host="cpus", gpus=()),
        "n5": "cannot be looked at: No module named 'autotune'",
    }
    free = dict.fromkeys(found, 1) | {"n1": 2}
    team = timers(found, free, HERE, [])
    assert team.seats == (("n1", 2),)
    assert len(team.gpus) == 2
    said = "\n".join(team.left_out)
    assert "newer (n2): has NVIDIA H100 80GB HBM3 (driver 590.1)" in said
    assert "other (n3): has NVIDIA GB10" in said
    assert "cpus (n4): has no GPU" in said
    assert "No module named 'autotune'" in said
    assert timers(found, free, HERE, ["NVIDIA_GB10"]).gpus[0].name == "NVIDIA GB10"


def test_a_cluster_without_a_gpu_measures_nothing() -> None:
    with pytest.raises(MissingEnvironmentError, match="no GPU of the cluster can measure"):
        timers({"n1": replace(HERE, gpus=())}, {}, HERE, [])
    with pytest.raises(MissingEnvironmentError, match="none of its GPUs is free"):
        timers({"n1": HERE}, {"n1": 0}, HERE, [])


def test_kernels_go_to_a_node_once(tmp_path: Path) -> None:
    (tmp_path / "hash").mkdir()
    (tmp_path / "hash" / "k.cubin").write_bytes(b"code")
    sent = _new_files(tmp_path, frozenset())
    assert sent == {str(tmp_path / "hash" / "k.cubin"): b"code"}
    assert _new_files(tmp_path, frozenset(sent)) == {}


def test_a_team_of_cpus_has_no_gpu() -> None:
    assert Team((("n", 1),)).gpus == ()


# ------------------------------------------------------------------------------------------
# bad input


def newer(**changes: Any) -> dict[str, NodeFacts | str]:
    """Two nodes that both differ from this machine."""
    node = replace(HERE, host="other", **changes)
    return {"a" * 56: node, "b" * 56: node}


@pytest.mark.parametrize(
    ("flag", "found", "said"),
    [
        (
            "--device=auto",
            newer(gpus=()),
            "--predict needs none: node other (aaaaaaaa) and 1 more: has no GPU",
        ),
        ("--device=gb10", newer(), "has NVIDIA H100 80GB HBM3 (driver 580.1)"),
        ("--device=auto", newer(unmeasured="torch without CUDA"), "and 1 more: torch without CUDA"),
        (
            "--device=auto",
            newer(kernel=replace(KERNEL, triton_version="3.7.1")),
            "has Triton 3.7.1",
        ),
        ("--device=auto", newer(kernel=replace(KERNEL, sha256="b" * 64)), "0.33.0 (bbbbbbbb)"),
        ("--device=auto", newer(autotune="0.0"), "has autotune 0.0, and this is 0.1"),
        ("--predict", newer(machine="aarch64"), "no node can compile: node other"),
        ("--predict", {"a" * 56: "no module 'autotune'"}, "node (aaaaaaaa): no module 'autotune'"),
        ("--predict", {}, "it has no node"),
    ],
)
def test_a_cluster_where_nobody_can_work_is_one_line_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    found: dict[str, NodeFacts | str],
    said: str,
) -> None:
    actors = pytest.importorskip("autotune.cluster.actors")
    monkeypatch.setattr(cluster, "connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(actors, "ask_nodes", lambda _: found)
    monkeypatch.setattr(actors, "free_of", lambda _: dict.fromkeys(found, 2))
    monkeypatch.setattr(kernels_cluster, "look_here", lambda: HERE)
    device = [] if flag.startswith("--device") else ["--device=gb10"]
    shown = refused(monkeypatch, capsys, ["moe", flag, *device, "--ray=auto"], MISSING, said)
    assert shown.count("\n") == 1, shown


def test_nodes_that_differ_are_named_and_left_out_and_the_others_work(
    monkeypatch: pytest.MonkeyPatch, in_process: Command, tmp_path: Path
) -> None:
    """As far as the plan, which is shown after everybody is known."""
    actors = pytest.importorskip("autotune.cluster.actors")
    here = kernels_cluster.look_here()
    found = {"a" * 56: here, "b" * 56: replace(here, host="other", autotune="0.0")}
    monkeypatch.setattr(cluster, "connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(actors, "ask_nodes", lambda _: found)
    monkeypatch.setattr(actors, "free_of", lambda _: dict.fromkeys(found, 2))
    words = ["moe", "--device=gb10", "--predict", "--ray=auto", "--dry-run"]
    code, _, said = in_process(*words, f"--db=sqlite:///{tmp_path}/a.db")
    assert code == 0
    assert said.startswith("left out: --ray: node other (bbbbbbbb): has autotune 0.0")
    assert "2 compile processes" in said, "those of the other node alone"


def test_a_cluster_that_does_not_answer_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    given = ["moe", "--device=gb10", "--predict", "--ray=127.0.0.1:1"]
    said = refused(monkeypatch, capsys, given, MISSING, "nobody answers there")
    assert said.count("\n") == 1


def test_containers_are_not_started_over_a_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "moe",
        "--launcher=docker",
        "--image=vllm/vllm-openai:v0.33.0",
        "--device=gb10",
        "--ray=local",
    ]
    refused(monkeypatch, capsys, given, BAD, "--ray starts no containers")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_says_what_it_waits_for_and_a_pipe_gets_results_alone(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    shown = io.StringIO()
    console = SafeConsole(file=shown, force_terminal=terminal, width=100)
    monkeypatch.setattr(cluster, "err", console)
    with cluster.waiting("--ray local: starting Ray"):
        pass
    assert ("--ray local: starting Ray" in shown.getvalue()) is terminal
