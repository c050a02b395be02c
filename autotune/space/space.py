"""Search spaces: ``search_spaces/**/*.yaml`` read into values, named constraints and enumeration.

A constraint is the name of a Python function that the tuned half registers (never an expression
that is evaluated): the file says which apply, the code says what they mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationInfo,
    field_validator,
)

from autotune.core import BadInputError, Candidate, NoFeasibleCandidateError, Scalar, digest
from autotune.space.published import Published
from autotune.util.resources import data_root
from autotune.util.yamlfile import load_yaml

Check = Callable[[Candidate], str | None]
"""A constraint bound to its problem: the reason why a candidate is refused, or None."""

_MOST_CANDIDATES = 1_000_000
_MOST_WHOLE = 1_048_576


def _distinct(values: list[Scalar]) -> list[Scalar]:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is listed twice")
    return values


_Values = Annotated[
    list[StrictBool | StrictInt | StrictStr],
    Field(min_length=1, max_length=1000),
    AfterValidator(_distinct),
]


class _Parameter(BaseModel):
    model_config = ConfigDict(extra="forbid")
    values: _Values
    why: StrictStr


class _SpaceFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: StrictStr
    title: StrictStr
    source: StrictStr
    parameters: Annotated[dict[str, _Parameter], Field(min_length=1)]
    constraints: list[StrictStr] = []
    published: Published | None = None

    @field_validator("published")
    @classmethod
    def _of_this_space(cls, published: Published | None, info: ValidationInfo) -> Published | None:
        """A figure with a misspelt parameter would stand beside no candidate."""
        known = info.data.get("parameters", {})
        figures = published.figures if published else []
        strange = [name for f in figures for name in f.setting if known and name not in known]
        if strange:
            raise ValueError(f"a figure's setting names {strange[0]!r}, which is no parameter here")
        return published

    @field_validator("parameters")
    @classmethod
    def _those_of_the_kernel(
        cls, parameters: dict[str, _Parameter], info: ValidationInfo
    ) -> dict[str, _Parameter]:
        """The names and values that the context, see :func:`load_space`, asks for."""
        whole: Sequence[str] | None = info.context
        if whole is None:
            return parameters
        for name, parameter in parameters.items():
            if name not in whole:
                raise ValueError(f"unknown parameter {name!r}; the kernel has {', '.join(whole)}")
            for value in parameter.values:
                if type(value) is not int or not 1 <= value <= _MOST_WHOLE:
                    raise ValueError(
                        f"{name}: {value!r} is not a whole number from 1 to {_MOST_WHOLE}"
                    )
        missing = [name for name in whole if name not in parameters]
        if missing:
            raise ValueError(f"{missing[0]} is missing; the kernel has {', '.join(whole)}")
        return parameters


@dataclass(frozen=True)
class Space:
    """A finite product of parameter values, in the order of the file, and constraint names.

    ``published`` is what others measured on some of its points; it decides nothing.
    """

    name: str
    parameters: tuple[tuple[str, tuple[Scalar, ...]], ...]
    constraints: tuple[str, ...] = ()
    published: Published | None = field(default=None, compare=False)

    @cached_property
    def digest(self) -> str:
        """Changes when values or constraints change; not with titles or comments."""
        return digest([self.parameters, self.constraints])

    @property
    def size(self) -> int:
        """Number of points before any constraint."""
        return math.prod(len(values) for _, values in self.parameters)

    def __contains__(self, candidate: Candidate) -> bool:
        given = candidate.params
        return len(given) == len(self.parameters) and all(
            name in given and given[name] in values for name, values in self.parameters
        )

    def candidates(self) -> Iterator[Candidate]:
        """Every point, last parameter fastest."""
        names = [name for name, _ in self.parameters]
        for values in itertools.product(*(values for _, values in self.parameters)):
            yield Candidate.of(dict(zip(names, values, strict=True)))

    def feasible(self, checks: Mapping[str, Check]) -> list[Candidate]:
        """The points that pass every constraint named in the file.

        Raises:
            BadInputError: if the file names a constraint that ``checks`` does not have.
            NoFeasibleCandidateError: if nothing passes; names the constraint that refused most.
        """
        unknown = sorted(set(self.constraints) - set(checks))
        if unknown:
            raise BadInputError(
                f"space {self.name}: unknown constraint {unknown[0]!r}; known: "
                + ", ".join(sorted(checks))
            )
        refused = dict.fromkeys(self.constraints, 0)
        passed = []
        for candidate in self.candidates():
            first = next((n for n in self.constraints if checks[n](candidate) is not None), None)
            if first is None:
                passed.append(candidate)
            else:
                refused[first] += 1
        if not passed:
            worst = max(refused, key=lambda name: refused[name])
            raise NoFeasibleCandidateError(
                f"space {self.name}: none of its {self.size} candidates is feasible here "
                f"({refused[worst]} refused by {worst}); widen the space or name another"
            )
        return passed


def space_names(half: str) -> list[str]:
    """Names of the spaces that come with the project for ``half`` (``moe`` or ``spec``)."""
    return sorted(path.stem for path in (data_root() / "search_spaces" / half).glob("*.yaml"))


def load_space(ref: str, half: str, whole: Sequence[str] | None = None) -> Space:
    """Read a space by its name, or by the path of a YAML file.

    Args:
        ref: the name or the path.
        half: ``moe`` or ``spec``.
        whole: the parameters that the file must have, whole numbers from 1, and no others; None
            accepts any.

    Raises:
        BadInputError: unknown name, or a file that is malformed (with its line and key).
    """
    path = Path(ref)
    if path.suffix not in {".yaml", ".yml"}:
        path = data_root() / "search_spaces" / half / f"{ref}.yaml"
        if ref not in space_names(half):
            raise BadInputError(
                f"no space {ref!r}; known: {', '.join(space_names(half))}, or the path of a .yaml "
                "file"
            )
    file = load_yaml(path, _SpaceFile, context=whole)
    space = Space(
        name=file.name,
        parameters=tuple((n, tuple(p.values)) for n, p in file.parameters.items()),
        constraints=tuple(file.constraints),
        published=file.published,
    )
    if space.size > _MOST_CANDIDATES:
        raise BadInputError(
            f"{path}: parameters: {space.size} candidates are more than {_MOST_CANDIDATES}"
        )
    return space
