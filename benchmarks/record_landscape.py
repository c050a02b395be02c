"""Measure a whole space, or a sample of it, on this machine's GPU: a landscape that tests replay.

    python benchmarks/record_landscape.py --model gemma-4-26b-a4b --batch-sizes 1,4,8 --out a.csv

Rows are written as they come; run again, and only what is missing is measured.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from autotune.core import Candidate, Job
from autotune.kernels.compile.job import Specialisation, kernel_info, specialise
from autotune.kernels.compile.processes import CompileProcesses
from autotune.kernels.config_file import FIELDS
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.processes import GpuOptions
from autotune.kernels.moe.constraints import distinct
from autotune.kernels.moe.from_model import explicit_shape, load_config, shape_from_config
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.kernels.plan import checks
from autotune.machine.devices import present_gpus, resolve_device
from autotune.machine.environment import environment, usable_cpus, visible_gpus
from autotune.space.space import load_space
from autotune.util import flags


def main(
    batch_sizes: Annotated[str, typer.Option()],
    out: Annotated[Path, typer.Option()],
    model: Annotated[str | None, typer.Option()] = None,
    sizes: Annotated[str | None, typer.Option(help="E,N,K,topk of a shape of its own.")] = None,
    scheme: Annotated[str | None, typer.Option()] = None,
    sample: Annotated[int | None, typer.Option(help="Candidates, at random; default all.")] = None,
    seconds: Annotated[float, typer.Option(help="Stop after.")] = 1e9,
) -> None:
    shape = _shape(model, sizes, scheme)
    device = resolve_device("auto", visible_gpus())
    kernel = kernel_info()
    space = load_space("stock", "moe")
    feasible = space.feasible(checks(shape, device))
    random.Random(0).shuffle(feasible)
    feasible = feasible[:sample]
    workloads = [MoeWorkload(shape, m) for m in flags.batch_sizes(batch_sizes, ())]
    wanted = {w: set(distinct(feasible, shape, w.m)) for w in workloads}
    known = _known(out)
    end = time.monotonic() + seconds
    taken: list[Job] = []

    def jobs() -> Iterator[Job]:
        compiled_alike: dict[Specialisation, list[MoeWorkload]] = {}
        for workload in reversed(workloads):
            compiled_alike.setdefault(specialise(shape, workload.m), []).append(workload)
        for group in compiled_alike.values():
            for candidate, workload in itertools.product(feasible, group):
                known_already = (workload.label, _key(candidate)) in known
                if candidate in wanted[workload] and not known_already and time.monotonic() < end:
                    taken.append(Job(candidate, workload))
                    yield taken[-1]

    options = GpuOptions(
        gpus=tuple(g.index for g in present_gpus(device, visible_gpus())),
        arch=device.arch,
        l2_bytes=device.l2_bytes,
    )
    begin = time.monotonic()
    with (
        GpuMeasurer(shape, options, CompileProcesses(kernel, usable_cpus())) as measurer,
        out.open("a", newline="") as file,
    ):
        writer = csv.writer(file)
        if not known:
            writer.writerow(["workload", *FIELDS, "outcome", "value", "basis"])
        for number, measurement in enumerate(measurer.measure(jobs())):
            candidate, workload = taken[number].candidate, taken[number].workload
            value = "" if measurement.value is None else f"{measurement.value:.2f}"
            outcome = measurement.outcome.value
            writer.writerow([workload.label, *_key(candidate), outcome, value, "measured"])
            file.flush()
            if measurement.message:
                print(workload.label, candidate.params, outcome, measurement.message[:150])
        facts = measurer.facts()
    note = {
        "shape": shape.as_json(),
        "candidates": {w.label: len(c) for w, c in wanted.items()},
        "new": len(taken),
        "seconds": time.monotonic() - begin,
        "spent": dict(measurer.spent),
        "facts": facts,
        "kernel_sha256": kernel.sha256,
        "environment": environment(),
    }
    with out.with_suffix(".json").open("a") as file:
        file.write(json.dumps(note) + "\n")
    print(json.dumps(note, indent=1))


def _shape(model: str | None, sizes: str | None, scheme: str | None) -> MoeShape:
    if sizes is None:
        return shape_from_config(load_config(model or ""), dtype="auto", tp=1, ep=1, scheme=scheme)
    experts, intermediate, hidden, topk = (int(part) for part in sizes.split(","))
    return explicit_shape(
        experts=experts,
        intermediate=intermediate,
        hidden=hidden,
        topk=topk,
        dtype="fp8_w8a8",
        scheme=scheme,
        tp=1,
        ep=1,
    )


def _key(candidate: Candidate) -> tuple[str, ...]:
    return tuple(str(candidate[name]) for name in FIELDS)


def _known(out: Path) -> set[tuple[str, tuple[str, ...]]]:
    if not out.exists():
        return set()
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    return {(row[0], tuple(row[1:7])) for row in rows[1:] if len(row) == 10}


if __name__ == "__main__":
    typer.run(main)
