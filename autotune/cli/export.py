"""``autotune export`` writes a study's file for vLLM, for SGLang, or for a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import typer

from autotune.cli.common import print_json, reads_studies
from autotune.cli.consoles import err
from autotune.cli.requests import Export
from autotune.util import flags

if TYPE_CHECKING:
    from autotune.kernels.export.targets import Exported
    from autotune.kernels.stored import Tuned
    from autotune.store.store import Store


@reads_studies
def export(request: Export) -> None:
    """Write the study's file and print what was written."""
    from autotune.export.checkout import person  # noqa: PLC0415 - keeps `--help` fast
    from autotune.kernels.export import targets  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    who = None if request.signoff is None else person(request.signoff, "--signoff")
    with Store.open(request.db, create=False) as store:
        source = _source(store, request)
    if request.to in targets.TARGETS:
        place = request.out / request.study / targets.TARGETS[request.to].folder
        done = targets.write_target(request.to, source.tuned, request.dest or place)
    else:
        done = _to_vllm(source, request, who)
    _show(done, source.warning, as_json=request.as_json)


def _to_vllm(source: _Source, request: Export, who: str | None) -> Exported:
    """Commit the file on a branch of the checkout."""
    from autotune.export.checkout import Checkout  # noqa: PLC0415
    from autotune.kernels.export import publish  # noqa: PLC0415

    assert request.repo is not None  # noqa: S101 - the request refuses to be without
    options = publish.VllmOptions(
        dest=(request.dest or request.out / request.study).absolute(),
        branch=request.branch,
        person=who,
        model=request.model_name,
        min_gain=flags.fraction(request.min_gain, "--min-gain"),
        compared=request.compared,
        serve=source.serve,
        serve_log=request.serve_log,
        cuda=request.cuda,
        ai=request.ai_assistance,
    )
    return publish.to_vllm(
        source.tuned, Checkout.open(request.repo, "--repo", request.base), options
    )


@dataclass(frozen=True)
class _Source:
    """It holds what an export takes from the database."""

    tuned: Tuned
    serve: Mapping[str, Any] | None
    warning: str | None


def _source(store: Store, request: Export) -> _Source:
    from autotune.kernels import stored  # noqa: PLC0415
    from autotune.kernels.export import publish, targets  # noqa: PLC0415
    from autotune.kernels.export.earlier import left_out  # noqa: PLC0415
    from autotune.kernels.export.serving_evidence import with_and_without  # noqa: PLC0415

    study, device = request.study, request.device
    tuned_device = None if device is None else stored.study_device(store, study, device)
    gain = flags.fraction(request.min_gain, "--min-gain")
    tuned = stored.load(store, study, gain, device=tuned_device)
    publish.check(tuned, allow_predicted=request.allow_predicted)
    serve = None
    if request.serve_study is not None:
        data = targets.rendered(tuned)
        serve = with_and_without(store, request.serve_study, tuned.file_name, data)
    return _Source(tuned, serve, left_out(store, tuned))


def _show(done: Exported, warning: str | None, *, as_json: bool) -> None:
    if warning is not None:
        done = replace(done, warnings=(*done.warnings, warning))
    if as_json:
        print_json(done.as_json())
        return
    for text in done.warnings:
        err.warn(f"Warning: {text}")
    for line in (*done.files, *done.say):
        typer.echo(line)
