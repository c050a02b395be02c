"""Replay: a recorded landscape as a Measurer, so that a search can be run and judged without a GPU.

A landscape is a table (CSV or Parquet) with one row per (workload, candidate): the column
``workload`` (its label, such as ``M=64``), one column per parameter, ``outcome``, ``value`` (empty
unless the outcome is ok) and ``basis`` (``measured``, or ``synthetic`` for one made by a formula).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd

from autotune.core import (
    BadInputError,
    Basis,
    Candidate,
    HoldsNothing,
    Job,
    Measurement,
    Outcome,
)
from autotune.util import edge

_NOTED = ("shape", "facts")
_MOST_CELLS = 20_000_000
_MOST_COLUMNS = 100
_FIXED = {"workload", "outcome", "value", "basis"}


def _given(name: str, value: Any) -> Any:
    if pd.isna(value):
        raise ValueError(f"{name} is empty")
    return value


def _measurement(row: Mapping[Any, Any], basis: Basis) -> Measurement:
    outcome = Outcome(row["outcome"])
    if outcome is not Outcome.OK:
        return Measurement(outcome, basis)
    value = float(row["value"])
    if not 0 < value < math.inf:
        raise ValueError(f"value {value} is not a positive number")
    return Measurement(outcome, basis, value)


def _frame(path: Path) -> pd.DataFrame:
    """The table, of bytes: given a name, pandas would fetch URLs and unpack without a limit."""
    data = edge.read_bytes(path, edge.LARGE)
    if path.suffix == ".parquet":
        from pyarrow import parquet  # noqa: PLC0415 - an extra

        about = parquet.read_metadata(io.BytesIO(data))
        if about.num_rows * max(about.num_columns, 1) > _MOST_CELLS:
            raise edge.EdgeError(f"holds more than {_MOST_CELLS} values")
        return pd.read_parquet(io.BytesIO(data))
    if path.suffix == ".gz":
        data = edge.unpacked(data, edge.LARGE)
    if any(line.count(b",") > _MOST_COLUMNS for line in data.split(b"\n")):
        raise edge.EdgeError(f"has a line of more than {_MOST_COLUMNS} columns")
    return pd.read_csv(io.BytesIO(data))


def _beside(path: Path) -> dict[str, Any]:
    """The first line of ``landscape.json`` for ``landscape.csv.gz``, if it is such a note."""
    note = path.with_name(path.name.removesuffix(".gz")).with_suffix(".json")
    try:
        first, _, _ = edge.read_bytes(note, edge.LARGE).partition(b"\n")
        found = edge.parse_json(first)
    except (OSError, edge.EdgeError):
        return {}
    is_note = isinstance(found, dict) and all(isinstance(found.get(k), dict) for k in _NOTED)
    return found if is_note else {}


class Landscape(HoldsNothing):
    """A Measurer that looks values up in a recorded landscape."""

    def __init__(
        self,
        table: dict[tuple[str, Candidate], Measurement],
        basis: Basis,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the measurements by workload label and candidate.

        Args:
            table: the measurements.
            basis: what they are.
            about: what they are of, as ``benchmarks/record_landscape.py`` notes it.
        """
        self.table = table
        self.about = dict(about or {})
        self.basis = basis

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a landscape, and what the .json beside it says of it (its first line), if any.

        Raises:
            BadInputError: if the file cannot be read, lacks a column, or mixes bases.
        """
        try:
            frame = _frame(path)
        except (OSError, edge.EdgeError) as error:
            raise edge.bad_input(path, error) from None
        except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
            said = " ".join(str(error).split())[:200]
            raise BadInputError(f"{path}: not a landscape: {said}") from None
        missing = sorted(_FIXED - set(frame.columns))
        if missing:
            raise BadInputError(f"{path}: a landscape needs the column {missing[0]!r}")
        bases = sorted(set(map(str, frame["basis"])))
        if len(bases) != 1 or bases[0] not in {b.value for b in Basis}:
            raise BadInputError(f"{path}: column 'basis' must hold one known basis, not {bases}")
        basis = Basis(bases[0])
        names = [str(name) for name in frame.columns if name not in _FIXED]
        table: dict[tuple[str, Candidate], Measurement] = {}
        for row in frame.to_dict("records"):
            label = str(row["workload"])
            try:
                candidate = Candidate.of({name: _given(name, row[name]) for name in names})
                measurement = _measurement(row, basis)
                if (label, candidate) in table:
                    raise ValueError(f"{candidate.params} is listed twice")
            except (TypeError, ValueError) as error:
                raise BadInputError(f"{path}: {label}: {error}") from None
            table[label, candidate] = measurement
        return cls(table, basis, _beside(path))

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        """Yield the recorded measurements, in order.

        Raises:
            BadInputError: if the landscape does not hold a candidate.
        """
        for job in jobs:
            where, candidate = job.workload.label, job.candidate
            found = self.table.get((where, candidate))
            if found is None:
                raise BadInputError(
                    f"the landscape has no {where} {candidate.params}; record it first"
                )
            yield found
