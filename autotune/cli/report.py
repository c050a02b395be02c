"""``autotune report`` and ``autotune dashboard``: studies to look at."""

from __future__ import annotations

import contextlib
import json
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autotune.cli.common import DEFAULT_DB, Db, Json, print_json, tuned_for
from autotune.cli.consoles import err
from autotune.core import BadInputError
from autotune.util import flags

if TYPE_CHECKING:
    from autotune.report.page import Page
    from autotune.store.store import Store


def report(
    study: Annotated[str, typer.Argument(help="Name, as `autotune studies` lists it.")],
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    folder: Annotated[Path, typer.Option("--out", help="Where result files go.")] = Path("outputs"),
    db: Db = DEFAULT_DB,
    device: Annotated[
        str | None, typer.Option(help="Its .yaml file, if the study is of a device of your own.")
    ] = None,
    min_gain: Annotated[
        str | None, typer.Option(help="As for `autotune moe`; default: that of the job, or 1%.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write a study as it is now into one report.html, and report.md where no job left it."""
    from autotune.report.files import write_html, write_markdown  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    gain = None if min_gain is None else flags.fraction(min_gain, "--min-gain")
    with Store.open(db, create=False) as store:
        kind = store.get_study(study).study.kind
        flags.study_name(study)  # of a database made elsewhere: it becomes part of a path
        if kind == "spec":
            page, place, current = _spec(store, study, folder)
        else:
            page, place, current = _moe(store, study, folder, device, gain)
    text = place / "report.md"
    if not (current and text.is_file()):  # a finished job's own says more
        write_markdown(page, place)
    files = [text, write_html(page, place)]
    if json_:
        said = {"study": study, "kind": kind, "banner": page.banner, "result": page.result}
        print_json(said | {"files": [str(path) for path in files]})
    else:
        if page.banner:
            typer.echo(page.banner)
        typer.echo(page.result)
        for path in files:
            typer.echo(path)
    if open_ and not webbrowser.open(files[-1].absolute().as_uri()):
        typer.echo(f"no browser to open here; open {files[-1]} in one", err=True)


def _moe(
    store: Store, study: str, out: Path, device: str | None, min_gain: float | None
) -> tuple[Page, Path, bool]:
    from autotune.kernels.export.write import folder_of  # noqa: PLC0415
    from autotune.kernels.report.page import moe_page  # noqa: PLC0415
    from autotune.kernels.stored import load  # noqa: PLC0415

    known = None if device is None else tuned_for(store, study, device)
    tuned = load(store, study, 0.01 if min_gain is None else min_gain, device=known)
    place = folder_of(out, study, tuned.basis)
    left = _left(place / "provenance.json")
    facts, current = None, False
    if left.get("setup") == tuned.setup:  # the job's own words are about this search
        facts = left.get("measured_on")
        current = min_gain is None and sum(left.get("counts", {}).values()) == tuned.trials
        if min_gain is None and left.get("min_gain") is not None:
            min_gain = float(left["min_gain"])
            tuned = load(store, study, min_gain, device=known, setup=tuned.setup)
    page = moe_page(store, tuned, 0.01 if min_gain is None else min_gain, facts)
    return page, place, current


def _spec(store: Store, study: str, out: Path) -> tuple[Page, Path, bool]:
    from autotune.serving.export.write import folder_of  # noqa: PLC0415
    from autotune.serving.report.page import known_boots, left_by_job, spec_page  # noqa: PLC0415
    from autotune.serving.stored import load_served  # noqa: PLC0415

    served, place = load_served(store, study), folder_of(out, study)
    left = left_by_job(served, place)
    return spec_page(store, served, left), place, known_boots(left) == served.boots


def _left(path: Path) -> dict[str, Any]:
    """What a finished job left there; nothing if there is none, or no JSON."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def dashboard(
    study: Annotated[str | None, typer.Argument(help="Name; default: all studies.")] = None,
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1; 0 takes a free one.")] = 8080,
    folder: Annotated[Path, typer.Option("--out", help="Where the mirror goes.")] = Path("outputs"),
    db: Db = DEFAULT_DB,
    json_: Json = False,
) -> None:
    """Show studies in optuna-dashboard, as they are now; Ctrl-C ends it."""
    from autotune.report.dashboard import check_installed, dashboard_server  # noqa: PLC0415
    from autotune.report.optuna_mirror import mirror  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    flags.within(port, "--port", 0, 65535)
    check_installed()
    with Store.open(db, create=False) as store:
        names = [study] if study else [found.study.name for found in store.list_studies()]
        details = [store.get_study(name) for name in names]
        flags.study_name(study)
        trials = [{s.id: store.dated_trials(s) for s in detail.searches} for detail in details]
    if not any(found for of_study in trials for found in of_study.values()):
        what = f"study {study!r}" if study else db
        raise BadInputError(
            f"{what} holds no trials yet; `autotune moe` and `autotune spec` do them"
        )
    path = folder / (study or "") / "dashboard.journal"
    waiting = err.status("mirroring …") if err.is_terminal else contextlib.nullcontext()
    with waiting:
        mirrored = mirror(zip(details, trials, strict=True), path)
    with dashboard_server(path, port) as server:
        if json_:
            print_json({"url": server.url, "storage": str(path), "studies": mirrored})
        else:
            typer.echo(
                f"mirrored to {path}; Optuna studies, one for each search and what it measured on: "
                f"{len(mirrored)}"
            )
            typer.echo(f"{server.url}   (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
