"""``autotune report`` and ``autotune dashboard`` show studies in a browser."""

from __future__ import annotations

import contextlib
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from autotune.cli.common import print_json, reads_studies, tuned_for
from autotune.cli.consoles import err
from autotune.cli.requests import Dashboard, Report
from autotune.core import BadInputError
from autotune.util import edge, flags
from autotune.util.escape import for_terminal

if TYPE_CHECKING:
    from autotune.report.page import Page
    from autotune.store.store import Store


@reads_studies
def report(request: Report) -> None:
    """Write the study's pages and print where they are."""
    from autotune.report.files import write_html, write_markdown  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    study, min_gain = request.study, request.min_gain
    gain = None if min_gain is None else flags.fraction(min_gain, "--min-gain")
    with Store.open(request.db, create=False) as store:
        if request.bundle is not None:
            from autotune.cli.bundles import write_bundle  # noqa: PLC0415

            write_bundle(request, store, request.bundle)
            return
        kind = store.get_study(study).study.kind
        flags.study_name(study)  # of a database made elsewhere: it becomes part of a path
        if kind == "spec":
            page, place, current = _spec(store, study, request.out)
        else:
            page, place, current = _moe(store, study, request.out, request.device, gain)
    text = place / "report.md"
    if not (current and text.is_file()):  # a finished job's own says more
        write_markdown(page, place)
    files = [text, write_html(page, place)]
    if request.as_json:
        document = {"study": study, "kind": kind, "banner": page.banner, "result": page.result}
        print_json(document | {"files": [str(path) for path in files]})
    else:
        if page.banner:
            typer.echo(for_terminal(page.banner))
        typer.echo(for_terminal(page.result))
        for path in files:
            typer.echo(path)
    if request.open_ and not webbrowser.open(files[-1].absolute().as_uri()):
        typer.echo(f"no browser to open here; open {files[-1]} in one", err=True)


def _moe(
    store: Store, study: str, out: Path, device: str | None, min_gain: float | None
) -> tuple[Page, Path, bool]:
    from autotune.kernels.export.write import folder_of  # noqa: PLC0415
    from autotune.kernels.report.page import moe_page  # noqa: PLC0415
    from autotune.kernels.stored import load  # noqa: PLC0415

    own_device = None if device is None else tuned_for(store, study, device)
    tuned = load(store, study, 0.01 if min_gain is None else min_gain, device=own_device)
    place = folder_of(out, study, tuned.basis)
    provenance = _provenance(place)
    facts, current = None, False
    if provenance.get("setup") == tuned.setup:  # the job's own words are about this search
        facts = provenance.get("measured_on")
        current = min_gain is None and sum(provenance.get("counts", {}).values()) == tuned.trials
        if min_gain is None and provenance.get("min_gain") is not None:
            min_gain = float(provenance["min_gain"])
            tuned = load(store, study, min_gain, device=own_device, setup=tuned.setup)
    page = moe_page(store, tuned, 0.01 if min_gain is None else min_gain, facts)
    return page, place, current


def _spec(store: Store, study: str, out: Path) -> tuple[Page, Path, bool]:
    from autotune.serving.export.write import folder_of  # noqa: PLC0415
    from autotune.serving.report.page import (  # noqa: PLC0415
        known_boots,
        left_by_job,
        left_in_folder,
        spec_page,
    )
    from autotune.serving.stored import load_served  # noqa: PLC0415

    served, place = load_served(store, study), folder_of(out, study)
    page = spec_page(store, served, left_by_job(store, served, place))
    return page, place, known_boots(left_in_folder(served, place)) == served.boots


def _provenance(place: Path) -> dict[str, Any]:
    """Read what a finished job left there; nothing if there is none, or no JSON."""
    try:
        document = edge.read_json(place / "provenance.json")
    except (OSError, edge.EdgeError):
        return {}
    return document if isinstance(document, dict) else {}


@reads_studies
def dashboard(request: Dashboard) -> None:
    """Mirror the studies and serve them until Ctrl-C.

    Raises:
        BadInputError: there are no trials.
    """
    from autotune.report.dashboard import check_installed, dashboard_server  # noqa: PLC0415
    from autotune.report.optuna_mirror import mirror  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    study = request.study
    check_installed()
    with Store.open(request.db, create=False) as store:
        names = [study] if study else [summary.study.name for summary in store.list_studies()]
        details = [store.get_study(name) for name in names]
        flags.study_name(study)
        trials = [{s.id: store.dated_trials(s) for s in detail.searches} for detail in details]
    if not any(of_search for of_study in trials for of_search in of_study.values()):
        what = f"study {study!r}" if study else request.db
        raise BadInputError(
            f"{what} holds no trials yet; `autotune moe` and `autotune spec` do them"
        )
    path = request.out / (study or "") / "dashboard.journal"
    waiting = err.status("mirroring …") if err.is_terminal else contextlib.nullcontext()
    with waiting:
        mirrored = mirror(zip(details, trials, strict=True), path)
    with dashboard_server(path, request.port) as server:
        if request.as_json:
            print_json({"url": server.url, "storage": str(path), "studies": mirrored})
        else:
            typer.echo(
                f"mirrored to {path}; Optuna studies, one for each search and what it measured on: "
                f"{len(mirrored)}"
            )
            typer.echo(f"{server.url}   (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
