"""Runs what is owed on two GPUs of one machine over Ray, and says what came of it (CUDA needed).

    python benchmarks/ray_gpus.py OUT [--steps one,two,killed,tp2,summary] [--target FOLDER]

``one`` and ``two`` measure the same kernels on one and on two GPUs; ``killed`` does so on two and
kills an actor in the middle; ``tp2`` serves FOLDER, a mixture of experts, by vLLM's Ray executor.
Each step leaves OUT/STEP.json (of the command, with ``--json``), STEP.err, STEP.rc and STEP.db, and
can be run alone: a kernels' step is ended after five minutes, the servers' after nine, and goes on
where it was if it is run again. ``summary`` reads them and writes OUT/summary.json. What came of it
on two H200: docs/lab/h200.md.

A vLLM without FlashInfer wants VLLM_USE_FLASHINFER_SAMPLER=0 in the environment.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from autotune.export.files import write_whole
from autotune.machine.environment import environment

SPACE = """
name: few
title: Kernels that all batch sizes share, so that GPUs and not compilers are the limit
source: benchmark
parameters:
  BLOCK_SIZE_M: {values: [32, 64, 128], why: w}
  BLOCK_SIZE_N: {values: [64, 128], why: w}
  BLOCK_SIZE_K: {values: [64, 128], why: w}
  GROUP_SIZE_M: {values: [1, 16], why: w}
  num_warps: {values: [4, 8], why: w}
  num_stages: {values: [3, 4], why: w}
constraints: [fits_shared_memory, block_k_not_clamped, accumulators_fit]
"""
BATCH_SIZES = ",".join(map(str, range(2048, 12289, 512)))
"""Large ones: the driver takes 5 to 10 ms a trial, the GPU 25 at 4,096 tokens, and that on two."""
KILL_AFTER = 40
"""Trials in the database."""
LIMIT_S = {"tp2": 540.0}
"""By step, where it is not 280: a boot over two GPUs takes a minute or two, and four are made."""
EAGER = "--load-format dummy --enforce-eager --max-model-len 4096 --gpu-memory-utilization 0.6"
TRITON = "--attention-backend TRITON_ATTN --moe-backend triton"
"""What every build of vLLM has."""
ROUTING = "VLLM_MOE_ROUTING_SIMULATION_STRATEGY=uniform_random"


def kernels(out: Path, step: str) -> list[str]:
    """The command that measures kernels."""
    space = out / "few.yaml"
    space.write_text(SPACE)
    words = ["moe", "--device=auto", "--model=gemma-4-26b-a4b", f"--space={space}", "--ray=local"]
    words += ["--effort=exhaustive", f"--batch-sizes={BATCH_SIZES}"]
    return [*words, *kept(out, step)]


def serving(out: Path, target: Path) -> list[str]:
    """The command that serves over two GPUs."""
    words = ["spec", f"--target={target}", "--drafter=none", "--gamma=0", "--ray=local", "--force"]
    words += ["--set=max-num-seqs=8,16", "--prompts=chat", "--concurrency=1,8", "--max-tokens=64"]
    words += ["--waves=1", "--repeats=6", "--confirm-boots=1", "--check-tokens=0", "--no-schedule"]
    words += [f"--server-arg={EAGER} {TRITON} --tensor-parallel-size 2", "--start-timeout=4m"]
    words += [f"--env={ROUTING}"]
    return [*words, *kept(out, "tp2")]


def kept(out: Path, step: str) -> list[str]:
    """Where a command leaves what it learns."""
    folder = f"--out={out / step}"
    return ["--json", f"--study={step}", f"--db=sqlite:///{out / step}.db", folder]


def run(out: Path, step: str, words: list[str], env: dict[str, str], *, kill: bool) -> None:
    """Run a command, and kill an actor of it in the middle if asked; write what it said."""
    command = [sys.executable, "-m", "autotune", *words]
    end = time.monotonic() + LIMIT_S.get(step, 280.0)
    said, errors = (out / f"{step}.{name}" for name in ("json", "err"))
    with said.open("w") as stdout, errors.open("w") as stderr:
        ran = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=dict(os.environ) | env)
        killed = None
        while ran.poll() is None and time.monotonic() < end:
            if kill and killed is None and trials(out / f"{step}.db") > KILL_AFTER:
                killed = kill_actor(ran.pid)
            time.sleep(0.2)
        if ran.poll() is None:
            ran.terminate()
        try:
            code = ran.wait(60)
        except subprocess.TimeoutExpired:
            ran.kill()
            code = ran.wait()
    write_whole(out / f"{step}.rc", f"{code}\n{killed or ''}\n".encode())


def reading(database: Path) -> contextlib.closing[sqlite3.Connection]:
    """Open a database that must be there already."""
    return contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True))


def trials(database: Path) -> int:
    """How many are stored by now."""
    with contextlib.suppress(sqlite3.Error), reading(database) as made:
        return int(made.execute("select count(*) from trials").fetchone()[0])
    return 0


def kill_actor(command: int) -> int | None:
    """Kill one of the processes in which Ray has put an actor of a command."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(command).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if " ".join(child.cmdline()).startswith("ray::Worker"):
                    child.kill()
                    return int(child.pid)
    return None


