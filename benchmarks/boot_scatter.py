"""How far loads of one setting are apart: within a boot, between boots, on two GPUs at one time.

    python -c "from benchmarks import boot_scatter as b; b.scatter('h200-serving/uniform-gamma')"

Reads the repeats (table `parts`, with the time of each) of folders below `benchmarks/results` whose
commands ran at the same time, each on a GPU of its own of one host.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from benchmarks.lab import RESULTS, table

TOGETHER_S = 20.0
"""Loads of two hosts' GPUs that are no further apart were made at the same time."""


@dataclass(frozen=True)
class Load:
    """One repeat at one stream: when it ended, and its rate over the median of its setting."""

    lane: str
    boot: tuple[int, int]
    gamma: int
    at: datetime
    tok_s: float
    share: float


def loads(*folders: str) -> list[Load]:
    """Repeats at one stream, by time; a gamma of a folder is a setting of its own."""
    found: list[Load] = []
    for lane, folder in enumerate(folders):
        rows = list(_rows(RESULTS / folder / "trials.db.gz"))
        by_gamma: dict[int, list[float]] = {}
        for gamma, _, _, tok_s in rows:
            by_gamma.setdefault(gamma, []).append(tok_s)
        middle = {gamma: statistics.median(values) for gamma, values in by_gamma.items()}
        found += [
            Load("AB"[lane], (lane, workload), gamma, at, tok_s, tok_s / middle[gamma])
            for gamma, workload, at, tok_s in rows
        ]
    return sorted(found, key=lambda load: load.at)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A database that is kept compressed."""
    with tempfile.NamedTemporaryFile(suffix=".db") as file:
        file.write(gzip.decompress(path.read_bytes()))
        file.flush()
        with contextlib.closing(sqlite3.connect(file.name)) as connection:
            yield connection


def _rows(path: Path) -> Iterator[tuple[int, int, datetime, float]]:
    """Gamma, workload (a round of boots), time and tok/s of every repeat at one stream."""
    with opened(path) as connection:
        candidates = dict(connection.execute("SELECT candidate_key, candidate FROM trials"))
        parts = connection.execute(
            "SELECT candidate_key, workload_id, created_at, value FROM parts "
            "WHERE name LIKE 'concurrency 1 repeat %' ORDER BY id"
        )
        for key, workload, at, value in parts:
            gamma = int(json.loads(candidates[key])["gamma"])
            yield gamma, workload, datetime.fromisoformat(at), float(json.loads(value)["tok_s"])


def scatter(*folders: str) -> None:
    """Print by gamma how far boots are apart, and how far the repeats of one boot."""
    rows = []
    found = loads(*folders)
    for gamma in sorted({load.gamma for load in found}):
        boots: dict[tuple[int, int], list[float]] = {}
        for load in found:
            if load.gamma == gamma:
                boots.setdefault(load.boot, []).append(load.tok_s)
        middles = [statistics.median(repeats) for repeats in boots.values()]
        within = [max(repeats) / min(repeats) - 1 for repeats in boots.values()]
        rows.append(
            [
                str(gamma),
                str(len(boots)),
                f"{max(middles) / min(middles) - 1:.0%}",
                f"{statistics.median(within):.0%}",
                f"{max(within):.0%}",
            ]
        )
    table(
        ("γ", "boots", "medians of boots, furthest", "repeats of one boot, median", "furthest"),
        rows,
    )


def moments(*folders: str) -> None:
    """Print the times at which both GPUs served one drafting stream, and how slow each was."""
    drafting = [load for load in loads(*folders) if load.gamma]
    rows = []
    for group in _groups(drafting):
        lanes = {lane: [load for load in group if load.lane == lane] for lane in ("A", "B")}
        if all(lanes.values()):
            rows.append(
                [
                    f"{group[0].at:%H:%M:%S}",
                    *(
                        f"γ={of[0].gamma}: {', '.join(f'{load.share:.2f}' for load in of)}"
                        for of in lanes.values()
                    ),
                ]
            )
    table(("from", "first GPU", "second GPU"), rows, right=0)


def _groups(found: Iterable[Load]) -> Iterator[list[Load]]:
    """Loads that follow each other within :data:`TOGETHER_S`."""
    group: list[Load] = []
    for load in found:
        if group and (load.at - group[-1].at).total_seconds() > TOGETHER_S:
            yield group
            group = []
        group.append(load)
    if group:
        yield group
