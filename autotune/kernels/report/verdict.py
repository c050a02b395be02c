"""What a finished ``moe`` job concluded, as its page needs it; provenance.json holds the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from autotune.report.verdict import Words, verdicts
from autotune.store.records import SearchRecord
from autotune.store.store import Store


class DriftSeen(Words):
    """What the controls of a search saw; ``clocks`` by name, from the least to the most."""

    controls: int = 0
    clocks: dict[str, tuple[float, float]] = Field(default_factory=dict)


class MeasuredOn(Words):
    """The GPU as the measuring process saw it; rates are ceilings, measured there."""

    model_config = ConfigDict(extra="allow", frozen=True)
    gpu: str
    copy_gbs: float
    bf16_tflops: float
    torch: str | None = None
    triton: str | None = None
    vllm: str | None = None
    cuda: str | None = None
    clocks: dict[str, float] = Field(default_factory=dict)
    drift: DriftSeen = DriftSeen()


class Verdict(Words):
    """The words of a job; all of them are absent where no job came to its end.

    Attributes:
        setup: of the search.
        model: as it was named.
        effort: of the search.
        min_gain: a row that gains less stayed vLLM's default.
        feasible: candidates of ``space_size`` that the device can run.
        warnings: what must be known beside the numbers.
        spent: seconds by what they went into, names end in ``_s``; other numbers beside.
    """

    setup: dict[str, Any] | None = None
    model: str | None = None
    effort: str | None = None
    min_gain: float | None = None
    feasible: int | None = None
    space_size: int | None = None
    warnings: tuple[str, ...] = ()
    measured_on: MeasuredOn | None = None
    spent: dict[str, float | None] = Field(default_factory=dict)


def last_verdict(store: Store, search: SearchRecord, folder: Path | None) -> Verdict:
    """Return what the last finished job on ``search`` concluded; empty where none did.

    Args:
        store: with the study.
        search: that the page is about.
        folder: where an older job left it in provenance.json alone.
    """
    files = [] if folder is None else [folder / "provenance.json"]
    found = [v for v in verdicts(Verdict, store, search, files) if v.setup == search.setup]
    last = found[0] if found else Verdict()
    if last.measured_on is None or last.measured_on.drift.clocks:
        return last
    # A command that found all in the database searched nothing: an earlier one saw the clocks.
    drifts = (one.measured_on.drift for one in found if one.measured_on is not None)
    drift = next((one for one in drifts if one.clocks), last.measured_on.drift)
    seen = last.measured_on.model_copy(update={"drift": drift})
    return last.model_copy(update={"measured_on": seen})
