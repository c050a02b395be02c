"""The layers of routed experts in a model: their sizes and weights, grouped where they are alike.

Sources: the model classes of vLLM 0.32 (``models/*.py``: what each hands to ``FusedMoEFactory``,
and the name under which it does) and its tuner's ``get_model_params``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune.core import BadInputError
from autotune.engine.hub import Config, architecture_of, text_config
from autotune.engine.mtp import mtp_has_experts, mtp_layers
from autotune.engine.quantization import Layer, Quantisation, Weights, quantisation_of
from autotune.engine.quantization_rules import weights_of
from autotune.kernels.moe.sparse import is_sparse, names_sparse
from autotune.machine.devices import Device

EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
TOPK = (
    "num_experts_per_tok",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "num_experts_per_token",
)
_DENSE_WIDTH = "intermediate_size"
WIDTH = (
    "moe_intermediate_size",
    "expert_intermediate_size",
    "expert_hidden_dim",
    "expert_ffn_hidden_size",
    "ffn_hidden_size",
    _DENSE_WIDTH,
)
HIDDEN = ("moe_latent_size", "routed_expert_hidden_size", "hidden_size", "d_model", "n_embd")
"""Latent experts, of NemotronH and of Kimi K3, read a narrower vector than the hidden state."""

_MOST_LAYERS = 1000
_UNGATED = ("NemotronH",)
_WIDTH_OF_THE_CLASS = (
    *("aria", "cohere2_moe", "gpt_oss", "granitemoe", "inkling", "jamba", "llama4", "minimax"),
    *("mixtral", "olmoe", "phimoe"),
)
"""Families whose class in vLLM takes ``intermediate_size``, whatever else is given."""

_NAMES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("deepseek_v4", "dbrx"), ("ffn.experts",)),
    (("nemotron_h", "cosmos3"), ("mixer.experts",)),
    (("llama4", "jamba", "lfm2"), ("feed_forward.experts",)),
    (("gemma4", "diffusion_gemma"), ("moe.experts", "experts", "mlp.experts")),
    (("step3",), ("moe.experts", "moe", "mlp.experts")),
    (
        ("mixtral", "phimoe", "granitemoe", "minimax", "kimi_linear", "kimi_k3"),
        ("block_sparse_moe.experts", "mlp.experts"),
    ),
)
"""Where a family keeps its routed experts inside a layer; others in ``mlp.experts``."""

_BASES = (
    "model.layers.{}",
    "model.language_model.layers.{}",
    "language_model.model.layers.{}",
    "backbone.layers.{}",
)


class NoExpertsError(BadInputError):
    """A model without routed experts."""


@dataclass(frozen=True)
class ExpertLayers:
    """Layers of routed experts that are alike.

    Attributes:
        part: ``layers`` of the model, ``vision`` experts of its layers, or ``mtp`` layers.
        numbers: of the layers, ascending; an MTP layer counts on from the last layer.
        experts: E of the whole layer.
        intermediate: N, the width after the gate, of the whole layer.
        hidden: K.
        topk: experts per token.
        gated: whether there is a gate.
        weights: how the experts are quantised.
    """

    part: str
    numbers: tuple[int, ...]
    experts: int
    intermediate: int
    hidden: int
    topk: int
    gated: bool
    weights: Weights

    @property
    def work(self) -> int:
        """Multiplications per token in all of them."""
        return len(self.numbers) * self.topk * self.intermediate * self.hidden

    @property
    def flag(self) -> str:
        """What ``--layer`` of ``autotune moe`` calls them."""
        return str(self.numbers[0]) if self.part == "layers" else self.part

    @property
    def where(self) -> str:
        """For people: ``40 layers (0-39)``, ``the MTP layer``."""
        if self.part == "mtp":
            return "the MTP layer" if len(self.numbers) == 1 else f"{len(self.numbers)} MTP layers"
        first, last = self.numbers[0], self.numbers[-1]
        if first == last:
            return f"layer {first}"
        what = "vision experts of " if self.part == "vision" else ""
        return f"{what}{len(self.numbers)} layers ({first}-{last})"

    def command(self, device: Device, model: str | None, tp: int, ep: int) -> str:
        """The command that tunes them."""
        parts = ["autotune", "moe", "--device", device.name]
        parts += ["--model", model] if model is not None else []
        parts += ["--layer", self.flag]
        for flag, size in (("--tp", tp), ("--ep", ep)):
            parts += [flag, str(size)] if size != 1 else []
        return shlex.join(parts)


def chosen(groups: Sequence[ExpertLayers], wanted: str | None) -> ExpertLayers:
    """The layers that ``--layer`` names; without it those that do the most work.

    Args:
        groups: from :func:`expert_layers`.
        wanted: a layer's number, or a part: ``mtp`` or ``vision``.

    Raises:
        BadInputError: no such layers.
    """
    if wanted is None:
        return groups[0]
    for group in groups:
        if wanted == group.part or (
            wanted.isdecimal() and int(wanted) in group.numbers and group.part != "vision"
        ):
            return group
    there = ", ".join(group.where for group in groups)
    raise BadInputError(
        f"--layer {wanted}: no such layer of routed experts (there are {there}); give a number, "
        "mtp or vision"
    )


def name_of(config: Config) -> str:
    """The model's architecture or type, for messages."""
    return architecture_of(config) or str(config.get("model_type", "the model"))


