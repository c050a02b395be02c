"""The command line: parse, wire, print. No logic."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from autotune import __version__, flags
from autotune.consoles import out
from autotune.core import AutotuneError, BadInputError, ExitCode, MissingEnvironmentError
from autotune.devices import detect_gpus, load_devices, present_gpus, resolve_device
from autotune.environment import usable_cpus, visible_gpus
from autotune.moe.model import model_names

app = typer.Typer(
    name="autotune",
    help="Tune vLLM's fused-MoE Triton kernels. Start with: autotune moe --device gb10",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
PRESETS = ", ".join(model_names())
DEFAULT_DB = "sqlite:///outputs/autotune.db"
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Db = Annotated[str, typer.Option(help="Database with every trial, as an SQLAlchemy URL.")]


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
def moe(
    device: Annotated[str, typer.Option(help="Device to tune for; auto looks at this machine.")],
    model: Annotated[
        str | None, typer.Option(help=f"Folder with config.json, hub id, or {PRESETS}.")
    ] = None,
    experts: Annotated[int | None, typer.Option(help="E, instead of a model.")] = None,
    intermediate: Annotated[int | None, typer.Option(help="N, width after the gate.")] = None,
    hidden: Annotated[int | None, typer.Option(help="K, hidden size.")] = None,
    topk: Annotated[int | None, typer.Option(help="Experts per token.")] = None,
    dtype: Annotated[
        str, typer.Option(help="fp8_w8a8, int8_w8a8, bf16; auto: the model's.")
    ] = "auto",
    scheme: Annotated[
        str | None, typer.Option(help="Scaling: tensor, channel, block; default: the model's.")
    ] = None,
    tp: Annotated[int, typer.Option(help="Tensor-parallel size; divides N.")] = 1,
    ep: Annotated[int, typer.Option(help="Expert-parallel size; divides E.")] = 1,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Values of M, such as 1,8,64; default: vLLM's 18.")
    ] = None,
    space: Annotated[str, typer.Option(help="stock, wide, or the path of a .yaml file.")] = "stock",
    effort: Annotated[str, typer.Option(help="quick, standard or exhaustive.")] = "standard",
    budget: Annotated[str | None, typer.Option(help="Stop searching after, such as 10m.")] = None,
    sampler: Annotated[str, typer.Option(help="tpe or random.")] = "tpe",
    study: Annotated[str | None, typer.Option(help="Name; default from device and shape.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where result files go.")] = Path("outputs"),
    db: Db = DEFAULT_DB,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = 0,
    min_gain: Annotated[
        str, typer.Option(help="A row that gains less stays vLLM's default.")
    ] = "1%",
    workers: Annotated[int | None, typer.Option(help="Compile processes; default: CPUs.")] = None,
    gamma: Annotated[
        str | None, typer.Option(help="Drafted tokens, such as 2,4: adds the M of decoding.")
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Sequences decoded at once, such as 1,4,8: adds their M.")
    ] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Predict even if the GPU is in this machine.")
    ] = False,
    routing: Annotated[
        str, typer.Option(help="Experts of the tokens: uniform, zipf:1.1, or a file of counts.")
    ] = "uniform",
    memory_limit: Annotated[
        str | None, typer.Option(help="Replace a measuring process above it, such as 16G.")
    ] = None,
    json_: Json = False,
) -> None:
    """Tune the fused-MoE kernel and write the JSON file that vLLM looks for."""
    from autotune.files import check_writable  # noqa: PLC0415 - keeps `--help` fast
    from autotune.moe import export  # noqa: PLC0415
    from autotune.moe.compile import kernel_info  # noqa: PLC0415
    from autotune.moe.config_file import FIELDS  # noqa: PLC0415
    from autotune.moe.job import run  # noqa: PLC0415
    from autotune.moe.model import explicit_shape, load_config, shape_from_config  # noqa: PLC0415
    from autotune.moe.plan import (  # noqa: PLC0415
        EFFORTS,
        STANDARD_LADDER,
        Plan,
        default_study,
    )
    from autotune.moe.routing import parse_routing  # noqa: PLC0415
    from autotune.moe.terminal import progress, show_plan, show_result  # noqa: PLC0415
    from autotune.propose import SAMPLERS  # noqa: PLC0415
    from autotune.space import load_space  # noqa: PLC0415
    from autotune.store import Store  # noqa: PLC0415

    decode = flags.decode_sizes(gamma, concurrency)
    ms = tuple(sorted({*flags.batch_sizes(batch_sizes, STANDARD_LADDER), *decode}))
    study, limit = flags.study_name(study), flags.mebibytes(memory_limit)
    seconds, gain = flags.seconds(budget), flags.fraction(min_gain, "--min-gain")
    flags.one_of(effort, "--effort", EFFORTS)
    flags.one_of(sampler, "--sampler", SAMPLERS)
    flags.within(workers, "--workers", 1, 1024)
    flags.within(seed, "--seed", 0, 2**32 - 1)
    target = resolve_device(device)
    sizes = {"experts": experts, "intermediate": intermediate, "hidden": hidden, "topk": topk}
    if any(value is not None for value in sizes.values()):
        if model is not None:
            raise BadInputError(
                "--model and --experts/--intermediate/--hidden/--topk exclude each other"
            )
        shape = explicit_shape(**sizes, dtype=dtype, scheme=scheme, tp=tp, ep=ep)
    else:
        model = "gemma-4-26b-a4b" if model is None else model
        shape = shape_from_config(load_config(model), dtype=dtype, tp=tp, ep=ep, scheme=scheme)
    routed = parse_routing(routing)
    routed.weights(shape.global_experts)
    gpus = () if predict else present_gpus(target, visible_gpus())
    # The processes that measure, and the one that searches, must not wait for a compiler's CPU.
    spare = 1 + len(gpus) if gpus else 0
    plan = Plan(
        study=study or default_study(target, shape),
        device=target,
        model=model or "given by its sizes",
        shape=shape,
        ms=ms,
        space=load_space(space, "moe", whole=FIELDS),
        effort=effort,
        budget_s=seconds,
        sampler=sampler,
        seed=seed,
        min_gain=gain,
        workers=workers or max(1, usable_cpus() - spare),
        kernel=kernel_info(),
        command=shlex.join(["autotune", *sys.argv[1:]]),
        gpus=gpus,
        routing=routed,
        memory_limit_mib=limit,
    )
    _ = plan.trials_per_m  # before anything is written: is any candidate feasible?
    check_writable(export.folder_of(folder, plan.study, plan.basis))
    with Store.open(db) as store:
        # Another shape under this name, or another process on it, is told before the plan.
        store.study(plan.study, "moe", plan.identity())
        with store.lock_study(plan.study):
            pass
        if not json_:
            show_plan(plan)
        with progress(plan.steps, json_) as update:
            result = run(plan, store, update)
    files = export.write(result, folder)
    if json_:
        document = export.provenance(result) | {"files": [str(path) for path in files]}
        _print_json(document | {"compiled": result.compiled, "cached": result.cached})
        return
    show_result(result, files)


@app.command()
def spec(
    target: Annotated[str, typer.Option(help="Model to serve: a folder or a hub id.")],
    drafter: Annotated[
        str, typer.Option(help="Folder, hub id, or a method without a model: ngram, suffix, mtp.")
    ],
    gamma: Annotated[
        str | None, typer.Option(help="Drafted tokens, such as 0-6 (default) or 0,2,4.")
    ] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="KV-cache types to compare, such as auto,fp8.")
    ] = None,
    gpu_memory_utilization: Annotated[
        str | None, typer.Option(help="Shares to compare, such as 0.8,0.85.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="More flags of vllm serve to compare: max-num-seqs=8,16."),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="All of these from a space: its name, or a .yaml file.")
    ] = None,
    concurrency: Annotated[str, typer.Option(help="Requests in flight at once.")] = "1,4,8",
    prompts: Annotated[
        str, typer.Option(help="chat, code, prose, structured, or a FILE.jsonl.")
    ] = "chat",
    max_tokens: Annotated[int, typer.Option(help="Output tokens per request.")] = 128,
    ignore_eos: Annotated[
        bool, typer.Option(help="Generate all of them whatever the model says.")
    ] = True,
    repeats: Annotated[int, typer.Option(help="Timed loads at each concurrency.")] = 5,
    waves: Annotated[
        int, typer.Option(help="Requests of a load, as a multiple of its concurrency.")
    ] = 4,
    objective: Annotated[str, typer.Option(help="geomean, single or aggregate.")] = "geomean",
    confirm_boots: Annotated[int, typer.Option(help="Fresh boots of the best to confirm.")] = 2,
    min_gain: Annotated[str, typer.Option(help="Least gain over no speculation.")] = "1%",
    budget: Annotated[str | None, typer.Option(help="Stop searching after, such as 2h.")] = None,
    server_arg: Annotated[
        list[str] | None,
        typer.Option(help="For every server, such as --server-arg '--max-model-len 4096'."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for every server.")] = None,
    moe_config: Annotated[
        Path | None, typer.Option(help="Folder with tuned MoE files for every server.")
    ] = None,
    synthetic_acceptance: Annotated[
        str | None, typer.Option(help="Tell vLLM what to accept by position, such as .8,.6,.4.")
    ] = None,
    vllm: Annotated[
        str | None, typer.Option("--vllm", help="Program to start; default: this Python's vLLM.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Docker image to write compose.yaml for.")
    ] = None,
    start_timeout: Annotated[str, typer.Option(help="A start may take so long.")] = "30m",
    request_timeout: Annotated[str, typer.Option(help="A request may take so long.")] = "10m",
    force: Annotated[bool, typer.Option("--force", help="Go on in spite of refusals.")] = False,
    study: Annotated[str | None, typer.Option(help="Name; default from the models.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where result files go.")] = Path("outputs"),
    db: Db = DEFAULT_DB,
    json_: Json = False,
) -> None:
    """Tune speculative decoding and serving flags on real vLLM servers."""
    from autotune.files import check_writable  # noqa: PLC0415 - keeps `--help` fast
    from autotune.spec import export  # noqa: PLC0415
    from autotune.spec.job import run  # noqa: PLC0415
    from autotune.spec.plan import preflight, refusal  # noqa: PLC0415
    from autotune.spec.request import Request, make_plan  # noqa: PLC0415
    from autotune.spec.terminal import (  # noqa: PLC0415
        progress,
        show_findings,
        show_plan,
        show_result,
    )
    from autotune.store import Store  # noqa: PLC0415

    request = Request(
        target=target,
        drafter=drafter,
        gamma=gamma,
        kv_cache_dtype=kv_cache_dtype,
        gpu_memory_utilization=gpu_memory_utilization,
        sets=sets or (),
        space=space,
        concurrency=concurrency,
        prompts=prompts,
        max_tokens=max_tokens,
        ignore_eos=ignore_eos,
        repeats=repeats,
        waves=waves,
        objective=objective,
        confirm_boots=confirm_boots,
        min_gain=flags.fraction(min_gain, "--min-gain"),
        budget_s=flags.seconds(budget),
        server_args=server_arg or (),
        env=env or (),
        moe_config=moe_config,
        synthetic=synthetic_acceptance,
        program=vllm,
        image=image,
        start_timeout=start_timeout,
        request_timeout=request_timeout,
        study=flags.study_name(study),
        command=shlex.join(["autotune", *sys.argv[1:]]),
    )
    plan = make_plan(request)
    found = preflight(plan)
    if not json_:
        show_findings([finding for finding in found if force or not finding.refuses])
    if not force:
        refusal(found)
    logs = export.folder_of(folder, plan.study) / "logs"
    check_writable(logs)
    with Store.open(db) as store:
        # Another pair under this name, or another process on it, is told before the plan.
        store.study(plan.study, "spec", plan.identity())
        with store.lock_study(plan.study):
            pass
        if not json_:
            show_plan(plan)
        with progress(plan, json_) as update:
            result = run(plan, store, logs, update)
    files = export.write(result, folder)
    if json_:
        _print_json(export.document(result) | {"files": [str(path) for path in files]})
        return
    show_result(result, files)


@app.command()
def studies(db: Db = DEFAULT_DB, json_: Json = False) -> None:
    """List the studies of a database."""
    from autotune.store import Store  # noqa: PLC0415

    with Store.open(db, create=False) as store:
        found = store.list_studies()
    if json_:
        _print_json([{**summary.as_json(), "trials": summary.trials} for summary in found])
        return
    shown = Table("study", "kind", "trials", "basis", "runs", "last run", box=None)
    shown.columns[0].overflow = "fold"
    for summary in found:
        last = summary.last_run
        bases = ", ".join(sorted({count.basis.value for count in summary.counts}))
        when = f"{last.status.value} {last.started_at:%Y-%m-%d %H:%M} UTC" if last else "none"
        shown.add_row(
            summary.study.name,
            summary.study.kind,
            str(summary.trials),
            bases,
            str(summary.runs),
            when,
        )
    if found:
        out.print(shown)
    else:
        typer.echo(f"no studies in {db}; start one with: autotune moe --device gb10")


@app.command()
def show(
    study: Annotated[str, typer.Argument(help="Name, as `autotune studies` lists it.")],
    db: Db = DEFAULT_DB,
    json_: Json = False,
) -> None:
    """Show a study: what it is about, its searches, the best trials so far."""
    from autotune.moe.config_file import FIELDS  # noqa: PLC0415
    from autotune.overview import best_rows  # noqa: PLC0415
    from autotune.store import Store  # noqa: PLC0415

    with Store.open(db, create=False) as store:
        detail = store.get_study(study)
        trials = {record.id: store.trials(record) for record in detail.searches}
    rows = best_rows(detail, trials)
    if json_:
        _print_json({**detail.as_json(), "trials": detail.trials, "best": rows})
        return
    out.print(
        f"[bold]{detail.study.name}[/bold] ({detail.study.kind}), {detail.trials} trials, "
        f"{detail.runs} runs"
    )
    rows.sort(key=lambda row: (row["search"], len(row["workload"]), row["workload"]))
    for record in detail.searches:
        counts = [c for c in detail.counts if c.search_id == record.id]
        said = ", ".join(f"{c.count} {c.basis.value} {c.outcome.value}" for c in counts)
        out.print(
            f"search {record.id}: {said or 'no trials yet'}; "
            + ", ".join(f"{name} {_short(value)}" for name, value in record.setup.items()),
            soft_wrap=True,
            markup=False,
        )
    order = FIELDS if detail.study.kind == "moe" else None
    heading = "BM/BN/BK/G/warps/stages" if order else "candidate"
    shown = Table("search", "workload", "basis", "best µs", "default µs", heading, box=None)
    for row in rows:
        config = "/".join(str(row["config"][name]) for name in order or row["config"])
        before = row["default_us"]
        shown.add_row(
            str(row["search"]),
            row["workload"],
            row["basis"],
            f"{row['best_us']:.1f}",
            "" if before is None else f"{before:.1f}",
            config,
        )
    out.print(shown)
    out.print("Best is what was found; a row of the file changes only where it gains enough.")


def _short(value: Any) -> str:
    """A setup's value for people: the name of a space, the start of a hash."""
    return str(value["name"] if isinstance(value, dict) else value)[:16]


