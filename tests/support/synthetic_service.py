"""A job's process whose command is made up: the real loop, store, log and events; no compiler.

``python -m tests.support.synthetic_service DESCRIPTOR FILE moe … --study S``, as the service starts
:mod:`autotune.web.child`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import alembic.context  # noqa: F401 - Store.open would, in each of the processes

import autotune.cli
from autotune.cli.events import told
from autotune.core import Basis, ExitCode, HoldsNothing, Job, Measurement, Phase
from autotune.export.files import write_whole
from autotune.propose.proposers import OptunaProposer
from autotune.store.run_log import recorded
from autotune.store.store import Store
from autotune.tune import Limits, Search, measure_all, search_all
from autotune.web import child
from tests.support.stores import Size
from tests.synthetic import feasible, space, synthetic

WORKLOADS = (Size(1), Size(24))
IDENTITY = {
    "device": "gb10",
    "shape": {
        "experts": 128,
        "intermediate": 704,
        "hidden": 2816,
        "topk": 8,
        "global_experts": 128,
        "dtype": "fp8_w8a8",
        "weight_dtype": "fp8",
        "scheme": "channel",
        "block_shape": None,
        "gated": True,
    },
}
"""Of a study of ``--device gb10``, which the service compares when a job is queued again."""
TRIALS = 28
TOTAL = len(WORKLOADS) * (TRIALS + 1)
DEFAULT = feasible()[300]
WAIT_S = 0.01
_HOLD = "hold"


class _Slow(HoldsNothing):
    basis = Basis.SYNTHETIC
    measured = 0

    def measure(self, jobs: Iterable[Job]) -> Iterator[Measurement]:
        for job in jobs:
            assert isinstance(job.workload, Size)
            time.sleep(WAIT_S)
            _wait(self.measured)
            self.measured += 1
            yield synthetic(job.candidate, job.workload)


def hold(root: Path, measured: int) -> None:
    """Have every job of the service at ``root`` stand still after so many measurements of its own.

    However slow the machine is, the job has then not ended before the test has done its part.
    """
    write_whole(root / _HOLD, str(measured).encode())


def release(root: Path) -> None:
    """Let the jobs go on."""
    (root / _HOLD).unlink()


def _wait(measured: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        while measured >= int(Path(_HOLD).read_text()):
            time.sleep(WAIT_S)


def _flag(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def command() -> None:
    """Tune as the flags of this process say, or go on with what was interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    study, out = _flag("--study"), Path(_flag("--out"))
    plan = {"kind": "moe", "study": study, "basis": "predicted", "total": TOTAL, "unit": "trials"}
    sys.stderr.write("autotune: begins\n")
    sys.stderr.flush()
    if study == "refused":
        sys.stderr.write("autotune: no device 'x'; did you mean gb10?\n")
        sys.exit(ExitCode.BAD_INPUT)
    try:
        with Store.open(_flag("--db")) as store, store.lock_study(study):
            search = store.search(store.study(study, "moe", IDENTITY), {"seed": 1})
            with (
                recorded(store, search, "synthetic") as log,
                _Slow() as measurer,
                told(Path(_flag("--events")), plan, lambda _: None) as tell,
            ):
                jobs = [Job(DEFAULT, workload) for workload in WORKLOADS]
                measure_all(jobs, Phase.BASELINE, measurer, log, tell)
                searches = [
                    Search(w, OptunaProposer(space(), feasible(), seed=1), Limits(TRIALS))
                    for w in WORKLOADS
                ]
                for step in search_all(searches, measurer, log):
                    tell(step)
    except KeyboardInterrupt:
        sys.stderr.write("autotune: interrupted; every finished trial is saved\n")
        sys.exit(ExitCode.INTERRUPTED)
    (out / study).mkdir(exist_ok=True)
    (out / study / "winners.json").write_text('{"done": true}')
    sys.stdout.write('{"done": true}\n')
    sys.exit(0)


def main(words: Sequence[str]) -> None:
    """Be a job's process; of the words only the program's own name is missing."""
    sys.argv = ["autotune.web.child", *words]
    autotune.cli.main = command
    child.main()


if __name__ == "__main__":
    main(sys.argv[1:])
