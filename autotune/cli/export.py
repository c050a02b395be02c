"""``autotune export``: a study's file for vLLM, for SGLang, or for a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from autotune.cli.common import DEFAULT_DB, Db, Json, print_json, tuned_for
from autotune.cli.consoles import err
from autotune.core import BadInputError
from autotune.util import flags

if TYPE_CHECKING:
    from autotune.kernels.export.publish import Exported
    from autotune.kernels.stored import Tuned
    from autotune.store.store import Store

TARGETS = ("folder", "vllm", "sglang")


def export(
    study: Annotated[str, typer.Argument(help="Name, as `autotune studies` lists it.")],
    to: Annotated[str, typer.Option(help="folder, vllm or sglang.")],
    dest: Annotated[
        Path | None, typer.Option(help="Folder for the files; default: one of the study's.")
    ] = None,
    repo: Annotated[Path | None, typer.Option(help="vllm: a git checkout of vLLM.")] = None,
    base: Annotated[str, typer.Option(help="vllm: what the branch starts from.")] = "HEAD",
    branch: Annotated[str | None, typer.Option(help="vllm: its name; default by the file.")] = None,
    signoff: Annotated[
        str | None, typer.Option(help='vllm: "Name <mail>"; default: the checkout\'s user.')
    ] = None,
    min_gain: Annotated[str, typer.Option(help="A row that gains less is vLLM's default.")] = "1%",
    allow_predicted: Annotated[
        bool, typer.Option("--allow-predicted", help="Export predictions, marked as such.")
    ] = False,
    compared: Annotated[
        Path | None, typer.Option(help="vllm: what `autotune compare OLD NEW --json` printed.")
    ] = None,
    serve_log: Annotated[
        Path | None, typer.Option(help="vllm: log of a server that picked the file up.")
    ] = None,
    serve_study: Annotated[
        str | None, typer.Option(help="vllm: a spec study run with --moe-config default,FOLDER.")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="vllm: the model, for the title; default by the shape.")
    ] = None,
    cuda: Annotated[
        str | None, typer.Option(help="vllm: CUDA version, where the study did not record it.")
    ] = None,
    ai_assistance: Annotated[
        str | None, typer.Option(help="vllm: answer to the template's question about AI.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="The .yaml file of a device that is none of ours.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where result files are.")] = Path("outputs"),
    db: Db = DEFAULT_DB,
    json_: Json = False,
) -> None:
    """Write a study's file for vLLM (a commit, never pushed), SGLang or a folder."""
    flags.one_of(to, "--to", TARGETS)
    _check_only_for_vllm(
        to,
        {
            "--repo": repo,
            "--branch": branch,
            "--signoff": signoff,
            "--compared": compared,
            "--serve-log": serve_log,
            "--serve-study": serve_study,
            "--model-name": model_name,
            "--cuda": cuda,
            "--ai-assistance": ai_assistance,
        },
    )
    gain = flags.fraction(min_gain, "--min-gain")
    for flag, text in (("--model-name", model_name), ("--cuda", cuda)):
        flags.one_line(text, flag)
    from autotune.export.checkout import Checkout, person  # noqa: PLC0415 - keeps `--help` fast
    from autotune.kernels.export import publish  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    who = None if signoff is None else person(signoff, "--signoff")
    with Store.open(db, create=False) as store:
        found = _found(store, study, gain, device, serve_study, allow_predicted=allow_predicted)
    if to == "folder":
        done = publish.to_folder(found.tuned, dest or out / study / "export")
    elif to == "sglang":
        done = publish.to_sglang(found.tuned, dest or out / study / "sglang")
    else:
        assert repo is not None  # noqa: S101 - refused above
        options = publish.VllmOptions(
            dest=(dest or out / study).absolute(),
            branch=branch,
            person=who,
            model=model_name,
            min_gain=gain,
            compared=compared,
            serve=found.serve,
            serve_log=serve_log,
            cuda=cuda,
            ai=ai_assistance,
            uuids=found.uuids,
        )
        done = publish.to_vllm(found.tuned, Checkout.open(repo, "--repo", base), options)
    _show(done, found.warning, as_json=json_)


def _check_only_for_vllm(to: str, given: Mapping[str, object]) -> None:
    """Refuse flags that another target would ignore, and a missing checkout."""
    flagged = [flag for flag, value in given.items() if value is not None]
    if to != "vllm" and flagged:
        raise BadInputError(f"{flagged[0]}: only for --to vllm")
    if to == "vllm" and given["--repo"] is None:
        raise BadInputError("--to vllm: needs --repo CHECKOUT, a git checkout of vLLM")


@dataclass(frozen=True)
class _Found:
    """What an export takes from the database."""

    tuned: Tuned
    serve: Mapping[str, Any] | None
    uuids: tuple[str, ...]
    warning: str | None


def _found(
    store: Store,
    study: str,
    gain: float,
    device: str | None,
    serve_study: str | None,
    *,
    allow_predicted: bool,
) -> _Found:
    from autotune.kernels import stored  # noqa: PLC0415
    from autotune.kernels.export import publish  # noqa: PLC0415
    from autotune.kernels.export.earlier import left_out  # noqa: PLC0415
    from autotune.kernels.export.serving_evidence import with_and_without  # noqa: PLC0415

    known = None if device is None else tuned_for(store, study, device)
    tuned = stored.load(store, study, gain, device=known)
    publish.check(tuned, allow_predicted=allow_predicted)
    serve = None
    if serve_study is not None:
        data = publish.rendered(tuned)
        serve = with_and_without(store, serve_study, tuned.file_name, data)
    return _Found(tuned, serve, publish.uuids_of_trials(store, tuned), left_out(store, tuned))


def _show(done: Exported, warning: str | None, *, as_json: bool) -> None:
    if warning is not None:
        done = replace(done, warnings=(*done.warnings, warning))
    if as_json:
        print_json(done.as_json())
        return
    for text in done.warnings:
        err.print(f"[yellow]Warning: {escape(text)}[/yellow]", soft_wrap=True)
    for line in (*done.files, *done.say):
        typer.echo(line)
