"""Figures that others published, beside which ours are put. They are never called measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from autotune.core import Scalar

_Text = Annotated[StrictStr, Field(min_length=1)]


class Figure(BaseModel):
    """One published rate.

    Attributes:
        setting: values of the space's parameters, as far as they were published.
        concurrency: requests in flight.
        tok_s: output tokens per second, all streams together.
        target: the model, where it is another than the space's own.
        note: what else was said of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    setting: dict[StrictStr, StrictBool | StrictInt | StrictStr]
    concurrency: Annotated[StrictInt, Field(ge=1)]
    tok_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    target: _Text | None = None
    note: StrictStr = ""


class Published(BaseModel):
    """The ``published`` part of a space: on what, by whom, and the figures."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    hardware: _Text
    source: _Text
    figures: Annotated[list[Figure], Field(min_length=1)]

    def of(self, params: Mapping[str, Scalar]) -> list[Figure]:
        """The figures for the space's own target that this candidate's values agree with."""
        own = (figure for figure in self.figures if figure.target is None)
        return [f for f in own if all(params.get(n) == v for n, v in f.setting.items())]

    def times_baseline(self, figure: Figure) -> float | None:
        """Over the published rate without speculation, same target and concurrency."""
        place = (figure.target, figure.concurrency)
        before = [f for f in self.figures if (f.target, f.concurrency) == place]
        rates = [f.tok_s for f in before if f.setting.get("gamma") == 0]
        return figure.tok_s / rates[0] if rates else None

    def as_json(self) -> dict[str, Any]:
        """Everything, named as what it is."""
        return {"basis": "published, not ours", **self.model_dump()}


def cell(figures: Sequence[Figure]) -> str:
    """Rates for people, such as ``108.8 at 1, 348.3 at 4``."""
    return ", ".join(f"{figure.tok_s:.1f} at {figure.concurrency}" for figure in figures) or "–"
