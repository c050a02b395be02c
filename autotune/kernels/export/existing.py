"""A file that a checkout has already: it is replaced only by one that was measured to be better."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, ValidationError

from autotune.core import BadInputError, Basis, Candidate
from autotune.decide.stats import geometric_mean
from autotune.export.checkout import Checkout
from autotune.kernels.config_file import look_up, parse
from autotune.kernels.moe.shape import MoeShape
from autotune.machine.devices import Device
from autotune.util import edge


class _File(BaseModel):
    sha256: str


class ComparedRow(BaseModel):
    """One M of a comparison; times in µs, ``ratio`` first over second with its 95 % ends."""

    m: int
    first_us: FiniteFloat | None
    second_us: FiniteFloat | None
    ratio: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    note: str


class Comparison(BaseModel):
    """What `autotune compare OLD NEW --json` prints, as far as it is needed.

    Attributes:
        basis: of the times.
        device: that they are of.
        layer: a :class:`MoeShape` as JSON values.
        vllm: version.
        triton: version.
        kernel_sha256: of the kernel's file.
        first: the old file.
        second: the new one.
        geometric_mean: of the ratios; in what :func:`check` returns, over the keys of both files.
        warnings: what speaks against it.
        rows: by M.
    """

    basis: Basis
    device: str | None
    layer: dict[str, Any] | None
    vllm: str | None
    triton: str | None
    kernel_sha256: str | None
    first: _File
    second: _File
    geometric_mean: FiniteFloat | None
    warnings: list[str]
    rows: list[ComparedRow]


@dataclass(frozen=True)
class New:
    """The file that is to replace another: its name from the checkout's top, and what it is for."""

    name: str
    data: bytes
    device: Device
    shape: MoeShape


def check(
    new: New, checkout: Checkout, compared: Path | None, min_gain: float
) -> Comparison | None:
    """The comparison with the file that is there; None without one.

    Args:
        new: the new file.
        checkout: at its base commit.
        compared: a document of `autotune compare --json`.
        min_gain: least gain of the geometric mean, as a fraction.

    Raises:
        BadInputError: the file there is as good, or was not compared.
    """
    name, data = new.name, new.data
    there = checkout.read(name)
    if there is None:
        if compared is not None:
            raise BadInputError(f"--compared {compared}: the checkout has no {name}")
        return None
    where = f"{checkout.flag} {checkout.path}: has {name} already"
    if _rows(there, name) == _rows(data, name):
        raise BadInputError(f"{where}, with the same rows")
    if compared is None:
        raise BadInputError(
            f"{where}; compare first: `autotune compare OLD NEW --json > c.json` on the GPU, with "
            "OLD from there and NEW by --to folder, then --compared c.json"
        )
    found = _read(compared)
    if (found.first.sha256, found.second.sha256) != (sha256(there), sha256(data)):
        raise BadInputError(
            f"--compared {compared}: compares other files than the one there and this study's"
        )
    if doubt := _of_another(found, new):
        raise BadInputError(f"--compared {compared}: {doubt}")
    rows = [_rows(one, name) or {} for one in (there, data)]
    ratios = _ratios(found, *rows)
    missing = sorted({m for of_one in rows for m in of_one} - ratios.keys())
    if missing:
        raise BadInputError(
            f"--compared {compared}: has no ratio with an interval at M="
            f"{', '.join(map(str, missing))}; measure the keys of both files side by side: "
            "`autotune compare OLD NEW --json` on the GPU"
        )
    mean = geometric_mean(list(ratios.values()))
    if mean * (1 - min_gain) < 1:
        raise BadInputError(
            f"{where}, and it is as good: the new one is {mean:.3f}× as fast by {compared}"
        )
    return found.model_copy(update={"geometric_mean": mean})


def _of_another(found: Comparison, new: New) -> str | None:
    """Why the times say nothing of this device and layer; None if they do."""
    if found.basis is not Basis.MEASURED:
        return f"is {found.basis.value}, not measured"
    if found.device != new.device.name:
        return f"was measured on {found.device or 'nobody knows what'}, not on {new.device.name}"
    if found.layer != new.shape.as_json():
        return (
            "is of another layer than the study's (hidden size, top-k and scaling stand in no "
            "file name; `autotune compare --model` gives them)"
        )
    return f"warns: {found.warnings[0]}" if found.warnings else None


def _ratios(
    found: Comparison, old: Mapping[int, Candidate], new: Mapping[int, Candidate]
) -> dict[int, float]:
    """Old over new at the keys of both files; 1 for the same row, none without an interval."""
    ratios = {}
    for row in found.rows:
        if row.m in {*old, *new}:
            if look_up(old, row.m) == look_up(new, row.m):
                ratios[row.m] = 1.0
            elif row.ratio is not None and row.low:  # 0 where there were too few rounds
                ratios[row.m] = row.ratio
    return ratios


def _read(path: Path) -> Comparison:
    try:
        return Comparison.model_validate(edge.read_json(path))
    except (OSError, edge.EdgeError) as error:
        raise edge.bad_input(f"--compared {path}", error) from None
    except ValidationError:
        raise BadInputError(
            f"--compared {path}: not what `autotune compare OLD NEW --json` prints"
        ) from None


def _rows(data: bytes, name: str) -> dict[int, Candidate] | None:
    try:
        return parse(data, name)
    except BadInputError:
        return None


def sha256(data: bytes) -> str:
    """The digest by which provenance and comparisons name a file, in hex."""
    return hashlib.sha256(data).hexdigest()
