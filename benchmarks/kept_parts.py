"""Tables of the repeats in a kept database of `autotune spec`, also of one that was cut off.

    python -c "from benchmarks import kept_parts as k; k.slices('real-model/h200-texts')"

Reads ``trials.db.gz`` of a folder below `benchmarks/results`: the search's repeats, by gamma, by
concurrency and by slice of the load (kind of prompts, length of requests).
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict

from benchmarks.boot_scatter import opened
from benchmarks.lab import RESULTS, best_bold, table

PART = re.compile(r"concurrency (\d+) repeat \d+(?: of (.+))?")


def slices(folder: str) -> None:
    """Print tokens per second of every gamma by concurrency and slice, medians of the repeats."""
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with opened(RESULTS / folder / "trials.db.gz") as database:
        gammas = dict(
            database.execute(
                "select candidate_key, json_extract(candidate, '$.gamma') from trials"
            ).fetchall()
        )
        rows = database.execute(
            "select candidate_key, name, value from parts where workload_id = 1 order by id"
        ).fetchall()
    for key, name, value in rows:
        match = PART.fullmatch(name)
        if match is not None:
            found[match[2] or "all", match[1]][gammas[key]].append(json.loads(value)["tok_s"])
    columns = sorted({gamma for cell in found.values() for gamma in cell})
    lines = []
    for (what, streams), cell in sorted(found.items(), key=lambda one: (int(one[0][1]), one[0][0])):
        rates = [statistics.median(cell[gamma]) if cell[gamma] else 0.0 for gamma in columns]
        lines.append([what, streams, *best_bold(rates)])
    table(("slice", "streams", *(f"γ={gamma}" for gamma in columns)), lines, 0)
