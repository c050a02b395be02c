"""The confirmation with servers up at once: what it finds, when it is used, what a kill costs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core import (
    Basis,
    Candidate,
    HoldsNothing,
    Job,
    Measurement,
    Measurer,
    MissingEnvironmentError,
    Outcome,
    Part,
)
from autotune.decide.stats import Ratio
from autotune.machine.memory import MemoryKind, MemoryReading
from autotune.serving.decide.conclusion import warnings
from autotune.serving.decide.side_by_side import room_beside_the_dial, way_of
from autotune.serving.job import run
from autotune.serving.measure import load
from autotune.serving.measure.cell import Cell
from autotune.serving.memory.together import Load, alongside, cache_bytes, how_many_fit
from autotune.serving.plan import Plan
from autotune.serving.recipe import GAMMA
from autotune.serving.stored import load_served
from autotune.store.store import Store
from tests.serving.test_spec_job import Bench
from tests.serving.tiny_models import TinyModels
from tests.support.formula_measurer import FormulaMeasurer

GIB = 2**30
DRAFTING = {"base_ms": 5.0, "draft_ms": 1.0, "reached": [0.8, 0.6, 0.05, 0, 0, 0]}
BESIDE = {"confirm": "side-by-side", "dial": True, "gamma": "0,2,3", "schedule": False}


@pytest.fixture
def bench(tiny_models: TinyModels, tmp_path: Path) -> Bench:
    return Bench(tiny_models.qwen3, tmp_path)


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many servers were launched, noted at each launch, at each wait and at each end."""
    counts = [0]
    real = FormulaMeasurer._launched

    @contextmanager
    def counted(self: FormulaMeasurer, *args: Any) -> Iterator[Any]:
        with real(self, *args) as ready:
            counts.append(counts[-1] + 1)

            def wait() -> Any:
                counts.append(counts[-1])
                return ready()

            try:
                yield wait
            finally:
                counts.append(counts[-1] - 1)

    monkeypatch.setattr(FormulaMeasurer, "_launched", counted)
    return counts


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The salts of the timed loads: gamma, concurrency and number of each."""
    salts: list[str] = []
    real = load.timed

    def noted(wire: Any, asked: Any, number: int, salt: str) -> Any:
        salts.append(salt)
        return real(wire, asked, number, salt)

    monkeypatch.setattr("autotune.serving.measure.cell.timed", noted)
    return salts


def test_one_search_boot_and_one_comparison(bench: Bench, up: list[int], made: list[str]) -> None:
    result = bench.tune(DRAFTING, **BESIDE, concurrency="1,2", repeats=3, confirm_boots=2)
    assert result.confirmed is not None
    assert result.selection.winner.candidate.int(GAMMA) == 2
    assert result.selection.speedup == pytest.approx(2.4 / 1.4, rel=0.15)
    assert up[:4] == [0, 1, 1, 0]  # the dialled server alone
    rivals = len(result.confirmed.trials)
    assert rivals >= 2
    # launched before any is waited for, so that a comparison costs the time of one start
    assert up[4:] == [*range(1, rivals + 1), *[rivals] * rivals, *range(rivals - 1, -1, -1)]
    assert result.boots == bench.boots == 1 + rivals
    _, *fresh = bench.boots_file.read_text().splitlines()
    assert all("--kv-cache-memory-bytes" in line for line in fresh)
    assert not any("per_batch_size" in line for line in fresh)
    for trials in result.confirmed.trials.values():
        (trial,) = trials
        assert len(trial.measurement.samples) == 6  # 2 × 3 rounds
    gammas = [str(c.int(GAMMA)) for c in result.confirmed.trials]
    rounds = [salt.split("-") for salt in made[-6 * 2 * rivals :]]
    for i in range(0, len(rounds), rivals):  # all of them at one concurrency before the next
        together = rounds[i : i + rivals]
        assert sorted(one[0] for one in together) == sorted(gammas)
        assert len({(one[1], one[2]) for one in together}) == 1
    assert len({rounds[i][0] for i in range(0, len(rounds), 2 * rivals)}) == rivals  # all begin
    again = bench.tune(DRAFTING, **BESIDE, concurrency="1,2", repeats=3, confirm_boots=2)
    assert (again.fresh_boots, again.selection) == (0, result.selection)


def test_the_baselines_server_starts_beside_the_dialled_one_and_ends_when_that_serves(
    bench: Bench, up: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM compiles for it is cached then when its turn comes."""
    monkeypatch.setattr("autotune.serving.make_plan.read_memory", lambda _: reading(140))
    result = bench.tune(DRAFTING, **BESIDE)
    assert up[:6] == [0, 1, 2, 2, 1, 0]  # both launched, the dialled one awaited, the other ended
    assert result.confirmed is not None
    assert result.boots == 1 + len(result.confirmed.trials)  # of it nothing is measured
    assert result.baseline.measurement.details["ahead"]
    dialled = result.baseline.measurement.details["log"]
    assert Path(dialled).with_suffix(".ahead.log").is_file()
    first = bench.boots_file.read_text().splitlines()[0]
    assert "per_batch_size" in first
    assert "--kv-cache-memory-bytes" in first
    again = bench.tune(DRAFTING, **BESIDE)
    assert (again.fresh_boots, again.selection) == (0, result.selection)


