"""The search of ``autotune spec`` on a grid of servers that was measured exhaustively.

    python -m benchmarks.replay_grid GRID.json [SKIP [EXPERTS,CHOSEN]]

Replays the proposer on the recorded rates (the median of every setting's repeats, without those of
its first SKIP boots if it has more; 0 by default), and prints what it booted, what it found against
the best of the grid, what Optuna's TPE and a random order find with as many boots, and PREDICTED
against measured rates of every gamma. Where settings were booted several times, it also replays
the search with one boot of each, drawn at random, as a user has it. EXPERTS and CHOSEN are those
of the target, if it is a mixture. Settings that differ in their environment alone, such as two MoE
files, are set side by side: the repeats of every round in pairs.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from autotune.core import Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.decide.stats import Ratio, paired_ratio
from autotune.serving.forecast.acceptance import distinct_experts
from autotune.serving.forecast.forecast import ForecastProposer
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import STATIC_OBJECTIVES, SpecScenario

SEEDS = 20
DRAWS = 200


def growth_of(experts: str) -> Callable[[int], float]:
    """How a verification grows with its rows: as the experts read where the target has some."""
    if not experts:
        return float
    return functools.partial(distinct_experts, *map(int, experts.split(",")))


def pooled(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The levels of several rounds as one: median rates, and the acceptance of the last."""
    levels = {c: dict(level) for c, level in rows[-1]["levels"].items()}
    for c, level in levels.items():
        level["repeats"] = [rate for row in rows for rate in row["levels"][c]["repeats"]]
        level["tok_s"] = statistics.median(level["repeats"])
    return levels


def is_plain(setting: dict[str, Any]) -> bool:
    """Whether a setting is one of the grid, g0 to gN, and not one beside it."""
    return bool(re.fullmatch(r"g\d+", setting["name"]))


def rows_of(result: dict[str, Any], setting: str, load: str) -> list[dict[str, Any]]:
    return [r for r in result["measured"] if (r["setting"], r["load"]) == (setting, load)]


def print_measured(result: dict[str, Any], skip: int) -> None:
    """Every setting, load and concurrency: median and standard deviation of all repeats."""
    print("setting     load      c   tok/s         TTFT p50 ms   TPOT p50 ms  boots")
    for setting in result["config"]["settings"]:
        for load in result["config"]["loads"]:
            rows = rows_of(result, setting["name"], load["name"])
            rows = rows[skip:] or rows
            for c in rows[0]["levels"] if rows else ():
                levels = [row["levels"][c] for row in rows]
                rates = [rate for level in levels for rate in level["repeats"]]
                ttft = statistics.fmean(level["ttft_ms"]["p50"] for level in levels)
                tpot = statistics.fmean(level["tpot_ms"]["p50"] for level in levels)
                print(
                    f"{setting['name']:11} {load['name']:6} {c:>4}  {statistics.median(rates):6.0f}"
                    f" ± {statistics.pstdev(rates):<4.0f} {ttft:12.1f} {tpot:13.2f} {len(rows):6}"
                )
    print()


def paired(
    result: dict[str, Any], names: tuple[str, str], load: str, c: int, skip: int
) -> Ratio | None:
    """Repeats of one setting over those of another in the rounds of both; None without any."""
    first, second = (
        {r["round"]: r["levels"][str(c)]["repeats"] for r in rows_of(result, name, load)}
        for name in names
    )
    both = sorted(first.keys() & second.keys())
    rounds = both[skip:] or both
    if not rounds:
        return None
    return paired_ratio(*([x for r in rounds for x in repeats[r]] for repeats in (first, second)))


def print_pairs(result: dict[str, Any], skip: int) -> None:
    """The first setting of its flags against every other of them: ratio of tok/s, 95 % interval."""
    by_flags: dict[str, list[str]] = {}
    for setting in result["config"]["settings"]:
        flags = json.dumps([setting["gamma"], setting.get("args", [])])
        by_flags.setdefault(flags, []).append(setting["name"])
    pairs = [(first, other) for first, *others in by_flags.values() for other in others]
    levels = [(load["name"], c) for load in result["config"]["loads"] for c in load["concurrency"]]
    for names, (load, c) in itertools.product(pairs, levels):
        ratio = paired(result, names, load, c, skip)
        if ratio is None:
            continue
        # 0 and infinity: too few pairs
        within = f", {ratio.low:.3f} to {ratio.high:.3f}" if ratio.low else ""
        what = f"{' over '.join(names)}, {load}, c={c}"
        print(f"{what}: {ratio.value:.3f}{within} ({ratio.pairs} pairs)")


def boots_of(result: dict[str, Any], skip: int) -> dict[int, list[dict[str, Any]]]:
    """What the first load measured in the boots of every plain setting, by gamma."""
    load = result["config"]["loads"][0]["name"]
    gammas = {s["name"]: s["gamma"] for s in result["config"]["settings"] if is_plain(s)}
    found = {gamma: rows_of(result, name, load) for name, gamma in gammas.items()}
    return {gamma: rows[skip:] or rows for gamma, rows in found.items() if rows}


def scenario_of(result: dict[str, Any], objective: str) -> SpecScenario:
    load = result["config"]["loads"][0]
    return SpecScenario(
        "target",
        "drafter",
        load["prompts"],
        "",
        tuple(load["concurrency"]),
        load["max_tokens"],
        ignore_eos=True,
        chat=True,
        repeats=load["repeats"],
        waves=load["waves"],
        objective=objective,
    )


