"""The comparison of several targets as files: ``matrix.json`` and ``report.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.export.files import write_whole
from autotune.serving.matrix.matrix import Entry, Status, matrix_rows, matrix_study
from autotune.serving.report.markdown import number, table
from autotune.serving.report.markdown_report import published_table
from autotune.serving.request import SpecRequest
from autotune.util.markdown import escape, in_code

HEADS = ["target", "baseline", "best with", "tok/s", "× baseline", "tokens/draft", "verdict"]


def matrix_document(request: SpecRequest, entries: Sequence[Entry]) -> dict[str, Any]:
    """Everything about the comparison but the studies themselves; as JSON values."""
    plan = next(entry.plan for entry in entries if entry.plan is not None)
    scenario = {k: v for k, v in plan.scenario.as_json().items() if k != "target"}
    return {
        "study": matrix_study(request),
        "basis": plan.basis.value,
        "drafter": request.only_drafter,
        "scenario": scenario,
        "command": request.command or request.command_line("spec"),
        "rows": matrix_rows(entries),
        "published": published.as_json() if (published := plan.space.published) else None,
    }


def row_cells(row: Mapping[str, Any]) -> list[str]:
    """A row for people, under :data:`HEADS`; rates are given for all concurrencies in turn."""
    if row["status"] != Status.DONE.value:
        return [row["target"], *["–"] * 5, row["status"]]
    before, best = row["baseline"], row["best"]
    if best is None:
        return [row["target"], _rates(before["tok_s"]), *["–"] * 4, "nothing else works"]
    lengths = [number(length, 2) for length in best["acceptance_length"].values()]
    interval = best["interval"]
    speedup = number(best["speedup"], 3)
    if interval:
        speedup += f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return [
        row["target"],
        _rates(before["tok_s"]),
        best["setting"],
        _rates(best["tok_s"]),
        speedup,
        ", ".join(lengths) or "–",
        "wins" if row["wins"] else "no gain: keep the baseline",
    ]


def _rates(tok_s: Mapping[str, float]) -> str:
    return ", ".join(number(rate) for rate in tok_s.values())


def reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why targets are without a result."""
    return [f"{row['target']} {row['status']}: {row['reason']}" for row in rows if row["reason"]]


def matrix_report(request: SpecRequest, entries: Sequence[Entry]) -> str:
    """The table in Markdown, and where each target's own report is."""
    document = matrix_document(request, entries)
    plan = next(entry.plan for entry in entries if entry.plan is not None)
    rows, scenario = document["rows"], document["scenario"]
    levels = ", ".join(map(str, scenario["concurrency"]))
    lines = [
        f"# {escape(document['study'])}: {len(rows)} targets, {document['basis']}",
        "",
        f"- Drafter: {escape(document['drafter'])}",
        f"- tok/s of all streams together at concurrency {levels}; mean over the fresh boots, "
        "where a setting had none over the search's one",
        "- × baseline: speed over the same target without speculation and with the first value of "
        f"everything else, by {scenario['objective']}; with its 95 % interval where fresh boots "
        "gave one",
        f"- Command: `{in_code(document['command'])}`",
        "",
        *table(HEADS, [row_cells(row) for row in rows]),
        "",
        *(f"- {escape(text)}" for text in reasons(rows)),
        *(
            f"- {escape(row['target'])}: {escape(row['verdict'])} (study {row['study']})"
            for row in rows
            if row["status"] == Status.DONE.value
        ),
        "",
        *published_table(plan.space.published),
    ]
    return "\n".join(lines) + "\n"


def write_matrix(request: SpecRequest, entries: Sequence[Entry], folder: Path) -> list[Path]:
    """Write ``report.md`` and ``matrix.json`` (last), each whole.

    Raises:
        BadInputError: the folder cannot be written.
        MissingEnvironmentError: no space is left.
    """
    text = json.dumps(matrix_document(request, entries), indent=2, ensure_ascii=False)
    files = {
        folder / "report.md": matrix_report(request, entries),
        folder / "matrix.json": text + "\n",
    }
    for path, content in files.items():
        write_whole(path, content.encode())
    return list(files)
