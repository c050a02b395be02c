"""What a file that was only predicted would cost on a GPU that was measured.

    python -m benchmarks.predicted_choice benchmarks/results/predicted-choice.json

For every kept run and landscape of an H100 and an H200, and every batch size: the candidate that
the prediction chooses among those that were measured (vLLM's default stays where the predicted
gain is within ``MODEL_ERROR``), how far its measured time lies behind the best measured one
(``regret``), and behind vLLM's default. Resources are estimated, nothing is compiled.

``left_out``: each group of runs judged by the figures of the memory and the margin that fit the
other groups best (least mean regret): what to expect of a landscape that nobody has seen.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch

from autotune.core import Candidate, Phase
from autotune.kernels.moe import constraints as feasibility
from autotune.kernels.moe.constraints import accumulators_fit
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.predict.choose import MODEL_ERROR
from autotune.kernels.predict.cost_model import MODEL_VERSION, predict
from autotune.kernels.predict.measurer import estimated_resources, tile_of
from autotune.machine.devices import Device, get_device
from autotune.machine.environment import environment
from autotune.measure.replay import Landscape
from autotune.store.store import Store
from benchmarks.prediction import RESULTS
from benchmarks.prediction import cases as landscapes

RUNS = {
    "h100-gemma4": ("h100", False, "H100 fp8"),
    "h200-gemma4": ("h200", False, "H200 fp8"),
    "h200-gemma4/third": ("h200", False, "H200 fp8"),
    "h200-vllm033": ("h200", True, ""),
}
"""Folder: device, whether its vLLM swaps operands, and the group; vLLM 0.33's go by study."""
STUDIES = {"bf16": "H200 bf16", "block": "H200 block fp8", "stock": "H200 fp8, vLLM 0.33",
           "wide": "H200 fp8, vLLM 0.33"}  # fmt: skip
GRID = tuple(itertools.product((0.0, 6.0, 12.0, 18.0), (0.92, 0.95, 1.0), (0.0, 0.03, 0.06)))
"""``memory_row_bytes``, the rate of reading over the vendor's peak, ``memory_width_cost``."""
MARGINS = (0.01, 0.02, 0.025, 0.04)


@dataclass(frozen=True)
class Case:
    """What was measured at one batch size of one run; times in µs."""

    run: str
    group: str
    device: str
    swaps: bool
    workload: MoeWorkload
    times: dict[Candidate, float]
    default: Candidate | None

    def predictions(self, device: Device) -> dict[Candidate, float]:
        with patch.object(feasibility, "has_swap_ab", return_value=self.swaps):
            return {one: self._predicted(one, device) for one in self.times}

    def _predicted(self, candidate: Candidate, device: Device) -> float:
        resources = estimated_resources(candidate, self.workload.shape, device)
        tile = tile_of(candidate, self.workload.shape)
        return predict(self.workload, tile, (resources, resources), device).us

    def choice(self, predicted: dict[Candidate, float], margin: float) -> Candidate:
        best = min(predicted, key=lambda one: (predicted[one], one.key))
        kept = self.default
        if kept in predicted and predicted[best] > predicted[kept] * (1 - margin):
            return kept
        return best


def stored() -> list[Case]:
    """Every batch size of every kept run."""
    return list(_stored())


def cases() -> list[Case]:
    """Every batch size of every run and landscape."""
    found = stored()
    defaults = {c.workload: c.default for c in found if c.run == "h200-gemma4"}
    groups = {False: "H200 block fp8, vLLM 0.24", True: "H200 fp8"}
    for name, (shape, path, fp8) in landscapes().items():
        times: dict[int, dict[Candidate, float]] = {}
        for (label, candidate), one in Landscape.read(path).table.items():
            if one.value is not None:
                times.setdefault(int(label.removeprefix("M=")), {})[candidate] = one.value
        for m, measured in sorted(times.items()):
            workload = MoeWorkload(shape, m)
            known = defaults.get(workload)
            found.append(
                Case(name, groups[fp8], "h200", False, workload, _feasible(measured, "h200"), known)
            )
    return found


