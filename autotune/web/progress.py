"""How far a job came, folded from what its command tells of itself (``--events``)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MOST_LEVELS = 64


@dataclass
class Level:
    """One thing that is tuned for, such as M=64; values are the smaller the better."""

    default: float | None = None
    best: float | None = None
    candidate: dict[str, Any] = field(default_factory=dict)
    trials: int = 0

    @property
    def speedup(self) -> float | None:
        """The default's value over the best one's; None while one is not known."""
        if not self.default or not self.best:
            return None
        return max(1.0, self.default / self.best)


@dataclass
class JobProgress:
    """What is known of a job's present process."""

    plan: dict[str, Any] = field(default_factory=dict)
    total: int = 0
    done: int = 0
    known: int = 0
    phase: str = ""
    at: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    levels: dict[str, Level] = field(default_factory=dict)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event; what is no event of ours changes nothing."""
        kind = event.get("event")
        if kind == "attempt":
            self.__init__()  # type: ignore[misc]
        elif kind == "plan":
            self.plan = {name: value for name, value in event.items() if name != "event"}
            self.total += int(event.get("total", 0))
            self.phase = "start"
        elif kind == "step":
            self._step(event)

    def _step(self, event: Mapping[str, Any]) -> None:
        self.done += 1
        self.known += bool(event.get("known"))
        self.phase, self.at = str(event.get("phase", "")), str(event.get("at", ""))
        self.outcomes[str(event.get("outcome", ""))] += 1
        if self.at not in self.levels and len(self.levels) >= _MOST_LEVELS:
            return
        level = self.levels.setdefault(self.at, Level())
        level.trials += 1
        value = event.get("value")
        if not isinstance(value, int | float):
            return
        if self.phase == "baseline" and level.default is None:
            level.default = float(value)
        if self.phase != "confirm" and (level.best is None or value < level.best):
            level.best, level.candidate = float(value), dict(event.get("candidate") or {})

    @property
    def speedup(self) -> float | None:
        """The geometric mean over the levels, of what the search saw so far; None before it."""
        gains = [level.speedup for level in self.levels.values() if level.speedup is not None]
        return math.exp(math.fsum(map(math.log, gains)) / len(gains)) if gains else None

    def as_json(self) -> dict[str, Any]:
        """Describe it as JSON values."""
        plan = self.plan
        return {
            "study": plan.get("study"),
            "basis": plan.get("basis"),
            "phase": self.phase,
            "at": self.at,
            "done": self.done,
            "known_before": self.known,
            "total": max(self.total, self.done),
            "unit": plan.get("unit"),
            "value_unit": plan.get("value"),
            "outcomes": dict(self.outcomes),
            "best_so_far": self.speedup,
            "levels": [
                {
                    "at": at,
                    "default": level.default,
                    "best": level.best,
                    "speedup": level.speedup,
                    "candidate": level.candidate,
                    "trials": level.trials,
                }
                for at, level in self.levels.items()
            ],
        }