def test_of_several_servers_that_a_dial_turns_the_first_has_another_beside_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the baseline is sure to be booted again, and the caches are sized for its settings."""
    monkeypatch.setattr("autotune.serving.make_plan.read_memory", lambda _: reading(140))
    result = bench.tune(DRAFTING, **BESIDE, kv_cache_dtype="auto,fp8")
    dialled = [t for t in result.trials if "dial" in t.measurement.details]
    ahead = {t.candidate["kv_cache_dtype"]: t.measurement.details["ahead"] for t in dialled}
    assert ahead == {"auto": True, "fp8": False}
    assert len(list((bench.root / "logs").glob("*.ahead.log"))) == 1


@pytest.mark.parametrize(
    ("free", "changes"),
    [
        (3, {}),
        (140, {"confirm": "in-turn"}),
        (140, {"dial": False}),
        (140, {"gpu_memory_utilization": "0.4,0.5"}),
    ],
)
def test_the_dialled_server_starts_alone_where_no_other_can_be_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, free: float, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr("autotune.serving.make_plan.read_memory", lambda _: reading(free))
    plan = bench.plan(DRAFTING, **BESIDE | {"confirm": "auto", "force": False})
    if free == 140:
        assert room_beside_the_dial(plan)
        unified = replace(plan, memory=reading(140, MemoryKind.UNIFIED))
        assert room_beside_the_dial(unified) is None
    other = bench.plan(DRAFTING, **BESIDE | {"confirm": "auto", "force": False} | changes)
    assert room_beside_the_dial(other) is None


def test_a_server_is_asked_for_its_outputs_while_the_next_one_starts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, seen = threading.Event(), list[bool]()
    launched, ask = FormulaMeasurer._launched, Cell.ask

    @contextmanager
    def slow(self: Any, settings: Any, log: Any, guard: Any) -> Iterator[Callable[[], Any]]:
        with launched(self, settings, log, guard) as ready:

            def wait() -> Any:
                beside = "--kv-cache-memory-bytes" in settings.extra_args
                if beside and settings.speculative is not None:  # the baseline is up by now
                    seen.append(asked.wait(60))
                return ready()

            yield wait

    def noted(self: Cell) -> None:
        ask(self)
        if self.scenario.beside is not None:
            asked.set()

    monkeypatch.setattr(FormulaMeasurer, "_launched", slow)
    monkeypatch.setattr(Cell, "ask", noted)
    result = bench.tune(DRAFTING, **BESIDE)
    assert seen
    assert all(seen)
    assert result.selection.winner.candidate.int(GAMMA) == 2


def test_the_page_says_how_and_figures_of_two_ways_are_never_mixed(bench: Bench) -> None:
    twice = {"confirm_boots": 2, "repeats": 3}
    turns = bench.tune(DRAFTING, **{**BESIDE, **twice, "confirm": "in-turn"})
    text = bench.report(turns)
    assert "up at once" not in text
    assert "one after the other (asked for" in text
    boots = bench.boots
    result = bench.tune(DRAFTING, **{**BESIDE, **twice})
    assert bench.boots > boots
    with Store.open(f"sqlite:///{bench.root}/a.db") as store:
        served = load_served(store, "t")
    assert served.beside is not None
    assert all(len(rounds) == 1 for rounds in served.confirmed.values())
    text = bench.report(result)
    assert "up at once" in text
    assert "6 rounds" in text
    assert not [said for said in warnings(result) if "one fresh boot each" in said]
    again = bench.tune(DRAFTING, **{**BESIDE, **twice, "confirm": "in-turn"})
    assert (again.fresh_boots, again.selection) == (0, turns.selection)
    text = bench.report(again)  # though the others were measured last
    assert "up at once" not in text
    assert "one after the other (asked for" in text


def test_a_cut_round_is_made_anew_and_whole_ones_are_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real, least = load.timed, [0]

    def stops(wire: Any, asked: Any, number: int, salt: str) -> Any:
        if len(made) == least[0]:
            raise KeyboardInterrupt
        made.append(salt)
        return real(wire, asked, number, salt)

    monkeypatch.setattr("autotune.serving.measure.cell.timed", stops)
    ask = {**BESIDE, "gamma": "0,2"}
    searched = 2 * 6
    least[0] = searched + 5  # two whole rounds of two servers, and half of a third
    with pytest.raises(KeyboardInterrupt):
        bench.tune(DRAFTING, **ask)
    least[0] = 1000
    made.clear()
    result = bench.tune(DRAFTING, **ask)
    numbers = [int(salt.split("-")[2]) for salt in made]
    assert 5 + len(made) == 2 * 6 + 1  # one load is lost
    assert min(numbers) == 3  # the third round was begun, and is not begun again
    assert result.confirmed is not None
    for trials in result.confirmed.trials.values():
        assert len(trials[0].measurement.samples) == 6
        assert trials[0].measurement.details["repeats_of_earlier_runs"] == 2


@pytest.mark.parametrize(
    ("serving", "why"),
    [
        ({"oom_beside": [2]}, "OutOfMemoryError"),
        ({"dies_beside": [0]}, "OutOfMemoryError"),
    ],
)
def test_where_memory_runs_short_they_take_turns_and_that_is_said(
    bench: Bench, serving: dict[str, Any], why: str
) -> None:
    result = bench.tune(DRAFTING | serving, **{**BESIDE, "confirm": "auto"})
    assert result.confirmed is not None
    assert result.confirmed.way.beside is None
    assert why in result.confirmed.way.why
    assert result.selection.winner.candidate.int(GAMMA) == 2
    assert f"tried, and given up: torch.{why}" in bench.report(result)
    boots = bench.boots
    again = bench.tune(DRAFTING | serving, **{**BESIDE, "confirm": "auto"})
    assert (bench.boots, again.selection) == (boots, result.selection)  # nor is it tried again


def test_one_that_dies_makes_way_for_the_next_best(bench: Bench) -> None:
    dies = {"dies_beside": [2]}
    result = bench.tune(DRAFTING | dies, **{**BESIDE, "gamma": "0-4"})
    assert result.confirmed is not None
    died = Candidate.of({GAMMA: 2})
    assert result.confirmed.dropped[died].measurement.outcome is Outcome.OUT_OF_MEMORY
    assert died not in result.confirmed.trials
    assert not result.selection.kept_incumbent
    assert result.confirmed.trials.keys() - {result.baseline.candidate}
    samples = {len(t[0].measurement.samples) for t in result.confirmed.trials.values()}
    assert samples == {6}


def test_a_finalist_that_stayed_out_for_want_of_room_is_the_first_to_follow(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autotune.serving.decide.side_by_side._room", lambda *_: (1 << 28, 2))
    dies = {"dies_beside": [2]}
    result = bench.tune(DRAFTING | dies, **{**BESIDE, "gamma": "0-4"})
    assert result.confirmed is not None
    (second,) = finalists(1)
    assert result.confirmed.trials.keys() == {result.baseline.candidate, second}
    assert result.confirmed.way.left_out == ()


@pytest.mark.parametrize("fits", [True, False])
def test_the_room_is_sized_anew_for_who_takes_the_place_of_another(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """One that needs more cache than those before it would be preempted, or not even start."""
    (second,) = finalists(1)

    def room(_: Plan, order: Sequence[Candidate]) -> tuple[int, int]:
        if order[1:] == [second]:
            return 5 << 28, 2 if fits else 1
        return 1 << 28, 2

    monkeypatch.setattr("autotune.serving.decide.side_by_side._room", room)
    ask = {**BESIDE, "gamma": "0-4"}
    result = bench.tune(DRAFTING | {"dies_beside": [2]}, **ask)
    assert result.confirmed is not None
    way = result.confirmed.way
    assert way.beside is not None
    assert (second in result.confirmed.trials) is fits
    assert way.beside.kv_bytes == (5 << 28 if fits else 1 << 28)
    assert way.left_out == (() if fits else (second,))


class OneAtATime(HoldsNothing):
    """A measurer that cannot have several servers up."""

    def __init__(self, measurer: Measurer) -> None:
        self._measurer = measurer

    @property
    def basis(self) -> Basis:
        return self._measurer.basis

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement | Part]:
        return self._measurer.measure(jobs)


def test_a_measurer_of_one_server_at_a_time_takes_turns(bench: Bench) -> None:
    plan = bench.plan(DRAFTING, **{**BESIDE, "confirm": "auto"})
    with Store.open(f"sqlite:///{bench.root}/a.db") as store:
        result = run(plan, store, OneAtATime(bench.measurer(plan)), lambda _: None)
    assert result.confirmed is not None
    assert result.confirmed.way.beside is None
    assert "one server up at a time" in result.confirmed.way.why


def test_a_gain_that_the_dial_did_not_show_is_told(bench: Bench) -> None:
    result = bench.tune(DRAFTING, **BESIDE)
    assert not [said for said in warnings(result) if "on the dialled server" in said]
    assert result.confirmed is not None
    best = result.selection.winner.candidate
    more = replace(result.confirmed, ratios={best: Ratio(2.4, 2.3, 2.5, 6)})
    told = [s for s in warnings(replace(result, confirmed=more)) if "on the dialled server" in s]
    assert len(told) == 1
    assert told[0].startswith("gamma=2: 2.40× the baseline side by side, and 1.")
    vague = replace(result.confirmed, ratios={best: Ratio(2.4, 1.2, 2.9, 6)})
    said = warnings(replace(result, confirmed=vague))
    assert not [text for text in said if "on the dialled server" in text]


def reading(free: float, kind: MemoryKind = MemoryKind.GPU) -> MemoryReading:
    return MemoryReading(int(140 * GIB), int(free * GIB), kind, "NVIDIA H200")


def asked(bench: Bench, **changes: Any) -> Plan:
    plan = bench.plan(DRAFTING, **{**BESIDE, "confirm": "auto", "force": False} | changes)
    target = replace(plan.pair.target, weight_bytes=48 * GIB)  # as Gemma 4 26B-A4B in bf16
    return replace(plan, pair=replace(plan.pair, target=target), memory=reading(140))


def finalists(*gammas: int) -> list[Candidate]:
    return [Candidate.of({GAMMA: gamma}) for gamma in gammas]


def test_as_many_as_the_memory_holds(bench: Bench) -> None:
    plan = asked(bench)
    settings = [plan.recipe.settings(c) for c in finalists(0, 2, 3)]
    kv_bytes = cache_bytes(plan.pair, settings[0], Load(8, 1000), MemoryKind.GPU)
    assert kv_bytes is not None
    assert kv_bytes % (1 << 28) == 0
    one = 48 + kv_bytes / GIB + 5.6
    for free, fitting in ((one - 1, 0), (one + 1, 1), (2 * one + 1, 2), (400, 3)):
        assert how_many_fit(plan.pair, settings, kv_bytes, reading(free)) == fitting
    for more, fitting in ((8 + 7, 1), (8 + 9, 2)):  # the host keeps 8 GiB, compilers 4 each
        unified = reading(2 * one + more, MemoryKind.UNIFIED)
        assert how_many_fit(plan.pair, settings, kv_bytes, unified) == fitting


def test_what_the_user_gives_the_cache_stays(bench: Bench) -> None:
    plan = asked(bench, server_arg=["--kv-cache-memory-bytes 3G"])
    settings = plan.recipe.settings(plan.baseline)
    assert cache_bytes(plan.pair, settings, Load(8, 1000), MemoryKind.GPU) == 3 * GIB
    args = alongside(settings, 3 * GIB).extra_args
    assert args[:2] == ("--kv-cache-memory-bytes", "3G")
    assert args[-2:] == ("--kv-cache-memory-bytes", str(3 * GIB))


def test_the_cache_grows_with_the_load(bench: Bench) -> None:
    plan = asked(bench)
    settings = plan.recipe.settings(plan.baseline)
    sizes = [cache_bytes(plan.pair, settings, Load(c, 900), MemoryKind.GPU) or 0 for c in (1, 4000)]
    assert sizes[0] < sizes[1]


def test_with_a_dial_the_second_best_may_stay_out(bench: Bench) -> None:
    """On one H200 two servers of 48 GiB of weights fit, not three."""
    plan = asked(bench)
    result = bench.tune(DRAFTING, **BESIDE)
    dialled = {t.candidate: t for t in result.trials}
    two, three = finalists(2, 3)
    close = replace(dialled[three], measurement=dialled[two].measurement)
    way = way_of(plan, [two, three], [], {**dialled, three: close})
    assert way.beside is not None
    assert way.left_out == way.crowded == (three,)
    assert result.confirmed is not None
    whole = replace(result.plan, memory=plan.memory)
    crowded = replace(result, plan=whole, confirmed=replace(result.confirmed, way=way))
    said = "gamma=3 was NOT confirmed: NVIDIA H200 has no room for its server beside the others"
    assert [text for text in warnings(crowded) if text.startswith(said)]
    static = way_of(plan, [two, three], [], {})  # boots apart: the second best is not known well
    assert static.beside is None
    assert "NVIDIA H200 holds 2 servers at once, not 3" in static.why
    roomy = replace(plan, memory=reading(400))
    assert way_of(roomy, [two, three], [], {}).left_out == ()
    assert way_of(roomy, [two, three], [], {**dialled, three: close}).left_out == ()
    slower = replace(
        dialled[three],
        measurement=replace(
            dialled[two].measurement,
            samples=tuple(1.2 * s for s in dialled[two].measurement.samples),
        ),
    )
    assert way_of(roomy, [two, three], [], {**dialled, three: slower}).left_out == (three,)


def test_where_host_and_gpu_share_memory_turns_are_taken_unless_asked(bench: Bench) -> None:
    """A machine that hangs with all of them up would bar the baseline itself from the next run."""
    roomy = replace(asked(bench), memory=reading(138, MemoryKind.UNIFIED))
    way = way_of(roomy, finalists(2), [], {})
    assert way.beside is None
    assert "freezes the machine" in way.why
    assert way_of(replace(roomy, confirm="side-by-side"), finalists(2), [], {}).beside is not None


def test_what_differs_in_memory_takes_turns(bench: Bench) -> None:
    plan = asked(bench, gpu_memory_utilization="0.4,0.5")
    rivals = [Candidate.of({GAMMA: 2, "gpu_memory_utilization": "0.5"})]
    way = way_of(plan, rivals, [], {})
    assert way.beside is None
    assert "differs in the memory" in way.why


def test_side_by_side_that_was_asked_for_and_has_no_room_ends_in_one_line(bench: Bench) -> None:
    little = ["--gpu-memory-utilization 0.4"]
    plan = asked(bench, confirm="side-by-side", server_arg=little)
    plan = replace(plan, memory=reading(60))
    with (
        Store.open(f"sqlite:///{bench.root}/a.db") as store,
        pytest.raises(MissingEnvironmentError, match="holds 1 server at once, not 2; what was"),
    ):
        run(plan, store, bench.measurer(plan), lambda _: None)
