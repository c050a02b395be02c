"""``autotune report STUDY --bundle FILE`` gives a study away, ``autotune merge`` takes one in."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from autotune.cli.common import print_json
from autotune.cli.requests import Merge, Report
from autotune.core import BadInputError
from autotune.export.files import check_parent, write_whole
from autotune.machine.environment import names_of_this_machine, places_of_this_machine
from autotune.util import flags
from autotune.util.anonymous import Anonymous
from autotune.util.escape import for_terminal
from autotune.util.words import counted

if TYPE_CHECKING:
    from autotune.store.bundle import Bundle
    from autotune.store.store import Store


def write_bundle(request: Report, store: Store, file: Path) -> None:
    """Write the file and say what is in it; nothing is sent."""
    from autotune.store.bundle import packed  # noqa: PLC0415 - keeps `--help` fast
    from autotune.store.sharing import make_bundle  # noqa: PLC0415

    check_parent(file, "--bundle")
    places = [*places_of_this_machine(), str(request.out.absolute()), str(store.path.parent)]
    clean = Anonymous(places, names_of_this_machine())
    bundle = make_bundle(store, request.study, clean)
    data = packed(bundle)
    write_whole(file, data, "--bundle")
    if request.as_json:
        print_json(_facts(bundle, bundle.study.name) | {"file": str(file), "bytes": len(data)})
        return
    typer.echo(f"{file}  ({len(data) / 1024:.0f} KiB)")
    typer.echo(
        f"It holds {counted(bundle.trials, 'trial')} with setups and environments; no paths, host "
        f"or user names, commands or tokens. Nothing was sent. Look before you attach it: gunzip "
        f"-c {file}"
    )


def merge(request: Merge) -> None:
    """Check the bundle on a copy, take it in, and say what to do with it."""
    from autotune.store.bundle import read_bundle  # noqa: PLC0415
    from autotune.store.sharing import merge_bundle  # noqa: PLC0415

    bundle = read_bundle(request.bundle)
    name = request.study or str(flags.study_name(bundle.study.name))
    with tempfile.TemporaryDirectory(prefix="autotune-merge-") as folder:
        url = f"sqlite:///{folder}/try.db"
        merge_bundle(url, bundle, name, request.command)
        _check_shown(url, name, bundle, request.bundle)
    added = merge_bundle(request.db, bundle, name, request.command)
    if request.as_json:
        print_json(_facts(bundle, name) | {"added": added})
        return
    facts = _facts(bundle, name)
    typer.echo(
        for_terminal(
            f"{name}: {counted(added, 'new trial')} of {bundle.trials}, {facts['basis']} on "
            f"{facts['device']}, vLLM {facts['vllm']}, Triton {facts['triton']}"
        )
    )
    typer.echo(f"Made elsewhere: no command here goes on from it. Look:  autotune report {name}")


def _check_shown(url: str, name: str, bundle: Bundle, file: Path) -> None:
    """See that the study can be shown as any other; a bundle is whatever somebody wrote.

    Raises:
        BadInputError: it cannot, in one line.
    """
    from autotune import kind  # noqa: PLC0415
    from autotune.store.foreign import reading_back  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    try:
        with reading_back(str(file), name), Store.open(url, create=False) as store:
            of_study = kind.get(bundle.study.kind)
            of_study.check_bundle(bundle)
            of_study.page(store, name)
    except BadInputError as error:
        raise BadInputError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error


def _facts(bundle: Bundle, name: str) -> dict[str, Any]:
    last = bundle.searches[-1].setup
    gpus = bundle.environments[-1].get("gpus")
    names = (
        [gpu.get("name") for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []
    )
    return {
        "study": name,
        "kind": bundle.study.kind,
        "basis": last.get("basis"),
        "device": last.get("gpu") or ", ".join(dict.fromkeys(map(str, names))) or "no GPU",
        "vllm": last.get("vllm"),
        "triton": last.get("triton"),
        "trials": bundle.trials,
    }