def summary(out: Path) -> dict[str, Any]:
    """What the steps say; of one that was cut off, what its database has."""
    found: dict[str, Any] = {}
    for step in ("one", "two", "killed", "tp2"):
        with contextlib.suppress(OSError, ValueError):
            said = (out / f"{step}.err").read_text().splitlines()
            found[step] = {"lost": [line for line in said if "is lost" in line]}
            found[step] |= {"places": places(out / f"{step}.db")}
            found[step] |= {"search_by_third_s": pace(out / f"{step}.db")}
            code, killed = (out / f"{step}.rc").read_text().split("\n")[:2]
            found[step] |= {"exit": int(code), "killed": killed or None}
            document = json.loads((out / f"{step}.json").read_text())
            found[step] |= {
                name: document[name]
                for name in ("counts", "spent", "measured_on", "control", "seconds", "warnings")
                if name in document
            }
            found[step]["outcomes"] = Counter(t["outcome"] for t in document.get("trials", ()))
    one, two = (found.get(step, {}).get("search_by_third_s") for step in ("one", "two"))
    faster = {}
    if one and two and all(two):
        faster = {"whole": sum(one) / sum(two)}
        faster |= {f"third {n}": a / b for n, (a, b) in enumerate(zip(one, two, strict=True), 1)}
    return {"two_gpus_are_faster_by": faster, **found, "environment": environment()}


def pace(database: Path) -> list[float]:
    """Seconds from the search's first trial to its last, by thirds of the trials.

    In the first third kernels are compiled, for one GPU as for two.
    """
    told = "select created_at from trials where phase = 'search' order by created_at"
    rows: list[str] = []
    with contextlib.suppress(sqlite3.Error), reading(database) as made:
        rows = [row[0] for row in made.execute(told)]
    if len(rows) < 4:
        return []
    times = [datetime.fromisoformat(row) for row in rows]
    cuts = [times[n * (len(times) - 1) // 3] for n in range(4)]
    return [(b - a).total_seconds() for a, b in itertools.pairwise(cuts)]


def places(database: Path) -> dict[str, int]:
    """How many measurements each GPU has made."""
    rows = []
    with contextlib.suppress(sqlite3.Error), reading(database) as made:
        rows = [json.loads(row[0]) for row in made.execute("select details from measurements")]
    names = (row.get("place", {}).get("name", row.get("gpu")) for row in rows)
    return dict(Counter(name for name in names if name is not None))


def main() -> None:
    """Run the steps in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", default="one,two,killed,tp2,summary")
    parser.add_argument("--target", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for step in given.steps.split(","):
        if step in {"one", "two", "killed"}:
            env = {"CUDA_VISIBLE_DEVICES": "0"} if step == "one" else {}
            run(given.out, step, kernels(given.out, step), env, kill=step == "killed")
        elif step == "tp2" and given.target is not None:
            run(given.out, step, serving(given.out, given.target), {}, kill=False)
        elif step == "summary":
            text = json.dumps(summary(given.out), indent=2, default=str)
            write_whole(given.out / "summary.json", f"{text}\n".encode())
            print(text)


if __name__ == "__main__":
    main()
