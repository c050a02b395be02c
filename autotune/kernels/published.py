"""Rows that others tuned and published, by device: where a search starts, shown as published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from autotune.core import Candidate
from autotune.kernels.config_file import FIELDS, look_up
from autotune.kernels.moe.constraints import effective_block_k
from autotune.kernels.moe.from_model import explicit_shape
from autotune.kernels.moe.shape import MoeShape
from autotune.util.resources import data_root
from autotune.util.yamlfile import load_yaml

NEAREST = 3
"""Files of other shapes that are tried."""

_Text = Annotated[str, Field(min_length=1)]
_Row = tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt]


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
    dtype: Literal["fp8_w8a8", "int8_w8a8", "bf16"]
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


def published_for(device: str) -> list[PublishedFile]:
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
        found.setdefault(_clamped(look_up(file.candidates, m), shape), file.origin)
    for file in others[:NEAREST]:
        share = shape.topk / shape.global_experts * file.experts / file.topk
        same = max(1, round(m * share))
        said = f"{file.origin}, for E={file.experts}, N={file.intermediate}"
        found.setdefault(_clamped(look_up(file.candidates, same), shape), said)
    return found


def _clamped(row: Candidate, shape: MoeShape) -> Candidate:
    """The row as the launcher runs it: other tuners' grids hold a BLOCK_SIZE_K that it clamps."""
    block_k = effective_block_k(row.int("BLOCK_SIZE_K"), shape)
    return Candidate.of({**row.params, "BLOCK_SIZE_K": block_k})


def _weights(shape: MoeShape) -> tuple[str, tuple[int, int] | None]:
    return shape.weight_dtype, shape.block_shape


def _distance(one: MoeShape, other: MoeShape) -> float:
    """Doublings between two shapes, summed over their sizes."""
    sizes = [(s.experts, s.intermediate, s.hidden, s.topk) for s in (one, other)]
    return sum(abs(math.log2(a / b)) for a, b in zip(*sizes, strict=True))
