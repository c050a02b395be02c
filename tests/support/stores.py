"""Small studies in a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autotune.core import (
    Basis,
    Candidate,
    Measurement,
    Outcome,
    Phase,
    Trial,
)
from autotune.store.records import RunRecord, SearchRecord
from autotune.store.store import Store


@dataclass(frozen=True)
class Size:
    """A workload that is nothing but its M."""

    m: int

    @property
    def key(self) -> str:
        return f"m{self.m}"

    @property
    def label(self) -> str:
        return f"M={self.m}"

    def as_json(self) -> dict[str, Any]:
        return {"m": self.m}


def url(path: Path) -> str:
    return f"sqlite:///{path}"


def trial(sequence: int, m: int = 1, phase: Phase = Phase.SEARCH) -> Trial:
    measurement = Measurement(Outcome.OK, Basis.MEASURED, sequence + 0.1, (1.5, sequence / 3))
    return Trial(Candidate.of({"BLOCK": sequence}), f"m{m}", phase, sequence, measurement)


def begin(store: Store, name: str = "s") -> tuple[SearchRecord, RunRecord]:
    search = store.search(store.study(name, "moe", {"device": "gb10"}), {"seed": 1})
    return search, store.start_run(search, store.environment({"driver": "1"}), "autotune moe")
