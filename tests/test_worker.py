"""The pool: failures are values, killed means gone, nothing outlives the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autotune.core import MissingEnvironmentError
from autotune.measure import pool as worker
from autotune.measure.pool import TaskResult, TaskStatus, WorkerPool
from tests.support.tasks import (
    dead,
    double,
    gone,
    hang,
    leave_litter,
    make_ready,
    misbehave,
    oom_score,
    pid,
    readiness,
    sleep_half,
    slow_if_first,
    touch_and_sleep,
    wait_at_the_gate,
    wait_for,
)


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1) as it:
        yield it


@pytest.fixture
def pair() -> Iterator[WorkerPool]:
    with WorkerPool(2) as it:
        yield it


def test_results_come_in_input_order_with_times(pair: WorkerPool) -> None:
    results = list(pair.map_ordered(slow_if_first, range(20), 30))
    assert [r.value for r in results] == list(range(20))
    assert {r.status for r in results} == {TaskStatus.OK}
    assert results[0].seconds >= 0.5
    # A worker's start takes longer; a busy machine may hold up one or another of them.
    assert min(r.seconds for r in results[1:]) < 0.4


def test_items_are_read_a_few_ahead_only(pool: WorkerPool) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    results = pool.map_ordered(double, items(), 30)
    assert next(results).value == 0
    assert len(read) <= 4 * pool.workers
    results.close()


@pytest.mark.kill
def test_a_hanging_task_times_out_and_its_processes_are_gone(
    pool: WorkerPool, tmp_path: Path
) -> None:
    file = tmp_path / "pids"
    (result,) = pool.map_ordered(hang, [str(file)], 1.5)
    assert result.status is TaskStatus.TIMEOUT
    worker, child = map(int, file.read_text().split())
    assert wait_for(lambda: gone(worker) and dead(child), AT_ONCE_S)
    assert [r.value for r in pool.map_ordered(double, [1, 2], 30)] == [2, 4]


def test_crashes_and_exceptions_are_results_and_the_next_task_works(pair: WorkerPool) -> None:
    hows = ["abort", "fine", "exit", "raise", "sys.exit", "timeout", "fine"]
    results = list(pair.map_ordered(misbehave, hows, 30))
    assert [r.status.value for r in results] == [
        "crash", "ok", "crash", "error", "error", "error", "ok",
    ]  # fmt: skip
    assert results[0].exit_code == -signal.SIGABRT
    assert "SIGABRT" in results[0].message
    assert results[2].exit_code == 7
    assert results[3].message == "KeyError: 'the reason'"
    assert results[5].message == "TimeoutError: my own"


def test_the_kernel_would_take_a_worker_before_us(pool: WorkerPool) -> None:
    assert [r.value for r in pool.map_ordered(oom_score, [0], 30)] == ["1000"]
    assert oom_score(None) != "1000"


@pytest.mark.kill
def test_another_thread_can_kill_the_workers_with_their_children(
    pool: WorkerPool, tmp_path: Path
) -> None:
    file = tmp_path / "pids"

    def kill() -> None:
        wait_for(file.exists, 90)
        pool.kill_workers()

    threading.Thread(target=kill).start()
    (result,) = pool.map_ordered(hang, [str(file)], 100)
    assert result.status is TaskStatus.CRASH
    assert result.exit_code == -signal.SIGKILL
    worker, child = map(int, file.read_text().split())
    assert wait_for(lambda: gone(worker) and dead(child), AT_ONCE_S)
    assert [r.value for r in pool.map_ordered(double, [1, 2], 30)] == [2, 4]
    pool.kill_workers()
    assert [r.value for r in pool.map_ordered(double, [3], 30)] == [6]


def test_something_that_does_not_pickle_is_a_failed_task(pool: WorkerPool) -> None:
    results: list[TaskResult[Any]] = list(pool.map_ordered(lambda item: item, [1], 30))
    assert results[0].status is TaskStatus.ERROR
    assert [r.value for r in pool.map_ordered(double, [1], 30)] == [2]


@pytest.mark.kill
def test_the_pool_survives_a_worker_that_is_killed_while_idle(pair: WorkerPool) -> None:
    pids = {r.value for r in pair.map_ordered(pid, range(8), 30)}
    for process in pids:
        assert process is not None
        os.kill(process, signal.SIGKILL)
    time.sleep(0.5)
    assert [r.value for r in pair.map_ordered(double, range(3), 30)] == [0, 2, 4]


def test_workers_are_replaced_after_their_share_of_tasks() -> None:
    with WorkerPool(1, tasks_per_worker=2) as pool:
        pids = [r.value for r in pool.map_ordered(pid, range(6), 30)]
    assert len(set(pids)) == 3


def test_the_initializer_runs_once_per_worker_and_its_failure_is_a_failed_task() -> None:
    with WorkerPool(1, make_ready, ("word",)) as pool:
        assert [r.value for r in pool.map_ordered(readiness, [0, 0], 30)] == [["word"]] * 2
    with WorkerPool(1, make_ready, ("fail",)) as pool:
        (result,) = pool.map_ordered(readiness, [0], 30)
    assert (result.status, result.message) == (TaskStatus.ERROR, "RuntimeError: cannot start")


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        WorkerPool(0)


@pytest.mark.kill
def test_leaving_the_block_kills_at_once_and_cleans_up(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with WorkerPool(1) as pool:
        (litter,) = [r.value for r in pool.map_ordered(leave_litter, [0], 30)]
        assert litter is not None
        assert Path(litter).exists()
        results = pool.map_ordered(hang, [str(file)], 100)
        with interrupted_when(lambda: has_pids(file)):
            next(results)
        interrupted = time.monotonic()
    assert time.monotonic() - interrupted < AT_ONCE_S
    worker, child = map(int, file.read_text().split())
    assert gone(worker)
    assert wait_for(lambda: dead(child), AT_ONCE_S)
    assert not Path(litter).parent.exists()


AT_ONCE_S = 60.0
"""What hangs would hang for longer; a busy machine takes its time all the same."""


def has_pids(file: Path) -> bool:
    return file.exists() and len(file.read_text().split()) == 2


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def interrupted_when(condition: Callable[[], object]) -> Iterator[None]:
    """Press Ctrl-C in the block as soon as the condition holds; the block must end by it."""
    main = threading.get_ident()

    def press() -> None:
        if wait_for(condition, 60):
            signal.pthread_kill(main, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, _interrupt)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        thread.join()
        signal.signal(signal.SIGALRM, before)


def test_closing_the_generator_cancels_what_is_outstanding(tmp_path: Path) -> None:
    with WorkerPool(1) as pool:
        files = [str(tmp_path / str(number)) for number in range(4)]
        results = pool.map_ordered(touch_and_sleep, files, 100)
        with interrupted_when(Path(files[0]).exists):  # leaves the generator, hence closes it
            next(results)
        start = time.monotonic()
        assert [r.value for r in pool.map_ordered(double, [5], 60)] == [10]
        assert time.monotonic() - start < AT_ONCE_S


class _DiesOnArrival:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (1,)


def test_workers_that_die_as_they_start_are_one_line() -> None:
    with (
        WorkerPool(1, make_ready, (_DiesOnArrival(),)) as pool,
        pytest.raises(MissingEnvironmentError, match="die as soon as they start"),
    ):
        list(pool.map_ordered(double, [1], 30))


@pytest.mark.kill
def test_a_killed_process_that_does_not_end_is_not_waited_for(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a driver that does not answer, where no signal reaches it."""
    file, kill = tmp_path / "pids", os.kill

    def ignored(*_: object) -> None:
        pass

    monkeypatch.setattr(worker, "_DEATH_SECONDS", 0.5)
    monkeypatch.setattr(worker._KillableProcess, "kill", ignored)
    for name in ("kill", "killpg"):
        monkeypatch.setattr(os, name, ignored)
    began = time.monotonic()
    (result,) = pool.map_ordered(hang, [str(file)], 3.0)
    stuck, child = map(int, file.read_text().split())
    try:
        assert result.status is TaskStatus.TIMEOUT
        assert not dead(stuck)
        assert [r.value for r in pool.map_ordered(double, [1, 2], 30)] == [2, 4]
        pool.close()
        assert time.monotonic() - began < 3 * AT_ONCE_S
        assert not dead(stuck)
    finally:
        for process in (stuck, child):
            kill(process, signal.SIGKILL)