def type_of(config: Config) -> str:
    """``model_type`` of the language model, else of the whole."""
    return str(text_config(config).get("model_type") or config.get("model_type") or "")


def expert_layers(config: Config, *, quantised: bool = True) -> list[ExpertLayers]:
    """Every layer of routed experts, alike ones together, those with the most work first.

    Args:
        config: the content of ``config.json``.
        quantised: whether to read how the experts are quantised; else all are bf16.

    Raises:
        NoExpertsError: a layer without experts.
        BadInputError: a value missing, or a configuration that is not understood.
    """
    single = list(_single(config, quantisation_of(config) if quantised else None))
    groups: dict[ExpertLayers, list[int]] = {}
    for layer in single:
        groups.setdefault(replace(layer, numbers=()), []).append(layer.numbers[0])
    found = [replace(alike, numbers=tuple(numbers)) for alike, numbers in groups.items()]
    return sorted(found, key=lambda group: (group.part == "mtp", -group.work))


def _single(config: Config, quantisation: Quantisation | None) -> Iterator[ExpertLayers]:
    text = _flat(config)
    count = _count(text)
    numbers = [i for i in range(count) if is_sparse(text, type_of(config), i, count)]
    if not numbers and names_sparse(text):
        raise NoExpertsError(f"{name_of(config)} has no layer of routed experts by its pattern")
    for number in numbers or range(count):
        yield from _layer(config, text, quantisation, number, count)
    if not mtp_has_experts(config):
        return
    for extra in range(min(mtp_layers(config), _MOST_LAYERS)):
        own = _mtp_sizes(config, text)
        for layer in _layer(config, own, quantisation, count + extra, count, extra):
            if layer.part == "layers":
                yield replace(layer, part="mtp")


def _flat(config: Config) -> dict[str, Any]:
    """The language model's values; DBRX keeps those of its experts in ``ffn_config``."""
    text = dict(text_config(config))
    inner = text.get("ffn_config")
    return {**text, **inner} if isinstance(inner, dict) else text


def _mtp_sizes(config: Config, text: dict[str, Any]) -> dict[str, Any]:
    """Intern-S2 Mobius has fewer experts in its MTP layer (speculative.py)."""
    if config.get("model_type") != "interns2_mobius":
        return text
    changed = {"num_experts": "mtp_num_experts", "num_experts_per_tok": "mtp_num_experts_per_tok"}
    return text | {ours: text[mtp] for ours, mtp in changed.items() if text.get(mtp)}


def _count(text: Config) -> int:
    for name in ("num_hidden_layers", "num_layers", "n_layers", "n_layer"):
        value = text.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            if value > _MOST_LAYERS:
                raise BadInputError(f"config.json: {name}: {value} is too many")
            return value
    for name in ("layers_block_type", "layer_types", "hybrid_override_pattern", "block_configs"):
        value = text.get(name)
        if isinstance(value, list | str) and value:
            return min(len(value), _MOST_LAYERS)
    return 1


def _layer(
    config: Config,
    text: Mapping[str, Any],
    quantisation: Quantisation | None,
    number: int,
    count: int,
    mtp: int | None = None,
) -> Iterator[ExpertLayers]:
    own = _own(text, number)
    experts = _size(own, EXPERTS, number, count, least=0)
    if not experts or experts < 2:
        raise NoExpertsError(
            f"{name_of(config)} has no experts (looked for {', '.join(EXPERTS)}); only "
            "mixture-of-experts models use the fused-MoE kernel"
        )
    found = {
        "topk": _size(own, TOPK, number, count),
        "intermediate": _size(own, _widths(config, own), number, count),
        "hidden": _size(own, HIDDEN, number, count),
    }
    for (field, value), names in zip(found.items(), (TOPK, WIDTH, HIDDEN), strict=True):
        if value is None:
            raise BadInputError(
                f"config.json of {name_of(config)}: {field}: none of {', '.join(names)}"
            )
    layer = ExpertLayers(
        part="layers",
        numbers=(number,),
        experts=experts,
        intermediate=found["intermediate"] or 0,
        hidden=found["hidden"] or 0,
        topk=found["topk"] or 0,
        gated=not _ungated(config, text),
        weights=weights_of(quantisation, Layer(names_of(config, number, mtp))),
    )
    yield layer
    second = _pair(text, 1)
    if second:
        experts, width = second["moe_num_experts"], second["moe_intermediate_size"]
        yield replace(layer, part="vision", experts=experts, intermediate=width)


