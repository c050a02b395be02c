"""An Optuna study in memory, made of what our tables hold, and the sampler that it asks.

The study is made anew before every batch from the trials told (docs/adr/0001), with a seed derived
from their number, so that what a sampler proposes depends on the seed and the history alone.
Values of parameters are given as places in their lists, ordered where they are numbers; a proposal
that is not to be had (known, or ruled out) becomes the nearest that is.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from autotune.core import BadInputError, Candidate, MissingEnvironmentError, Scalar, digest
from autotune.propose.names import GRID, MODEL, NAMED
from autotune.propose.proposers import SAMPLERS

_STARTUP = 4
"""Boots before GP and TPE model anything; their own 10 are the whole of a small grid."""

_NEEDS = {"gp": ("scipy", "torch")}
"""Packages that Optuna loads when a sampler first models something, which is after some boots."""

Make = Callable[[int], optuna.samplers.BaseSampler]


@dataclass(frozen=True)
class Told:
    """What came of one point.

    Attributes:
        point: a value of every parameter.
        values: what is minimised, one for each direction; None where it was not measured out.
        constraints: by name, how far a limit is exceeded; above 0 it is broken.
        partial: the least that its value can be, where its measurement was stopped.
    """

    point: Candidate
    values: tuple[float, ...] | None
    constraints: Mapping[str, float] = field(default_factory=dict)
    partial: float | None = None


class ModelSampler(optuna.samplers.BaseSampler):
    """Samples what a model of ours chooses; what the model does not know of is drawn at random."""

    def __init__(self, choose: Callable[[], Candidate], space: Mapping[str, Sequence[Scalar]]):
        """Take the model.

        Args:
            choose: gives the next point.
            space: the values of each parameter, whose places are what is sampled.
        """
        self._choose, self._space = choose, space
        self._rest = optuna.samplers.RandomSampler(seed=0)

    def infer_relative_search_space(
        self,
        study: optuna.Study,  # noqa: ARG002 - the space is given
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """Return what :meth:`sample_relative` samples."""
        return _distributions(self._space)

    def sample_relative(
        self,
        study: optuna.Study,  # noqa: ARG002 - the model was told the same trials
        trial: FrozenTrial,  # noqa: ARG002
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, int]:
        """Return the places of the values that the model chooses."""
        chosen = self._choose()
        return {name: self._space[name].index(chosen[name]) for name in search_space}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> int:
        """Return a place at random, of a parameter that the model does not know of."""
        found: int = self._rest.sample_independent(study, trial, param_name, param_distribution)
        return found


class StudyInMemory:
    """Asks an Optuna sampler, which knows what was told, for one open point after another."""

    def __init__(
        self,
        space: Mapping[str, Sequence[Scalar]],
        told: Sequence[Told],
        make: Make,
        seed: int,
        directions: int = 1,
    ) -> None:
        """Make the study.

        Args:
            space: the values of each parameter.
            told: what is known, in the order in which it was learnt.
            make: makes the sampler from a seed.
            seed: of the search; the number of trials told changes what is drawn.
            directions: how many values are minimised.
        """
        self._space, self._kinds = space, _distributions(space)
        drawn = int(digest([seed, len(told)]), 16) % 2**32
        self.study = optuna.create_study(
            directions=["minimize"] * directions, sampler=make(drawn), pruner=None
        )
        self.study.add_trials([self._trial(one, directions) for one in told])

    def _trial(self, told: Told, directions: int) -> FrozenTrial:
        whole = told.values is not None
        stopped = told.partial is not None and directions == 1 and not whole
        return optuna.trial.create_trial(
            params=dict(zip(self._space, self._places(told.point), strict=True)),
            distributions=self._kinds,
            values=told.values,
            # Behind every completed one, by its intermediate value where it has one.
            state=TrialState.COMPLETE if whole else TrialState.PRUNED,
            intermediate_values={1: told.partial or 0.0} if stopped else {},
            constraints=dict(told.constraints),
        )

    def _places(self, point: Candidate) -> tuple[int, ...]:
        return tuple(values.index(point[name]) for name, values in self._space.items())

    def ask(self, points: Sequence[Candidate], fixed: Candidate | None = None) -> Candidate:
        """Return one of ``points``, the nearest to what the sampler proposes.

        Args:
            points: those that may be asked for; not empty.
            fixed: asked for in place of what the sampler proposes.
        """
        if fixed is not None:
            self.study.enqueue_trial(dict(zip(self._space, self._places(fixed), strict=True)))
        asked = self.study.ask(self._kinds)
        place = tuple(int(asked.params[name]) for name in self._space)
        return min(points, key=lambda p: (math.dist(self._places(p), place), self._places(p)))


def maker(
    name: str, choose: Callable[[], Candidate], space: Mapping[str, Sequence[Scalar]]
) -> Make:
    """Return what makes the sampler of a name, one of :data:`NAMED` or MODULE:CLASS.

    Raises:
        BadInputError: no such sampler.
    """
    made: dict[str, Make] = {
        MODEL: lambda _: ModelSampler(choose, space),
        "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP),
        "tpe": lambda seed: optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            constant_liar=True,
            n_startup_trials=_STARTUP,
        ),
        "random": SAMPLERS["random"],
        GRID: lambda seed: optuna.samplers.GridSampler(
            {name: range(len(values)) for name, values in space.items()}, seed=seed
        ),
    }
    return made[name] if name in made else _loaded(check_sampler(name))


def check_sampler(name: str) -> str:
    """Return the name of a sampler that there is.

    Raises:
        BadInputError: there is none of this name.
        MissingEnvironmentError: it wants a package that is not here.
    """
    if name not in NAMED:
        _loaded(name)
    lacking = [one for one in _NEEDS.get(name, ()) if find_spec(one) is None]
    if lacking:
        raise MissingEnvironmentError(f"--sampler {name}: pip install {' '.join(lacking)}")
    return name


def _loaded(name: str) -> Make:
    """Return a user's own sampler, which is given the seed if it takes one."""
    module, colon, attribute = name.partition(":")
    known = f"{', '.join(NAMED)}, or MODULE:CLASS"
    if not (colon and module and attribute):
        raise BadInputError(f"--sampler: no sampler {name!r}; known: {known}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInputError(f"--sampler: {name}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, optuna.samplers.BaseSampler)):
        raise BadInputError(f"--sampler: {name} is no class of optuna.samplers.BaseSampler")
    takes_seed = "seed" in inspect.signature(found).parameters
    build: Callable[..., optuna.samplers.BaseSampler] = found

    def make(seed: int) -> optuna.samplers.BaseSampler:
        return build(seed=seed) if takes_seed else build()

    try:
        make(0)
    except TypeError as error:
        raise BadInputError(f"--sampler: {name} wants more than a seed: {error}") from None
    return make


def _distributions(space: Mapping[str, Sequence[Scalar]]) -> dict[str, BaseDistribution]:
    """Places in each list of values: ordered where they are numbers that go one way."""
    found: dict[str, BaseDistribution] = {}
    for name, values in space.items():
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        ordered = len(numbers) == len(values) and numbers in (
            sorted(numbers),
            sorted(numbers, reverse=True),
        )
        last = len(values) - 1
        found[name] = (
            IntDistribution(0, last) if ordered else CategoricalDistribution(range(last + 1))
        )
    return found
