"""Gamma by batch size, in vLLM's own form: made of what was measured, and measured itself.

vLLM's ``num_speculative_tokens_per_batch_size`` is a list of inclusive ranges ``[first, last,
gamma]`` of the number of requests in a step; the first range begins at 1, and what lies beyond the
last keeps its gamma (vLLM 0.32 ``vllm/v1/spec_decode/dynamic/utils.py``).
``num_speculative_tokens`` must be given as well and caps it. vLLM passes over a schedule with data
parallelism (``_maybe_disable_dynamic_sd_for_data_parallel`` in ``vllm/config/vllm.py``), and gives
up full CUDA graphs for one unless its second model runner is used
(``_maybe_override_dynamic_sd_cudagraph_mode`` there): one reason why a schedule is measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise

from autotune.core import Candidate, Outcome, Trial
from autotune.decide.stats import Ratio, paired_ratio
from autotune.engine.arguments import argument_value
from autotune.serving.decide.confirm import Confirmed, repeats_by
from autotune.serving.decide.quality import NOT_COMPARED, Compared, compared
from autotune.serving.forecast.forecast import level_rates, others
from autotune.serving.recipe import GAMMA, SCHEDULE
from autotune.serving.scenario import SpecScenario

Ranges = tuple[tuple[int, int, int], ...]
TIE = 0.03
"""A gamma that is faster by less at a concurrency is taken for noise: the static one stays."""


@dataclass(frozen=True)
class Schedule:
    """A schedule and what came of it.

    Attributes:
        said: the verdict, or why there is no schedule.
        table: measured aggregate tok/s by gamma and concurrency that it was made of.
        ranges: vLLM's form; None where there is no schedule.
        candidate: as a setting; None where there is none.
        against: the static setting that it was compared with in the same boots.
        ratio: its speed over that setting's, in the geometric mean over all concurrencies.
        compared: its outputs with those without speculation.
        recommended: whether it is clearly faster than the static setting.
    """

    said: str
    table: Mapping[int, Mapping[int, float]] = field(default_factory=dict)
    ranges: Ranges | None = None
    candidate: Candidate | None = None
    against: Candidate | None = None
    ratio: Ratio | None = None
    compared: Compared = NOT_COMPARED
    recommended: bool = False


def make_ranges(best: Mapping[int, int]) -> Ranges:
    """Ranges from the gamma at each measured concurrency; what is between goes to the nearer one.

    Nearer by ratio: the border of 4 and 8 is their geometric mean.

    Args:
        best: gamma by concurrency.

    Raises:
        ValueError: of nothing, or of a concurrency below 1.
    """
    levels = sorted(best)
    if not levels or levels[0] < 1:
        raise ValueError(f"a schedule needs concurrencies from 1: {levels}")
    ends = [math.isqrt(low * high) for low, high in pairwise(levels)] + [levels[-1]]
    ranges: list[tuple[int, int, int]] = []
    first = 1
    for level, last in zip(levels, ends, strict=True):
        gamma = best[level]
        if ranges and ranges[-1][2] == gamma:
            ranges[-1] = (ranges[-1][0], last, gamma)
        else:
            ranges.append((first, last, gamma))
        first = last + 1
    return tuple(ranges)


def offer(
    trials: Sequence[Trial], static: Candidate, scenario: SpecScenario, server_args: Sequence[str]
) -> Schedule:
    """The schedule that promises more than the best static gamma, by what was measured.

    Args:
        trials: of which the outputs are right.
        static: the best static setting so far; the schedule has its other parameters.
        scenario: gives the concurrencies.
        server_args: of every server.
    """
    table = {
        t.candidate.int(GAMMA): level_rates(t)
        for t in trials
        if others(t.candidate) == others(static) and t.measurement.outcome is Outcome.OK
    }
    if len(scenario.concurrency) < 2:
        return Schedule("one concurrency needs no schedule", table)
    if (argument_value(server_args, "--data-parallel-size") or "1") != "1":
        return Schedule("vLLM takes no schedule with --data-parallel-size above 1", table)
    if len(table) < 2:
        return Schedule("no two values of gamma were measured", table)
    best = {c: _best_at(table, static.int(GAMMA), c) for c in scenario.concurrency}
    if len(set(best.values())) == 1:
        gamma = best[scenario.concurrency[0]]
        said = f"in the boots of the search gamma={gamma} is the best at every concurrency"
        return Schedule(said, table)
    ranges = make_ranges(best)
    text = json.dumps([list(entry) for entry in ranges], separators=(",", ":"))
    params = {**static.params, GAMMA: max(best.values()), SCHEDULE: text}
    return Schedule("not measured", table, ranges, Candidate.of(params))


def _best_at(table: Mapping[int, Mapping[int, float]], static: int, concurrency: int) -> int:
    """The fastest gamma; the static one unless it is clearly beaten."""
    rates = {gamma: levels[concurrency] for gamma, levels in table.items() if levels}
    best = max(rates, key=lambda gamma: (rates[gamma], -gamma))
    home = rates.get(static, 0.0)
    return static if rates[best] <= home * (1 + TIE) else best


def judge(
    schedule: Schedule,
    confirmed: Confirmed,
    reference: Trial | None,
    scenario: SpecScenario,
    min_gain: float,
) -> Schedule:
    """Compare a schedule with the best static setting, round by round of the same boots.

    Args:
        schedule: what :func:`offer` gave, with a candidate.
        confirmed: the rounds, the schedule's boots among them.
        reference: a trial of the same parameters without speculation; None where outputs mean
            nothing (synthetic acceptance).
        scenario: of the rounds.
        min_gain: least gain as a fraction.
    """
    if schedule.candidate is None:
        return schedule
    if confirmed.broken:
        said = "nothing to compare it with: a fresh boot without speculation failed"
        return replace(schedule, said=said)
    static = confirmed.selection.winner.candidate
    trials, rivals = confirmed.trials[schedule.candidate], confirmed.trials[static]
    failed = next((t for t in trials if t.measurement.outcome is not Outcome.OK), None)
    if failed is not None:
        misses = failed.measurement.outcome is Outcome.SLO_MISSED
        how = "it misses its SLO" if misses else "vLLM does not serve it"
        said = f"{how}: {failed.measurement.message}"
        return replace(schedule, said=said, against=static)
    outputs = compared(trials[0], reference)
    before, after = (
        [repeats_by(t, scenario, "geomean") for t in group] for group in (rivals, trials)
    )
    ratio = paired_ratio([*chain(*before)], [*chain(*after)])
    ahead = all(sum(mine) < sum(theirs) for mine, theirs in zip(after, before, strict=True))
    faster = ratio.low > 1 and ahead and ratio.value * (1 - min_gain) >= 1
    right = reference is None or (outputs.known and not outputs.against)
    fell = confirmed.fell.get(schedule.candidate, ())
    said = f"{ratio.value:.3f}× the best static setting in the same boots (geometric mean)"
    if ratio.low > 0:
        said += f", 95 % interval {ratio.low:.3f} to {ratio.high:.3f}"
    if not faster:
        said += ": worse" if ratio.high < 1 else ": a tie"
    if not right:
        none = "none of its outputs could be compared with those without speculation"
        said += f"; {outputs.against or none}"
    said = "; ".join([said, *fell])
    return replace(
        schedule,
        said=said,
        against=static,
        ratio=ratio,
        compared=outputs,
        recommended=faster and right and not fell,
    )
