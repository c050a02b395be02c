"""Rows that others tuned: published ones, by device, and files that the user names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from autotune.core import BadInputError, Candidate
from autotune.kernels.config_file import FIELDS, look_up, read, shipped
from autotune.kernels.moe.constraints import effective_block_k
from autotune.kernels.moe.from_model import explicit_shape
from autotune.kernels.moe.shape import MoeShape
from autotune.kernels.moe.variants import VARIANTS
from autotune.util.resources import data_root
from autotune.util.yamlfile import load_yaml

NEIGHBOURS = 2
"""Further rows of a given file that are tried: those of the keys beside the one looked up."""
NEAREST = 3
"""Files of other shapes that are tried."""

_Text = Annotated[str, Field(min_length=1)]
_Row = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt]


def _variant(name: str) -> str:
    if name not in VARIANTS:
        raise ValueError(f"not one of {', '.join(VARIANTS)}")
    return name


class PublishedFile(BaseModel):
    """The rows of one published file: of which shape, by whom, and the times where they said them.

    Attributes:
        triton: what it was tuned with, where that was said.
        note: how it was tuned, and what else was said of it.
        rows: by tokens, in the order of vLLM's fields.
        us: published time of a row's ``fused_experts`` call, in µs.
        default_us: of vLLM's default, likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: _Text
    experts: PositiveInt
    intermediate: PositiveInt
    hidden: PositiveInt
    topk: PositiveInt
    dtype: Annotated[str, AfterValidator(_variant)]
    scheme: Literal["tensor", "channel", "block", "none"]
    model: _Text
    triton: str | None
    source: _Text
    url: _Text
    note: _Text
    rows: dict[PositiveInt, _Row]
    us: dict[PositiveInt, PositiveFloat] = {}
    default_us: dict[PositiveInt, PositiveFloat] = {}

    @cached_property
    def shape(self) -> MoeShape:
        """The layer that the rows are for."""
        return explicit_shape(
            experts=self.experts,
            intermediate=self.intermediate,
            hidden=self.hidden,
            topk=self.topk,
            dtype=self.dtype,
            scheme=self.scheme,
        )

    @cached_property
    def candidates(self) -> dict[int, Candidate]:
        """The rows by tokens."""
        return {m: candidate_of(row) for m, row in self.rows.items()}

    @property
    def origin(self) -> str:
        """Who published the rows, for people."""
        triton = f", Triton {self.triton}" if self.triton else ""
        return f"published: {self.source}{triton}"


class PublishedFiles(BaseModel):
    """A file of ``search_spaces/published``: what is known of one device."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    device: _Text
    files: list[PublishedFile]


def candidate_of(row: Sequence[int]) -> Candidate:
    """Return the candidate of a row's six values, in the order of vLLM's fields."""
    return Candidate.of(dict(zip(FIELDS, row, strict=True)))


@cache
def published_for(device: str) -> Sequence[PublishedFile]:
    """Return the published files for the device of this name; none for most.

    Raises:
        BadInputError: a malformed file.
    """
    path = data_root() / "search_spaces" / "published" / f"{device}.yaml"
    return load_yaml(path, PublishedFiles).files if path.is_file() else []


def published_rows(
    files: Sequence[PublishedFile], shape: MoeShape, m: int
) -> Mapping[Candidate, str]:
    """Return what to try first at ``m`` tokens, with where each row comes from.

    Rows for the shape come first, then those of the nearest shapes with such weights, looked up
    where an expert has as many tokens.
    """
    alike = [f for f in files if _weights(f.shape) == _weights(shape)]
    own = [f for f in alike if _distance(f.shape, shape) == 0]
    others = sorted((f for f in alike if f not in own), key=lambda f: _distance(f.shape, shape))
    found: dict[Candidate, str] = {}
    for file in own:
        found.setdefault(clamped(look_up(file.candidates, m), shape), file.origin)
    for file in others[:NEAREST]:
        share = shape.topk / shape.global_experts * file.experts / file.topk
        same = max(1, round(m * share))
        said = f"{file.origin}, for E={file.experts}, N={file.intermediate}"
        found.setdefault(clamped(look_up(file.candidates, same), shape), said)
    return found


@dataclass(frozen=True)
class GivenFile:
    """A file that ``--first`` named, and its rows by tokens."""

    path: str
    rows: Mapping[int, Candidate]

    def at(self, m: int) -> list[Candidate]:
        """The row that vLLM would use at ``m`` tokens, then those of the keys beside it."""
        used = look_up({key: key for key in self.rows}, m)
        beside = sorted((key for key in self.rows if key != used), key=lambda key: abs(key - used))
        return [self.rows[key] for key in (used, *beside[:NEIGHBOURS])]


def given_files(paths: Sequence[Path], shape: MoeShape) -> tuple[GivenFile, ...]:
    """Read what ``--first`` named: files of any name, or those for the shape in a folder.

    Raises:
        BadInputError: a file that is none, or a folder without one for the shape.
    """
    found: list[GivenFile] = []
    for path in paths:
        if not path.is_dir():
            found.append(GivenFile(str(path), _complete(read(path), path)))
            continue
        inside = [
            GivenFile(str(path / name), _complete(rows, path / name))
            for name, rows in shipped(path, shape)
        ]
        if not inside:
            wanted = shape.config_file_name("DEVICE")
            raise BadInputError(f"--first {path}: the folder holds no {wanted}")
        found += inside
    return tuple(found)


def _complete(rows: dict[int, Candidate], path: Path) -> dict[int, Candidate]:
    """The six fields of every row that has them, whatever else it holds."""
    complete = {
        m: Candidate.of({name: row[name] for name in FIELDS})
        for m, row in rows.items()
        if all(name in row.params for name in FIELDS)
    }
    if not complete:
        raise BadInputError(f"--first {path}: no row with {', '.join(FIELDS)}")
    return complete


def published_note(device: str, shape: MoeShape) -> tuple[str, ...]:
    """Return a line that names whose published rows are tried first, if any are."""
    said = published_rows(published_for(device), shape, 1).values()
    sources = [origin.removeprefix("published: ") for origin in said]
    if not sources:
        return ()
    return (f"tried first, as others published them: rows of {'; '.join(sources)}",)


def clamped(row: Candidate, shape: MoeShape) -> Candidate:
    """Return the row as the launcher runs it, which clamps some BLOCK_SIZE_K of other grids."""
    block_k = effective_block_k(row.int("BLOCK_SIZE_K"), shape)
    return Candidate.of({**row.params, "BLOCK_SIZE_K": block_k})


def _weights(shape: MoeShape) -> tuple[str, tuple[int, int] | None]:
    return shape.weight_dtype, shape.block_shape


def _distance(one: MoeShape, other: MoeShape) -> float:
    """Doublings between two shapes, summed over their sizes."""
    sizes = [(s.experts, s.intermediate, s.hidden, s.topk) for s in (one, other)]
    return sum(abs(math.log2(a / b)) for a, b in zip(*sizes, strict=True))
