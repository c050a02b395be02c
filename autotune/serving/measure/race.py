"""What may stop each measurement, as the search goes on."""

from __future__ import annotations

from autotune.core import Candidate
from autotune.serving.forecast.forecast import ForecastProposer
from autotune.serving.measure.stopping import Rules
from autotune.serving.recipe import GAMMA
from autotune.serving.scenario import SpecScenario


class Race:
    """Gives the rules for a measurement about to begin.

    Measured to the end in any case: the baseline and what outputs are compared with (gamma 0), the
    probe that forecasts are made from, the confirmation, and all where a Pareto front is wanted.
    """

    def __init__(self, baseline: Candidate) -> None:
        """No setting stands against the baseline yet."""
        self.baseline = baseline
        self.proposer: ForecastProposer | None = None
        """Knows the best so far, once the search has begun."""

    def rules(self, candidate: Candidate, scenario: SpecScenario) -> Rules:
        """What may stop the measurement of ``candidate``."""
        slo, to_the_end = dict(scenario.slo), candidate == self.baseline
        spared = scenario.round or scenario.objective == "pareto" or not candidate[GAMMA]
        if spared or self.proposer is None or self.proposer.forecast is None:
            return Rules(slo, to_the_end=to_the_end)
        return Rules(slo, self.proposer.bar(), to_the_end=to_the_end)
