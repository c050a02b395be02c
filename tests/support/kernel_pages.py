"""Studies of kernels of which pages are made: the kept run on an H200, and a prediction."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from autotune.core import Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.moe.variants import Scheme
from autotune.kernels.report.page import page_of
from autotune.report.page import Page
from autotune.store.records import SearchRecord
from autotune.store.store import Store

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "h200-gemma4"

SHAPE = MoeShape(128, 704, 2816, 8, "fp8_w8a8", "fp8", Scheme.CHANNEL, None, 128)

SETUP = {
    "basis": "predicted",
    "vllm": "1",
    "triton": "2",
    "kernel_sha256": "3" * 64,
    "space": {"name": "stock", "digest": "d"},
    "sampler": "tpe",
    "seed": 0,
}


def h200(folder: Path) -> str:
    """The database of the kept run."""
    path = folder / "h200.db"
    path.write_bytes(gzip.decompress((RESULTS / "trials.db.gz").read_bytes()))
    return f"sqlite:///{path}"


def candidate(columns: int) -> Candidate:
    names = ("BLOCK_SIZE_M", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
    return Candidate.of(
        dict(zip(names, (16, 128, 1, 4, 3), strict=True)) | {"BLOCK_SIZE_N": columns}
    )


GEMM = {"registers": 60, "spill_bytes": 0, "shared_bytes": 30720, "mma": "QMMA"}


def trial(m: int, phase: Phase, sequence: int, columns: int, us: float | None) -> Trial:
    measurement = Measurement(
        Outcome.OK if us else Outcome.OUT_OF_RESOURCES,
        Basis.PREDICTED,
        us,
        message="" if us else "too much shared memory",
        details={"compiled": [GEMM, {**GEMM, "registers": 64}], "limit": "bytes"} if us else {},
    )
    return Trial(candidate(columns), MoeWorkload(SHAPE, m).key, phase, sequence, measurement)


def stored(
    store: Store,
    trials: list[Trial],
    batch_sizes: tuple[int, ...],
    setup: dict[str, Any] = SETUP,
    name: str = "p",
) -> SearchRecord:
    study = store.study(name, "moe", {"device": "gb10", "shape": SHAPE.as_json()})
    search = store.search(study, setup)
    run = store.start_run(search, store.environment({"driver": "1"}), "autotune moe --x")
    for m in batch_sizes:
        workload = MoeWorkload(SHAPE, m)
        own = [t for t in trials if t.workload_key == workload.key]
        store.add_trials(run, store.workload(search, workload).id, own)
    return search


def predicted(path: Path) -> Page:
    trials = [
        trial(1, Phase.BASELINE, 0, 64, 10.0),
        trial(1, Phase.SEARCH, 0, 64, 10.0),
        trial(1, Phase.SEARCH, 1, 128, 8.0),
        trial(1, Phase.SEARCH, 2, 256, None),
        trial(64, Phase.BASELINE, 0, 64, 20.0),
        trial(64, Phase.SEARCH, 0, 64, 20.0),
    ]
    with Store.open(f"sqlite:///{path}/p.db") as store:
        stored(store, trials, (1, 64))
        return page_of(store, "p")
