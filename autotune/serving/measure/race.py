"""What may stop a measurement that is about to begin."""

from __future__ import annotations

from autotune.core import Candidate
from autotune.serving.forecast.forecast import ForecastProposer
from autotune.serving.measure.stopping import Rules
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import SpecScenario


def rules_of(
    candidate: Candidate,
    scenario: SpecScenario,
    baseline: Candidate,
    proposer: ForecastProposer | None = None,
) -> Rules:
    """Tell what may stop the measurement of ``candidate``.

    Measured to the end in any case: the baseline and what outputs are compared with (gamma 0), the
    probe that forecasts are made from, the confirmation, and all where a Pareto front is wanted or
    the load is a mix: what loses in it may be best for a part of it.

    Args:
        candidate: about to be measured.
        scenario: the load.
        baseline: no speculation; it goes on where it misses an SLO.
        proposer: knows the best so far; None outside of the search.
    """
    slo, to_the_end = dict(scenario.slo), candidate == baseline
    several = scenario.objective == "pareto" or scenario.is_mixed
    spared = scenario.round or several or not candidate[GAMMA]
    if spared or proposer is None or proposer.forecast is None:
        return Rules(slo, to_the_end=to_the_end)
    return Rules(slo, proposer.bar(), to_the_end=to_the_end)
