"""``autotune moe``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli.common import (
    DEFAULT_DB,
    Db,
    Json,
    check_study,
    print_json,
    tell_of,
    this_command,
)
from autotune.kernels.moe.from_model import model_names
from autotune.machine.environment import visible_gpus
from autotune.util import flags

if TYPE_CHECKING:
    from autotune.kernels.plan import Plan

PRESETS = ", ".join(model_names())
LAYER = "The layer"
BATCHES = "Batch sizes"
SEARCH = "The search"
MEASURING = "Measuring"


def moe(
    device: Annotated[str, typer.Option(help="Device to tune for; auto looks at this machine.")],
    model: Annotated[
        str | None,
        typer.Option(help=f"Folder with config.json, hub id, or {PRESETS}.", rich_help_panel=LAYER),
    ] = None,
    experts: Annotated[
        int | None, typer.Option(help="E, instead of a model.", rich_help_panel=LAYER)
    ] = None,
    intermediate: Annotated[
        int | None, typer.Option(help="N, width after the gate.", rich_help_panel=LAYER)
    ] = None,
    hidden: Annotated[
        int | None, typer.Option(help="K, hidden size.", rich_help_panel=LAYER)
    ] = None,
    topk: Annotated[
        int | None, typer.Option(help="Experts per token.", rich_help_panel=LAYER)
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="fp8_w8a8, int8_w8a8, bf16; auto: the model's.", rich_help_panel=LAYER),
    ] = "auto",
    scheme: Annotated[
        str | None,
        typer.Option(
            help="Scaling: tensor, channel, block; default: the model's.", rich_help_panel=LAYER
        ),
    ] = None,
    tp: Annotated[
        int, typer.Option(help="Tensor-parallel size; divides N.", rich_help_panel=LAYER)
    ] = 1,
    ep: Annotated[
        int, typer.Option(help="Expert-parallel size; divides E.", rich_help_panel=LAYER)
    ] = 1,
    batch_sizes: Annotated[
        str | None,
        typer.Option(
            help="Values of M, such as 1,8,64; default: vLLM's 18.", rich_help_panel=BATCHES
        ),
    ] = None,
    gamma: Annotated[
        str | None,
        typer.Option(
            help="Drafted tokens, such as 2,4: adds the M of decoding.", rich_help_panel=BATCHES
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Sequences decoded at once, such as 1,4,8: adds their M.",
            rich_help_panel=BATCHES,
        ),
    ] = None,
    space: Annotated[
        str,
        typer.Option(help="stock, wide, or the path of a .yaml file.", rich_help_panel=SEARCH),
    ] = "stock",
    effort: Annotated[
        str, typer.Option(help="quick, standard or exhaustive.", rich_help_panel=SEARCH)
    ] = "standard",
    budget: Annotated[
        str | None, typer.Option(help="Stop searching after, such as 10m.", rich_help_panel=SEARCH)
    ] = None,
    sampler: Annotated[str, typer.Option(help="tpe or random.", rich_help_panel=SEARCH)] = "tpe",
    seed: Annotated[int, typer.Option(help="Seed of the search.", rich_help_panel=SEARCH)] = 0,
    min_gain: Annotated[
        str,
        typer.Option(help="A row that gains less stays vLLM's default.", rich_help_panel=SEARCH),
    ] = "1%",
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try again what timed out, crashed or lacked memory.",
            rich_help_panel=SEARCH,
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(help="Compile processes; default: CPUs.", rich_help_panel=SEARCH),
    ] = None,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict",
            help="Predict even if the GPU is in this machine.",
            rich_help_panel=MEASURING,
        ),
    ] = False,
    routing: Annotated[
        str,
        typer.Option(
            help="Experts of the tokens: uniform, zipf:1.1, or a file of counts.",
            rich_help_panel=MEASURING,
        ),
    ] = "uniform",
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="Replace a measuring process above it, such as 16G.", rich_help_panel=MEASURING
        ),
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name; default from device and shape.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where result files go.")] = Path("outputs"),
    db: Db = DEFAULT_DB,
    json_: Json = False,
) -> None:
    """Tune the fused-MoE kernel and write the JSON file that vLLM looks for."""
    from autotune.kernels.plan import (  # noqa: PLC0415 - keeps `--help` fast
        EFFORTS,
        STANDARD_LADDER,
        Request,
        make_plan,
    )
    from autotune.propose.proposers import SAMPLERS  # noqa: PLC0415

    flags.one_of(effort, "--effort", EFFORTS)
    flags.one_of(sampler, "--sampler", SAMPLERS)
    flags.within(workers, "--workers", 1, 1024)
    flags.within(seed, "--seed", 0, 2**32 - 1)
    decode = flags.decode_sizes(gamma, concurrency)
    request = Request(
        device=device,
        command=this_command(),
        model=model,
        sizes={"experts": experts, "intermediate": intermediate, "hidden": hidden, "topk": topk},
        dtype=dtype,
        scheme=scheme,
        tp=tp,
        ep=ep,
        ms=tuple(sorted({*flags.batch_sizes(batch_sizes, STANDARD_LADDER), *decode})),
        space=space,
        effort=effort,
        budget_s=None if budget is None else flags.seconds(budget, "--budget"),
        sampler=sampler,
        seed=seed,
        min_gain=flags.fraction(min_gain, "--min-gain"),
        workers=workers,
        study=flags.study_name(study),
        predict=predict,
        routing=routing,
        memory_limit_mib=flags.mebibytes(memory_limit),
        retry_failed=retry_failed,
    )
    _tune(make_plan(request, visible_gpus()), folder, db, as_json=json_)


def _tune(plan: Plan, out: Path, db: str, *, as_json: bool) -> None:
    """Run the job and show what came of it; ``as_json`` prints one document to stdout."""
    from autotune.cli.moe_terminal import progress, show_plan, show_result  # noqa: PLC0415
    from autotune.export.files import check_writable  # noqa: PLC0415
    from autotune.kernels.estimate import check_scratch  # noqa: PLC0415
    from autotune.kernels.export import write as export  # noqa: PLC0415
    from autotune.kernels.export.earlier import check_keys_stay, stored_keys  # noqa: PLC0415
    from autotune.kernels.job import run  # noqa: PLC0415
    from autotune.kernels.report.page import write_page  # noqa: PLC0415
    from autotune.store.store import Store  # noqa: PLC0415

    place = export.folder_of(out, plan.study, plan.basis)
    check_scratch(plan)
    with Store.open(db) as store:
        otherwise = check_study(store, plan.study, "moe", plan.identity(), plan.setup())
        check_writable(place)
        check_keys_stay(plan, {*stored_keys(store, plan), *plan.ms}, place)
        tell_of(plan.study, otherwise)
        show_plan(plan)
        with progress(plan.steps) as update:
            result = run(plan, store, update)
        files = export.write(result, out)
        files.insert(0, write_page(store, result, out))
    if as_json:
        document = export.provenance(result) | {"files": [str(path) for path in files]}
        print_json(document | {"compiled": result.compiled, "cached": result.cached})
        return
    show_result(result, files)
