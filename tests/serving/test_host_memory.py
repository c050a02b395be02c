"""Servers on an emulated Spark whose memory runs short, and boots in which it hung."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from autotune.core import (
    Basis,
    Candidate,
    Group,
    HoldsNothing,
    Job,
    Measurement,
    Outcome,
    Part,
    Phase,
    Trial,
    Workload,
)
from autotune.machine.guard import GIB, MemoryGuard
from autotune.serving.measure.boots import Boots, ComparingBoots, is_as_large, ran_short
from autotune.serving.server.failures import FailureKind
from autotune.serving.server.launchers import LocalLauncher
from autotune.serving.server.process import ProcessHandle
from autotune.serving.server.server import ServeSettings, start
from autotune.store.records import DatedTrial, LostBoot
from tests.serving.test_spec_cli import BINARY, SMALL, Run, serving_in
from tests.serving.test_spec_job import FAKE
from tests.serving.tiny_models import TinyModels
from tests.support.box import Box
from tests.support.processes import alive
from tests.support.stores import Size
from tests.test_boots import NOON

SHORT = "GiB of the host's memory were left, below the floor of 6.0 GiB"


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    with Box(tmp_path, free_gib=110).install(monkeypatch, tmp_path) as machine:
        yield machine


def command(target: Path, folder: Path, *more: str, gamma: str = "0,2,4", **serving: Any) -> Any:
    given = {"boots": str(folder / "boots"), **serving}
    args = f"spec --target {target} --drafter ngram --prompts p.jsonl --gamma {gamma}"
    args += " --concurrency 1 --max-tokens 8 --waves 1 --repeats 2 --confirm-boots 1"
    args += " --confirm in-turn --study s"
    args += " --no-dial"
    env = "--env=FAKE_SERVING=" + json.dumps(given)
    return [*args.split(), "--vllm", FAKE, env, *more]


def boots(folder: Path) -> list[int]:
    """The gammas of the servers that were started, in order."""
    lines = (folder / "boots").read_text().splitlines()
    return [
        int(line.split('speculative_tokens": ')[1][0]) if "spec" in line else 0 for line in lines
    ]


# ------------------------------------------------------------------------ which are as large


def setting(**params: Any) -> Candidate:
    return Candidate.of({"gamma": 2, "kv_cache_dtype": "fp8", **params})


@pytest.mark.parametrize(
    ("more", "less", "expected"),
    [
        ({}, {}, True),
        ({"gamma": 4}, {}, True),
        ({}, {"gamma": 4}, False),
        ({"gpu_memory_utilization": "0.85"}, {"gpu_memory_utilization": "0.8"}, True),
        ({"gpu_memory_utilization": "0.8"}, {"gpu_memory_utilization": "0.85"}, False),
        ({"max-num-seqs": "16"}, {"max-num-seqs": "8"}, True),
        ({"max-num-seqs": "many"}, {"max-num-seqs": "8"}, False),
        ({"gamma": 4, "kv_cache_dtype": "auto"}, {}, False),
        ({"gamma": 4, "enforce-eager": True}, {"enforce-eager": True}, True),
        ({"enforce-eager": True}, {}, False),
        ({"block-size": "32"}, {"block-size": "16"}, False),
    ],
)
def test_what_takes_at_least_as_much(more: Any, less: Any, expected: bool) -> None:
    assert is_as_large(setting(**more), setting(**less)) is expected


def dated(outcome: Outcome, number: int = 1, **params: Any) -> DatedTrial:
    value = 1.0 if outcome is Outcome.OK else None
    made = Measurement(outcome, Basis.MEASURED, value, message="m", details={"boots": number})
    return DatedTrial(Trial(setting(**params), "w", Phase.SEARCH, 0, made), 1, NOON)


def test_the_last_boot_of_a_setting_says_whether_it_ran_short() -> None:
    short, fine = dated(Outcome.HOST_MEMORY), dated(Outcome.OK)
    other, kept_from = dated(Outcome.HOST_MEMORY, gamma=4), dated(Outcome.HOST_MEMORY, 0, gamma=6)
    assert set(ran_short([short, other, kept_from])) == {setting(), setting(gamma=4)}
    assert set(ran_short([short, other, fine])) == {setting(gamma=4)}


# ------------------------------------------------------------------------ the command itself


@pytest.mark.kill
def test_a_server_that_eats_the_memory_is_killed_and_nothing_larger_is_started(
    run_in: Run, box: Box, tiny_models: TinyModels, tmp_path: Path
) -> None:
    eats = dict.fromkeys("23456", 105)
    spec = command(tiny_models.qwen3, tmp_path, "--json", gamma="0-6", eats=eats)
    ran = run_in(tmp_path, *spec)
    assert ran.returncode == 0, ran.stderr
    assert 4 <= box.lowest < 6
    started = boots(tmp_path)
    fallen = [gamma for gamma in started if gamma > 1]
    assert fallen == sorted(fallen, reverse=True), "each is smaller than the one that fell before"
    trials = {t["candidate"]["gamma"]: t for t in json.loads(ran.stdout)["trials"]}
    assert {trials[g]["outcome"] for g in fallen} == {"host_memory"}
    assert all(SHORT in trials[g]["message"] for g in fallen)
    assert trials[1]["outcome"] in {"ok", "cannot_win"}
    again = run_in(tmp_path, *spec)
    assert again.returncode == 0, again.stderr
    assert boots(tmp_path) == started, "nothing lost, nothing repeated"
    assert not serving_in(tmp_path)


class SlowSpark:
    """Memory under a watcher that is late: 20 GiB are gone at each of its readings, a second apart.

    By its own clock, so that a busy machine changes nothing. Who eats has ten seconds to die before
    nothing is left.
    """

    def __init__(self, folder: Path) -> None:
        self._eaters = folder / "eaters"
        self._now, self._late = 0.0, 0

    def clock(self) -> float:
        return self._now

    def available(self) -> int:
        eats = any(alive(int(path.name)) for path in self._eaters.glob("[0-9]*"))
        self._now += 1.0 if eats else 0.25
        self._late = self._late + 1 if eats else 0
        left = max(10, 110 - 20 * self._late) if self._late < 45 else 0
        return left * GIB


@pytest.mark.kill
def test_a_slow_watcher_saves_the_whole_command(
    run_in: Run,
    box: Box,
    tiny_models: TinyModels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It acts at 10 GiB, above the floor: at its next reading nothing would be left."""
    spark = SlowSpark(tmp_path)
    late = partial(MemoryGuard, clock=spark.clock)
    monkeypatch.setattr(MemoryGuard, "available", lambda _: spark.available())
    monkeypatch.setattr("autotune.machine.guard.MemoryGuard", late)
    serving = {"eats": {"2": 1}, "slow": [2], "well": str(tmp_path / "well")}
    spec = command(tiny_models.qwen3, tmp_path, "--json", gamma="0,2", **serving)
    ran = run_in(tmp_path, *spec)
    assert ran.returncode == 0, ran.stderr
    trials = {trial["candidate"]["gamma"]: trial for trial in json.loads(ran.stdout)["trials"]}
    assert trials[0]["outcome"] == "ok"
    assert trials[2]["outcome"] == "host_memory"
    assert "10.0 GiB of the host's memory were left" in trials[2]["message"]
    assert boots(tmp_path).count(2) == 1
    assert box.lowest > 0
    assert not serving_in(tmp_path)


