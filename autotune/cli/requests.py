"""This module holds one model for each command of ``autotune``; its docstring is the help.

``autotune.kernels.request`` and ``autotune.serving.request`` declare what is tuned; here are the
places for results, which are the caller's own, and the smaller commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import model_validator
from pydantic.json_schema import SkipJsonSchema

from autotune.core import BadInputError
from autotune.kernels.request import MoeRequest
from autotune.serving.parse import Gpus, Homes, Image, ListOfWords
from autotune.serving.request import DOCKER, SpecRequest
from autotune.util.request import (
    BatchSizes,
    Duration,
    Line,
    Paths,
    Request,
    Seed,
    Share,
    StudyName,
    Texts,
    Workers,
    extra,
    flag,
)

DEFAULT_DB = "sqlite:///outputs/autotune.db"
OUT = Path("outputs")
CONTAINER_FIELDS = frozenset({"launcher", "image", "gpus", "mount", "docker_arg"})
"""Of a command that runs in a container: how, which the command inside need not know."""
Study = Annotated[str, flag("Name, as `autotune studies` lists it.", positional=True)]


class AsJson(Request):
    """Every command can print for programs."""

    as_json: Annotated[bool, flag("Print one JSON document to stdout.", name="--json")] = False


class Stored(AsJson):
    """A command with a database takes its URL."""

    db: Annotated[str, flag("Database with every trial, as an SQLAlchemy URL.")] = DEFAULT_DB


class Output(Stored):
    """A command that leaves files takes a folder for them."""

    out: Annotated[Path, flag("Where result files go.")] = OUT


FAR = "At a service"
"""The panel of flags that send a command elsewhere."""
TokenFile = Annotated[
    Path | None,
    flag(
        "File with the service's token.",
        panel=FAR,
        note="Else `AUTOTUNE_TOKEN`, or `outputs/serve.token` for a service on this machine.",
    ),
]


class Watched(Output):
    """A command that takes long can say beforehand what it would do, and tell programs of it."""

    server: Annotated[
        str | None,
        flag("Run it at this service (`autotune serve`), and follow it here.", panel=FAR),
    ] = None
    token_file: TokenFile = None
    detach: Annotated[bool, flag("With --server: queue it, and do not follow.", panel=FAR)] = False

    dry_run: Annotated[
        bool, flag("Say what would be done and what stands against it; start nothing.")
    ] = False
    events: Annotated[
        Path | None,
        flag("Append the plan and each step to this file, a JSON object a line.", metavar="FILE"),
    ] = None


class Moe(MoeRequest, Watched):
    """Tune the fused-MoE kernel and write the JSON file that vLLM looks for."""

    examples = (
        "autotune moe --device auto --model gemma-4-26b-a4b",
        "autotune moe --device gb10 --batch-sizes 1,8,64 --effort quick",
        "autotune moe --launcher docker --image vllm/vllm-openai:v0.33.0 --device auto",
    )

    launcher: Annotated[
        str,
        flag(
            "local, or docker or podman: inside --image, which needs no vLLM here.",
            panel=DOCKER,
            enum=["local", "docker", "podman"],
            note="`docker` takes podman where docker is not there.",
        ),
    ] = "local"
    image: Annotated[
        Image | None,
        flag("The image that serves; measures and compiles.", panel=DOCKER, reach="operator"),
    ] = None
    gpus: Annotated[Gpus, flag("GPUs of the container; none for none.", panel=DOCKER)] = "all"
    mount: Annotated[
        Homes,
        flag(
            "More for the container: HOST:/INSIDE[:ro].",
            metavar="MOUNT",
            panel=DOCKER,
            reach="operator",
            note="What flags name, the results and the database are mounted anyway.",
        ),
    ] = ()
    docker_arg: Annotated[
        ListOfWords,
        flag(
            "For docker run, such as '--network host'.",
            metavar="ARGS",
            panel=DOCKER,
            sensitive=True,
            reach="operator",
        ),
    ] = ()

    @model_validator(mode="after")
    def _in_a_container(self) -> Self:
        """Refuse flags of containers without one, and a container without an image."""
        if self.launcher != "local":
            if self.image is None:
                from autotune.machine.image_facts import TAKE  # noqa: PLC0415

                raise BadInputError(f"--launcher {self.launcher}: needs --image, such as {TAKE}")
            return self
        for name in sorted(self.given() & (CONTAINER_FIELDS - {"launcher"})):
            raise BadInputError(f"{self.flag_name(name)} goes with --launcher docker or podman")
        return self


class Spec(SpecRequest, Watched):
    """Tune speculative decoding and serving flags on real vLLM servers."""

    examples = (
        "autotune spec --target MODEL --drafter ngram --gamma 0-4",
        "autotune spec --target MODEL --gamma 0 --moe-config default,FOLDER",
        "autotune spec --launcher url --url http://127.0.0.1:8000",
    )


class Export(Output):
    """Write a study's file for vLLM (a commit, never pushed), SGLang or a folder."""

    examples = (
        "autotune export STUDY --to folder --dest FOLDER",
        "autotune export STUDY --to vllm --repo CHECKOUT",
    )

    study: Study
    to: Annotated[str, flag("folder, vllm or sglang.", enum=["folder", "vllm", "sglang"])]
    dest: Annotated[Path | None, flag("Folder for the files; default: one of the study's.")] = None
    repo: Annotated[Path | None, flag("vllm: a git checkout of vLLM.", only="vllm")] = None
    base: Annotated[str, flag("vllm: what the branch starts from.")] = "HEAD"
    branch: Annotated[str | None, flag("vllm: its name; default by the file.", only="vllm")] = None
    signoff: Annotated[
        str | None, flag('vllm: "Name <mail>"; default: the checkout\'s user.', only="vllm")
    ] = None
    min_gain: Annotated[Share, flag("A row that gains less is vLLM's default.")] = "1%"
    allow_predicted: Annotated[bool, flag("Export predictions, marked as such.")] = False
    compared: Annotated[
        Path | None, flag("vllm: what `autotune compare OLD NEW --json` printed.", only="vllm")
    ] = None
    serve_log: Annotated[
        Path | None, flag("vllm: log of a server that picked the file up.", only="vllm")
    ] = None
    serve_study: Annotated[
        str | None,
        flag("vllm: a spec study run with --moe-config default,FOLDER.", only="vllm"),
    ] = None
    model_name: Annotated[
        Line | None, flag("vllm: the model, for the title; default by the shape.", only="vllm")
    ] = None
    cuda: Annotated[
        Line | None,
        flag("vllm: CUDA version, where the study did not record it.", only="vllm"),
    ] = None
    ai_assistance: Annotated[
        str | None, flag("vllm: answer to the template's question about AI.", only="vllm")
    ] = None
    device: Annotated[
        str | None, flag("The .yaml file of a device that is none of ours.", reach="place")
    ] = None
    out: Annotated[Path, flag("Where result files are.")] = OUT

    @model_validator(mode="after")
    def _only_for_vllm(self) -> Self:
        """Refuse flags that another target would ignore, and a missing checkout."""
        only = [
            n for n, f in self.declared() if extra(f).get("only") and getattr(self, n) is not None
        ]
        if self.to != "vllm" and only:
            raise BadInputError(f"{self.flag_name(only[0])}: only for --to vllm")
        if self.to == "vllm" and self.repo is None:
            raise BadInputError("--to vllm: needs --repo CHECKOUT, a git checkout of vLLM")
        return self


