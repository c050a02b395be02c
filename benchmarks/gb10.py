"""How near the top the cost model puts the rows that won on real GB10s, by published files.

    python -m benchmarks.gb10 benchmarks/results/gb10-published.json

A row's place: the share of feasible candidates that are predicted faster. ``searched``: of those
that its tuner tried, where that is known: under block scales the stock tuner tries only multiples
of the block as BLOCK_SIZE_N and BLOCK_SIZE_K (vLLM's ``benchmark_moe.py``). ``exact``: the share of
rows that would be in the top if the predictions were exact and a tuner took the fastest of times
that carry noise (a Gumbel's, ``NOISE`` and half of it).

Two of the device's figures, ``memory_row_bytes`` and ``memory_flight_bytes``, are fitted to which
rows won: by the likelihood of the winner being the fastest under that noise. ``left_out``: each of
the ``FITTED`` files judged by figures fitted to the others alone. The rest was never fitted: the
files for block scales of vllm-tune, found afterwards (``unseen``), and vLLM's own two, which hold
one table twice. The published times were not fitted; ``us`` holds measured over predicted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch

from autotune.core import Candidate
from autotune.kernels.compile.kernel_source import kernel_info
from autotune.kernels.config_file import shipped
from autotune.kernels.moe.constraints import distinct, effective_block_k
from autotune.kernels.moe.from_model import explicit_shape
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.plan import checks
from autotune.kernels.predict import cost_model
from autotune.kernels.predict.cost_model import MODEL_VERSION, predict
from autotune.kernels.predict.measurer import estimated_resources, tile_of
from autotune.kernels.published import published_for
from autotune.machine.devices import Device, get_device
from autotune.machine.environment import environment
from autotune.space.space import load_space

NOISE = 0.016
TOP = 0.05
GRID = tuple(itertools.product((0.0, 8.0, 16.0, 24.0, 32.0, 48.0), (0.0, 200.0, 400.0, 800.0)))
"""Values of ``memory_row_bytes`` and ``memory_flight_bytes`` that are tried."""
FITTED = (
    "gemma-4-26b-a4b-vllm-53394",
    "gemma-4-26b-a4b-vllm-tune",
    "glm-5.3-flash-tp4",
    "nemotron-3-super-vllm-52192",
)
SHIPPED = {"E=256": (256, 2048, 8), "E=512": (512, 2048, 10)}
"""Experts, hidden size and topk of the Qwen models of these shapes."""


@dataclass(frozen=True)
class Case:
    """One published row that can be judged: its place among the feasible candidates at its M."""

    file: str
    workload: MoeWorkload
    feasible: list[Candidate]
    winner: int

    @property
    def searched(self) -> Case:
        """The same among the candidates that the file's tuner tried."""
        shape = self.workload.shape
        if shape.block_shape is None or self.file in FITTED:  # GLM's was tuned in another grid
            return self
        columns, depth = shape.block_shape
        tried = [
            one
            for one in self.feasible
            if one.int("BLOCK_SIZE_N") % columns == 0 and one.int("BLOCK_SIZE_K") % depth == 0
        ]
        won = tried.index(self.feasible[self.winner])
        return Case(self.file, self.workload, tried, won)

    def times(self, device: Device) -> list[float]:
        """Predicted times of the feasible candidates, in µs."""
        return [predicted(self.workload, one, device) for one in self.feasible]


def predicted(workload: MoeWorkload, candidate: Candidate, device: Device) -> float:
    resources = estimated_resources(candidate, workload.shape, device)
    tile = tile_of(candidate, workload.shape)
    return predict(workload, tile, (resources, resources), device).us


def files(device: Device) -> dict[str, tuple[MoeShape, dict[int, Candidate]]]:
    """Shape and rows by name: the published files, and those in the installed vLLM."""
    found = {file.name: (file.shape, file.candidates) for file in published_for(device.name)}
    configs = kernel_info().path.parent / "configs"
    for name, (experts, hidden, topk) in SHIPPED.items():
        shape = explicit_shape(
            experts=experts, intermediate=512, hidden=hidden, topk=topk, scheme="block"
        )
        for path, rows in shipped(configs, shape):
            if device.vllm_name in path:
                found[f"vLLM's own, {name}"] = (shape, rows)
    return found


