"""``autotune report`` and ``autotune dashboard`` show studies in a browser."""

from __future__ import annotations

import contextlib
import webbrowser

import typer

from autotune.cli.common import print_json, reads_studies
from autotune.cli.consoles import err
from autotune.cli.requests import Dashboard, Report
from autotune.core import BadInputError
from autotune.util import flags
from autotune.util.escape import for_terminal


@reads_studies
def report(request: Report) -> None:
    """Write the study's pages and print where they are."""
    from autotune import kind  # noqa: PLC0415
    from autotune.export.files import write_files  # noqa: PLC0415
    from autotune.report.files import PAGE_FILES  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    study = request.study
    with Store.open(request.db, create=False) as store:
        if request.bundle is not None:
            from autotune.cli.bundles import write_bundle  # noqa: PLC0415

            write_bundle(request, store, request.bundle)
            return
        name = store.get_study(study).study.kind
        flags.study_name(study)  # of a database made elsewhere: it becomes part of a path
        of_study = kind.get(name)
        page = of_study.page(
            store, study, out=request.out, min_gain=request.min_gain, device=request.device
        )
        place = of_study.folder(request.out, page, study)
    files = write_files(place, PAGE_FILES, page)
    if request.as_json:
        document = {"study": study, "kind": name, "banner": page.banner, "result": page.result}
        print_json(document | {"files": [str(path) for path in files]})
    else:
        if page.banner:
            typer.echo(for_terminal(page.banner))
        typer.echo(for_terminal(page.result))
        for path in files:
            typer.echo(path)
    if request.open_ and not webbrowser.open(files[-1].absolute().as_uri()):
        typer.echo(f"no browser to open here; open {files[-1]} in one", err=True)


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
