"""The control: the baseline booted on every place tells how far places of one kind differ.

What is chosen is decided on one place, where rivals meet in turns. Only who meets there depends on
values of several places: so the margins of that choice are wider by as much as the places differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from autotune.core import Job, Trial
from autotune.serving.cluster.fleet import place_of
from autotune.serving.scenario import SpecScenario

TrialOf = Callable[[Sequence[Job]], Sequence[Trial]]
"""Measures jobs as baselines, or reads them back."""


@dataclass(frozen=True)
class Control:
    """What the control boots say.

    Attributes:
        speeds: by place, the speed of the baseline there over that on the slowest.
        failed: by place, why its control has no value.
    """

    speeds: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def spread(self) -> float:
        """By what share the fastest place is faster than the slowest; 0 with one place."""
        return max(self.speeds.values(), default=1.0) - 1

    def as_json(self) -> dict[str, Any]:
        """For the document of a run."""
        return {
            "speeds": dict(self.speeds),
            "failed": dict(self.failed),
            "spread": self.spread,
        }


def control(
    places: Sequence[str], baseline: Trial, scenario: SpecScenario, trials_of: TrialOf
) -> Control:
    """Boot the baseline on every place on which it was not measured.

    Args:
        places: their names; with one there is nothing to compare.
        baseline: its trial in the search.
        scenario: the load of the search.
        trials_of: measures, on all places at once.
    """
    if len(places) < 2:
        return Control()
    known = {} if scenario.dial else {place_of(baseline.measurement.details): baseline}
    load = replace(scenario, dial=False)
    wanted = [place for place in places if place not in known]
    jobs = [Job(baseline.candidate, replace(load, control=place)) for place in wanted]
    found = dict(zip(wanted, trials_of(jobs), strict=True))
    values, failed = dict[str, float](), dict[str, str]()
    for asked, trial in [*((p, t) for p, t in known.items() if p in places), *found.items()]:
        measured = trial.measurement
        place = place_of(measured.details) or asked  # another one, if the one asked is lost
        if place is not None and measured.value is not None:
            values[place] = measured.value
        elif place is not None:
            failed[place] = measured.message or measured.outcome.value
    slowest = max(values.values(), default=1.0)
    return Control({place: slowest / value for place, value in values.items()}, failed)
