"""``autotune studies`` and ``autotune show`` print what the database holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from autotune.cli.common import print_json, reads_studies
from autotune.cli.consoles import out
from autotune.cli.requests import Show, Studies
from autotune.util.words import counted

if TYPE_CHECKING:
    from pathlib import Path

    from autotune.kind import Overview


@reads_studies
def studies(request: Studies) -> None:
    """Print the studies of a database."""
    from autotune.store.store import Store  # noqa: PLC0415

    with Store.open(request.db, create=False) as store:
        summaries = store.list_studies()
    if request.as_json:
        print_json([{**summary.as_json(), "trials": summary.trials} for summary in summaries])
        return
    shown = Table("study", "kind", "trials", "basis", "runs", "last run", box=None)
    shown.columns[0].no_wrap = True  # it is there to be copied
    for summary in summaries:
        last = summary.last_run
        bases = ", ".join(sorted({count.basis.value for count in summary.counts}))
        when = "none"
        if last is not None:
            at = last.ended_at or last.started_at  # a killed run has no end
            since = "" if last.ended_at else ", begun"
            when = f"{last.status.value}{since} {at:%Y-%m-%d %H:%M} UTC"
        shown.add_row(
            escape(summary.study.name),
            escape(summary.study.kind),
            str(summary.trials),
            bases,
            str(summary.runs),
            when,
        )
    if summaries:
        out.print(shown)
    else:
        typer.echo(f"no studies in {request.db}; start one with: autotune moe --device gb10")


@reads_studies
def show(request: Show) -> None:
    """Print a study, or write its trials as a table."""
    if request.to is not None:
        _write_trials(request, request.to)
        return
    from autotune import kind  # noqa: PLC0415
    from autotune.store.best import best_rows  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    with Store.open(request.db, create=False) as store:
        detail = store.get_study(request.study)
        rows = best_rows(detail, {record.id: store.trials(record) for record in detail.searches})
        rows.sort(key=lambda row: (row["search"], len(row["workload"]), row["workload"]))
        overview = kind.get(detail.study.kind).overview(store, detail, rows)
    if request.as_json:
        document = {**detail.as_json(), "trials": detail.trials, "best": rows}
        print_json(document | overview.document)
        return
    out.print(
        f"[bold]{escape(detail.study.name)}[/bold] ({escape(detail.study.kind)}), "
        f"{counted(detail.trials, 'trial')}, {counted(detail.runs, 'run')}"
    )
    for record in detail.searches:
        counts = [c for c in detail.counts if c.search_id == record.id]
        outcomes = ", ".join(f"{c.count} {c.basis.value} {c.outcome.value}" for c in counts)
        out.print(
            f"search {record.id}: {outcomes or 'no trials yet'}; "
            + ", ".join(f"{name} {_short(value)}" for name, value in record.setup.items()),
            soft_wrap=True,
            markup=False,
        )
    _show_overview(overview)


def _write_trials(request: Show, path: Path) -> None:
    from autotune.export.files import check_parent, write_whole  # noqa: PLC0415
    from autotune.store.frames import check_frame_file, frame_file, trials_frame  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    check_frame_file(path)
    check_parent(path, "--to")
    with Store.open(request.db, create=False) as store:
        frame = trials_frame(store, request.study)
    write_whole(path, frame_file(frame, path), "--to")
    if request.as_json:
        print_json({"file": str(path), "trials": len(frame), "columns": list(frame.columns)})
    else:
        typer.echo(f"{path}: {counted(len(frame), 'trial')}")


def _show_overview(overview: Overview) -> None:
    if overview.before:
        out.print(overview.before, soft_wrap=True, markup=False)
    if overview.heads:
        shown = Table(box=None)
        for number, name in enumerate(overview.heads):
            right = overview.figures and number > 0
            shown.add_column(
                name,
                justify="right" if right else "left",
                overflow="fold" if overview.figures and not right else "ellipsis",
            )
        for row in overview.rows:
            shown.add_row(*map(escape, row))
        out.print(shown)
    for line in overview.after:
        out.print(line, markup=False)


def _short(value: Any) -> str:
    """Shorten a setup's value for people: the name of a space, the start of a hash."""
    if isinstance(value, dict):
        parts = " ".join(f"{name} {part}" for name, part in value.items() if part)
        return str(value.get("name") or parts or "–")
    return value[:16] if isinstance(value, str) else str(value)