@pytest.mark.kill
def test_a_range_is_climbed_and_never_boots_into_the_reserve(
    run_in: Run, box: Box, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """6 GiB of an engine beside its share: 0.83 would be within the reserve, and falls."""
    serving = {"memory": {"tokens": 100, "start": 20}, "holds": 6, "total": box.total}
    share = ("--gpu-memory-utilization", "0.5:0.98", "--json")
    ran = run_in(tmp_path, *command(tiny_models.qwen3, tmp_path, *share, gamma="0", **serving))
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["memory_utilization"]
    assert found["most"] == 0.8
    lines = (tmp_path / "boots").read_text().splitlines()
    tried = [float(line.split("--gpu-memory-utilization ")[1].split()[0]) for line in lines]
    assert tried[:6] == [0.5, 0.52, 0.56, 0.64, 0.8, 0.83]
    assert max(tried) == 0.83
    rows = {row["utilization"]: row for row in found["evidence"]}
    assert rows[0.83]["outcome"] == rows[0.82]["outcome"] == "host_memory"
    assert box.lowest > 0


def killed_in_the_second_boot(folder: Path, spec: list[str]) -> None:
    """Kill the tuner outright while the server that drafts is starting."""
    with subprocess.Popen([str(BINARY), *spec], cwd=folder, stderr=subprocess.PIPE) as tuner:
        wait_until(lambda: (folder / "boots").exists() and 2 in boots(folder))
        tuner.kill()
    wait_until(lambda: not serving_in(folder))
    (folder / "well").touch()


@pytest.mark.kill
def test_a_boot_in_which_the_command_was_killed_is_not_repeated_unasked(
    run_in: Run, box: Box, tiny_models: TinyModels, tmp_path: Path
) -> None:
    slow = {"slow": [2], "well": str(tmp_path / "well")}
    spec = command(tiny_models.qwen3, tmp_path, "--json", gamma="0,2", **slow)
    killed_in_the_second_boot(tmp_path, spec)
    with contextlib.closing(sqlite3.connect(tmp_path / "outputs" / "autotune.db")) as database:
        ended = [row[0] for row in database.execute("SELECT ended_at FROM boots ORDER BY id")]
    assert [end is None for end in ended] == [False, True]
    for _ in range(2):
        ran = run_in(tmp_path, *spec)
        assert ran.returncode == 0, ran.stderr
        (lost,) = [t for t in json.loads(ran.stdout)["trials"] if t["candidate"]["gamma"] == 2]
        assert lost["outcome"] == "crash"
        assert "never ended: the machine hung in it, or the command was killed" in lost["message"]
        assert boots(tmp_path).count(2) == 1
    ran = run_in(tmp_path, *spec, "--retry-failed")
    assert ran.returncode == 0, ran.stderr
    assert boots(tmp_path).count(2) > 1
    assert box.lowest == box.free


@pytest.mark.kill
@pytest.mark.usefixtures("box")
def test_where_memory_is_not_unified_a_killed_boot_is_repeated(
    run_in: Run, tiny_models: TinyModels, tmp_path: Path
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 1\n")
    slow = {"slow": [2], "well": str(tmp_path / "well")}
    spec = command(tiny_models.qwen3, tmp_path, SMALL, "--json", gamma="0,2", **slow)
    killed_in_the_second_boot(tmp_path, spec)
    ran = run_in(tmp_path, *spec)
    assert ran.returncode == 0, ran.stderr
    assert boots(tmp_path).count(2) > 1


def test_without_room_nothing_is_started_and_who_holds_it_is_named(
    run_in: Run, box: Box, tiny_models: TinyModels, tmp_path: Path
) -> None:
    box.free = 100
    time.sleep(0.1)
    ran = run_in(tmp_path, *command(tiny_models.qwen3, tmp_path))
    assert ran.returncode == 2
    assert "--gpu-memory-utilization 0.8 takes 97.36 GiB of NVIDIA GB10 (unified)" in ran.stderr
    assert "give at most 0.75" in ran.stderr
    assert "--kv-cache-memory-bytes" in ran.stderr
    assert not (tmp_path / "boots").exists()


@pytest.mark.usefixtures("box")
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ((), ["0.8"]),
        ((SMALL,), ["0.5"]),
        (("--gpu-memory-utilization", "0.7"), ["0.7"]),
        (("--server-arg=--gpu-memory-utilization 0.6",), None),
        (("--gpu-memory-utilization", "0.4:0.98"), ["0.83"]),
    ],
)
def test_no_default_takes_the_hosts_reserve(
    run_in: Run,
    more: tuple[str, ...],
    expected: list[str] | None,
    tiny_models: TinyModels,
    tmp_path: Path,
) -> None:
    ran = run_in(tmp_path, *command(tiny_models.qwen3, tmp_path, "--dry-run", "--json", *more))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["parameters"].get("gpu_memory_utilization") == expected


