"""The words of the project: frozen types that every other module speaks in.

Standard library only. One datum flows one way: space -> proposer -> measurer -> store ->
selection -> export. A bad candidate is an :class:`Outcome`, never an exception; what ends a command
is an :class:`AutotuneError`, which carries the exit code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Any, Protocol, Self, runtime_checkable

Scalar = int | float | str | bool


class ExitCode(IntEnum):
    """What a command's exit status means (documented in docs/reference/cli.md)."""

    DONE = 0
    FLAGGED = 1
    BAD_INPUT = 2
    MISSING_ENVIRONMENT = 3
    NO_FEASIBLE_CANDIDATE = 4
    INTERRUPTED = 130


class AutotuneError(Exception):
    """Ends a command with one clear line: what, where, what to do."""

    exit_code = ExitCode.BAD_INPUT


class BadInputError(AutotuneError):
    """The user's flags, files or names cannot be used."""


class MissingEnvironmentError(AutotuneError):
    """Something the work needs is not there: a package, a GPU, space on the disk."""

    exit_code = ExitCode.MISSING_ENVIRONMENT


class NoFeasibleCandidateError(AutotuneError):
    """The space holds no candidate that this device can run."""

    exit_code = ExitCode.NO_FEASIBLE_CANDIDATE


class Outcome(StrEnum):
    """What became of a candidate. Only ``OK`` carries a value."""

    OK = "ok"
    CONSTRAINT = "constraint"
    COMPILE_ERROR = "compile_error"
    OUT_OF_RESOURCES = "out_of_resources"
    OUT_OF_MEMORY = "out_of_memory"
    HOST_MEMORY = "host_memory"
    """Ended, or not begun, so that a machine with unified memory would not run out of it."""
    TIMEOUT = "timeout"
    CRASH = "crash"
    RUNTIME_ERROR = "runtime_error"
    WRONG_RESULT = "wrong_result"
    SLO_MISSED = "slo_missed"
    CANNOT_WIN = "cannot_win"
    """Stopped half-way: the best that it could still come to is clearly worse than another."""


class Basis(StrEnum):
    """Where a number comes from. A predicted number is never called measured."""

    PREDICTED = "predicted"
    MEASURED = "measured"
    SYNTHETIC = "synthetic"