def test_a_task_in_the_background(tmp_path: Path) -> None:
    """It runs while the caller does something else, and answers as often as asked."""
    with WorkerPool(1) as pool:
        answer = pool.start(wait_at_the_gate, str(tmp_path), 60)
        assert wait_for((tmp_path / "began").exists, 60)  # we are here, and it cannot have ended
        (tmp_path / "gate").touch()
        assert [answer().value, answer().value] == ["through", "through"]
        assert answer().status is TaskStatus.OK
        assert answer().seconds > 0


def test_tasks_in_the_background_go_first(pair: WorkerPool) -> None:
    answers = [pair.start(sleep_half, number, 30) for number in range(2)]
    assert [r.value for r in pair.map_ordered(double, range(4), 30)] == [0, 2, 4, 6]
    assert [answer().value for answer in answers] == [0, 1]


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("abort", TaskStatus.CRASH, "SIGABRT"),
        ("exit", TaskStatus.CRASH, "status 7"),
        ("raise", TaskStatus.ERROR, "KeyError: 'the reason'"),
        ("sys.exit", TaskStatus.ERROR, "SystemExit: 3"),
    ],
)
def test_what_fails_in_the_background_is_a_result(
    how: str, status: TaskStatus, message: str
) -> None:
    with WorkerPool(1) as pool:
        answer = pool.start(misbehave, how, 30)
        assert answer().status is status
        assert message in answer().message
        assert [r.value for r in pool.map_ordered(double, [4], 30)] == [8]
        assert answer().status is status