def wait_until(condition: Any, within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# ------------------------------------------------------------------------ each part


class Scripted(HoldsNothing):
    """A measurer whose answers are given."""

    basis = Basis.MEASURED

    def __init__(self, *answers: Outcome, failure: FailureKind | None = None) -> None:
        self._answers, self._failure = list(answers), failure
        self.asked: list[Candidate] = []

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement | Part]:
        for job in jobs:
            self.asked.append(job.candidate)
            outcome = self._answers.pop(0)
            value = 1.0 if outcome is Outcome.OK else None
            kind = None if outcome is Outcome.OK or self._failure is None else self._failure.value
            details = {"failure": kind}
            yield Measurement(outcome, Basis.MEASURED, value, message="why", details=details)


class Log:
    """Notes what began and what ended."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextlib.contextmanager
    def boot(self, workload: Workload, candidate: Candidate) -> Iterator[None]:
        del workload
        self.said.append(f"begun {candidate['gamma']}")
        yield
        self.said.append(f"ended {candidate['gamma']}")


def jobs(*gammas: int) -> list[Job]:
    return [Job(setting(gamma=gamma), Size(1)) for gamma in gammas]


def test_each_boot_is_stored_before_it_begins_and_after_its_result_was_taken() -> None:
    log, inner = Log(), Scripted(Outcome.OK, Outcome.CRASH)
    taken = Boots(inner, log).measure(jobs(1, 2))
    assert next(taken).outcome is Outcome.OK  # type: ignore[union-attr]
    assert log.said == ["begun 1"], "until the result is stored"
    assert next(taken).outcome is Outcome.CRASH  # type: ignore[union-attr]
    assert log.said == ["begun 1", "ended 1", "begun 2"]


def test_what_is_as_large_is_kept_from_the_measurer() -> None:
    inner, log = Scripted(Outcome.OK, Outcome.HOST_MEMORY, Outcome.OK), Log()
    boots = Boots(inner, log, [LostBoot(setting(gamma=6), NOON)])
    found = list(boots.measure(jobs(2, 4, 5, 6, 7, 3)))
    made = [one for one in found if isinstance(one, Measurement)]
    ok, short, crash = Outcome.OK, Outcome.HOST_MEMORY, Outcome.CRASH
    assert [m.outcome for m in made] == [ok, short, short, crash, crash, ok]
    assert [c["gamma"] for c in inner.asked] == [2, 4, 3]
    assert made[2].message == "not started: it takes as much memory as gamma 4, " + (
        "kv_cache_dtype fp8, why"
    )
    assert "begun at 2026-11-27 12:00 UTC never ended" in made[3].message
    assert "as much memory as that, gamma 6" in made[4].message
    assert {m.details["boots"] for m in made[2:5]} == {0}


class Comparing(Scripted):
    """Has several up at once, which all go well."""

    def compare(
        self, groups: Iterable[Group], *, check: bool
    ) -> Iterator[dict[Candidate, Measurement] | Part]:
        del check
        for group in groups:
            yield dict.fromkeys(group.candidates, Measurement(Outcome.OK, Basis.MEASURED, 1.0))


def test_a_hang_of_several_servers_keeps_as_many_from_each_other_and_none_alone() -> None:
    """Else the baseline itself were barred, and nothing could be measured on this machine."""
    inner = Comparing(*[Outcome.OK] * 3)
    lost = [LostBoot(setting(gamma=gamma), NOON, "beside") for gamma in (0, 2, 4)]
    boots = ComparingBoots(inner, Log(), lost)
    alone = list(boots.measure(jobs(0, 2, 4)))
    assert {m.outcome for m in alone if isinstance(m, Measurement)} == {Outcome.OK}
    groups = [Group(Size(9), tuple(setting(gamma=g) for g in which), 0) for which in ("02", "035")]
    two, three = boots.compare(groups, check=False)
    assert isinstance(two, dict)
    assert isinstance(three, dict)
    assert {m.outcome for m in two.values()} == {Outcome.OK}
    assert {m.outcome for m in three.values()} == {Outcome.CRASH}
    said = {m.message.partition(" never")[0] for m in three.values()}
    assert said == {"a start of 3 servers at once that was begun at 2026-11-27 12:00 UTC"}


@pytest.mark.parametrize(
    ("unified", "failure", "started"),
    [
        (True, FailureKind.OUT_OF_MEMORY_AT_START, [2, 4, 3]),
        (True, FailureKind.OUT_OF_MEMORY_UNDER_LOAD, [2, 4, 4, 3, 5]),
        (False, FailureKind.OUT_OF_MEMORY_AT_START, [2, 4, 4, 3, 5]),
    ],
)
def test_a_start_that_vllm_refused_for_want_of_memory_is_not_repeated_where_it_is_shared(
    unified: bool, failure: FailureKind, started: list[int]
) -> None:
    none = [Outcome.OUT_OF_MEMORY] * 2
    answers = [Outcome.OK, none[0], *([] if len(started) == 3 else none), Outcome.OK]
    inner = Scripted(*answers, *([Outcome.OK] * 2), failure=failure)
    found = list(Boots(inner, Log(), unified=unified).measure(jobs(2, 4, 4, 3, 5)))
    assert [c["gamma"] for c in inner.asked] == started
    if len(started) == 3:
        kept = found[2], found[4]
        assert {m.outcome for m in kept if isinstance(m, Measurement)} == {Outcome.OUT_OF_MEMORY}
        assert "not started: it takes as much memory as gamma 4" in str(found[4])


def test_a_server_that_eats_under_load_fails_for_that(tmp_path: Path, box: Box) -> None:
    launcher = LocalLauncher((*FAKE.split(),), grace_s=0.5)
    with (
        MemoryGuard() as guard,
        start(launcher, ServeSettings("m"), tmp_path / "log", 60, guard) as server,
    ):
        assert server.failure() is None
        box.free = 5.5
        wait_until(lambda: server.fall is not None)
        failure = server.failure()
        assert failure is not None
        assert (failure.kind, failure.outcome) == (FailureKind.HOST_MEMORY, Outcome.HOST_MEMORY)
        assert "5.5 GiB of the host's memory were left" in failure.line
    assert not serving_in(tmp_path)


def test_a_container_is_killed_by_its_engine(tmp_path: Path, box: Box) -> None:
    """Its processes are not ours: killing the client alone would leave it alive."""
    killed = tmp_path / "killed"
    handle = ProcessHandle(
        ["sleep", "600"], 1, tmp_path / "log", 0.5, cleanup=["touch", str(killed)], contained=True
    )
    with MemoryGuard() as guard, guard.watch("the server", handle.kill) as watched:
        box.free = 3
        wait_until(killed.exists)
        assert watched.fall is not None
    handle.stop()
    assert guard.ended is not None


def test_a_server_is_taken_before_others_by_the_kernel(tmp_path: Path) -> None:
    handle = ProcessHandle(["sleep", "600"], 1, tmp_path / "log", 0.5)
    try:
        wait_until(lambda: len(handle.processes()) > 1)
        files = [Path(f"/proc/{pid}/oom_score_adj") for pid in handle.processes()]
        assert "1000" in {file.read_text().strip() for file in files}
    finally:
        handle.stop()
