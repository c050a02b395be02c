"""The section that tells how outputs were judged."""

from __future__ import annotations

from autotune.core import Trial
from autotune.report.page import Section, Table, Text
from autotune.serving.decide.quality import compared, equal_texts
from autotune.serving.gate.judge import FAR, Judged
from autotune.serving.report.tables import setting
from autotune.serving.stored import Served, gamma_of

_HEADS = (
    "setting", "tokens", "no near tie", "borne", "mean nats behind", "texts equal", "part at a tie",
    "first parting", "as the largest gamma", "outputs",
)  # fmt: skip


def outputs(served: Served) -> Section:
    """Every setting's long texts against those without speculation; empty where none were kept."""
    rows, drafting = [], [t for t in served.ok if gamma_of(t.candidate)]
    most = max(drafting, key=lambda t: gamma_of(t.candidate) or 0, default=None)
    for trial in drafting:
        judged = served.compared(trial).judged
        if judged is not None:
            rows.append([setting(trial.candidate), *_cells(judged, trial, most)])
    baseline = served.baseline
    again = served.confirmed.get(baseline.candidate, {}).get(1) if baseline is not None else None
    if baseline is not None and again is not None:
        judged = compared(again, baseline).judged
        if judged is not None:
            rows.append([f"{setting(baseline.candidate)}, booted again", *_cells(judged)])
    text = Text(
        "Greedy texts, which the target itself scores as a prompt, without drafting. A token is "
        f"a near tie to the target's best within {FAR:g} nats; rounding chooses among near ties, a "
        "broken path does not."
    )
    return Section("Outputs", [text, Table(_HEADS, rows, narrow=9)] if rows else [])


def _cells(judged: Judged, trial: Trial | None = None, most: Trial | None = None) -> list[str]:
    same = None if trial is None or most is None else equal_texts(trial, most)
    parts = judged.texts - judged.equal
    return [
        str(judged.tokens),
        str(judged.far),
        str(judged.limit),
        f"{judged.nats:.4f}",
        f"{judged.equal} of {judged.texts}",
        f"{judged.near} of {parts}" if parts else "–",
        "–" if judged.parted is None else str(judged.parted),
        "–" if same is None else f"{same} of {judged.texts}",
        "the target's" if judged.passes else "OUTPUT DIFFERS",
    ]
