"""A study as one small file to give away, and such a file of somebody else taken into a database.

A bundle holds results, setups and environments: no path, no name of a host or user, no command, no
token. It is gzip over JSON; what is read is limited in bytes and held to the models here.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from autotune.core import (
    BadInputError,
    Basis,
    Measurement,
    Outcome,
    Phase,
    digest,
)
from autotune.store.records import RunStatus
from autotune.util import edge

FORMAT = "autotune bundle"
VERSION = 1
MOST_BYTES = 16 * edge.MIB
"""Of the file: five thousand trials take about 0.4 MiB."""
MOST_JSON = 96 * edge.MIB
MOST_TRIALS = 200_000
MESSAGE = 600
"""Characters of a message that are kept."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("not printable")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Scalar = int | float | str | bool
Index = Annotated[int, Field(ge=0, le=MOST_TRIALS)]
Time = Annotated[AwareDatetime, Field(strict=False)]


class _Model(BaseModel):
    """Nothing that is not named, no text for a number, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class BundledTrial(_Model):
    """A trial with its measurement; ``run`` and ``workload`` count in the search."""

    run: Index
    workload: Index
    phase: Annotated[Phase, Field(strict=False)]
    sequence: Index
    candidate: Annotated[dict[Name, Scalar], Field(min_length=1, max_length=64)]
    outcome: Annotated[Outcome, Field(strict=False)]
    basis: Annotated[Basis, Field(strict=False)]
    value: Annotated[float, Field(ge=0)] | None
    samples: Annotated[list[Annotated[float, Field(ge=0)]], Field(max_length=10_000)]
    message: Annotated[str, Field(max_length=MESSAGE)]
    details: dict[str, Any]
    seconds: Annotated[float, Field(ge=0)]
    created_at: Time

    @model_validator(mode="after")
    def _has_a_value_if_it_worked(self) -> Self:
        self.measurement()
        return self

    def measurement(self) -> Measurement:
        """Return the measurement.

        Raises:
            ValueError: its outcome and its value do not go together.
        """
        return Measurement(
            self.outcome,
            self.basis,
            self.value,
            tuple(self.samples),
            self.message,
            self.details,
            self.seconds,
        )


class BundledWorkload(_Model):
    """What candidates were measured on; a :class:`autotune.core.Workload` by its fields."""

    key: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    label: Name
    spec: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return everything that defines it."""
        return self.spec


class BundledRun(_Model):
    """One command at work; ``environment`` counts in the bundle."""

    environment: Index
    started_at: Time
    ended_at: Time | None
    status: Annotated[RunStatus, Field(strict=False)]


class BundledSearch(_Model):
    """A study under one setup."""

    setup: Annotated[dict[str, Any], Field(min_length=1)]
    verdict: dict[str, Any] | None
    runs: Annotated[list[BundledRun], Field(min_length=1, max_length=10_000)]
    workloads: Annotated[list[BundledWorkload], Field(max_length=10_000)]
    trials: Annotated[list[BundledTrial], Field(max_length=MOST_TRIALS)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        keys = [workload.key for workload in self.workloads]
        if len({*keys}) < len(keys):
            raise ValueError("a workload is there twice")
        seen = set()
        for trial in self.trials:
            if trial.run >= len(self.runs) or trial.workload >= len(self.workloads):
                raise ValueError("a trial of no run or of no workload")
            seen.add((trial.workload, trial.phase, trial.sequence))
        if len(seen) < len(self.trials):
            raise ValueError("a trial is there twice")
        return self


class BundledStudy(_Model):
    """What the study is about."""

    name: Name
    kind: Name
    identity: Annotated[dict[str, Any], Field(min_length=1)]
    created_at: Time


class Bundle(_Model):
    """A bundle, whole."""

    format: Literal["autotune bundle"]
    version: Literal[1]
    autotune: Name
    study: BundledStudy
    environments: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=10_000)]
    searches: Annotated[list[BundledSearch], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        runs = [run for search in self.searches for run in search.runs]
        if any(run.environment >= len(self.environments) for run in runs):
            raise ValueError("a run of no environment")
        if self.trials > MOST_TRIALS:
            raise ValueError(f"more than {MOST_TRIALS} trials")
        return self

    @property
    def trials(self) -> int:
        """Count the trials."""
        return sum(len(search.trials) for search in self.searches)

    @property
    def key(self) -> str:
        """Return the identity of its content."""
        return digest(self.model_dump(mode="json"))


def packed(bundle: Bundle) -> bytes:
    """Return the file's bytes: the same for the same bundle."""
    text = json.dumps(bundle.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(text.encode(), mtime=0)


def read_bundle(path: Path) -> Bundle:
    """Read a bundle of anybody.

    Raises:
        BadInputError: no bundle, larger than one is, or of a later autotune.
    """
    try:
        value = edge.parse_json(edge.unpacked(edge.read_bytes(path, MOST_BYTES), MOST_JSON))
    except (OSError, edge.EdgeError) as error:
        raise edge.bad_input(path, error) from None
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise BadInputError(f"{path}: no bundle; `autotune report STUDY --bundle FILE` makes one")
    version = value.get("version")
    if version != VERSION:
        raise BadInputError(
            f"{path}: a bundle of version {edge.shown(version)}, and this autotune reads "
            f"{VERSION}; use the autotune that made it, or a newer one"
        )
    try:
        return Bundle.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:120]
        raise BadInputError(f"{path}: not as a bundle is: {where}: {first['msg']}") from None
