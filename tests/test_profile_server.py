"""What is read off the traces of torch's profiler."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from benchmarks.profile_server import kernels


def test_kernels_are_told_apart_by_their_grid_and_the_longest_comes_first(tmp_path: Path) -> None:
    def ran(name: str, us: float, *grid: int, kind: str = "kernel") -> dict[str, object]:
        return {"cat": kind, "name": name, "dur": us, "args": {"grid": list(grid)}}

    events = [ran("moe", 2.0, 8, 1, 1), ran("moe", 4.0, 8, 1, 1), ran("moe", 9.0, 16, 1, 1)]
    events += [{"name": "process_name"}, ran("aten::mm", 99.0, kind="cpu_op")]
    trace = json.dumps({"traceEvents": events})
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(trace.encode()))
    (tmp_path / "b.json").write_text(json.dumps({"traceEvents": [ran("moe", 9.0, 8, 1, 1)]}))
    (tmp_path / "out.txt").write_text("a summary")
    assert kernels(tmp_path) == [
        {"name": "moe", "grid": (8, 1, 1), "calls": 3, "total_us": 15.0, "median_us": 4.0},
        {"name": "moe", "grid": (16, 1, 1), "calls": 1, "total_us": 9.0, "median_us": 9.0},
    ]
