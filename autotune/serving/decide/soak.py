"""What a soak shows: failures that come after minutes, told by what changed since its beginning."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.core import Basis, Outcome, Trial

Window = Mapping[str, Any]
_DRAFTS = 50
"""Drafts of a window below which its acceptance is chance."""
_FALLEN = 0.5
"""Acceptance at position 0 below this share of the beginning's has fallen."""
_EMPTY = 0.01
"""Share of answers without text that is no accident."""
_MORE_REPEATING = 0.25
"""A model may repeat itself from the beginning on; so much more of it is a failure."""
_SLOWER = 0.9
_LARGER = 1.1
_LEAK = 2**28
"""Bytes of growth that are worth a word."""
_LEAST = 8
"""Windows from which a drift can be told."""


@dataclass(frozen=True)
class Soak:
    """A soak of the chosen setting: its trial, and what speaks against it; empty if nothing."""

    trial: Trial
    failures: tuple[str, ...]

    @property
    def windows(self) -> Sequence[Window]:
        """Return what was seen, in order."""
        found: Sequence[Window] = self.trial.measurement.details.get("windows", ())
        return found


def judge_soak(trial: Trial) -> Soak:
    """Say what a soak shows; texts are not judged where vLLM was told what to accept."""
    measurement = trial.measurement
    windows: Sequence[Window] = measurement.details.get("windows", ())
    failures = list(_failures(windows, texts=measurement.basis is not Basis.SYNTHETIC))
    if measurement.outcome is not Outcome.OK:
        age = windows[-1]["age_s"] if windows else 0.0
        said = measurement.message or measurement.outcome.value
        failures.insert(0, f"it did not last: {said}, after {_minutes(age)}")
    return Soak(trial, tuple(failures))


def _failures(windows: Sequence[Window], *, texts: bool) -> Iterator[str]:
    yield from _acceptance(windows)
    if texts:
        yield from _answers(windows)
    if len(windows) < _LEAST:
        return
    quarter = len(windows) // 4
    first, last = windows[1 : 1 + quarter], windows[-quarter:]
    before, after = (statistics.median(w["tok_s"] for w in part) for part in (first, last))
    if after < _SLOWER * before:
        yield f"it slows down: from {before:.0f} to {after:.0f} tok/s"
    sizes = [w["memory_bytes"] for w in windows[quarter:] if w.get("memory_bytes")]
    if sizes and sizes[-1] > max(_LARGER * sizes[0], sizes[0] + _LEAK):
        yield f"its host memory grows: from {_gib(sizes[0])} to {_gib(sizes[-1])}"


def _acceptance(windows: Sequence[Window]) -> Iterator[str]:
    known = [w for w in windows if w.get("drafts", 0) >= _DRAFTS]
    if not known:
        return
    before = known[0]["reached"][0]
    bad = _since(known, lambda w: w["reached"][0] < _FALLEN * before)
    if bad:
        after = min(w["reached"][0] for w in bad)
        yield (
            f"acceptance at the first position fell from {before:.2f} to {after:.2f}, after "
            f"{_minutes(bad[0]['age_s'])}"
        )


def _answers(windows: Sequence[Window]) -> Iterator[str]:
    empty = [w for w in windows if w["empty"] > _EMPTY * w["requests"]]
    if empty:
        count, asked = (sum(w[name] for w in empty) for name in ("empty", "requests"))
        yield (
            f"{count} of {asked} answers were empty in {len(empty)} of {len(windows)} windows, the "
            f"first after {_minutes(empty[0]['age_s'])}"
        )
    if not windows:
        return

    def share(window: Window) -> float:
        return float(window["repeating"] / window["requests"])

    before = share(windows[0])
    bad = _since(windows, lambda w: share(w) > before + _MORE_REPEATING)
    if bad:
        yield (
            f"answers that repeat themselves rose from {before:.0%} to {max(map(share, bad)):.0%}, "
            f"after {_minutes(bad[0]['age_s'])}"
        )


def _since(windows: Sequence[Window], is_bad: Callable[[Window], bool]) -> list[Window]:
    """The bad windows, where there are two of them or the last is one: one alone may be chance."""
    bad = [w for w in windows if is_bad(w)]
    return bad if len(bad) > 1 or (bad and bad[-1] is windows[-1]) else []


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
