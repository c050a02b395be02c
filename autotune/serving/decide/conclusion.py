"""The result of a job in words: the verdict, what was barred and why, what else must be known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from autotune.core import Candidate, Outcome, Trial
from autotune.decide.stats import LEAST_PAIRS
from autotune.engine.variables import FOLDER
from autotune.serving.decide.beside import beside, disagreeing
from autotune.serving.decide.slices import mix_words
from autotune.serving.forecast.forecast import others
from autotune.serving.job import Result
from autotune.serving.recipe import GAMMA, MOE_CONFIG
from autotune.serving.report.clocks import clock_warnings
from autotune.serving.report.places import place_warnings
from autotune.serving.report.tables import by_concurrency, said_against, setting
from autotune.serving.server.moe_config import DEFAULT
from autotune.store.retry import TRANSIENT
from autotune.util.finding import Severity

UNSTEADY = 0.1
"""Boots of the baseline that differ by more than this share are worth a word."""


def barred(result: Result) -> dict[Candidate, str]:
    """Settings that were faster than the baseline and cannot be recommended, and why."""
    before, found = result.baseline.measurement.value or 0.0, {}
    for trial in result.trials:
        value = trial.measurement.value
        if trial.candidate != result.baseline.candidate and value is not None and value < before:
            why = _why_barred(result, trial.candidate)
            if why:
                found[trial.candidate] = why
    return found


def _why_barred(result: Result, candidate: Candidate) -> str:
    if candidate[GAMMA] and not result.plan.recipe.synthetic and candidate in result.compared:
        found = result.compared[candidate]
        if not found.known:
            return "nothing to compare its outputs with"
        if found.against:
            return found.against
    if result.confirmed is None:
        return ""
    dropped = result.confirmed.dropped.get(candidate)
    trials = result.confirmed.trials.get(candidate, [dropped] if dropped else [])
    said = said_against(result.confirmed, candidate, trials)
    fell = candidate in result.confirmed.fell
    return said if fell or not said else f"a fresh boot failed: {said}"


def verdict(result: Result) -> str:
    """The result in a sentence or two."""
    objective = result.plan.scenario.measure
    if result.confirmed is not None and result.confirmed.broken:
        said = (
            f"nothing can be said: without speculation a fresh boot failed "
            f"({result.confirmed.broken}); --retry-failed tries again"
        )
    elif result.selection.kept_incumbent:
        home = result.baseline.candidate
        if not {*result.plan.points} - {home}:
            return f"{setting(home)} is the only setting: there was nothing to compare it with"
        than = f"the baseline, {setting(home)}" if others(home) else "no speculation"
        said = f"no setting is clearly faster than {than} ({objective})"
        out = [f"{setting(candidate)} ({why})" for candidate, why in barred(result).items()]
        if out:
            said = (
                f"no setting that may be recommended is clearly faster than {than} "
                f"({objective}); faster, but barred: {', '.join(out)}"
            )
        if result.confirmed is not None and result.confirmed.ratios:
            names = ", ".join(setting(c) for c in result.confirmed.ratios)
            said += f"; in fresh boots {names} did not win: a tie, or slower"
    else:
        said = _best(result)
    failed = [t.candidate for t in result.trials if t.measurement.outcome in TRANSIENT]
    if failed:
        names = ", ".join(map(setting, dict.fromkeys(failed)))
        said += f"; NOT measured, because the server failed: {names} (--retry-failed tries again)"
    return said + mix_words(result) + _soaked(result)


def _soaked(result: Result) -> str:
    """What the soak adds to the verdict."""
    if result.soak is None:
        return ""
    lasted = f"a soak of {result.plan.soak_s / 60:.3g} min"
    if result.soak.failures:
        return f"; BUT {lasted} FAILED: {'; '.join(result.soak.failures)}"
    return f"; {lasted} showed nothing against it"


def _best(result: Result) -> str:
    winner = result.selection.winner.candidate
    said = f"best: {setting(winner)}"
    speedup, interval = result.selection.speedup, result.selection.interval
    if speedup is not None:
        said += f", {speedup:.3f}× the baseline's tok/s ({result.plan.scenario.measure})"
    if interval is not None:
        said += f", 95 % interval {interval[0]:.3f} to {interval[1]:.3f}"
    at = by_concurrency(result, winner)
    if len(at) > 1:
        said += f" ({', '.join(f'{value:.3f}× at {c}' for c, value in at.items())})"
    if result.confirmed is not None and result.confirmed.ties:
        tied = ", ".join(map(setting, result.confirmed.ties))
        said += f"; not clearly faster than {tied}: a tie with it"
    return said


def warnings(result: Result) -> list[str]:
    """What a user must know beside the numbers."""
    said = []
    if result.plan.recipe.synthetic:
        said.append(
            "SYNTHETIC acceptance: vLLM was told how many drafted tokens to accept; the speed is "
            "real, the text is not, and outputs were not compared"
        )
    said += [*_output_warnings(result), *_moe_warnings(result)]
    if result.out_of_time:
        said.append("the budget ended the search; run the same command again to go on")
    said += [*_boot_warnings(result), *_dial_warnings(result), *_start_warnings(result)]
    return [*said, *place_warnings(result), *clock_warnings(_measured(result))]


def _measured(result: Result) -> Iterator[Trial]:
    yield from result.trials
    if result.confirmed is not None:
        yield from chain(*result.confirmed.trials.values())


def _dial_warnings(result: Result) -> Iterator[str]:
    """Where one server for every gamma could not be used, or says other than servers of one."""
    if result.no_dial:
        yield f"one server for every gamma could not be used: {result.no_dial}; each had its own"
    if not result.dialled or result.confirmed is None:
        return
    if result.confirmed.way.beside is not None:
        gains = disagreeing(result.trials, result.baseline.candidate, result.confirmed.ratios)
        for candidate, (dial, static) in gains.items():
            yield (
                f"{setting(candidate)}: {static.value:.2f}× the baseline side by side, and "
                f"{dial.value:.2f}× on the dialled server: side by side counts, and gammas that "
                "only the dial measured may rank otherwise (--no-dial)"
            )
        return
    for one in beside(result.trials, result.confirmed.trials):
        if one.differs:
            yield (
                f"{setting(one.candidate)}: servers of one gamma run at {one.ratio:.2f} of what "
                f"the dialled server showed, and boots differ by {one.spread:.0%}: they count, and "
                "gammas that only the dial measured may rank otherwise (--no-dial)"
            )


def _start_warnings(result: Result) -> Iterator[str]:
    """What was known before the start; too few pairs are told by what they came to."""
    for finding in result.plan.findings:
        if finding.severity is not Severity.NOTE and finding.code != "few-pairs":
            yield f"before the start: {finding.message}"


def _output_warnings(result: Result) -> Iterator[str]:
    for candidate, found in result.compared.items():
        if found.against and candidate[GAMMA] != 0:
            yield f"{setting(candidate)}: {found.against}: not recommended"
    why = result.baseline.measurement.details.get("no_texts")
    if why is not None:
        yield (f"long outputs could not be judged, only the first ten tokens of each prompt: {why}")
    for trial in result.references:
        if trial.measurement.outcome is not Outcome.OK:
            yield (
                f"{setting(trial.candidate)} failed ({trial.measurement.message}): the outputs of "
                "settings with its parameters cannot be compared, and these cannot be recommended"
            )


def _boot_warnings(result: Result) -> Iterator[str]:
    if result.confirmed is None:
        return
    for candidate, why in result.confirmed.fell.items():
        yield f"{setting(candidate)}: {'; '.join(why)}: not recommended"
    for candidate in result.confirmed.way.crowded:
        yield (
            f"{setting(candidate)} was NOT confirmed: {result.plan.memory.where} has no room for "
            "its server beside the others, and the dial could not tell it from the best: it may be "
            "as fast (--confirm in-turn boots all of them)"
        )
    in_turn = result.confirmed.way.beside is None
    pairs = result.plan.confirm_rounds * result.plan.scenario.repeats
    if in_turn and pairs < LEAST_PAIRS:
        yield (
            f"{pairs} pairs of repeats give no 95 % interval, so nothing can win: raise --repeats "
            f"or --confirm-boots until their product is {LEAST_PAIRS}"
        )
    boots = [t.measurement.value for t in _boots_of_baseline(result)]
    known = [value for value in boots if value is not None]
    if known and max(known) > min(known) * (1 + UNSTEADY):
        yield (
            f"boots of {setting(result.baseline.candidate)}, the same server each time, differ by "
            f"{max(known) / min(known) - 1:.0%}: is other work on the machine? Smaller differences "
            "between settings say little (--study NAME measures anew)"
        )
    if in_turn and result.plan.confirm_rounds == 1:
        yield (
            "one fresh boot each: speed differs from boot to boot, which its interval does not "
            "know of; --confirm-boots 2 or more tells"
        )
    for number, apart in result.apart.items():
        other = ", in environments that differ (another GPU, driver or package)"
        where = other if apart.environments > 1 else ""
        yield (
            f"the fresh boots of round {number} come from several commands{where}, the first and "
            f"the last {apart.seconds / 3600:.1f} h apart: they did not take turns (--study NAME "
            "measures anew)"
        )


def boots_spread(result: Result) -> float | None:
    """By what share fresh boots of one setting differ, at most; None with one boot of each."""
    trials = () if result.confirmed is None else result.confirmed.trials.values()
    values = [[v for t in boots if (v := t.measurement.value) is not None] for boots in trials]
    return max((max(v) / min(v) - 1 for v in values if len(v) > 1), default=None)


def _boots_of_baseline(result: Result) -> list[Trial]:
    confirmed = result.confirmed
    again = confirmed.trials.get(result.baseline.candidate, []) if confirmed is not None else []
    return [*again] if result.dialled else [result.baseline, *again]


def _moe_warnings(result: Result) -> list[str]:
    """Whether the MoE files given were taken, and whether some are missing, by the logs."""
    trials = [
        t
        for t in result.trials
        if t.measurement.outcome is Outcome.OK
        and t.candidate.params.get(MOE_CONFIG) != DEFAULT  # there vLLM's own is what is wanted
    ]
    details = [t.measurement.details for t in trials]
    used = {path for one in details for path in one.get("moe_used", ())}
    missing = {Path(path).name for one in details for path in one.get("moe_missing", ())}
    folders = [result.plan.recipe.settings(t.candidate).env.get(FOLDER) for t in trials]
    wanting = [
        f"vLLM runs its default MoE configuration for want of {', '.join(sorted(missing))}: "
        "`autotune files` says what makes it"
    ]
    return (wanting if missing else []) + [
        f"no server's log says «Using configuration from …» for a file of {given}: its files "
        "made no difference (vLLM runs the kernel that they are for on a GPU only)"
        for given in dict.fromkeys(folders)
        if given is not None and not any(Path(path).is_relative_to(given) for path in used)
    ]