def trials(
    result: dict[str, Any], scenario: SpecScenario, boots: Mapping[int, Sequence[dict[str, Any]]]
) -> dict[int, Trial]:
    """A trial of every gamma of its boots taken together, by gamma."""
    found = {}
    basis = Basis.SYNTHETIC if result["config"]["synthetic"] else Basis.MEASURED
    for gamma, rows in boots.items():
        levels = pooled(rows)
        rates = {int(c): level["tok_s"] for c, level in levels.items()}
        value = scenario.microseconds(rates)
        details = {"levels": levels, "outputs": []}
        measurement = Measurement(Outcome.OK, basis, value, (value,), details=details)
        phase = Phase.SEARCH if gamma else Phase.BASELINE
        found[gamma] = Trial(Candidate.of({GAMMA: gamma}), scenario.key, phase, gamma, measurement)
    return found


def times_of(known: Mapping[int, Trial]) -> dict[int, float]:
    return {gamma: trial.measurement.value or 0.0 for gamma, trial in known.items()}


def searched(
    known: Mapping[int, Trial], scenario: SpecScenario, growth: Callable[[int], float]
) -> tuple[list[int], ForecastProposer]:
    """Every gamma that the search boots, in its order, and what it knows in the end."""
    grid = [trial.candidate for trial in known.values()]
    proposer = ForecastProposer(grid, known[0], scenario, growth)
    booted = [0]
    while asked := proposer.ask(1):
        booted.append(asked[0].int(GAMMA))
        proposer.tell(known[booted[-1]])
    return booted, proposer


def with_one_boot(
    result: dict[str, Any],
    scenario: SpecScenario,
    boots: Mapping[int, Sequence[dict[str, Any]]],
    true: Mapping[int, float],
    growth: Callable[[int], float],
) -> str:
    """The search on one boot of every gamma, against the best of the ``true`` times by all boots.

    Beside what it measured best: the better of its best two, which is what it confirms where fresh
    boots tell them apart; and what booting all of them once would choose.
    """
    best = min(true.values())
    numbers, chosen, better, exhaustive = [], [], [], []
    for seed in range(DRAWS):
        drawn = random.Random(seed)
        known = trials(result, scenario, {g: [drawn.choice(rows)] for g, rows in boots.items()})
        times = times_of(known)
        booted, _ = searched(known, scenario, growth)
        ranked = sorted(booted, key=times.__getitem__)
        numbers.append(len(booted))
        chosen.append(true[ranked[0]] / best - 1)
        better.append(min(true[gamma] for gamma in ranked[:2]) / best - 1)
        exhaustive.append(true[min(times, key=times.__getitem__)] / best - 1)
    mean = statistics.fmean
    return (
        f"one boot of each, {DRAWS} draws: {mean(numbers):.1f} boots, behind {mean(chosen):.1%} "
        f"on average, {max(chosen):.1%} at worst; the better of two {mean(better):.1%}, "
        f"{max(better):.1%}; all {len(boots)} booted {mean(exhaustive):.1%}, {max(exhaustive):.1%}"
    )


def tpe_order(times: dict[int, float], first: list[int], seed: int) -> list[int]:
    """The order in which Optuna's TPE comes to all gammas; what it asks for again costs nothing."""
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(sampler=sampler)
    gammas = sorted(times)
    for gamma in first:
        study.enqueue_trial({"place": gammas.index(gamma)})
    order: list[int] = []
    while len(order) < len(times):
        trial = study.ask()
        gamma = gammas[trial.suggest_int("place", 0, len(gammas) - 1)]
        study.tell(trial, times[gamma])
        if gamma not in order:
            order.append(gamma)
    return order


def random_order(times: dict[int, float], first: list[int], seed: int) -> list[int]:
    rest = [gamma for gamma in times if gamma not in first]
    random.Random(seed).shuffle(rest)
    return [*first, *rest]


def regrets(order: Any, times: dict[int, float], first: list[int], boots: int) -> str:
    """Median and worst regret of SEEDS orders after so many boots."""
    best = min(times.values())
    found = [min(times[g] for g in order(times, first, s)[:boots]) / best - 1 for s in range(SEEDS)]
    return f"{statistics.median(found):.1%} median, {max(found):.1%} worst"


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    result = json.loads(Path(sys.argv[1]).read_text())
    skip = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    print_measured(result, skip)
    print_pairs(result, skip)
    if not any(is_plain(setting) for setting in result["config"]["settings"]):
        return
    boots = boots_of(result, skip)
    growth = growth_of(sys.argv[3] if len(sys.argv) > 3 else "")
    for objective in STATIC_OBJECTIVES:
        scenario = scenario_of(result, objective)
        known = trials(result, scenario, boots)
        booted, proposer = searched(known, scenario, growth)
        times = times_of(known)
        best, chosen = min(times, key=times.__getitem__), min(booted, key=times.__getitem__)
        print(
            f"{objective:9}  booted {booted} of {len(known)}  chose {chosen}, best {best}: "
            f"{times[chosen] / times[best] - 1:.1%} behind"
        )
        first = [0, max(times)]
        for name, order in (("TPE", tpe_order), ("random", random_order)):
            said = regrets(order, times, first, len(booted))
            print(f"           {name} with {len(booted)} boots, {SEEDS} seeds: {said}")
        if any(len(rows) > 1 for rows in boots.values()):
            print(f"           {with_one_boot(result, scenario, boots, times, growth)}")
        forecast = proposer.forecast
    if forecast is None:
        return
    levels = scenario.concurrency
    print("\ngamma  " + "  ".join(f"c={c}: measured  predicted  error" for c in levels))
    for gamma, trial in sorted(known.items()):
        cells = []
        for c, predicted in forecast.tok_s[gamma].items():
            measured = trial.measurement.details["levels"][str(c)]["tok_s"]
            cells.append(f"{measured:13.0f} {predicted:10.0f} {predicted / measured - 1:6.0%}")
        print(f"{gamma:5}  " + "  ".join(cells))


if __name__ == "__main__":
    main()