def _pair(text: Mapping[str, Any], which: int) -> dict[str, int]:
    """ERNIE 4.5 VL has two sets of experts a layer: the text's, and those of images.

    Source: vLLM 0.32 ``models/ernie45_vl_moe.py``.
    """
    names = ("moe_num_experts", "moe_intermediate_size")
    pairs = [text.get(name) for name in names]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return {}
    values = {name: pair[which] for name, pair in zip(names, pairs, strict=True) if pair}
    fit = all(isinstance(v, int) and not isinstance(v, bool) and v > 1 for v in values.values())
    return values if fit else {}


def _own(text: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The values of a layer: its entry in ``block_configs`` before the model's.

    Where that lists widths, the model's dense width is not one of the experts.
    """
    blocks = text.get("block_configs")
    if not isinstance(blocks, list):
        return {**text, **_pair(text, 0)}
    block = blocks[number] if number < len(blocks) else None
    if not isinstance(block, dict):
        block = next((b for b in reversed(blocks) if isinstance(b, dict) and _has_width(b)), {})
    kept = {key: value for key, value in text.items() if key != _DENSE_WIDTH}
    return kept | {key: value for key, value in block.items() if value is not None}


def _has_width(block: Mapping[str, Any]) -> bool:
    return any(block.get(name) is not None for name in WIDTH)


def _widths(config: Config, own: Mapping[str, Any]) -> Sequence[str]:
    """The keys of the width; never the dense one where another key speaks of the experts' width.

    Raises:
        BadInputError: such a key that is not known here.
    """
    kind = type_of(config)
    if kind.startswith(_WIDTH_OF_THE_CLASS) and own.get(_DENSE_WIDTH) is not None:
        written_by_transformers = own.get("dense_intermediate_size") is None
        if not (kind.startswith("inkling") and written_by_transformers):
            return (_DENSE_WIDTH,)
    if any(own.get(name) is not None for name in WIDTH[:-1]):
        return WIDTH
    unknown = [
        name
        for name in own
        if "shared" not in name
        and any(word in name for word in ("moe", "expert"))
        and any(word in name for word in ("intermediate", "ffn_hidden", "hidden_dim", "width"))
    ]
    if unknown:
        raise BadInputError(
            f"config.json of {name_of(config)}: intermediate: {unknown[0]} is not known here; give "
            "--experts, --intermediate, --hidden and --topk instead of --model"
        )
    return WIDTH


def _size(
    own: Mapping[str, Any], names: Sequence[str], number: int, count: int, least: int = 1
) -> int | None:
    for name in names:
        value = own.get(name)
        if isinstance(value, list) and value:  # Hunyuan lists one value per layer
            value = value[min(number, len(value) - 1)] if len(value) >= min(count, 3) else value[0]
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BadInputError(f"config.json: {name}: expected a whole number, found {value!r}")
        return value
    return None


def _ungated(config: Config, text: Mapping[str, Any]) -> bool:
    return name_of(config).startswith(_UNGATED) or text.get("mlp_hidden_act") == "relu2"


def names_of(config: Config, number: int, mtp: int | None = None) -> tuple[str, ...]:
    """What a layer's routed experts may be called, in checkpoints and in vLLM.

    Args:
        config: of the model.
        number: of the layer.
        mtp: which MTP layer it is, from 0; None of an ordinary one.
    """
    kinds = (type_of(config), str(config.get("model_type", "")))
    paths = next(
        (own for families, own in _NAMES if any(kind.startswith(families) for kind in kinds)),
        ("mlp.experts",),
    )
    bases = [base.format(number) for base in _BASES]
    if type_of(config) == "dbrx":
        bases = [f"transformer.blocks.{number}"]
    if any(kind.startswith("deepseek_v4") for kind in kinds):
        bases.append(f"layers.{number}")  # not for all: it is a part of mtp.layers.0 too
    if mtp is not None:
        bases += [f"mtp.layers.{mtp}", f"model.mtp.layers.{mtp}", f"mtp.{mtp}"]
    return tuple(f"{base}.{path}" for base in bases for path in paths)
