"""From trials to winners. Pure: no clock, no store, no randomness."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.core import NoFeasibleCandidateError, Outcome, Selection, Trial, Workload
from autotune.decide.stats import paired_ratio


def _value(trial: Trial) -> float:
    assert trial.measurement.value is not None  # noqa: S101 - guaranteed by Measurement for OK
    return trial.measurement.value


def select(
    workload: Workload, incumbent: Trial | None, trials: Sequence[Trial], min_gain: float
) -> Selection:
    """The best trial, unless the incumbent is within ``min_gain`` of it.

    vLLM's look-up has no fall-back once a file exists, so a row that does not clearly beat the
    default must be the default's own values.

    Args:
        workload: named in the error.
        incumbent: vLLM's default on this workload, where it could be measured.
        trials: what was searched.
        min_gain: least gain as a fraction of the incumbent's value, such as 0.01.

    Raises:
        NoFeasibleCandidateError: if neither the incumbent nor any trial has a value.
    """
    ok = [t for t in trials if t.measurement.outcome is Outcome.OK]
    if incumbent is not None and incumbent.measurement.outcome is not Outcome.OK:
        incumbent = None
    best = min(ok, key=lambda t: (_value(t), t.sequence, t.candidate.key), default=incumbent)
    if best is None:
        reasons = sorted({t.measurement.outcome.value for t in trials})
        raise NoFeasibleCandidateError(
            f"{workload.label}: no candidate works ({', '.join(reasons) or 'none was tried'})"
        )
    if incumbent is None:
        return Selection(best, None, None, kept_incumbent=False)
    limit = _value(incumbent) * (1 - min_gain)
    beaten = _value(best) <= limit and _value(best) < _value(incumbent)
    # The default searched again and a little faster by chance has gained nothing over itself.
    if not beaten or best.candidate == incumbent.candidate:
        return Selection(incumbent, incumbent, 1.0, kept_incumbent=True)
    speedup = _value(incumbent) / _value(best)
    return Selection(best, incumbent, speedup, kept_incumbent=False)


def select_confirmed(
    workload: Workload, incumbent: Trial | None, finalists: Sequence[Trial], min_gain: float
) -> Selection:
    """The best of candidates that were measured side by side, each sample a round.

    A finalist replaces the incumbent if the whole interval of its speed-up is above 1 and the
    speed-up itself gains at least ``min_gain``.

    Args:
        workload: named in the error.
        incumbent: vLLM's default; None where it cannot run.
        finalists: trials with as many samples, round by round.
        min_gain: least gain as a fraction of the incumbent's value, such as 0.01.

    Raises:
        NoFeasibleCandidateError: if none of them has a value.
    """
    ok = [t for t in finalists if t.measurement.outcome is Outcome.OK]
    if incumbent is None or incumbent.measurement.outcome is not Outcome.OK:
        return select(workload, None, ok, min_gain)
    ratios = {
        t.candidate: paired_ratio(incumbent.measurement.samples, t.measurement.samples)
        for t in ok
        if t.candidate != incumbent.candidate
    }
    gaining = [
        t
        for t in ok
        if (ratio := ratios.get(t.candidate)) is not None
        and ratio.low > 1
        and ratio.value * (1 - min_gain) >= 1
    ]
    if not gaining:
        return Selection(incumbent, incumbent, 1.0, kept_incumbent=True)
    best = max(gaining, key=lambda t: (ratios[t.candidate].value, t.candidate.key))
    ratio = ratios[best.candidate]
    return Selection(best, incumbent, ratio.value, False, (ratio.low, ratio.high))