def cases(device: Device) -> list[Case]:
    """Every row of the files that the stock grid holds and the device can run."""
    space = load_space("stock", "moe")
    found = []
    for name, (shape, rows) in files(device).items():
        feasible = space.feasible(checks(shape, device))
        for m, row in sorted(rows.items()):
            block_k = effective_block_k(row.int("BLOCK_SIZE_K"), shape)
            wanted = Candidate.of({**row.params, "BLOCK_SIZE_K": block_k})
            able = distinct(feasible, shape, m)
            if wanted not in able:  # groups as large as the grid are one candidate
                free = {k: v for k, v in wanted.params.items() if k != "GROUP_SIZE_M"}
                alike = [c for c in able if all(c[k] == v for k, v in free.items())]
                if not alike:
                    continue
                wanted = max(alike, key=lambda c: c.int("GROUP_SIZE_M"))
            found.append(Case(name, MoeWorkload(shape, m), able, able.index(wanted)))
    return found


def place(times: list[float], winner: int) -> float:
    """Share of the candidates that are predicted faster than the winner."""
    return sum(one < times[winner] for one in times) / len(times)


def surprise(times: list[float], winner: int) -> float:
    """Minus the log-likelihood that the winner was the fastest of them."""
    scaled = [math.log(one) / NOISE for one in times]
    least = min(scaled)
    return scaled[winner] - least + math.log(sum(math.exp(least - one) for one in scaled))


def exact(times: list[float], noise: float) -> float:
    """Chance that the fastest of noisy times is in the top, if the times without noise are these.

    With a Gumbel's noise on the logarithm of each, one wins with the chance of its share in the
    sum of time to the power of -1/noise.
    """
    least = min(times)
    shares = [math.pow(least / one, 1 / noise) for one in times]
    last = sorted(times)[math.floor(TOP * len(times))]
    first = sum(share for one, share in zip(times, shares, strict=True) if one <= last)
    return first / sum(shares)


def judged(places: Mapping[str, list[float]]) -> dict[str, Any]:
    """By file and over all: how many rows, the median place, the share in the top."""

    def summary(own: list[float]) -> dict[str, float]:
        share = sum(one <= TOP for one in own) / len(own)
        return {"rows": len(own), "median": round(median(own), 4), "in_top": round(share, 3)}

    every = [one for own in places.values() for one in own]
    return {**{name: summary(own) for name, own in places.items()}, "all": summary(every)}


def by_file(found: list[Case], device: Device) -> dict[str, list[float]]:
    places: dict[str, list[float]] = {}
    for case in found:
        places.setdefault(case.file, []).append(place(case.times(device), case.winner))
    return places


def left_out(found: list[Case], device: Device) -> dict[str, Any]:
    """Judge each published file by the figures that the other published files fit best."""
    own = [case for case in found if case.file in FITTED]
    names = list(dict.fromkeys(case.file for case in own))
    surprises: dict[tuple[float, float], dict[str, float]] = {}
    places: dict[tuple[float, float], dict[str, list[float]]] = {}
    for row, flight in GRID:
        figures = {"memory_row_bytes": row, "memory_flight_bytes": flight}
        tried = device.model_copy(update=figures)
        for case in own:
            times = case.times(tried)
            by_name = surprises.setdefault((row, flight), dict.fromkeys(names, 0.0))
            by_name[case.file] += surprise(times, case.winner)
            at = places.setdefault((row, flight), {}).setdefault(case.file, [])
            at.append(place(times, case.winner))
    chosen = {
        name: min(GRID, key=lambda g: sum(v for n, v in surprises[g].items() if n != name))
        for name in names
    }
    best = min(GRID, key=lambda g: sum(surprises[g].values()))
    return {
        "fitted": {name: list(figures) for name, figures in chosen.items()} | {"all": list(best)},
        "judged": judged({name: places[figures][name] for name, figures in chosen.items()}),
    }


