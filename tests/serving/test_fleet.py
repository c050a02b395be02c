"""Several places at once, in memory: who measures what, and what a lost place costs."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from autotune.core import (
    Basis,
    Candidate,
    Group,
    Job,
    Measurement,
    MissingEnvironmentError,
    Outcome,
    Part,
    Workload,
)
from autotune.serving.cluster.control import Control, control
from autotune.serving.cluster.fleet import FINISHED, Event, Fleet, PlaceLostError, place_of
from autotune.serving.job import Result, run
from autotune.serving.plan import Plan
from autotune.serving.report.document import document
from autotune.serving.scenario import SpecScenario
from autotune.store.store import Store
from tests.serving.test_spec_job import Bench, bench
from tests.serving.tiny_models import tiny_models
from tests.support.formula_measurer import in_memory

__all__ = ["bench", "tiny_models"]

LOAD = SpecScenario("t", "d", "p", "k", (1,), 8, True, True, 2, 1, "geomean")
Script = Callable[[Job], Sequence[Measurement | Part | PlaceLostError]]


def candidate(gamma: int) -> Candidate:
    return Candidate.of({"gamma": gamma})


def measured(value: float, **details: Any) -> Measurement:
    return Measurement(Outcome.OK, Basis.MEASURED, value, (value,), details=details)


class ScriptedPlace:
    """Gives one event of its script at each look; a lost place stays lost."""

    def __init__(self, name: str, script: Script) -> None:
        self.name, self.script = name, script
        self.began: list[Job] = []
        self.left: deque[Measurement | Part | PlaceLostError] = deque()
        self.closed = False

    def begin(self, jobs: Sequence[Job]) -> None:
        assert not self.left, "it measures already"
        self.began += jobs
        self.left.extend(event for job in jobs for event in self.script(job))

    def begin_group(self, group: Group, *, check: bool) -> None:
        raise AssertionError("nothing is compared in these tests")

    def events(self) -> Sequence[Measurement | Part]:
        if not self.left:
            return []
        if isinstance(self.left[0], PlaceLostError):
            raise self.left[0]
        event = self.left.popleft()
        assert not isinstance(event, PlaceLostError)
        if isinstance(event, Measurement):
            event = dataclasses.replace(
                event, details={**event.details, "place": {"name": self.name}}
            )
        return [event]

    def close(self) -> None:
        self.closed = True


def part(job: Job, name: str) -> Part:
    return Part(job.candidate, job.workload, name, {"n": 1})


def fleet(*places: ScriptedPlace | None, count: int | None = None, **more: Any) -> Fleet:
    """Opens these, one after the other; None where none comes free."""
    ready = deque(places)
    return Fleet(
        lambda _: ready.popleft() if ready else None,
        len(places) if count is None else count,
        Basis.MEASURED,
        sleep=lambda _: None,
        **more,
    )


def answers(jobs: Sequence[Job], made: Fleet) -> tuple[list[Measurement], list[Part]]:
    events = list(made.measure(jobs))
    return (
        [e for e in events if isinstance(e, Measurement)],
        [e for e in events if isinstance(e, Part)],
    )


def quick(job: Job) -> list[Measurement | Part | PlaceLostError]:
    return [measured(float(job.candidate.int("gamma")))]


def slow_first(job: Job) -> list[Measurement | Part | PlaceLostError]:
    gamma = job.candidate.int("gamma")
    waits = [part(job, f"repeat {i}") for i in range(5 if gamma == 0 else 0)]
    return [*waits, measured(float(gamma))]


def test_work_is_pulled_and_the_answers_keep_their_order() -> None:
    a, b = ScriptedPlace("a", slow_first), ScriptedPlace("b", slow_first)
    jobs = [Job(candidate(gamma), LOAD) for gamma in range(4)]
    with fleet(a, b) as made:
        found, _ = answers(jobs, made)
    assert [m.value for m in found] == [0.0, 1.0, 2.0, 3.0]
    assert [[j.candidate["gamma"] for j in p.began] for p in (a, b)] == [[0], [1, 2, 3]]
    assert a.closed
    assert b.closed


def test_what_is_finished_out_of_turn_outlives_a_kill() -> None:
    a, b = ScriptedPlace("a", slow_first), ScriptedPlace("b", slow_first)
    jobs = [Job(candidate(gamma), LOAD) for gamma in range(2)]
    kept = {}
    with fleet(a, b) as made:
        for event in made.measure(jobs):
            if isinstance(event, Part) and event.name == FINISHED:
                kept[event.candidate] = event.value
                break  # killed here: the answer to the first job has not come
    assert a.closed, "nobody listens any more"
    again = ScriptedPlace("c", quick)
    parts = [dataclasses.replace(j, parts={FINISHED: kept[j.candidate]}) for j in jobs[1:]]
    with fleet(again) as made:
        found, _ = answers([jobs[0], *parts], made)
    assert [j.candidate["gamma"] for j in again.began] == [0]
    assert found[1].value == 1.0
    assert place_of(found[1].details) == "b"


class FullPlace(ScriptedPlace):
    """Finds no room for its server."""

    def events(self) -> Sequence[Measurement | Part]:
        raise MissingEnvironmentError("no room here")


def test_a_place_that_cannot_measure_takes_nothing_from_the_others() -> None:
    a, b = ScriptedPlace("a", slow_first), FullPlace("b", quick)
    told: list[Part | Measurement] = []
    with fleet(a, b) as made, pytest.raises(MissingEnvironmentError, match="no room here"):
        told.extend(made.measure([Job(candidate(gamma), LOAD) for gamma in range(2)]))
    assert told == [part(Job(candidate(0), LOAD), "repeat 0")]


def lost_once(job: Job) -> list[Measurement | Part | PlaceLostError]:
    if "repeat 0" in job.parts:
        return [measured(7.0)]
    return [part(job, "repeat 0"), PlaceLostError("its node died")]


def test_a_lost_place_gives_its_job_back_with_what_had_come() -> None:
    told: list[str] = []
    gate = Gates()
    a, b = ScriptedPlace("a", lost_once), ScriptedPlace("b", lost_once)
    with fleet(a, b, count=1, on_lost=told.append) as made:
        events = list(made.admitted([Job(candidate(2), LOAD)], gate))
    (found,) = [e for e in events if isinstance(e, Measurement)]
    assert found.outcome is Outcome.OK
    assert place_of(found.details) == "b"
    assert b.began[0].parts == {"repeat 0": {"n": 1}}, "nothing measured is lost"
    assert told == ["a is lost: its node died"]
    assert a.closed
    assert gate.open == 0
    assert gate.boots == 2


def test_a_setting_in_the_middle_of_which_nodes_die_stays_the_only_one_to_fail() -> None:
    def kills(job: Job) -> list[Measurement | Part | PlaceLostError]:
        fatal = job.candidate == candidate(5)
        return [PlaceLostError("gone")] if fatal else quick(job)

    places = [ScriptedPlace(name, kills) for name in "abcd"]
    with fleet(*places, count=2) as made:
        found, _ = answers([Job(candidate(5), LOAD), Job(candidate(1), LOAD)], made)
    assert [m.outcome for m in found] == [Outcome.CRASH, Outcome.OK]
    assert found[0].message.startswith("2 nodes were lost in the middle of it")
    assert sum(place.closed for place in places) == 4


def test_without_any_place_left_the_command_ends() -> None:
    def gone(job: Job) -> list[Measurement | Part | PlaceLostError]:
        return [PlaceLostError("gone")]

    with (
        fleet(ScriptedPlace("a", gone), None) as made,
        pytest.raises(MissingEnvironmentError, match="what was measured is kept"),
    ):
        answers([Job(candidate(1), LOAD)], made)
    with pytest.raises(MissingEnvironmentError, match="no node has had a free GPU"):
        fleet(None).__enter__()


def test_what_fails_to_start_on_a_free_gpu_is_not_called_a_lack_of_gpus() -> None:
    def fails(_: float) -> ScriptedPlace:
        raise PlaceLostError("its vLLM cannot be imported")

    made = fleet(None)
    made._opener = fails
    with pytest.raises(MissingEnvironmentError, match=r"nothing starts .* cannot be imported"):
        made.__enter__()


def test_rivals_meet_on_one_place_and_a_control_has_its_own() -> None:
    a, b = ScriptedPlace("a", quick), ScriptedPlace("b", quick)
    rivals = [Job(candidate(g), LOAD.in_round(r)) for r in (1, 2) for g in (0, 2, 3)]
    there = Job(candidate(0), dataclasses.replace(LOAD, control="b"))
    with fleet(a, b) as made:
        found, _ = answers([*rivals, there], made)
    assert [place_of(m.details) for m in found] == ["a"] * 6 + ["b"]


def test_jobs_that_come_later_are_measured_too() -> None:
    """The source of a search runs dry while a batch is out, and has more when it is back."""
    made, seen = fleet(ScriptedPlace("a", quick), ScriptedPlace("b", quick)), list[float]()

    class Source:
        def __init__(self) -> None:
            self.waiting = deque([Job(candidate(0), LOAD)])

        def __iter__(self) -> Iterator[Job]:
            return self

        def __next__(self) -> Job:
            if not self.waiting:
                raise StopIteration
            return self.waiting.popleft()

    source = Source()
    with made:
        for event in made.measure(source):
            assert isinstance(event, Measurement)
            assert event.value is not None
            seen.append(event.value)
            if event.value < 3:
                source.waiting.append(Job(candidate(int(event.value) + 1), LOAD))
    assert seen == [0, 1, 2, 3]


class Gates:
    """Counts boots, and keeps nothing from anybody unless told."""

    def __init__(self, kept: Measurement | None = None) -> None:
        self.boots = self.open = 0
        self.kept = kept

    def kept_from(self, candidate: Candidate) -> Measurement | None:
        return self.kept

    @contextmanager
    def boot(self, workload: Workload, candidate: Candidate) -> Iterator[None]:
        self.boots += 1
        self.open += 1
        yield
        self.open -= 1

    def ended(self, candidate: Candidate, measurement: Measurement) -> None:
        """Nothing is learnt from it."""


def test_what_hung_a_machine_before_reaches_no_place() -> None:
    kept = Measurement(Outcome.CRASH, Basis.MEASURED, message="it hung")
    a = ScriptedPlace("a", quick)
    with fleet(a) as made:
        assert list(made.admitted([Job(candidate(2), LOAD)], Gates(kept))) == [kept]
    assert not a.began


# ------------------------------------------------------------------------- whole jobs


class FormulaPlace:
    """A place whose servers are formulas; ``slower`` than the others by a factor."""

    def __init__(self, name: str, plan: Plan, logs: Path, slower: float = 1.0) -> None:
        self.name, self.slower = name, slower
        self.measurer = in_memory(plan, logs)
        self.left: list[Event] = []
        self.lost_at: int | None = None
        self.boots = 0

    def begin(self, jobs: Sequence[Job]) -> None:
        self.boots += 1
        if self.boots == self.lost_at:
            return
        self.left = list(self.measurer.measure(jobs))

    def begin_group(self, group: Group, *, check: bool) -> None:
        self.boots += 1
        if self.boots == self.lost_at:
            return
        self.left = list(self.measurer.compare([group], check=check))

    def events(self) -> Sequence[Event]:
        if self.boots == self.lost_at:
            raise PlaceLostError("its node died")
        events, self.left = self.left, []
        return [self.told(event) for event in events]

    def told(self, event: Event) -> Event:
        if isinstance(event, dict):
            return {c: self.placed(found) for c, found in event.items()}
        return self.placed(event) if isinstance(event, Measurement) else event

    def placed(self, found: Measurement) -> Measurement:
        value = None if found.value is None else found.value * self.slower
        samples = tuple(sample * self.slower for sample in found.samples)
        details = {**found.details, "place": {"name": self.name}}
        return dataclasses.replace(found, value=value, samples=samples, details=details)

    def close(self) -> None:
        """Nothing runs."""


FAST = {"fast": {"kv_cache_dtype=fp8": 0.7}}
GRID: dict[str, Any] = {"gamma": "0,2,4", "kv_cache_dtype": "auto,fp8", "confirm_boots": 2}


def tuned(bench: Bench, slower: float = 1.0, lost_at: int | None = None) -> Result:
    plan = bench.plan(FAST, **GRID)
    made = [FormulaPlace(n, plan, bench.root / n, s) for n, s in (("a", 1.0), ("b", slower))]
    made[1].lost_at = lost_at
    ready = deque(made)
    opened = Fleet(
        lambda _: ready.popleft() if ready else None, 2, plan.basis, sleep=lambda _: None
    )
    with Store.open(f"sqlite:///{bench.root}/fleet.db") as store:
        return run(plan, store, opened, lambda _: None)


def test_a_fleet_chooses_what_one_machine_chooses(bench: Bench) -> None:
    alone, together = bench.tune(FAST, **GRID), tuned(bench, lost_at=3)
    assert together.selection.winner.candidate == alone.selection.winner.candidate
    assert not together.selection.kept_incumbent
    assert together.confirmed is not None
    compared = [t for boots in together.confirmed.trials.values() for t in boots]
    assert {place_of(t.measurement.details) for t in compared} == {"a"}
    searched = {place_of(t.measurement.details) for t in together.trials}
    assert searched == {"a", "b"}, "both were used before one was lost"
    assert all(t.measurement.outcome is Outcome.OK for t in together.trials)


def test_places_that_differ_are_told_and_widen_the_margin(bench: Bench) -> None:
    result = tuned(bench, slower=1.25)
    assert result.control.spread == pytest.approx(0.25, rel=0.02)
    assert any("25.0% faster on a than on b" in said for said in document(result)["warnings"])
    assert tuned(bench).control.spread == pytest.approx(0.25, rel=0.02), "read back, not booted"


def test_the_control_is_the_baseline_on_every_other_place() -> None:
    asked: list[Job] = []

    def trials_of(jobs: Sequence[Job]) -> list[Any]:
        asked.extend(jobs)
        failed = Measurement(Outcome.CRASH, Basis.MEASURED, message="no")
        values = {"b": measured(12.5, place={"name": "b"}), "c": failed}
        return [trial(values[str(j.workload.control)]) for j in jobs]  # type: ignore[attr-defined]

    def trial(measurement: Measurement) -> Any:
        from autotune.core import Phase, Trial

        return Trial(candidate(0), "w", Phase.BASELINE, 0, measurement)

    home = trial(measured(10.0, place={"name": "a"}))
    found = control(["a", "b", "c"], home, LOAD, trials_of)
    assert found.speeds == {"a": 1.25, "b": 1.0}
    assert found.failed == {"c": "no"}
    assert control(["a"], home, LOAD, trials_of) == Control()
    assert [j.workload.as_json()["control"] for j in asked] == ["b", "c"]
    dialled = dataclasses.replace(LOAD, dial=True)
    asked.clear()
    control(["b", "c"], home, dialled, trials_of)
    assert len(asked) == 2, "a dialled server says nothing of one without"
    assert "control" not in LOAD.as_json(), "loads that were stored keep their key"