class Verify(AsJson):
    """Check fused-MoE configuration files: schema, values, what the device can hold, gaps."""

    examples = ("autotune verify FILE.json --device gb10 --compile",)

    files: Annotated[Paths, flag("Configuration files, or folders of them.", positional=True)]
    device: Annotated[
        str | None, flag("Judge by this device, not the one in the name.", reach="place")
    ] = None
    model: Annotated[
        str | None, flag("Hidden size and top-k, which no file name holds.", reach="place")
    ] = None
    compile_: Annotated[
        bool, flag("Compile every row: exact shared memory, spills.", name="--compile")
    ] = False
    landscape: Annotated[
        Path | None, flag("Recorded times for the gaps, instead of the cost model.")
    ] = None
    strict: Annotated[bool, flag("Exit code 1 for warnings too.")] = False
    notes: Annotated[bool, flag("Show notes of several files too.")] = False
    workers: Workers = None


class Files(AsJson):
    """Say which tuned files vLLM looks for when it serves a model, and what reads them."""

    examples = ("autotune files MODEL --device gb10",)

    model: Annotated[
        str, flag("Folder with config.json, or a hub id.", positional=True, reach="place")
    ]
    device: Annotated[str, flag("Device that serves; auto looks at this machine.", reach="place")]
    tp: Annotated[int, flag("Tensor-parallel size.", least=1, most=4096)] = 1
    ep: Annotated[int, flag("Expert-parallel size.", least=1, most=4096)] = 1
    drafter: Annotated[str | None, flag("A drafter's folder or hub id.", reach="place")] = None
    lora: Annotated[bool, flag("LoRA adapters are served.")] = False
    moe_backend: Annotated[str | None, flag("What vLLM's --moe-backend will be.")] = None
    flashinfer: Annotated[bool, flag("FlashInfer is installed, as vLLM's CUDA wheels want.")] = True
    deep_gemm: Annotated[bool, flag("DeepGEMM is installed and runs on the GPU.")] = False


