"""What a finished ``spec`` job concluded, as its page needs it; best.json holds the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from autotune.report.verdict import Words, verdicts
from autotune.serving.scenario import Beside
from autotune.serving.stored import Served
from autotune.space.published import Published
from autotune.store.store import Store

LEFT = ("best.json", "served.json")
"""What a finished job leaves in its folder, by launcher."""
Interval = tuple[float, float] | None


class Best(Words):
    """How to serve the best setting, and how to tune the kernel for it."""

    serve: str | None = None
    moe: str | None = None


class Objective(Words):
    """The best setting by one objective: of one boot each, and again in fresh boots."""

    objective: str
    setting: str
    times_baseline: float
    speedup: float | None
    interval: Interval


class SliceBest(Words):
    """What is best for one kind of prompt or one length, and what the choice for all does there."""

    slice: str
    setting: str
    speedup: float | None
    interval: Interval
    confirmed: bool
    chosen_speedup: float | None
    chosen_interval: Interval


class Schedule(Words):
    """γ by batch size, in vLLM's own form."""

    said: str
    serve: str | None = None
    recommended: bool = False
    num_speculative_tokens_per_batch_size: Any = None
    against: str | None = None


class ForecastRow(Words):
    """PREDICTED against measured aggregate rates."""

    gamma: int
    concurrency: int
    predicted_tok_s: float
    measured_tok_s: float | None
    error: float | None
    is_input: bool


class Forecast(Words):
    """All rows of it."""

    rows: tuple[ForecastRow, ...] = ()


class Boot(Words):
    """One boot in the range of memory utilizations."""

    utilization: float
    sustained: bool
    outcome: str
    failure: str | None
    message: str | None
    kv_cache_tokens: float | None
    preemptions: float | None
    peak_kv_usage: float | None = None


class Memory(Words):
    """The borders of the memory utilization, and every boot behind them."""

    tokens_at_once: int
    least: float | None
    most: float | None
    said: str | None = None
    evidence: tuple[Boot, ...]


class Score(Words):
    """What lm-eval made of one setting."""

    setting: str
    score: str
    value: float
    stderr: float


class Confirmed(Words):
    """What speaks against a setting in its fresh boots; empty if nothing."""

    setting: str
    message: str = ""


class Confirmation(Words):
    """How the servers of the confirmation ran."""

    side_by_side: bool
    why_not: str = ""
    rounds: int | None = None
    kv_bytes: int | None = None
    rivals: str | None = None
    left_out: tuple[str, ...] = ()
    spread_between_boots: float | None = None

    def is_of(self, beside: Beside | None) -> bool:
        """Tell whether servers that ran so are those of this confirmation."""
        if beside is None or not self.side_by_side:
            return (beside is None) is not self.side_by_side
        return self.rivals in {None, beside.rivals}


class SoakWindow(Words):
    """Some seconds of a soak; counts are of answers."""

    age_s: float
    tok_s: float
    requests: int
    empty: int
    repeating: int
    reached: tuple[float, ...] = ()
    memory_bytes: int | None = None


class Soak(Words):
    """What the chosen setting does after minutes."""

    setting: str
    seconds: int
    failures: tuple[str, ...] = ()
    windows: tuple[SoakWindow, ...] = ()


class NotTried(Words):
    """A setting that no server was started for."""

    setting: str
    why: str


def _without_basis(value: Any) -> Any:
    """As it was before its basis was written beside it."""
    return {k: v for k, v in value.items() if k != "basis"} if isinstance(value, dict) else value


class Verdict(Words):
    """The words of a job; all of them are absent where no job came to its end.

    Attributes:
        study: that it is about.
        scenario: the load, as JSON values.
        setup: of the search; older ones have none.
        verdict: in a sentence or two.
        note: in its place where one server was measured as it ran.
        boots: servers of this study that the job knew of, of all loads.
        boots_of_load: of this load alone; older jobs did not tell it.
        task_tolerance: by which a score may fall.
    """

    study: str | None = None
    scenario: dict[str, Any] | None = None
    setup: dict[str, Any] | None = None
    verdict: str = ""
    note: str = ""
    warnings: tuple[str, ...] = ()
    boots: int | None = None
    boots_of_load: int | None = None
    best: Best | None = None
    objectives: tuple[Objective, ...] = ()
    slices: tuple[SliceBest, ...] = ()
    schedule: Schedule | None = None
    forecast: Forecast | None = None
    memory_utilization: Memory | None = None
    scores: tuple[Score, ...] = ()
    task_tolerance: float | None = None
    not_tried: tuple[NotTried, ...] = ()
    confirmed: tuple[Confirmed, ...] = ()
    confirmation: Confirmation | None = None
    soak: Soak | None = None
    published: Annotated[Published | None, BeforeValidator(_without_basis)] = None

    @property
    def known_boots(self) -> int | None:
        """Servers of this load that the job knew of; an older one counted all loads."""
        return self.boots if self.boots_of_load is None else self.boots_of_load

    def is_about(self, served: Served) -> bool:
        """Tell whether it concludes this search and this load."""
        setup = served.search.setup
        return (self.study, self.scenario, self.setup or setup) == (
            served.study,
            served.scenario.as_json(),
            setup,
        )


def last_verdict(store: Store, served: Served, folder: Path | None) -> Verdict:
    """Return what the last finished job concluded on this load; empty where none did.

    Args:
        store: with the study.
        served: the load that the page is about.
        folder: where an older job left it in a file alone.
    """
    files = [] if folder is None else [folder / name for name in LEFT]
    found = verdicts(Verdict, store, served.search, files)
    return next((one for one in found if one.is_about(served)), Verdict())
