"""A study of serving of known numbers, of which pages are made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autotune.core import (
    Basis,
    Candidate,
    Measurement,
    Outcome,
    Phase,
    Scalar,
    Trial,
)
from autotune.report.page import Page
from autotune.serving.report import page as report
from autotune.serving.scenario import SpecScenario
from autotune.store.records import SearchRecord
from autotune.store.store import Store

SCENARIO = SpecScenario(
    target="models/target",
    drafter="ngram",
    prompts="chat",
    prompts_key="k",
    concurrency=(1, 4),
    max_tokens=64,
    ignore_eos=True,
    chat=True,
    repeats=6,
    waves=1,
    objective="geomean",
)

SETUP = {"basis": "measured", "recipe": {"name": "ngram", "server_args": ["--a", "b c"]}}

REACHED = [0.8, 0.6, 0.4]


def level(rate: float, gamma: int, repeats: int = 6) -> dict[str, Any]:
    spread = {"mean": 1.0, "p50": 5.0, "p99": 9.0}
    found = {
        "tok_s": rate,
        "tok_s_std": 1.0,
        "repeats": [rate + i - 2 for i in range(repeats)],
        "ttft_ms": spread,
        "tpot_ms": spread,
        "itl_ms": None,
        "preemptions": 0,
    }
    return found | ({"reached": REACHED[:gamma], "acceptance_length": 1 + sum(REACHED[:gamma])}
                    if gamma else {})  # fmt: skip


def trial(
    gamma: int,
    rates: tuple[float, float] | None,
    *,
    number: int = 0,
    phase: Phase = Phase.SEARCH,
    sequence: int = 0,
    said: str = "",
    outputs: list[str] | None = None,
    repeats: int = 6,
    **more: Scalar,
) -> Trial:
    """A trial that gave these rates at concurrency 1 and 4, or none."""
    details: dict[str, Any] = {"boots": 1, "outputs": outputs or ["a", "b"], "start_s": 2.0}
    samples: tuple[float, ...] = ()
    if rates is not None:
        found = dict(zip(("1", "4"), (level(r, gamma, repeats) for r in rates), strict=True))
        details["levels"] = found
        both = zip(*(found[c]["repeats"] for c in ("1", "4")), strict=True)
        samples = tuple(SCENARIO.microseconds({1: a, 4: b}) for a, b in both)
    measurement = Measurement(
        Outcome.OK if rates else Outcome.OUT_OF_MEMORY,
        Basis.MEASURED,
        samples[2] if samples else None,
        samples,
        said,
        details,
    )
    load = SCENARIO.in_round(number)
    return Trial(Candidate.of({"gamma": gamma, **more}), load.key, phase, sequence, measurement)


TRIALS = [
    trial(0, (100.0, 400.0), phase=Phase.BASELINE),
    trial(3, (150.0, 300.0), sequence=0),
    trial(2, (180.0, 440.0), sequence=1),
    trial(1, (120.0, 500.0), sequence=2, outputs=["a", "x"]),
    trial(4, None, sequence=3, said="torch.OutOfMemoryError: CUDA out of memory"),
    trial(0, (102.0, 402.0), number=1, phase=Phase.CONFIRM, sequence=0),
    trial(2, (182.0, 442.0), number=1, phase=Phase.CONFIRM, sequence=1),
]

LEFT: dict[str, Any] = {
    "study": "s",
    "setup": SETUP,
    "scenario": SCENARIO.as_json(),
    "verdict": "best: gamma=2, 1.400× the baseline's tok/s",
    "warnings": ["a warning of the job"],
    "boots": len(TRIALS),
    "best": {"serve": "vllm serve models/target", "moe": "autotune moe --x"},
    "not_tried": [{"setting": "gamma=5", "why": "cannot win: predicted 1.0 µs per token"}],
    "forecast": {
        "rows": [
            {
                "gamma": 2,
                "concurrency": c,
                "predicted_tok_s": 170.0,
                "measured_tok_s": 180.0 if c == 1 else None,
                "error": 170 / 180 - 1 if c == 1 else None,
                "is_input": False,
            }
            for c in (1, 4)
        ]
    },
}


def put(store: Store, trials: list[Trial], setup: dict[str, Any] = SETUP) -> SearchRecord:
    study = store.study("s", "spec", {"target": "t", "drafter": "ngram"})
    search = store.search(study, setup)
    run = store.start_run(search, store.environment({"cpus": 2}), "autotune spec --x")
    for one in trials:
        number = next(n for n in range(9) if SCENARIO.in_round(n).key == one.workload_key)
        workload = store.workload(search, SCENARIO.in_round(number))
        store.add_trials(run, workload.id, [one])
    return search


def page_of(folder: Path, trials: list[Trial] = TRIALS, left: dict[str, Any] | None = None) -> Page:
    with Store.open(f"sqlite:///{folder}/s.db") as store:
        search = put(store, trials)
        store.set_verdict(search, LEFT if left is None else left)
        return report.page_of(store, "s")
