"""Do two runs of the same tuning agree? Rows that differ, and what the difference costs.

    python -m benchmarks.agreement FOLDER_OF_ONE FOLDER_OF_THE_OTHER

Each folder holds a run's ``provenance.json`` and ``trials.db.gz``. Where the rows of a key differ,
its cost is the time of the second run's row over that of the first's, minus one: from the recorded
landscape where the runs were on an H200, as that was, and it has the key, and from each search that
tried both (one GPU, same inputs; two values if both runs did).
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from autotune.core import Candidate, Phase
from autotune.measure.replay import Landscape
from autotune.store.store import Store
from benchmarks.strategies import LANDSCAPE, recorded

Times = dict[int, dict[Candidate, float]]


def rows(folder: Path) -> dict[int, Candidate]:
    provenance = json.loads((folder / "provenance.json").read_text())
    return {row["m"]: Candidate.of(row["config"]) for row in provenance["rows"]}


def searched(folder: Path) -> Times:
    """Times of a run's searches, µs by M."""
    found: Times = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "trials.db"
        path.write_bytes(gzip.decompress((folder / "trials.db.gz").read_bytes()))
        with Store.open(f"sqlite:///{path}", create=False) as store:
            for summary in store.list_studies():
                for search in store.get_study(summary.study.name).searches:
                    batch_sizes = {w.key: int(w.spec["m"]) for w in store.workloads(search)}
                    for trial in store.trials(search):
                        value = trial.measurement.value
                        if value is not None and trial.phase in {Phase.SEARCH, Phase.BASELINE}:
                            found.setdefault(batch_sizes[trial.workload_key], {})[
                                trial.candidate
                            ] = value
    return found


def main() -> None:
    first, second = (Path(argument) for argument in sys.argv[1:3])
    ours, theirs = rows(first), rows(second)
    devices = {json.loads((f / "provenance.json").read_text())["device"] for f in (first, second)}
    sources = {"landscape": recorded(Landscape.read(LANDSCAPE))} if devices == {"h200"} else {}
    sources |= {
        "search of the first": searched(first),
        "search of the second": searched(second),
    }
    table: list[dict[str, Any]] = []
    for m in sorted(ours.keys() & theirs.keys()):
        if ours[m] == theirs[m]:
            continue
        costs = {
            name: round(times[m][theirs[m]] / times[m][ours[m]] - 1, 4)
            for name, times in sources.items()
            if {ours[m], theirs[m]} <= times.get(m, {}).keys()
        }
        table.append({"m": m, "first": ours[m].params, "second": theirs[m].params, "cost": costs})
    print(json.dumps({"keys": len(ours), "differ": len(table), "rows": table}, indent=1))


if __name__ == "__main__":
    main()
