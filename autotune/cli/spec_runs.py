"""``autotune spec`` tunes one target, compares several, or measures the server at a URL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autotune.cli import spec_terminal as terminal
from autotune.cli.cluster import on_cluster, waiting
from autotune.cli.common import check_study, print_json, warn_setup_changed
from autotune.cli.consoles import err
from autotune.cli.events import existing_plan, serving_plan, told
from autotune.cli.requests import Spec
from autotune.cli.result import show_files, show_page
from autotune.core import Measurer
from autotune.export.files import check_writable
from autotune.machine.environment import secret_headers
from autotune.report.page import Page
from autotune.report.verdict import keep_verdict
from autotune.serving.cluster.look import Looked
from autotune.serving.cluster.measurer import cluster_measurer, look_at_nodes
from autotune.serving.export import write as export
from autotune.serving.job import Result, local_measurer, run
from autotune.serving.make_plan import make_plan
from autotune.serving.matrix.matrix import Entry, matrix_study, prepare, run_each
from autotune.serving.matrix.report import matrix_document, matrix_page, write_matrix
from autotune.serving.parse import parse_words
from autotune.serving.plan import Plan
from autotune.serving.preflight import refusal
from autotune.serving.report.document import document
from autotune.serving.report.page import page_of
from autotune.serving.running.job import (
    ExistingPlan,
    existing_document,
    existing_measurer,
    make_existing_plan,
    run_existing,
    write_existing,
)
from autotune.serving.running.server import is_exposed
from autotune.serving.stored import folder_of
from autotune.store.store import Store


def tune(request: Spec) -> None:
    """Find one target's best setting and write its files."""
    with on_nodes(request) as nodes:
        _tune(request, nodes)


def _tune(request: Spec, nodes: Looked | None) -> None:
    out = request.out
    plan = make_plan(request, nodes, pull=not request.dry_run)
    terminal.show_findings([f for f in plan.findings if plan.force or not f.refuses])
    if not plan.force:
        refusal(plan.findings)
    with Store.open(request.db) as store:
        _check(store, plan, None if request.dry_run else _logs(out, plan))
        if request.dry_run:
            _only_said(request, plan)
            return
        result, page = _tuned(request, plan, store)
        files = export.write(result, page, out)
    if request.as_json:
        print_json(document(result) | {"files": [str(path) for path in files]})
    else:
        terminal.show_result(result, page, files)


def compare(request: Spec) -> None:
    """Tune several targets one after the other; write the matrix, and every target's own files."""
    with on_nodes(request) as nodes:
        _compare(request, nodes)


def _compare(request: Spec, nodes: Looked | None) -> None:
    out, entries = request.out, prepare(request, nodes, pull=not request.dry_run)
    folder = folder_of(out, matrix_study(request))
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
        result, page = _tuned(request, plan, store)
        export.write(result, page, out)
        return result

    def on_change(changed: Sequence[Entry]) -> None:
        write_matrix(request, changed, folder)

    on_change(entries)
    with Store.open(request.db) as store:
        run_each(entries, tune_one, on_change)
    files = write_matrix(request, entries, folder)
    compared = matrix_document(request, entries)
    if request.as_json:
        print_json(compared | {"files": [str(path) for path in files]})
    else:
        show_page(matrix_page(compared))
        show_files(files)


def measure(request: Spec) -> None:
    """Measure the one setting of a server that runs already."""
    plan = make_existing_plan(request, [*secret_headers(), *request.header])
    folder = folder_of(request.out, plan.study)
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
        page = page_of(store, plan.study, about=(plan.setup(), plan.scenario))
        files = write_existing(result, page, folder)
    if request.as_json:
        print_json(existing_document(result) | {"files": [str(path) for path in files]})
    else:
        terminal.show_existing(result, page, files)


@contextmanager
def on_nodes(request: Spec) -> Iterator[Looked | None]:
    """Be connected to the cluster of ``--ray``, whose nodes are looked at; None without the flag.

    Raises:
        MissingEnvironmentError: it is not there, or a node of it cannot serve.
    """
    if request.ray is None:
        yield None
        return
    program = () if request.vllm is None else parse_words(request.vllm, "--vllm")
    with on_cluster(request.ray):
        with waiting("--ray: asking every node what it has"):
            nodes = look_at_nodes([*request.target, *request.drafter], program)
        for said in nodes.left_out:
            err.warn(f"--ray: left out: {said}")
        yield nodes


def _measurer(plan: Plan, logs: Path) -> Measurer:
    local = local_measurer(plan, logs)
    if plan.nodes is None:
        return local
    return cluster_measurer(plan, plan.nodes, local, logs, err.warn)


def _only_said(request: Spec, plan: Plan) -> None:
    """Say what would be done."""
    terminal.show_plan(plan)
    if request.as_json:
        print_json(serving_plan(plan))


def _check(store: Store, plan: Plan | ExistingPlan, folder: Path | None) -> None:
    """Check that the study may be tuned and its results written, before anything is shown.

    Without a ``folder`` nothing will be: a dry run only reads.
    """
    named = (plan.study, plan.kind, plan.identity(), plan.setup())
    otherwise = check_study(store, *named, only_read=folder is None)
    if folder is not None:
        check_writable(folder)
    warn_setup_changed(plan.study, otherwise)


def _logs(out: Path, plan: Plan) -> Path:
    return folder_of(out, plan.study) / "logs"


def _tuned(request: Spec, plan: Plan, store: Store) -> tuple[Result, Page]:
    terminal.show_plan(plan)
    described = serving_plan(plan)
    with terminal.progress(plan) as update, told(request.events, described, update) as tell:
        result = run(plan, store, _measurer(plan, _logs(request.out, plan)), tell)
    keep_verdict(store, plan, document(result))
    return result, page_of(store, plan.study, about=(plan.setup(), plan.scenario))
