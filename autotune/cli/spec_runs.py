"""``autotune spec`` tunes one target, compares several, or measures the server at a URL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autotune.cli import spec_terminal as terminal
from autotune.cli.common import check_study, print_json, tell_of
from autotune.cli.consoles import err
from autotune.cli.events import existing_plan, serving_plan, told
from autotune.cli.requests import Spec
from autotune.export.files import check_writable
from autotune.machine.environment import secret_headers
from autotune.serving.export import write as export
from autotune.serving.job import Result, local_measurer, run
from autotune.serving.make_plan import make_plan
from autotune.serving.matrix.matrix import Entry, matrix_study, prepare, run_each
from autotune.serving.matrix.report import matrix_document, write_matrix
from autotune.serving.plan import Plan
from autotune.serving.preflight import refusal
from autotune.serving.report.page import keep_verdict, write_page
from autotune.serving.running.job import (
    ExistingPlan,
    existing_document,
    existing_measurer,
    make_existing_plan,
    run_existing,
    write_existing,
)
from autotune.serving.running.server import is_exposed
from autotune.store.store import Store


def tune(request: Spec) -> None:
    """Find one target's best setting and write its files."""
    out = request.out
    plan = make_plan(request)
    terminal.show_findings([f for f in plan.findings if plan.force or not f.refuses])
    if not plan.force:
        refusal(plan.findings)
    with Store.open(request.db) as store:
        _check(store, plan, None if request.dry_run else _logs(out, plan))
        if request.dry_run:
            _only_said(request, plan)
            return
        result = _tuned(request, plan, store)
        files = export.write(result, out)
        files.insert(0, write_page(store, plan, out))
    if request.as_json:
        print_json(export.document(result) | {"files": [str(path) for path in files]})
    else:
        terminal.show_result(result, files)


def compare(request: Spec) -> None:
    """Tune several targets one after the other; write the matrix, and every target's own files."""
    out, entries = request.out, prepare(request)
    folder = export.folder_of(out, matrix_study(request))
    if not request.dry_run:
        check_writable(folder)
    for entry in entries:
        terminal.show_entry(entry, force=request.force)
    if request.dry_run:
        plans = [serving_plan(entry.plan) for entry in entries if entry.plan is not None]
        if request.as_json:
            print_json({"kind": "spec", "targets": plans})
        return

    def tune_one(plan: Plan) -> Result:
        _check(store, plan, _logs(out, plan))
        result = _tuned(request, plan, store)
        export.write(result, out)
        write_page(store, plan, out)
        return result

    def on_change(changed: Sequence[Entry]) -> None:
        write_matrix(request, changed, folder)

    on_change(entries)
    with Store.open(request.db) as store:
        run_each(entries, tune_one, on_change)
    files = write_matrix(request, entries, folder)
    if request.as_json:
        print_json(matrix_document(request, entries) | {"files": [str(path) for path in files]})
    else:
        terminal.show_matrix(entries, files)


def measure(request: Spec) -> None:
    """Measure the one setting of a server that runs already."""
    plan = make_existing_plan(request, [*secret_headers(), *request.header])
    folder = export.folder_of(request.out, plan.study)
    if is_exposed(plan.launcher.root, plan.launcher.headers):
        err.print("[yellow]Warning: headers go unencrypted: http, and another machine[/yellow]")
    with Store.open(request.db) as store:
        _check(store, plan, None if request.dry_run else folder)
        terminal.show_existing_plan(plan)
        if request.dry_run:
            if request.as_json:
                print_json(existing_plan(plan))
            return
        with told(request.events, existing_plan(plan), lambda _: None):
            result = run_existing(plan, store, existing_measurer(plan, folder / "logs"))
        keep_verdict(store, plan, existing_document(result))
        files = write_existing(result, folder)
        files.insert(0, write_page(store, plan, request.out))
    if request.as_json:
        print_json(existing_document(result) | {"files": [str(path) for path in files]})
    else:
        terminal.show_existing(result, files)


def _only_said(request: Spec, plan: Plan) -> None:
    """Say what would be done."""
    terminal.show_plan(plan)
    if request.as_json:
        print_json(serving_plan(plan))


def _check(store: Store, plan: Plan | ExistingPlan, folder: Path | None) -> None:
    """Check that the study may be tuned and its results written, before anything is shown."""
    otherwise = check_study(store, plan.study, "spec", plan.identity(), plan.setup())
    if folder is not None:
        check_writable(folder)
    tell_of(plan.study, otherwise)


def _logs(out: Path, plan: Plan) -> Path:
    return export.folder_of(out, plan.study) / "logs"


def _tuned(request: Spec, plan: Plan, store: Store) -> Result:
    terminal.show_plan(plan)
    described = serving_plan(plan)
    with terminal.progress(plan) as update, told(request.events, described, update) as tell:
        result = run(plan, store, local_measurer(plan, _logs(request.out, plan)), tell)
    keep_verdict(store, plan, export.document(result))
    return result
