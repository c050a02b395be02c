"""The comparison of several targets as files: ``matrix.json`` and ``report.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.core import Basis
from autotune.export.files import Exporter, json_file, write_files
from autotune.report import files
from autotune.report.page import Code, Page, Section, Table, Text
from autotune.serving.matrix.matrix import Entry, Status, matrix_row, matrix_study
from autotune.serving.report import job_words as said
from autotune.serving.report.figures import number
from autotune.serving.report.page import BANNER
from autotune.serving.request import SpecRequest
from autotune.space.published import Published
from autotune.util.words import counted

HEADS = ("target", "baseline", "best with", "tok/s", "× baseline", "tokens/draft", "verdict")


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
        "rows": [matrix_row(entry) for entry in entries],
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


def matrix_page(document: Mapping[str, Any]) -> Page:
    """Make the page of a comparison; each target has a page of its own beside.

    Args:
        document: as from :func:`matrix_document`.
    """
    rows, scenario = document["rows"], document["scenario"]
    told = [
        Text(f"{row['target']}: {row['verdict']} (study {row['study']})")
        for row in rows
        if row["status"] == Status.DONE.value
    ]
    without = [
        Text(f"{row['target']} {row['status']}: {row['reason']}") for row in rows if row["reason"]
    ]
    words = (
        "tok/s of all streams together, by concurrency; mean over the fresh boots, where a setting "
        "had none over the search's one. × baseline: speed over the same target without "
        "speculation and with the first value of everything else, by "
        f"{scenario['objective']}; with its 95 % interval where fresh boots gave one."
    )
    wins = sum(bool(row.get("wins")) for row in rows)
    published = document["published"]
    figures = {k: v for k, v in published.items() if k != "basis"} if published else None
    sections = [
        Section("Targets", [Table(HEADS, [row_cells(row) for row in rows])], brief=True),
        Section("Without a result", without, brief=True),
        Section("Columns of the table", [Text(words)]),
        Section("Verdicts", told),
        said.published(None if figures is None else Published.model_validate(figures)),
        Section("Command", [Code(document["command"])]),
    ]
    return Page(
        title=document["study"],
        basis=document["basis"],
        banner=BANNER if document["basis"] == Basis.SYNTHETIC.value else None,
        result=f"{counted(len(rows), 'target')}; a drafter wins for {wins} of them",
        facts=[
            ("Drafter", document["drafter"] or "no drafter"),
            ("Concurrency", ", ".join(map(str, scenario["concurrency"]))),
        ],
        sections=[section for section in sections if section.blocks],
    )


FILES: dict[str, Exporter[tuple[Mapping[str, Any], Page]]] = {
    "report.md": lambda done: files.markdown(done[1]),
    "matrix.json": lambda done: json_file(done[0], sort=False),
}
"""Each file and what makes it, in the order in which they are written."""


def write_matrix(request: SpecRequest, entries: Sequence[Entry], folder: Path) -> list[Path]:
    """Write the files, each whole; ``matrix.json`` last.

    Raises:
        BadInputError: the folder cannot be written.
        MissingEnvironmentError: no space is left.
    """
    document = matrix_document(request, entries)
    return write_files(folder, FILES, (document, matrix_page(document)))