@pytest.mark.kill
def test_what_hangs_in_the_background_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with WorkerPool(1) as pool:
        answer = pool.start(hang, str(file), 3.0)
        assert answer().status is TaskStatus.TIMEOUT
        worker, child = map(int, file.read_text().split())
        assert wait_for(lambda: gone(worker) and dead(child), AT_ONCE_S)


@pytest.mark.kill
def test_leaving_the_block_kills_what_runs_in_the_background(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    with WorkerPool(1) as pool:
        pool.start(hang, str(file), 100)
        assert wait_for(lambda: has_pids(file), 60)
        began = time.monotonic()
    assert time.monotonic() - began < AT_ONCE_S
    worker, child = map(int, file.read_text().split())
    assert wait_for(lambda: gone(worker) and dead(child), AT_ONCE_S)


def test_an_answer_that_will_not_come_is_not_waited_for(tmp_path: Path) -> None:
    for turn in range(4):
        file = tmp_path / str(turn)
        with WorkerPool(1) as pool:
            answer = pool.start(hang, str(file), 100)
            assert wait_for(file.exists, 90)
        asking = threading.Thread(target=answer, daemon=True)
        asking.start()
        asking.join(60)
        assert not asking.is_alive()
        assert answer().status in (TaskStatus.CRASH, TaskStatus.ERROR)


def test_a_worker_that_died_idle_is_replaced_for_the_background() -> None:
    with WorkerPool(1) as pool:
        (process,) = [r.value for r in pool.map_ordered(pid, [0], 30)]
        assert process is not None
        os.kill(process, signal.SIGKILL)
        time.sleep(0.5)
        assert pool.start(double, 3, 30)().value == 6


PARENT = """
    import sys
    from autotune.measure.pool import WorkerPool
    from tests.support.tasks import hang
    if __name__ == "__main__":
        try:
            with WorkerPool(1) as pool:
                list(pool.map_ordered(hang, [sys.argv[1]], 100))
        except KeyboardInterrupt:
            sys.exit(130)
"""


def start_parent(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int, int]:
    """A program in its own group whose only worker hangs: it, the worker, the worker's child."""
    script, file = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(textwrap.dedent(PARENT))
    root = str(Path(__file__).parents[1])
    parent = subprocess.Popen(
        [sys.executable, str(script), str(file)],
        env={**os.environ, "PYTHONPATH": root, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    assert wait_for(lambda: has_pids(file), 60)
    worker, child = map(int, file.read_text().split())
    return parent, worker, child


@pytest.mark.kill
def test_workers_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent, worker, child = start_parent(tmp_path)
    try:
        assert not dead(worker)
        parent.kill()
        parent.wait()
        assert wait_for(lambda: dead(worker), AT_ONCE_S)
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.kill
def test_ctrl_c_ends_parent_and_workers(tmp_path: Path) -> None:
    parent, worker, child = start_parent(tmp_path)
    os.kill(worker, signal.SIGINT)  # a worker does not mind
    time.sleep(0.3)
    assert not dead(worker)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=AT_ONCE_S) == 130
    assert wait_for(lambda: dead(worker) and dead(child), AT_ONCE_S)