def _stored() -> Iterator[Case]:
    for folder, (device, swaps, group) in RUNS.items():
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            data = (RESULTS / folder / "trials.db.gz").read_bytes()
            (scratch / "trials.db").write_bytes(gzip.decompress(data))
            store = stack.enter_context(Store.open(f"sqlite:///{scratch}/trials.db", create=False))
            for summary in store.list_studies():
                for search in store.get_study(summary.study.name).searches:
                    study = summary.study.name
                    run = f"{folder}/{study}" if swaps else folder
                    for workload, times, default in _searched(store, search):
                        yield Case(run, group or STUDIES[study], device, swaps, workload,
                                   _feasible(times, device), default)  # fmt: skip


def _searched(
    store: Store, search: Any
) -> Iterator[tuple[MoeWorkload, dict[Candidate, float], Candidate | None]]:
    trials = store.trials(search)
    for record in store.workloads(search):
        own = [t for t in trials if t.workload_key == record.key]
        times = {
            t.candidate: t.measurement.value
            for t in own
            if t.measurement.value is not None and t.phase is not Phase.CONFIRM
        }
        if any(t.phase is Phase.SEARCH for t in own):
            default = next((t.candidate for t in own if t.phase is Phase.BASELINE), None)
            shape = MoeShape.from_json(record.spec["shape"])
            yield MoeWorkload(shape, record.spec["m"]), times, default


def _feasible(times: dict[Candidate, float], device: str) -> dict[Candidate, float]:
    """Without what the constraints rule out today."""
    limits = get_device(device)
    return {c: us for c, us in times.items() if accumulators_fit(c.ints, None, limits) is None}  # type: ignore[arg-type]


def regret(case: Case, chosen: Candidate) -> float:
    return case.times[chosen] / min(case.times.values()) - 1


def behind(case: Case, chosen: Candidate) -> float | None:
    """Measured time over the default's, minus 1; None where the default was not measured."""
    if case.default not in case.times:
        return None
    return case.times[chosen] / case.times[case.default] - 1


def judged(found: list[tuple[Case, Candidate]]) -> dict[str, Any]:
    """Over some batch sizes."""
    regrets = [regret(case, chosen) for case, chosen in found]
    lost = [b for case, chosen in found if (b := behind(case, chosen)) is not None]
    return {
        "batch_sizes": len(found),
        "median_regret": round(median(regrets), 4),
        "worst_regret": round(max(regrets), 4),
        "behind_default": sum(one > 0.005 for one in lost),
        "most_behind_default": round(max(lost, default=0.0), 4),
    }


def left_out(found: list[Case]) -> dict[str, Any]:
    """Judge each group by what fits the others."""
    chosen: dict[tuple[Any, ...], list[Candidate]] = {}
    for row, share, width in GRID:
        devices = {
            name: get_device(name).model_copy(
                update={
                    "memory_row_bytes": row,
                    "memory_bandwidth_peak_gbs": share * get_device(name).memory_bandwidth_peak_gbs,
                    "memory_width_cost": width,
                }
            )
            for name in ("h100", "h200")
        }
        predicted = [case.predictions(devices[case.device]) for case in found]
        for margin in MARGINS:
            chosen[row, share, width, margin] = [
                case.choice(values, margin) for case, values in zip(found, predicted, strict=True)
            ]
    groups = list(dict.fromkeys(case.group for case in found))
    regrets = {
        figures: {
            g: mean(regret(c, one) for c, one in zip(found, ones, strict=True) if c.group == g)
            for g in groups
        }
        for figures, ones in chosen.items()
    }
    result = {}
    for group in groups:
        best = min(regrets, key=lambda f: sum(v for g, v in regrets[f].items() if g != group))
        own = [(c, one) for c, one in zip(found, chosen[best], strict=True) if c.group == group]
        result[group] = {"figures": list(best), **judged(own)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", nargs="?", type=Path)
    given = parser.parse_args()
    found = cases()
    made = [
        (case, case.choice(case.predictions(get_device(case.device)), MODEL_ERROR))
        for case in found
    ]
    runs = list(dict.fromkeys(case.run for case in found))
    result = {
        "cost_model": MODEL_VERSION,
        "margin": MODEL_ERROR,
        "runs": {run: judged([(c, o) for c, o in made if c.run == run]) for run in runs},
        "all": judged(made),
        "left_out": left_out(found),
        "command": "python -m benchmarks.predicted_choice benchmarks/results/predicted-choice.json",
        "environment": environment(),
    }
    print(json.dumps({key: result[key] for key in ("runs", "all", "left_out")}, indent=1))
    if given.result:
        given.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
