"""A :class:`MoeRequest` holds the flags of ``autotune moe`` as they were given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from autotune.core import BadInputError
from autotune.kernels.moe.from_model import model_names
from autotune.kernels.moe.variants import VARIANTS
from autotune.util import flags
from autotune.util.request import (
    BatchSizes,
    Duration,
    Paths,
    Request,
    Seed,
    Share,
    StudyName,
    checked,
    flag,
)

STANDARD_LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
"""The 18 keys of vLLM's own tuner (benchmarks/kernels/benchmark_moe.py)."""

EFFORTS: dict[str, int | None] = {"quick": 24, "standard": 64, "exhaustive": None}
"""Candidates measured per M; None is every feasible one."""

PREDICTED_EFFORTS: dict[str, int | None] = {"quick": 12, "standard": 32, "exhaustive": None}
"""Candidates predicted per M: each is compiled first, and the model has put them in order."""

SAMPLERS = ("tpe", "gp", "random")
PRESETS = ", ".join(model_names())
LAYER = "The layer"
BATCHES = "Batch sizes"
SEARCH = "The search"
MEASURING = "Measuring"
_SIZES = ("experts", "intermediate", "hidden", "topk")

Model = Annotated[
    str | None, flag(f"Folder with config.json, hub id, or {PRESETS}.", panel=LAYER, reach="place")
]
MemoryLimit = Annotated[
    str, checked(lambda text, _: flags.mebibytes(text)), Field(examples=["16G", "500M"])
]


class MoeRequest(Request):
    """The request names a layer, its batch sizes, and how to search and measure."""

    device: Annotated[str, flag("Device to tune for; auto looks at this machine.", reach="place")]
    model: Model = None
    experts: Annotated[int | None, flag("E, instead of a model.", panel=LAYER)] = None
    intermediate: Annotated[int | None, flag("N, width after the gate.", panel=LAYER)] = None
    hidden: Annotated[int | None, flag("K, hidden size.", panel=LAYER)] = None
    topk: Annotated[int | None, flag("Experts per token.", panel=LAYER)] = None
    dtype: Annotated[str, flag(f"{', '.join(VARIANTS)}; auto: the model's.", panel=LAYER)] = "auto"
    scheme: Annotated[
        str | None, flag("Scaling: tensor, channel, block; default: the model's.", panel=LAYER)
    ] = None
    layer: Annotated[
        str | None,
        flag(
            "The model's layer, mtp or vision; default: those with the most work.",
            panel=LAYER,
        ),
    ] = None
    tp: Annotated[int, flag("Tensor-parallel size; divides N.", panel=LAYER)] = 1
    ep: Annotated[int, flag("Expert-parallel size; divides E.", panel=LAYER)] = 1
    batch_sizes: Annotated[
        BatchSizes | None,
        flag("Values of M, such as 1,8,64; default: vLLM's 18.", panel=BATCHES),
    ] = None
    gamma: Annotated[
        str | None,
        flag(
            "Drafted tokens, such as 2,4: adds the M of decoding.",
            panel=BATCHES,
            note="Decoding then hits M = (gamma + 1) × concurrency.",
        ),
    ] = None
    concurrency: Annotated[
        str | None,
        flag("Sequences decoded at once, such as 1,4,8: adds their M.", panel=BATCHES),
    ] = None
    space: Annotated[
        str,
        flag(
            "stock, wide, or the path of a .yaml file.",
            panel=SEARCH,
            note="vLLM's own grid of 1920, what the kernel accepts beyond it, or yours.",
            reach="place",
        ),
    ] = "stock"
    effort: Annotated[
        str,
        flag(
            "quick, standard or exhaustive.",
            panel=SEARCH,
            enum=list(EFFORTS),
            note="24, 64 or all feasible candidates per batch size are measured; 12, 32 or all "
            "are predicted.",
        ),
    ] = "standard"
    budget: Annotated[
        Duration | None,
        flag(
            "Stop searching after, such as 10m.",
            panel=SEARCH,
            note="The time is shared over the batch sizes; start and confirmation come on top. "
            "The search then depends on the speed of the machine.",
        ),
    ] = None
    sampler: Annotated[str, flag("tpe, gp or random.", panel=SEARCH, enum=list(SAMPLERS))] = "tpe"
    seed: Annotated[
        Seed, flag("Seed of the search.", panel=SEARCH, note="The same seed gives the same search.")
    ] = 0
    first: Annotated[
        Paths,
        flag(
            "Try a file's rows first; a folder: the files for this layer.",
            metavar="FILE_OR_FOLDER",
            panel=SEARCH,
            note="May be repeated, whoever made the file: the row that vLLM would use at a batch "
            "size, and those of the two keys beside it. On a GB10 rows that others published are "
            "tried unasked. The report says where a chosen row came from.",
        ),
    ] = ()
    min_gain: Annotated[
        Share, flag("A row that gains less stays vLLM's default.", panel=SEARCH)
    ] = "1%"
    retry_failed: Annotated[
        bool,
        flag(
            "Try again what timed out, crashed or lacked memory.",
            panel=SEARCH,
            note="The same command alone does not.",
        ),
    ] = False
    workers: Annotated[
        int | None, flag("Compile processes; default: CPUs.", panel=SEARCH, least=1, most=1024)
    ] = None
    predict: Annotated[
        bool, flag("Predict even if the GPU is in this machine.", panel=MEASURING)
    ] = False
    routing: Annotated[
        str,
        flag(
            "Experts of the tokens: uniform, zipf:1.1, or a file of counts.",
            panel=MEASURING,
            note="Measured only.",
            reach="place",
        ),
    ] = "uniform"
    memory_limit: Annotated[
        MemoryLimit | None,
        flag(
            "Replace a measuring process above it, such as 16G.",
            panel=MEASURING,
            note="Measured only.",
        ),
    ] = None
    ray: Annotated[
        str | None,
        flag(
            "Work on a Ray cluster: local, auto or HOST:PORT.",
            metavar="WHERE",
            panel=MEASURING,
            note="On all its free GPUs of one kind; with --predict on its CPUs. See "
            "docs/how-to/ray.md.",
            reach="operator",
        ),
    ] = None
    study: Annotated[StudyName | None, flag("Name; default from device and shape.")] = None
    command: SkipJsonSchema[str] = ""
    """The command as typed, for the records; no flag."""

    @property
    def sizes(self) -> Mapping[str, int | None]:
        """Return the four sizes of a layer that are given instead of a model, by name."""
        return {name: getattr(self, name) for name in _SIZES}

    @property
    def ladder(self) -> tuple[int, ...]:
        """Return the batch sizes, ascending, with those of decoding."""
        decode = flags.decode_sizes(self.gamma, self.concurrency)
        return tuple(sorted({*flags.batch_sizes(self.batch_sizes, STANDARD_LADDER), *decode}))

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        _ = self.ladder
        if self.model is not None and any(size is not None for size in self.sizes.values()):
            raise BadInputError(
                "--model and --experts/--intermediate/--hidden/--topk exclude each other"
            )
        if self.layer is not None and any(size is not None for size in self.sizes.values()):
            raise BadInputError("--layer is of a --model, and sizes are given")
        return self
