"""``autotune spec``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.common import this_command
from autotune.cli.requests import DEFAULT_DB
from autotune.core import BadInputError
from autotune.util import flags

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout.")]
Db = Annotated[str, typer.Option(help="Database with every trial, as an SQLAlchemy URL.")]


def given_flags(context: typer.Context) -> set[str]:
    """The flags that stand on the command line, such as ``--url``, by their long names."""
    sources = {
        p.opts[0]: context.get_parameter_source(p.name or "") for p in context.command.params
    }
    return {flag for flag, source in sources.items() if source and source.name == "COMMANDLINE"}


MODELS = "What is served"
SEARCH = "What is tried"
LOAD = "The load"
DECISION = "What decides"
SERVERS = "Servers"
DOCKER = "With --launcher docker"
URL = "With --launcher url"


def spec(
    context: typer.Context,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to serve: a folder or a hub id; several are compared.",
            metavar="MODEL",
            rich_help_panel=MODELS,
        ),
    ] = None,
    drafters: Annotated[
        list[str] | None,
        typer.Option(
            "--drafter",
            help="Folder, hub id, or a method without a model: ngram, suffix, mtp; or none.",
            metavar="MODEL",
            rich_help_panel=MODELS,
        ),
    ] = None,
    gamma: Annotated[
        str | None,
        typer.Option(
            help="Drafted tokens, such as 0-6 (default) or 0,2,4; 0 alone needs no drafter.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    kv_cache_dtype: Annotated[
        str | None,
        typer.Option(help="KV-cache types to compare, such as auto,fp8.", rich_help_panel=SEARCH),
    ] = None,
    gpu_memory_utilization: Annotated[
        str | None,
        typer.Option(
            help="Shares to compare, 0.8,0.85, or a range to search, 0.4:0.9.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--context",
            help="Tokens of a request that a searched utilization must hold.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="More flags of vllm serve to compare: max-num-seqs=8,16.",
            metavar="FLAG=VALUES",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="All of these from a space: its name, or a .yaml file.", rich_help_panel=SEARCH
        ),
    ] = None,
    concurrency: Annotated[
        str, typer.Option(help="Requests in flight at once.", rich_help_panel=LOAD)
    ] = "1,4,8",
    prompts: Annotated[
        str,
        typer.Option(help="chat, code, prose, structured, or a FILE.jsonl.", rich_help_panel=LOAD),
    ] = "chat",
    max_tokens: Annotated[
        int, typer.Option(help="Output tokens per request.", rich_help_panel=LOAD)
    ] = 128,
    ignore_eos: Annotated[
        bool,
        typer.Option(help="Generate all of them whatever the model says.", rich_help_panel=LOAD),
    ] = True,
    repeats: Annotated[
        int, typer.Option(help="Timed loads at each concurrency.", rich_help_panel=LOAD)
    ] = 5,
    waves: Annotated[
        int,
        typer.Option(
            help="Requests of a load, as a multiple of its concurrency.", rich_help_panel=LOAD
        ),
    ] = 4,
    objective: Annotated[
        str, typer.Option(help="geomean, single, aggregate or pareto.", rich_help_panel=DECISION)
    ] = "geomean",
    confirm_boots: Annotated[
        int, typer.Option(help="Fresh boots of the best to confirm.", rich_help_panel=DECISION)
    ] = 2,
    quality: Annotated[
        str | None,
        typer.Option(
            help="Tasks of lm-eval of which no score may fall: gsm8k.", rich_help_panel=DECISION
        ),
    ] = None,
    quality_tolerance: Annotated[
        str,
        typer.Option(
            help="By how much a score may fall, in its own unit.", rich_help_panel=DECISION
        ),
    ] = "2%",
    quality_limit: Annotated[
        int | None,
        typer.Option(help="Examples of a task; all if not given.", rich_help_panel=DECISION),
    ] = None,
    quality_tasks: Annotated[
        Path | None,
        typer.Option(help="Folder with further tasks for lm-eval.", rich_help_panel=DECISION),
    ] = None,
    quality_timeout: Annotated[
        str, typer.Option(help="An evaluation may take so long.", rich_help_panel=DECISION)
    ] = "1h",
    slo: Annotated[
        str | None,
        typer.Option(
            help="Limits on p99 latencies, such as ttft=500ms,tpot=50ms.", rich_help_panel=DECISION
        ),
    ] = None,
    schedule: Annotated[
        bool,
        typer.Option(
            help="Try gamma by batch size against the best static one.", rich_help_panel=DECISION
        ),
    ] = True,
    min_gain: Annotated[
        str, typer.Option(help="Least gain over the baseline.", rich_help_panel=DECISION)
    ] = "1%",
    budget: Annotated[
        str | None, typer.Option(help="Stop searching after, such as 2h.", rich_help_panel=SEARCH)
    ] = None,
    server_arg: Annotated[
        list[str] | None,
        typer.Option(
            help="For every server, such as --server-arg '--max-model-len 4096'.",
            metavar="ARGS",
            rich_help_panel=SERVERS,
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE for every server.", metavar="NAME=VALUE", rich_help_panel=SERVERS
        ),
    ] = None,
    moe_config: Annotated[
        str | None,
        typer.Option(
            help="Folder with tuned MoE files for every server; default,FOLDER compares.",
            metavar="FOLDER",
            rich_help_panel=SERVERS,
        ),
    ] = None,
    synthetic_acceptance: Annotated[
        str | None,
        typer.Option(
            help="Tell vLLM what to accept by position, such as .8,.6,.4.", rich_help_panel=SERVERS
        ),
    ] = None,
    vllm: Annotated[
        str | None,
        typer.Option(
            "--vllm", help="Program to start; default: this Python's vLLM.", rich_help_panel=SERVERS
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            help="Docker image: to start, or to write compose.yaml for.", rich_help_panel=DOCKER
        ),
    ] = None,
    launcher: Annotated[
        str,
        typer.Option(
            help="local, docker, or url to measure a server that runs already.",
            rich_help_panel=SERVERS,
        ),
    ] = "local",
    url: Annotated[
        str | None, typer.Option(help="The server that runs already.", rich_help_panel=URL)
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            help="'NAME: VALUE' for it, written nowhere; or in AUTOTUNE_HEADER.",
            metavar="HEADER",
            rich_help_panel=URL,
        ),
    ] = None,
    mount: Annotated[
        list[str] | None,
        typer.Option(
            help="For the container: HOST:/INSIDE[:ro]. Models are mounted anyway.",
            metavar="MOUNT",
            rich_help_panel=DOCKER,
        ),
    ] = None,
    gpus: Annotated[
        str, typer.Option(help="GPUs of the container; none for none.", rich_help_panel=DOCKER)
    ] = "all",
    docker_arg: Annotated[
        list[str] | None,
        typer.Option(
            help="For docker run, such as '--shm-size 8g'.", metavar="ARGS", rich_help_panel=DOCKER
        ),
    ] = None,
    start_timeout: Annotated[
        str, typer.Option(help="A start may take so long.", rich_help_panel=SERVERS)
    ] = "30m",
    request_timeout: Annotated[
        str, typer.Option(help="A request may take so long.", rich_help_panel=SERVERS)
    ] = "10m",
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try again what crashed, hung or lacked memory.",
            rich_help_panel=SEARCH,
        ),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Go on in spite of refusals.", rich_help_panel=MODELS)
    ] = False,
    study: Annotated[str | None, typer.Option(help="Name; default from the models.")] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where result files go.")] = Path("outputs"),
    db: Db = DEFAULT_DB,
    json_: Json = False,
) -> None:
    """Tune speculative decoding and serving flags on real vLLM servers."""
    from autotune.cli import spec_runs  # noqa: PLC0415 - keeps `--help` fast
    from autotune.serving.pair.methods import NO_DRAFTER  # noqa: PLC0415
    from autotune.serving.request import Request, parse_gammas  # noqa: PLC0415
    from autotune.serving.server.launching import check_flags  # noqa: PLC0415

    given = given_flags(context)
    if drafters and len(drafters) > 1:
        raise BadInputError(
            f"--drafter: {' and '.join(drafters)}: one at a time; give each a command and a --study"
        )
    drafter = drafters[0] if drafters else None
    if launcher != "url" and drafter is None and gamma is not None and parse_gammas(gamma) == (0,):
        drafter = NO_DRAFTER
        given.add("--drafter")
    check_flags(launcher, given)
    targets = target or [""]
    request = Request(
        target=targets[0],
        drafter=drafter or "",
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
        budget_s=None if budget is None else flags.seconds(budget, "--budget"),
        server_args=server_arg or (),
        env=env or (),
        moe_config=moe_config,
        synthetic=synthetic_acceptance,
        retry_failed=retry_failed,
        program=vllm,
        image=image,
        start_timeout=start_timeout,
        request_timeout=request_timeout,
        study=flags.study_name(study),
        command=this_command(),
        launcher=launcher,
        mounts=mount or (),
        gpus=gpus,
        docker_args=docker_arg or (),
        schedule=schedule,
        slo=slo,
        quality=quality,
        quality_tolerance=flags.fraction(quality_tolerance, "--quality-tolerance"),
        quality_limit=quality_limit,
        quality_tasks=quality_tasks,
        quality_timeout=quality_timeout,
        context=tokens,
        force=force,
    )
    if launcher == "url":
        if len(targets) > 1:
            raise BadInputError("--launcher url: measures one model; give one --target, or none")
        spec_runs.measure(request, url or "", header or (), out=folder, db=db, as_json=json_)
    elif len(targets) > 1:
        spec_runs.compare(request, targets, out=folder, db=db, as_json=json_)
    else:
        spec_runs.tune(request, out=folder, db=db, as_json=json_)