def _exact(found: list[Case], device: Device) -> dict[str, float]:
    """What an exact model would reach with the noise of the fit, and with half of it."""
    times = [case.times(device) for case in found]
    return {
        str(noise): round(mean(exact(one, noise) for one in times), 3)
        for noise in (NOISE, NOISE / 2)
    }


def searched(found: list[Case], device: Device) -> dict[str, Any]:
    """Judge rows among what their tuners tried, and what an exact model would reach there."""
    groups = {
        "fitted": [case for case in found if case.file in FITTED],
        "unseen": [case for case in found if _unseen(case)],
        "vLLM's own": [case for case in found if case.file.startswith("vLLM")],
    }
    result = {}
    for name, own in groups.items():
        tried = [case.searched for case in own]
        result[name] = {
            "candidates": median(len(case.feasible) for case in tried),
            **judged(by_file(tried, device))["all"],
            "exact": _exact(tried, device),
            "exact_of_all": _exact(own, device),
        }
    return result


def _unseen(case: Case) -> bool:
    return case.file not in FITTED and not case.file.startswith("vLLM")


def variants(found: list[Case], device: Device) -> dict[str, Any]:
    """Judge what else the memory might be: longer latencies under load, and fp8 at half rate."""
    result = {}
    for cycles in (700, 2000, 4000):
        with patch.object(cost_model, "MEMORY_LATENCY_CYCLES", cycles):
            result[f"latency {cycles}"] = judged(by_file(found, device))["all"]
    slow = {n: r for n, r in device.tensor_flops_per_sm_per_clock.items() if n != "qmma_fp8"}
    half = device.model_copy(update={"tensor_flops_per_sm_per_clock": slow})
    result["fp8 multiplied as fp16"] = judged(by_file(found, half))["all"]
    return result


def absolute(device: Device) -> dict[str, dict[str, dict[str, float]]]:
    """Published over predicted times, by file, of its rows and of vLLM's default."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for file in published_for(device.name):
        for which, times in (("rows", file.us), ("default", file.default_us)):
            for m, us in times.items():
                row = file.candidates[m] if which == "rows" else DEFAULT_BF16
                ratio = us / predicted(MoeWorkload(file.shape, m), row, device)
                found.setdefault(file.name, {}).setdefault(which, {})[str(m)] = round(ratio, 3)
    return found


DEFAULT_BF16 = Candidate.of(
    {
        "BLOCK_SIZE_M": 16,
        "BLOCK_SIZE_N": 64,
        "BLOCK_SIZE_K": 128,
        "GROUP_SIZE_M": 1,
        "num_warps": 4,
        "num_stages": 4,
    }
)
"""``get_default_config`` of vLLM for bf16 at M up to 32."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", nargs="?", type=Path)
    given = parser.parse_args()
    device = get_device("gb10")
    found = cases(device)
    plain = device.model_copy(update={"memory_row_bytes": 0.0, "memory_flight_bytes": 0.0})
    result = {
        "cost_model": MODEL_VERSION,
        "top": TOP,
        "places": {
            "without the two figures": judged(by_file(found, plain)),
            "as shipped": judged(by_file(found, device)),
        },
        "unseen": judged(by_file([c for c in found if _unseen(c)], device))["all"],
        "searched": searched(found, device),
        "left_out": left_out(found, device),
        "variants": variants([c for c in found if c.file in FITTED], device),
        "us": absolute(device),
        "command": "python -m benchmarks.gb10 benchmarks/results/gb10-published.json",
        "environment": environment(),
    }
    print(
        json.dumps(
            {
                key: result[key]
                for key in ("places", "unseen", "searched", "left_out", "variants", "us")
            },
            indent=1,
        )
    )
    if given.result:
        given.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