class Phase(StrEnum):
    """Why a trial was made."""

    BASELINE = "baseline"
    SEARCH = "search"
    CONFIRM = "confirm"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Candidate:
    """One point of a space: parameter names and values, order-free."""

    items: tuple[tuple[str, Scalar], ...]

    @classmethod
    def of(cls, params: Mapping[str, Scalar]) -> Self:
        """Build from a mapping; the order of its keys does not matter."""
        return cls(tuple(sorted(params.items())))

    @cached_property
    def params(self) -> dict[str, Scalar]:
        """The parameters as a dict (do not change it)."""
        return dict(self.items)

    @cached_property
    def key(self) -> str:
        """Hash of the canonical JSON; the identity used in the database."""
        return digest(self.params)

    def __getitem__(self, name: str) -> Scalar:
        return self.params[name]

    @cached_property
    def ints(self) -> dict[str, int]:
        """The parameters where all are integers (do not change it).

        Raises:
            TypeError: if one is not.
        """
        return {name: self.int(name) for name, _ in self.items}

    def int(self, name: str) -> int:
        """The integer parameter ``name``.

        Raises:
            TypeError: if the value is not an integer.
        """
        value = self.params[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is not an integer: {value!r}")
        return value


@runtime_checkable
class Workload(Protocol):
    """What a candidate is measured on (a MoE problem at one M, a serving scenario, …)."""

    @property
    def key(self) -> str:
        """Identity used in the database."""

    @property
    def label(self) -> str:
        """Short name for people, such as ``M=64``."""

    def as_json(self) -> dict[str, Any]:
        """Everything that defines the workload, as JSON values."""


@dataclass(frozen=True)
class Measurement:
    """What came of running (or predicting) one candidate on one workload.

    ``value`` is what the search minimises (µs per call for the MoE half); ``samples`` are the raw
    values behind it, in the same unit; ``seconds`` is the wall time spent on getting it.
    """

    outcome: Outcome
    basis: Basis
    value: float | None = None
    samples: tuple[float, ...] = ()
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if (self.outcome is Outcome.OK) != (self.value is not None):
            raise ValueError(f"outcome {self.outcome} and value {self.value} do not go together")


@dataclass(frozen=True)
class Trial:
    """One measured candidate: ``sequence`` counts the trials of a (search, workload, phase)."""

    candidate: Candidate
    workload_key: str
    phase: Phase
    sequence: int
    measurement: Measurement


class Proposer(Protocol):
    """Chooses what to try next for one workload.

    Between two calls of :meth:`ask` every proposed candidate is told, in the order asked: the
    proposals are then a function of the seed and the trials told, whatever ran in parallel.
    """

    def ask(self, n: int, hints: Sequence[Candidate] = ()) -> list[Candidate]:
        """Up to ``n`` candidates, none proposed before; an empty list ends the search.

        ``hints`` are candidates worth trying first, such as what won on a similar workload.
        """

    def tell(self, trial: Trial) -> None:
        """Take in what came of a candidate, proposed here or read back from the store."""


@dataclass(frozen=True)
class Job:
    """A job tells a measurer all that it needs to know of one measurement.

    Two jobs are equal if they measure the same candidate on the same workload.

    Attributes:
        candidate: what to measure.
        workload: what to measure it on.
        rules: what may stop the measurement half-way, in the words of the kind; None is nothing.
        parts: what earlier runs had finished of it, by name.
    """

    candidate: Candidate
    workload: Workload
    rules: Any = field(default=None, compare=False)
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Part:
    """A part of a measurement under way is finished, such as one repeat of a load.

    A measurer yields it before it begins the next part, and the loop stores it at once: a kill
    takes only the part under way. A later job for the same gives it back (:attr:`Job.parts`).
    """

    candidate: Candidate
    workload: Workload
    name: str
    value: Mapping[str, Any]


class Measurer(Protocol):
    """Turns candidates into measurements. Knows nothing of the store; used as a context manager.

    It pickles until it is entered, so that another process or machine can be sent it.
    """

    @property
    def basis(self) -> Basis:
        """What the values of this measurer are."""

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement | Part]:
        """Yield one measurement per job, in the order given, each as soon as it is known.

        Parts come in between, each before its measurement. Jobs may be read ahead of the results.
        Where they end, all that were read are answered; the caller may have more of them later,
        and then calls again.
        Failures of a candidate are outcomes; an exception means that nothing can be measured.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True)
class Group:
    """A group of candidates is to be measured side by side on one workload.

    ``seed`` is of what is drawn at random for all of them alike, such as routings. The first is
    what the others are compared with. ``parts`` is what earlier runs had finished of each, by name.
    """

    workload: Workload
    candidates: tuple[Candidate, ...]
    seed: int
    parts: Mapping[Candidate, Mapping[str, Mapping[str, Any]]] = field(
        default_factory=dict, compare=False
    )


@runtime_checkable
class SideBySide(Measurer, Protocol):
    """A measurer that also measures candidates against each other, in turns and under one clock."""

    def compare(
        self, groups: Iterable[Group], *, check: bool
    ) -> Iterator[dict[Candidate, Measurement] | Part]:
        """Yield the measurements of each group, in the order given; in a group in any order.

        Parts come in between, as in :meth:`Measurer.measure`, from a measurer that knows of them.
        Nothing of a search has run where they are made. Each measurement's details name its
        comparison (``compared``) and the ``seed``; samples of a comparison are paired by their
        place.

        Args:
            groups: what to compare; may be read ahead of the results.
            check: compare outputs with the reference too.
        """


class HoldsNothing:
    """The context-manager half of a :class:`Measurer` that has nothing to release."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to do."""


class Cache(Protocol):
    """A persistent map from a JSON key to a JSON value, such as compile results in the database."""

    def get(self, key: str) -> dict[str, Any] | None:
        """The value stored under ``key``, or None."""

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Store and persist before returning."""


@dataclass(frozen=True)
class Selection:
    """The choice for one workload: the incumbent (vLLM's default) stays unless clearly beaten.

    ``interval`` holds the 95 % ends of ``speedup`` where both were measured side by side.
    """

    winner: Trial
    incumbent: Trial | None
    speedup: float | None
    kept_incumbent: bool
    interval: tuple[float, float] | None = None
