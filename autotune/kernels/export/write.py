"""What a finished job leaves behind: vLLM's file, its provenance, a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autotune.export.files import Exporter, json_file, write_files
from autotune.kernels.config_file import render
from autotune.kernels.export.earlier import check_keys_stay
from autotune.kernels.job import Result
from autotune.kernels.report.document import provenance
from autotune.kernels.stored import folder_of
from autotune.report import files
from autotune.report.page import Page


@dataclass(frozen=True)
class Finished:
    """A job's result, and the page made of what it stored."""

    result: Result
    page: Page


def config(done: Finished) -> bytes:
    """Return vLLM's file."""
    rows = {m: s.winner.candidate for m, s in done.result.selections.items()}
    return render(rows, done.result.plan.kernel.triton_version)


FILES: dict[str, Exporter[Finished]] = {
    "report.html": lambda done: files.html(done.page),
    "provenance.json": lambda done: json_file(provenance(done.result)),
    "report.md": lambda done: files.markdown(done.page),
}
"""Each file and what makes it; vLLM's own, of which the name depends on the layer, comes last."""


def write(result: Result, page: Page, out: Path) -> list[Path]:
    """Write the files, each whole; the configuration file last.

    Raises:
        BadInputError: the folder cannot be written, or holds a file with keys that this one lacks.
        MissingEnvironmentError: no space is left.
    """
    plan = result.plan
    folder = folder_of(out, plan.study, plan.basis)
    check_keys_stay(plan, result.selections, folder, tuned=True, failed=result.failed)
    return write_files(folder, FILES | {plan.file_name: config}, Finished(result, page))
