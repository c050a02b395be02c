"""How well the cost model orders candidates before compiling, against landscapes of an H200.

Usage: python benchmarks/prediction.py [RESULT.json]. Per key: Spearman's rho between predicted and
measured; the measured regret of the candidate predicted best and of the best of ten; measured over
predicted of vLLM's default and, in the median, of all. No figure of the model was fitted to the
times of the second shape. vLLM 0.24, with which both were measured, has no swap-AB: it is off here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np
import pandas as pd

from autotune.core import Candidate
from autotune.kernels.config_file import FIELDS
from autotune.kernels.moe import constraints as feasibility
from autotune.kernels.moe.from_model import explicit_shape, load_config, shape_from_config
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.predict.cost_model import MODEL_VERSION, predict
from autotune.kernels.predict.measurer import estimated_resources, tile_of
from autotune.machine.devices import Device, get_device
from autotune.machine.environment import environment
from autotune.measure.replay import Landscape

RESULTS = Path(__file__).parent / "results"
BOUND_RHO, BOUND_TOP10 = 0.8, 0.03

DEFAULTS = {
    32: (16, 64, 128, 1, 4, 4),
    64: (32, 64, 128, 1, 4, 3),
    96: (32, 128, 128, 1, 4, 3),
    128: (64, 128, 128, 1, 4, 3),
    512: (64, 128, 128, 1, 8, 3),
    4096: (128, 128, 128, 1, 8, 3),
}
"""``get_default_config`` of vLLM 0.24 for fp8 per channel, by the largest M of each row."""


@dataclass(frozen=True)
class Key:
    """How one M was ordered; regrets are fractions of the best measured time."""

    m: int
    candidates: int
    rho: float
    top1_regret: float
    top10_regret: float
    default_measured_over_predicted: float | None
    median_measured_over_predicted: float


def cases() -> dict[str, tuple[MoeShape, Path, bool]]:
    """Name, shape, file, and whether the defaults above are those of the shape."""
    midpoints = explicit_shape(
        experts=256,
        intermediate=512,
        hidden=2048,
        topk=8,
        dtype="fp8_w8a8",
        scheme="block",
        tp=1,
        ep=1,
    )
    gemma = shape_from_config(load_config("gemma-4-26b-a4b"))
    return {
        "e128-n704-channel": (gemma, RESULTS / "landscape-h200-e128-n704-channel.csv.gz", True),
        "e256-n512-block (held out)": (
            midpoints,
            RESULTS / "landscape-h200-e256-n512-block.csv.gz",
            False,
        ),
    }


def judge(
    shape: MoeShape, landscape: Landscape, device: Device, *, with_default: bool
) -> list[Key]:
    """Predict every measured candidate and compare, key by key."""
    by_m: dict[int, list[tuple[Candidate, float]]] = {}
    for (label, candidate), measurement in landscape.table.items():
        if measurement.value is not None:
            row = (candidate, measurement.value)
            by_m.setdefault(int(label.removeprefix("M=")), []).append(row)
    with patch.object(feasibility, "has_swap_ab", return_value=False):
        return [
            _judge_key(MoeWorkload(shape, m), rows, device, with_default=with_default)
            for m, rows in sorted(by_m.items())
        ]


def _judge_key(
    workload: MoeWorkload,
    rows: list[tuple[Candidate, float]],
    device: Device,
    *,
    with_default: bool,
) -> Key:
    def predicted(candidate: Candidate) -> float:
        resources = estimated_resources(candidate, workload.shape, device)
        tile = tile_of(candidate, workload.shape)
        return predict(workload, tile, (resources, resources), device).us

    pairs = [(predicted(candidate), candidate.key, value) for candidate, value in rows]
    pairs.sort()  # as autotune.kernels.propose.rank orders them
    measured = [value for *_, value in pairs]
    ranks = pd.DataFrame([(p, value) for p, _, value in pairs]).rank()
    default = next(
        Candidate.of(dict(zip(FIELDS, row, strict=True)))
        for most, row in DEFAULTS.items()
        if workload.m <= most
    )
    found = dict(rows).get(default) if with_default else None
    return Key(
        m=workload.m,
        candidates=len(rows),
        rho=round(float(np.corrcoef(ranks[0], ranks[1])[0, 1]), 3),
        top1_regret=round(measured[0] / min(measured) - 1, 4),
        top10_regret=round(min(measured[:10]) / min(measured) - 1, 4),
        default_measured_over_predicted=found and round(found / predicted(default), 3),
        median_measured_over_predicted=round(median(v / p for p, _, v in pairs), 3),
    )


def medians(keys: list[Key]) -> dict[str, float]:
    """Over the keys of one shape."""
    names = ("rho", "top1_regret", "top10_regret")
    return {name: round(median(getattr(key, name) for key in keys), 4) for name in names}


def main() -> None:
    device = get_device("h200")
    shapes: dict[str, list[Key]] = {}
    for name, (shape, path, with_default) in cases().items():
        keys = judge(shape, Landscape.read(path), device, with_default=with_default)
        shapes[name] = keys
        print(f"\n{name}\n{pd.DataFrame(map(asdict, keys)).to_string(index=False)}")
        print("median", medians(keys))
    fitted = medians(next(iter(shapes.values())))
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "cost_model": MODEL_VERSION,
        "device": device.name,
        "shapes": {
            name: {"keys": [asdict(key) for key in keys], "median": medians(keys)}
            for name, keys in shapes.items()
        },
        "bounds": {"rho": BOUND_RHO, "top10_regret": BOUND_TOP10},
        "within_bounds": fitted["rho"] >= BOUND_RHO and fitted["top10_regret"] <= BOUND_TOP10,
        "measured_with": "one NVIDIA H200, vLLM 0.24.0, Triton 3.6.0, driver 580.159.04",
        "command": "python benchmarks/prediction.py benchmarks/results/prediction-h200.json",
        "commit": commit,
        "environment": environment(),
    }
    print("within bounds:", result["within_bounds"])
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
