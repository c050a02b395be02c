"""``autotune studies`` and ``autotune show`` print what the database holds."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from autotune.cli.common import print_json, reads_studies
from autotune.cli.consoles import out
from autotune.cli.requests import Show, Studies
from autotune.core import BadInputError, Outcome
from autotune.util.words import counted

if TYPE_CHECKING:
    from pathlib import Path

    from autotune.serving.stored import Served


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
    from autotune.cli.overview import best_rows, served_rows  # noqa: PLC0415
    from autotune.serving.stored import load_served  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    with Store.open(request.db, create=False) as store:
        detail = store.get_study(request.study)
        trials = {record.id: store.trials(record) for record in detail.searches}
        served = None
        if detail.study.kind == "spec":
            with contextlib.suppress(BadInputError):  # nothing was loaded yet
                served = load_served(store, request.study)
    rows = best_rows(detail, trials)
    rows.sort(key=lambda row: (row["search"], len(row["workload"]), row["workload"]))
    settings = [] if served is None else served_rows(served)
    if request.as_json:
        more = {} if served is None else {"settings": settings}
        print_json({**detail.as_json(), "trials": detail.trials, "best": rows, **more})
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
    if served is not None:
        _show_settings(served, settings)
    elif detail.study.kind == "spec":
        out.print("no setting was loaded yet")
    else:
        _show_best(rows)


def _write_trials(request: Show, path: Path) -> None:
    from autotune.export.files import write_whole  # noqa: PLC0415
    from autotune.store.frames import check_frame_file, frame_file, trials_frame  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    check_frame_file(path, "--to")
    with Store.open(request.db, create=False) as store:
        frame = trials_frame(store, request.study)
    write_whole(path, frame_file(frame, path), "--to")
    if request.as_json:
        print_json({"file": str(path), "trials": len(frame), "columns": list(frame.columns)})
    else:
        typer.echo(f"{path}: {counted(len(frame), 'trial')}")


def _show_best(rows: list[dict[str, Any]]) -> None:
    """Print the best candidate of every batch size."""
    from autotune.kernels.config_file import FIELDS  # noqa: PLC0415

    heading = "BM/BN/BK/G/warps/stages"
    shown = Table("search", "workload", "basis", "best µs", "default µs", heading, box=None)
    for row in rows:
        before = row["default_us"]
        shown.add_row(
            str(row["search"]),
            escape(row["workload"]),
            row["basis"],
            f"{row['best_us']:.1f}",
            "" if before is None else f"{before:.1f}",
            escape("/".join(str(row["config"][name]) for name in FIELDS)),
        )
    out.print(shown)
    out.print("Best is what was found; a row of the file changes only where it gains enough.")


def _show_settings(served: Served, rows: list[dict[str, Any]]) -> None:
    """Every setting of the load measured last."""
    from autotune.serving.report.figures import described, number  # noqa: PLC0415

    scenario = served.scenario
    out.print(
        f"search {served.search.id}, {scenario.target} with {scenario.drafting}; "
        f"{described(scenario)}; by {scenario.objective}",
        soft_wrap=True,
        markup=False,
    )
    levels = [str(c) for c in scenario.concurrency]
    shown = Table("setting", box=None)
    shown.columns[0].overflow = "fold"
    for name in (*(f"tok/s at {c}" for c in levels), "× baseline", "fresh boots", "identical"):
        shown.add_column(name, justify="right")
    for row in rows:
        cells = [number(row["tok_s"].get(c)) for c in levels]
        if row["outcome"] != Outcome.OK.value:
            cells[0] = row["outcome"]
        share = row["identical_share"]
        shown.add_row(
            escape(row["setting"]),
            *cells,
            number(row["times_baseline"], 3),
            number(row["fresh_boots"], 3),
            number(None if share is None else 100 * share, 0, " %"),
        )
    out.print(shown)
    if served.others:
        out.print(f"{served.others} more loads or set-ups are not shown.")
    out.print(f"autotune report {served.study}: the page with all of it", markup=False)


def _short(value: Any) -> str:
    """Shorten a setup's value for people: the name of a space, the start of a hash."""
    if isinstance(value, dict):
        parts = " ".join(f"{name} {part}" for name, part in value.items() if part)
        return str(value.get("name") or parts or "–")
    return value[:16] if isinstance(value, str) else str(value)