@app.command()
def devices(json_: Json = False) -> None:
    """List the devices that can be tuned for, and what this machine has."""
    known, here = load_devices(), detect_gpus()
    if json_:
        _print_json(
            {
                "known": [d.model_dump(mode="json") for d in known.values()],
                "here": [gpu.as_json() for gpu in here],
            }
        )
        return
    shown = Table(
        "name", "title", "sm", "SMs", "GB/s", "smem/block", "L2 MB", "name in vLLM", box=None
    )
    for d in known.values():
        shown.add_row(
            d.name,
            d.title,
            str(d.arch),
            str(d.sm_count),
            f"{d.memory_bandwidth_gbs:g}",
            str(d.shared_memory_per_block),
            f"{d.l2_bytes / 2**20:g}",
            d.vllm_name,
        )
    out.print(shown)
    names = ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in here)
    out.print(f"In this machine: {names or 'no GPU that nvidia-smi shows'}")
    out.print("Every figure's source stands in search_spaces/devices/*.yaml.")


@app.command()
def doctor(
    device: Annotated[str, typer.Option(help="Device to check for.")] = "gb10",
    json_: Json = False,
) -> None:
    """Check that everything needed is here, and that fp8 runs on fp8 tensor cores."""
    from autotune.moe.doctor import diagnose  # noqa: PLC0415

    findings = diagnose(resolve_device(device))
    if json_:
        _print_json([finding.as_json() for finding in findings])
    else:
        marks = {
            "ok": "[green]ok  [/green]",
            "warning": "[yellow]warn[/yellow]",
            "error": "[red]fail[/red]",
        }
        for finding in findings:
            out.print(f"{marks[finding.level]} {finding.text}", soft_wrap=True)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(ExitCode.MISSING_ENVIRONMENT)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autotune {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point: every failure is one line on stderr and a documented exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no µ is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        _check_text(sys.argv)
        code = app(standalone_mode=False)
        if code == ExitCode.INTERRUPTED:  # Typer makes this of Ctrl-C, without a word
            raise KeyboardInterrupt
    except AutotuneError as error:
        code = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(
            "interrupted; every finished trial is saved, the same command goes on from there",
            ExitCode.INTERRUPTED,
        )
    except SystemExit:
        # Typer and rich end so when the reader went away (`autotune … | head`); keep Python from
        # complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = ExitCode.DONE
    except OSError as error:
        code = _fail(
            f"{error.filename or 'I/O'}: {error.strerror or error}",
            MissingEnvironmentError.exit_code,
        )
    except Exception as error:
        # Typer's usage errors carry a message and an exit code of 2; anything else is a bug, and
        # then the traceback is what we need.
        if not hasattr(error, "format_message"):
            raise
        code = _fail(error.format_message() or "name a command", ExitCode.BAD_INPUT)
    sys.exit(code or ExitCode.DONE)


def _check_text(arguments: list[str]) -> None:
    """The command goes into the database and into files, which hold text only."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise BadInputError(f"argument {argument!a} is not UTF-8 text") from None


def _fail(message: str, code: ExitCode) -> ExitCode:
    """One line, whatever a path or a message of the system holds."""
    line = " ".join(part.strip() for part in message.splitlines())
    typer.echo(f"autotune: {''.join(c if c.isprintable() else '?' for c in line)}", err=True)
    return code
