"""A :class:`SpecRequest` holds the flags of ``autotune spec`` as they were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import model_validator
from pydantic.json_schema import SkipJsonSchema

from autotune.core import BadInputError
from autotune.propose.names import MODEL
from autotune.serving.pair.methods import NO_DRAFTER
from autotune.serving.parse import (
    Captures,
    Concurrency,
    Contexts,
    Folder,
    Gammas,
    Gpus,
    Home,
    Homes,
    Image,
    ListOfWords,
    Options,
    Rates,
    Sets,
    Slo,
    Utilization,
    Values,
    Variables,
    VariableSets,
    Words,
    parse_contexts,
    parse_gammas,
)
from autotune.serving.scenario import OBJECTIVES
from autotune.util.request import Duration, Request, Seed, Share, StudyName, Texts, extra, flag

MODELS = "What is served"
SEARCH = "What is tried"
LOAD = "The load"
DECISION = "What decides"
SERVERS = "Servers"
DOCKER = "With --launcher docker or podman"
URL = "With --launcher url"
"""The panels of ``--help``."""

LAUNCHERS: Mapping[str, str] = {
    "local": "starts servers as processes of this machine",
    "docker": "starts servers in containers of --image",
    "podman": "starts servers in containers of --image",
    "url": "measures the server that runs at --url",
}
_ANY = tuple(LAUNCHERS)
_CONTAINERS = ("docker", "podman")
_WITH_IMAGE = ("local", *_CONTAINERS)


class SpecRequest(Request):
    """The request names models, what is tried, the load, what decides, and how servers start.

    ``launchers`` beside a flag are those that it goes with; without, those that start servers.
    """

    target: Annotated[
        Homes,
        flag(
            "Model to serve: a folder or a hub id; several are compared.",
            metavar="MODEL",
            panel=MODELS,
            launchers=_ANY,
            note="With several, each is a study of its own, and a table compares them.",
            reach="place",
        ),
    ] = ()
    drafter: Annotated[
        Homes,
        flag(
            "Folder, hub id, or a method without a model: ngram, suffix, mtp; or none.",
            metavar="MODEL",
            panel=MODELS,
            reach="place",
        ),
    ] = ()
    gamma: Annotated[
        Gammas | None,
        flag(
            "Drafted tokens, such as 0-6 (default) or 0,2,4; 0 alone needs no drafter.",
            panel=SEARCH,
            note="0, no speculation, is the baseline and always measured.",
        ),
    ] = None
    kv_cache_dtype: Annotated[
        Values | None,
        flag(
            "KV-cache types to compare, such as auto,fp8.",
            panel=SEARCH,
            note="The first is the baseline's.",
        ),
    ] = None
    gpu_memory_utilization: Annotated[
        Utilization | None,
        flag(
            "Shares to compare, 0.8,0.85, or a range to search, 0.4:0.9.",
            panel=SEARCH,
            note="The first share is the baseline's. A range looks for the least that holds "
            "concurrency × context without preemption, and for the most that survives the "
            "load.",
        ),
    ] = None
    set: Annotated[
        Sets,
        flag(
            "More flags of vllm serve to compare: max-num-seqs=8,16.",
            metavar="FLAG=VALUES",
            panel=SEARCH,
            note="The first value is the baseline's.",
            reach="operator",
        ),
    ] = ()
    spec_set: Annotated[
        Options,
        flag(
            "Options of the drafter to compare: prompt_lookup_max=4,5.",
            metavar="KEY=VALUES",
            panel=SEARCH,
            note="Keys of `--speculative-config`; one value sets it for all.",
            reach="operator",
        ),
    ] = ()
    env_set: Annotated[
        VariableSets,
        flag(
            "Environment variables to compare: NAME=a,b.",
            metavar="NAME=VALUES",
            panel=SEARCH,
            note="The first value is the baseline's.",
            reach="operator",
        ),
    ] = ()
    capture_sizes: Annotated[
        Captures | None,
        flag(
            "CUDA graphs to compare: default,512 captures up to 512 tokens.",
            panel=SEARCH,
            note="A number takes vLLM's grid up to it, and every decoding batch exactly. With the "
            "dial on a GPU all servers capture up to 512 unless told otherwise.",
        ),
    ] = None
    space: Annotated[
        Home | None,
        flag("All of these from a space: its name, or a .yaml file.", panel=SEARCH, reach="place"),
    ] = None
    concurrency: Annotated[
        Concurrency, flag("Requests in flight at once.", panel=LOAD, launchers=_ANY)
    ] = "1,4,8"
    prompts: Annotated[
        Home,
        flag(
            "chat, code, prose, rewriting, structured, several of them, or FILE.jsonl.",
            panel=LOAD,
            launchers=_ANY,
            note="Of several, `chat,rewriting`, or a file whose lines have a `kind`, each is a "
            "load of its own and has its own answer; the verdict is that of equal shares.",
            reach="place",
        ),
    ] = "chat"
    context: Annotated[
        Contexts | None,
        flag(
            "Tokens of a request, prompt and answer: 1k,16k,64k, each a load of its own.",
            panel=LOAD,
            launchers=_ANY,
            note="Prompts get texts to read before the question. A searched utilization must "
            "hold the longest. As for vLLM, 1k is 1000 and 1K is 1024.",
        ),
    ] = None
    max_tokens: Annotated[
        int,
        flag(
            "Output tokens per request.",
            panel=LOAD,
            unit="tokens",
            least=2,
            most=1_000_000,
            launchers=_ANY,
        ),
    ] = 128
    ignore_eos: Annotated[
        bool,
        flag("Generate all of them whatever the model says.", panel=LOAD, launchers=_ANY),
    ] = True
    repeats: Annotated[
        int,
        flag("Timed loads at each concurrency.", panel=LOAD, least=1, most=1000, launchers=_ANY),
    ] = 5
    waves: Annotated[
        int,
        flag(
            "Requests of a load, as a multiple of its concurrency.",
            panel=LOAD,
            least=1,
            most=1000,
            launchers=_ANY,
        ),
    ] = 4
    objective: Annotated[
        str,
        flag(
            "geomean, single, aggregate or pareto.",
            panel=DECISION,
            enum=list(OBJECTIVES),
            launchers=_ANY,
            note="It leads the search; all of them are reported.",
        ),
    ] = "geomean"
    confirm_boots: Annotated[
        int, flag("Fresh boots of the best to confirm.", panel=DECISION, least=1, most=100)
    ] = 2
    confirm: Annotated[
        str,
        flag(
            "auto, side-by-side or in-turn.",
            panel=DECISION,
            enum=["auto", "side-by-side", "in-turn"],
            note="Side by side, the servers of the best and of the baseline are up at once and "
            "loaded in turn, `--confirm-boots` × `--repeats` times each; `auto` does so where the "
            "memory holds them.",
        ),
    ] = "auto"
    soak: Annotated[
        Duration | None,
        flag(
            "Load the best for so long in the end, such as 10m.",
            panel=DECISION,
            note="Tells what breaks late: acceptance that falls to nothing, empty or repeating "
            "answers, a server that slows down or grows.",
        ),
    ] = None
    quality: Annotated[
        Values | None,
        flag(
            "Tasks of lm-eval of which no score may fall: gsm8k.",
            panel=DECISION,
            note="lm-eval comes with the extra `quality`.",
            reach="place",
        ),
    ] = None
    quality_tolerance: Annotated[
        Share, flag("By how much a score may fall, in its own unit.", panel=DECISION)
    ] = "2%"
    quality_limit: Annotated[
        int | None,
        flag("Examples of a task; all if not given.", panel=DECISION, least=1, most=1_000_000),
    ] = None
    quality_tasks: Annotated[
        Folder | None,
        flag("Folder with further tasks for lm-eval.", panel=DECISION, reach="place"),
    ] = None
    quality_timeout: Annotated[
        Duration, flag("An evaluation may take so long.", panel=DECISION)
    ] = "1h"
    check_tokens: Annotated[
        int,
        flag(
            "Tokens of each text whose outputs are judged; 0 for none.",
            panel=DECISION,
            unit="tokens",
            least=0,
            most=100_000,
            note="Twelve texts of each setting, scored by the target itself; see "
            "docs/explanation/how-outputs-are-judged.md.",
        ),
    ] = 256
    slo: Annotated[
        Slo | None,
        flag(
            "Limits on p99 latencies, such as ttft=500ms,tpot=50ms.",
            panel=DECISION,
            note="Also `e2e`. A setting that misses one is stopped and never recommended.",
        ),
    ] = None
    dial: Annotated[
        bool,
        flag(
            "Measure every gamma on one server, where vLLM can.",
            panel=DECISION,
            note="From vLLM 0.32 on, with full CUDA graphs or on a CPU; confirmed by servers of "
            "one gamma in any case. `--no-dial` starts one for each gamma.",
        ),
    ] = True
    schedule: Annotated[
        bool, flag("Try gamma by batch size against the best static one.", panel=DECISION)
    ] = True
    min_gain: Annotated[Share, flag("Least gain over the baseline.", panel=DECISION)] = "1%"
    budget: Annotated[
        Duration | None,
        flag(
            "Stop searching after, such as 2h.",
            panel=SEARCH,
            note="The fresh boots that confirm come on top.",
        ),
    ] = None
    sampler: Annotated[
        str,
        flag(
            "forecast, gp, tpe, random, grid, or MODULE:CLASS of Optuna's.",
            panel=SEARCH,
            note="What orders the servers of the search, which is an Optuna study. The forecast "
            "says to the others which one cannot win; `grid` starts all.",
            reach="operator",
        ),
    ] = MODEL
    seed: Annotated[Seed, flag("Seed of the sampler; a forecast draws nothing.", panel=SEARCH)] = 0
    server_arg: Annotated[
        ListOfWords,
        flag(
            "For every server, such as --server-arg '--max-model-len 4096'.",
            metavar="ARGS",
            panel=SERVERS,
            sensitive=True,
            note="Written to the database. `--api-key`, `--disable-log-stats` and what the "
            "tuner sets itself are refused.",
            reach="operator",
        ),
    ] = ()
    env: Annotated[
        Variables,
        flag(
            "NAME=VALUE for every server.",
            metavar="NAME=VALUE",
            panel=SERVERS,
            sensitive=True,
            note="Written to the database.",
            reach="operator",
        ),
    ] = ()
    moe_config: Annotated[
        str | None,
        flag(
            "Folder with tuned MoE files for every server; default,FOLDER compares.",
            metavar="FOLDER",
            panel=SERVERS,
            note="The log tells whether vLLM took them. `default,FOLDER` measures whether the "
            "server is faster with them.",
            reach="place",
        ),
    ] = None
    synthetic_acceptance: Annotated[
        Rates | None,
        flag(
            "Tell vLLM what to accept by position, such as .8,.6,.4.",
            panel=SERVERS,
            note="vLLM has it on GPUs only.",
        ),
    ] = None
    vllm: Annotated[
        Words | None,
        flag(
            "Program to start; default: this Python's vLLM.",
            panel=SERVERS,
            launchers=("local",),
            reach="operator",
        ),
    ] = None
    image: Annotated[
        Image | None,
        flag(
            "Docker image: to start, or to write compose.yaml for.",
            panel=DOCKER,
            launchers=_WITH_IMAGE,
            note="With `--launcher local` it is what `compose.yaml` is written for.",
            reach="operator",
        ),
    ] = None
    launcher: Annotated[
        str,
        flag(
            "local, docker, podman, or url to measure a server that runs already.",
            panel=SERVERS,
            enum=list(LAUNCHERS),
            launchers=_ANY,
            note="`docker` takes podman where docker is not there.",
        ),
    ] = "local"
    ray: Annotated[
        str | None,
        flag(
            "Start servers on a Ray cluster: local, auto or HOST:PORT.",
            metavar="WHERE",
            panel=SERVERS,
            launchers=("local",),
            note="As many at once as it has free GPUs; see docs/how-to/ray.md. `auto` joins that "
            "of RAY_ADDRESS or of this machine.",
            reach="operator",
        ),
    ] = None
    url: Annotated[
        str | None,
        flag("The server that runs already.", panel=URL, launchers=("url",), reach="operator"),
    ] = None
    header: Annotated[
        Texts,
        flag(
            "'NAME: VALUE' for it, written nowhere; or in AUTOTUNE_HEADER.",
            metavar="HEADER",
            panel=URL,
            launchers=("url",),
            secret=True,
        ),
    ] = ()
    mount: Annotated[
        Homes,
        flag(
            "For the container: HOST:/INSIDE[:ro]. Models are mounted anyway.",
            metavar="MOUNT",
            panel=DOCKER,
            launchers=_WITH_IMAGE,
            reach="operator",
        ),
    ] = ()
    gpus: Annotated[
        Gpus, flag("GPUs of the container; none for none.", panel=DOCKER, launchers=_CONTAINERS)
    ] = "all"
    docker_arg: Annotated[
        ListOfWords,
        flag(
            "For docker run, such as '--shm-size 8g'.",
            metavar="ARGS",
            panel=DOCKER,
            launchers=_CONTAINERS,
            sensitive=True,
            reach="operator",
        ),
    ] = ()
    start_timeout: Annotated[Duration, flag("A start may take so long.", panel=SERVERS)] = "30m"
    request_timeout: Annotated[
        Duration, flag("A request may take so long.", panel=SERVERS, launchers=_ANY)
    ] = "10m"
    retry_failed: Annotated[
        bool,
        flag(
            "Try again what crashed, hung or lacked memory.",
            panel=SEARCH,
            note="The same command alone does not.",
        ),
    ] = False
    force: Annotated[bool, flag("Go on in spite of refusals.", panel=MODELS)] = False
    study: Annotated[StudyName | None, flag("Name; default from the models.", launchers=_ANY)] = (
        None
    )
    command: SkipJsonSchema[str] = ""
    """The command as typed, for the records; no flag."""

    @property
    def only_target(self) -> str:
        """Return the model served, where it is one; empty where the server at ``--url`` says it."""
        return self.target[0] if self.target else ""

    @property
    def only_drafter(self) -> str:
        """Return the drafter; ``none`` where gamma is 0 alone; empty where it is missing."""
        if self.drafter:
            return self.drafter[0]
        nothing_drafted = self.gamma is not None and parse_gammas(self.gamma) == (0,)
        return NO_DRAFTER if nothing_drafted else ""

    @property
    def contexts(self) -> tuple[int, ...]:
        """Return the lengths of requests asked for, ascending; empty leaves prompts as they are."""
        return () if self.context is None else parse_contexts(self.context)

    def of_target(self, target: str, study: str) -> Self:
        """Ask the same for one of several targets, whose study has a name of its own."""
        return self.model_copy(update={"target": (target,), "study": study})

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if len(self.drafter) > 1:
            raise BadInputError(
                f"--drafter: {' and '.join(self.drafter)}: one at a time; give each a command and "
                "a --study"
            )
        self._check_launcher()
        self._check_space()
        return self

    def _check_launcher(self) -> None:
        """Refuse what the launcher would pass over in silence, and see that nothing is missing."""
        does = f"--launcher {self.launcher} {LAUNCHERS[self.launcher]}"
        for name in sorted(self.given() & SpecRequest.model_fields.keys()):
            flag = self.flag_name(name)
            owners = extra(SpecRequest.model_fields[name]).get("launchers")
            if owners is not None and self.launcher not in owners:
                raise BadInputError(
                    f"{flag} goes with --launcher {' or '.join(owners)}, and {does}; leave one out"
                )
            if owners is None and self.launcher == "url":
                raise BadInputError(
                    f"{does}, which has its settings already: {flag} would change nothing; leave "
                    "it out"
                )
        needed = {"docker": "image", "podman": "image", "url": "url"}.get(self.launcher)
        if needed is not None and getattr(self, needed) is None:
            from autotune.machine.image_facts import TAKE  # noqa: PLC0415 - slow to import

            such = f", such as {TAKE}" if needed == "image" else ""
            raise BadInputError(f"--launcher {self.launcher}: needs --{needed}{such}")
        if self.mount and self.image is None:
            raise BadInputError("--mount: is for a container; needs --image")
        if self.launcher == "url" and len(self.target) > 1:
            raise BadInputError("--launcher url: measures one model; give one --target, or none")
        if self.launcher != "url" and not self.target:
            raise BadInputError("--target: is missing; name a folder or a hub id")
        if self.launcher != "url" and not self.only_drafter:
            raise BadInputError(
                "--drafter: is missing; name a folder or a hub id, a method such as ngram, or none"
            )

    def _check_space(self) -> None:
        ways = (
            "gamma",
            "kv_cache_dtype",
            "gpu_memory_utilization",
            "set",
            "spec_set",
            "env_set",
            "capture_sizes",
        )
        other = next((name for name in ways if getattr(self, name)), None)
        if self.space is not None and other is not None:
            raise BadInputError(f"--space and {self.flag_name(other)} exclude each other")
        least = min(self.contexts, default=None)
        if least is not None and least <= self.max_tokens:
            raise BadInputError(
                f"--context {least}: has no room for --max-tokens {self.max_tokens}"
            )
