"""Give hostile files, logs, databases, checkouts and flags to every command, and keep what came.

Each input runs the real command line in a process of its own, with limits of memory and time. It
ends well in one line and a documented exit code; anything else is a defect, and says so.

Usage: ``python -m benchmarks.hostile_round [--every=N] [SOURCE…]``; the whole round is kept in
``benchmarks/results/hostile/files.tsv``.
"""

from __future__ import annotations

import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from autotune import cli
from autotune.core import ExitCode
from benchmarks import hostile_more, hostile_sources, hostile_studies
from benchmarks.hostile_sources import Input, Place

WALL_S, CPU_S = 90.0, 15
"""Seconds of one command. An input that makes us work for more than these is a defect."""
MEMORY = 1 << 30
"""Bytes of address space beyond what the command needs before it has read anything."""
MODULES = (
    "kernels.check.verify_all", "kernels.decide.sources", "kernels.files", "kernels.make_plan",
    "kernels.report.page", "kernels.export.publish", "serving.make_plan", "serving.report.page",
    "serving.server.explain", "report.files", "report.optuna_mirror", "store.store",
    "measure.replay",
)  # fmt: skip
CODES = {int(code) for code in ExitCode}
SOURCES = hostile_sources.SOURCES | hostile_more.SOURCES | hostile_studies.SOURCES
CANARY = "canary"
"""No input may make this file appear."""


@dataclass(frozen=True)
class Ended:
    """How a command ended; ``code`` is None where it had to be ended."""

    code: int | None
    out: str
    err: str
    seconds: float


def preload() -> None:
    """What the commands import, once for all of them."""
    for name in MODULES:
        __import__(f"autotune.{name}")
    # pyarrow reserves its arena at the first use, which the limit of a child would not allow.
    pd.read_csv(io.StringIO("a,b\nx,1.5\n"))


def run(one: Input, place: Place) -> Ended:
    """Run the command in a child that has limits."""
    out, err, given = (place.root / name for name in ("stdout", "stderr", "stdin"))
    given.write_bytes(one.stdin)
    began = time.monotonic()
    if (child := os.fork()) == 0:
        _become(one, place, out, err, given)
    code: int | None = None
    while time.monotonic() - began < WALL_S:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    texts = [path.read_bytes().decode("utf-8", "surrogateescape") for path in (out, err)]
    return Ended(code, texts[0], texts[1], time.monotonic() - began)


def _become(one: Input, place: Place, out: Path, err: Path, given: Path) -> None:
    """The child: the command and nothing else."""
    try:
        for number, path, flags in (
            (0, given, os.O_RDONLY),
            (1, out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            os.dup2(os.open(path, flags, 0o600), number)
        os.chdir(place.work)
        os.environ.update({n: v.replace("{t}", str(place.work)) for n, v in one.env.items()})
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["autotune", *place.arguments(one)]
        cli.main()
    except SystemExit as ended:
        sys.stdout.flush()
        os._exit(int(ended.code or 0) if not isinstance(ended.code, str) else 1)
    except BaseException:  # noqa: BLE001 - that is what is looked for
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(99)


def verdict(one: Input, ended: Ended, place: Place) -> str:
    """``fine``, or what is wrong."""
    lines = ended.err.rstrip("\n").split("\n")
    if ended.code is None:
        return "DEFECT: does not end"
    if ended.code == -signal.SIGXCPU or ended.code == -signal.SIGKILL:
        return f"DEFECT: over {CPU_S} s of work"
    if ended.code not in CODES or "Traceback" in ended.err:
        return "DEFECT: traceback or signal"
    if ended.code >= 2 and not lines[-1].startswith("autotune: "):
        return "DEFECT: no line"
    if ended.code >= 2 and sum(line.startswith("autotune: ") for line in lines) > 1:
        return "DEFECT: more than one line"
    odd = [c for c in ended.out + ended.err if not (c.isprintable() or c in "\n\t")]
    if odd:
        return f"DEFECT: control characters {odd[:3]!a}"
    if list(place.root.rglob(CANARY)) or Path("/tmp", CANARY).exists():
        return "DEFECT: something of the input ran"
    if place.precious.read_text() != "keep me":
        return "DEFECT: wrote where it must not"
    if one.codes and ended.code not in one.codes:
        return f"DEFECT: exit {ended.code}"
    return "fine"


def main() -> None:
    preload()
    every = int(sys.argv.pop(1).partition("=")[2]) if "--every=" in " ".join(sys.argv) else 1
    wanted = sys.argv[1:] or list(SOURCES)
    seen: Counter[str] = Counter()
    print("source\tinput\tcommand\texit\tseconds\tline\tverdict")
    for source in wanted:
        for number, one in enumerate(SOURCES[source]()):
            if number % every:
                continue
            root = Path(tempfile.mkdtemp(prefix="hostile-"))
            place = Place(root)
            try:
                one.make(place)
                ended = run(one, place)
                found = verdict(one, ended, place)
                line = (ended.err.rstrip("\n") or ended.out.rstrip("\n")).split("\n")[-1]
                shown = line.replace(str(root), "DIR").replace("\t", " ")
                command = " ".join(one.args).replace("\n", " ").replace("\t", " ")
                row = (source, one.name, command[:120], ended.code, f"{ended.seconds:.1f}")
                said = ascii(shown[:160])[1:-1]
                print(*row, said, found, sep="\t", flush=True)
                seen[found.partition(":")[0]] += 1
                if found != "fine":
                    print(f"{source}: {one.name}: {found}\n{ended.err[-1500:]}", file=sys.stderr)
            finally:
                shutil.rmtree(root, ignore_errors=True)
    print(f"{dict(seen)}", file=sys.stderr)


if __name__ == "__main__":
    main()
