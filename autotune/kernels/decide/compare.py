"""Two configuration files, key by key, whatever knows the times (``sources.py``)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from autotune.core import (
    BadInputError,
    Basis,
    Candidate,
    Measurement,
)
from autotune.decide.stats import Ratio, geometric_mean
from autotune.kernels.config_file import FIELDS, LIMIT, look_up, parse
from autotune.kernels.moe.file_name import parse_name
from autotune.kernels.moe.shape import MoeShape
from autotune.machine.devices import get_device
from autotune.measure.replay import Landscape
from autotune.util import edge
from autotune.util.flags import MOST_TOKENS


@dataclass(frozen=True)
class File:
    """A configuration file: where it is, its digest, its rows in file order."""

    path: Path
    sha256: str
    rows: dict[int, Candidate]

    @classmethod
    def read(cls, path: Path) -> File:
        """Read it.

        Raises:
            BadInputError: it cannot be read, has no rows, or rows that this kernel does not take.
        """
        try:
            data = edge.read_bytes(path, LIMIT)
        except IsADirectoryError as error:
            raise BadInputError(f"{edge.bad_input(path, error)}; name a file in it") from None
        except (OSError, edge.EdgeError) as error:
            raise edge.bad_input(path, error) from None
        rows = parse(data, str(path))
        if not rows:
            raise BadInputError(f"{path}: has no rows")
        for m, row in rows.items():
            if not 1 <= m <= MOST_TOKENS:
                raise BadInputError(f"{path}: key {m}: expected 1 to {MOST_TOKENS} tokens")
            if set(row.params) != set(FIELDS):
                raise BadInputError(
                    f"{path}: key {m}: expected the fields {', '.join(FIELDS)}, found "
                    f"{', '.join(row.params) or 'none'}"
                )
        return cls(path, hashlib.sha256(data).hexdigest(), rows)


@dataclass(frozen=True)
class Row:
    """What both files use at ``m``; ``ratio`` is first over second, above 1 the second is faster.

    Times in µs; None where they are not known, and ``note`` says why. ``low`` and ``high`` are the
    95 % ends where both were measured side by side.
    """

    m: int
    first: dict[str, Any]
    second: dict[str, Any]
    first_us: float | None
    second_us: float | None
    ratio: float | None
    low: float | None
    high: float | None
    note: str


@dataclass(frozen=True)
class Pair:
    """Two measurements at one M; a ratio where they were made side by side."""

    first: Measurement | None
    second: Measurement | None
    ratio: Ratio | None = None


@dataclass(frozen=True)
class Origin:
    """What times are of; None where that is not recorded, as with a landscape alone.

    Attributes:
        device: its name.
        layer: with hidden size, top-k and scaling, which no file name holds.
        vllm: version.
        triton: version.
        kernel_sha256: of vLLM's ``fused_moe.py``.
    """

    device: str | None = None
    layer: MoeShape | None = None
    vllm: str | None = None
    triton: str | None = None
    kernel_sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return vars(self) | {"layer": self.layer.as_json() if self.layer else None}


def origin_of(landscape: Landscape) -> Origin:
    """What the times of a landscape are of, as far as the note beside it says."""
    facts, shape = landscape.about.get("facts", {}), landscape.about.get("shape")
    gpu = None if facts.get("gpu") is None else str(facts["gpu"])
    try:
        device = None if gpu is None else get_device(gpu).name
    except BadInputError:  # a GPU that no file describes
        device = gpu
    try:
        layer = None if shape is None else MoeShape.from_json(shape)
    except (KeyError, TypeError, ValueError):
        layer = None
    versions = (facts.get("vllm"), facts.get("triton"), landscape.about.get("kernel_sha256"))
    return Origin(device, layer, *versions)


class Source(Protocol):
    """Knows times.

    Attributes:
        basis: what they are.
        origin: what they are of.
    """

    basis: Basis
    origin: Origin

    def pairs(
        self, wanted: Sequence[tuple[int, Candidate, Candidate]]
    ) -> Iterator[tuple[int, Pair]]:
        """The measurements of two different rows at each M, in order."""


def keys_of(first: File, second: File) -> list[int]:
    """The keys of both files."""
    return sorted({*first.rows, *second.rows})


def device_warnings(first: File, second: File, device: str | None) -> list[str]:
    """What the devices in the names speak against; files of another device may be compared.

    Args:
        first: a file.
        second: another.
        device: the name of the device that the times are of; None if not known.
    """
    named = [(file.path.name, parse_name(file.path.name)) for file in (first, second)]
    found = {
        name: known.name if (known := one.known_device()) else one.device
        for name, one in named
        if one is not None
    }
    said = []
    if len(set(found.values())) > 1:
        said.append(f"the files are for different devices: {' and '.join(found.values())}")
    others = sorted({name for name in found.values() if device is not None and name != device})
    if others:
        said.append(f"the times are of {device}, not of {' or '.join(others)}")
    return said


def compared(
    first: File, second: File, batch_sizes: Sequence[int], source: Source
) -> Iterator[Row]:
    """What both files come to at each M.

    Args:
        first: the one that is there.
        second: the one that might replace it.
        batch_sizes: batch sizes.
        source: of the times.
    """
    chosen = {m: (look_up(first.rows, m), look_up(second.rows, m)) for m in batch_sizes}
    differing = [(m, a, b) for m, (a, b) in chosen.items() if a != b]
    found = source.pairs(differing)
    for m, (a, b) in chosen.items():
        if a == b:
            yield Row(m, a.params, b.params, None, None, 1.0, None, None, "the same row")
            continue
        at, pair = next(found)
        assert at == m  # noqa: S101 - a source keeps the order
        yield _row(m, a, b, pair)


def _row(m: int, a: Candidate, b: Candidate, pair: Pair) -> Row:
    first = pair.first.value if pair.first else None
    second = pair.second.value if pair.second else None
    ratio = low = high = None
    if pair.ratio is not None:
        ratio, low, high = pair.ratio.value, pair.ratio.low, pair.ratio.high
    elif first is not None and second is not None:
        ratio = first / second
    note = "; ".join(
        f"the {which} {_why(one)}"
        for which, one in (("first", pair.first), ("second", pair.second))
        if one is None or one.value is None
    )
    return Row(m, a.params, b.params, first, second, ratio, low, high, note)


def _why(measurement: Measurement | None) -> str:
    if measurement is None:
        return "was not recorded"
    return f"fails ({measurement.outcome.value}) {measurement.message}".rstrip()


def document(
    first: File,
    second: File,
    rows: Sequence[Row],
    source: Source,
) -> dict[str, Any]:
    """Everything as JSON values; the geometric mean is over the rows with a ratio."""
    known = [row.ratio for row in rows if row.ratio is not None]
    return {
        "basis": source.basis.value,
        **source.origin.as_json(),
        "first": {"file": str(first.path), "sha256": first.sha256},
        "second": {"file": str(second.path), "sha256": second.sha256},
        "geometric_mean": geometric_mean(known) if known else None,
        "compared": len(known),
        "warnings": device_warnings(first, second, source.origin.device),
        "rows": [asdict(row) for row in rows],
    }