class Compare(Stored):
    """Compare two configuration files, measured side by side on this GPU or looked up."""

    examples = ("autotune compare OLD.json NEW.json --model gemma-4-26b-a4b",)

    first: Annotated[Path, flag("A configuration file, such as the one there.", positional=True)]
    second: Annotated[Path, flag("Another one, such as the one to replace it.", positional=True)]
    landscape: Annotated[Path | None, flag("Look times up in a recorded landscape.")] = None
    study: Annotated[str | None, flag("Look times up in this study's trials.")] = None
    model: Annotated[
        str | None, flag("Measured: gives hidden size, top-k and scaling.", reach="place")
    ] = None
    batch_sizes: Annotated[
        BatchSizes | None, flag("Values of M; default: the keys of both files.")
    ] = None
    seed: Annotated[Seed, flag("Measured: of weights and routings.")] = 0
    workers: Workers = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.landscape is not None and self.study is not None:
            raise BadInputError("--landscape and --study exclude each other")
        return self


class Studies(Stored):
    """List the studies of a database."""

    examples = ("autotune studies",)


class Show(Stored):
    """Show a study: what it is about, its searches, the best trials so far."""

    examples = ("autotune show STUDY", "autotune show STUDY --to trials.csv")

    study: Study
    to: Annotated[
        Path | None, flag("Write the trials as a table: FILE.csv, or FILE.parquet.", metavar="FILE")
    ] = None


class Report(Output):
    """Write a study as it is now into one report.html, and report.md where no job left it."""

    examples = ("autotune report STUDY --open", "autotune report STUDY --bundle study.json.gz")

    study: Study
    bundle: Annotated[
        Path | None,
        flag(
            "Write one small file to give away instead: results, no paths or names.",
            metavar="FILE",
            note="Attach it to an issue or a pull request; nothing is sent. "
            "`autotune merge FILE` takes it into a database.",
        ),
    ] = None
    open_: Annotated[bool, flag("Open the page in a browser.", name="--open")] = False
    device: Annotated[
        str | None, flag("Its .yaml file, if the study is of a device of your own.")
    ] = None
    min_gain: Annotated[
        Share | None, flag("As for `autotune moe`; default: that of the job, or 1%.")
    ] = None


class Merge(Stored):
    """Take a study that somebody gave away (`report --bundle`) into the database."""

    examples = ("autotune merge study.json.gz --study lees-spark",)

    bundle: Annotated[Path, flag("The file.", positional=True)]
    study: Annotated[StudyName | None, flag("Its name here; default: as it was there.")] = None
    command: SkipJsonSchema[str] = ""
    """The command as typed, for the records; no flag."""


class Dashboard(Output):
    """Show studies in optuna-dashboard, as they are now; Ctrl-C ends it."""

    examples = ("autotune dashboard STUDY --port 0",)

    study: Annotated[str | None, flag("Name; default: all studies.", positional=True)] = None
    port: Annotated[int, flag("Port of 127.0.0.1; 0 takes a free one.", least=0, most=65535)] = 8080
    out: Annotated[Path, flag("Where the mirror goes.")] = OUT


class Serve(Stored):
    """Run the service: a queue of jobs, an HTTP interface and a page for browsers."""

    examples = (
        "autotune serve",
        "autotune serve --host 0.0.0.0 --token-file TOKEN --allow 'target=google/*'",
    )

    host: Annotated[str, flag("Address to listen on; all but loopback need --token-file.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, flag("Port; 0 takes a free one.", least=0, most=65535)] = 8077
    token_file: Annotated[
        Path | None,
        flag("File with the token of those who may ask; default: one made in --root."),
    ] = None
    root: Annotated[Path, flag("Where jobs and result files go.")] = OUT
    host_name: Annotated[
        Texts, flag("Another name that browsers may call this service by.", metavar="NAME")
    ] = ()
    allow: Annotated[
        Texts,
        flag(
            "What jobs may ask for: FLAG=PATTERN, such as 'target=google/*'.",
            metavar="FLAG=PATTERN",
            note="Patterns are those of shells. `env`, `url`, `image`, `mount`, `vllm` and "
            "`docker-arg` go only so; `set` and `server-arg` also with flags of numbers.",
        ),
    ] = ()
    allow_path: Annotated[
        Paths, flag("Folder beside --root whose files jobs may use.", metavar="FOLDER")
    ] = ()
    resume: Annotated[bool, flag("Go on with the jobs that were interrupted.")] = True
    predictions: Annotated[int, flag("Jobs without a GPU that run at once.", least=1, most=64)] = 1
    patience: Annotated[
        Duration, flag("At the end wait so long for jobs to save what they have.")
    ] = "90s"


class Jobs(AsJson):
    """Ask a service for its jobs: submit, list, show, logs, cancel or wait."""

    examples = (
        "autotune jobs list --server http://127.0.0.1:8077",
        "autotune jobs logs 7 -f",
        "autotune jobs submit JOB.json",
    )

    action: Annotated[
        str,
        flag(
            "submit, list, show, logs, cancel or wait.",
            positional=True,
            enum=["submit", "list", "show", "logs", "cancel", "wait"],
        ),
    ]
    job: Annotated[
        str | None,
        flag("A job's number; for submit a file with the job as JSON, or -.", positional=True),
    ] = None
    server: Annotated[str | None, flag("The service; default: AUTOTUNE_SERVER.")] = None
    token_file: TokenFile = None
    follow: Annotated[bool, flag("logs: go on until the job has ended.", short="-f")] = False
    max_wait: Annotated[
        Duration | None,
        flag("wait, logs -f: no longer than so; the job goes on, exit code 3."),
    ] = None

    @model_validator(mode="after")
    def _about_a_job(self) -> Self:
        if self.action == "list" and self.job is not None:
            raise BadInputError(f"list {self.job}: takes no job; show {self.job} is about one")
        if self.action != "list" and self.job is None:
            what = "a file, or -" if self.action == "submit" else "a job's number"
            raise BadInputError(f"{self.action}: needs {what}")
        waits = self.action == "wait" or (self.action == "logs" and self.follow)
        if self.max_wait is not None and not waits:
            raise BadInputError("--max-wait: goes with wait, and with logs -f")
        return self


class Explain(AsJson):
    """Explain the log of a vLLM server: started or not, the cause, what to do, what it runs."""

    examples = (
        "autotune explain server.log",
        "autotune explain - --json",
    )

    log: Annotated[
        str, flag("A file or a pipe; - is standard input.", positional=True, reach="place")
    ]


class Devices(AsJson):
    """List the devices that can be tuned for, and what this machine has."""

    examples = ("autotune devices --json",)


class Doctor(AsJson):
    """Say whether this machine is ready: GPU, memory and who holds it, versions, fp8; what next."""

    examples = ("autotune doctor", "autotune doctor --device gb10")

    device: Annotated[
        str | None, flag("Device to check for; default: the GPU here, gb10 without one.")
    ] = None
