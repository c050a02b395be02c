"""The preflight of a pair: can this drafter draft for this target? No server is started.

What vLLM itself refuses is refused here with a reason, in a second instead of after the start; what
it accepts in silence and slows people down is refused or warned about. Sources are named at each
check; ``speculative.py`` is vLLM 0.32's ``vllm/config/speculative.py``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from autotune.core import BadInputError
from autotune.engine.mtp import COUNT_DIVIDES
from autotune.serving.memory.attention import AttentionLayer, attention_layers
from autotune.serving.pair.checkpoint import Checkpoint, load_checkpoint
from autotune.serving.pair.identity import check_identity
from autotune.serving.pair.methods import (
    ALONE,
    GEMMA4_ASSISTANTS,
    GEMMA4_TARGETS,
    METHODS,
    NO_DRAFTER,
    by_name,
    has_own_heads,
    own_heads,
    resolve_method,
    reuses_one_layer,
    stated_heads,
)
from autotune.serving.pair.tokens import check_tokenizers, check_vocabulary
from autotune.util.finding import Finding, Severity, note, refuse, warn


@dataclass(frozen=True)
class Pair:
    """A target and what drafts for it.

    Attributes:
        target: what is served.
        method: one of vLLM's, or ``none``.
        drafter: None where the method needs no model.
    """

    target: Checkpoint
    method: str
    drafter: Checkpoint | None = None


def load_pair(target: str, drafter: str) -> Pair:
    """Read the small files of both.

    Args:
        target: a folder or a hub id.
        drafter: a folder, a hub id, or a method of vLLM (``ngram``, ``suffix``, ``mtp``, …); a
            folder of that name is given as ``./ngram``. Or ``none``.

    Raises:
        BadInputError: not found or not understood.
        MissingEnvironmentError: a hub id, and the hub cannot be reached.
    """
    model = load_checkpoint(target, "--target")
    if drafter == NO_DRAFTER:
        return Pair(model, NO_DRAFTER)
    if drafter in METHODS:
        return Pair(model, drafter)
    close = difflib.get_close_matches(drafter, METHODS, n=1)
    if close and not Path(drafter).exists():
        raise BadInputError(
            f"--drafter {drafter}: no such folder or method; did you mean {close[0]}?"
        )
    drafting = load_checkpoint(drafter, "--drafter")
    return Pair(model, resolve_method(drafting), drafting)


def check_pair(pair: Pair, *, max_model_len: int | None = None) -> list[Finding]:
    """Everything that speaks against the pair, the worst first; empty when nothing does.

    Args:
        pair: from :func:`load_pair`.
        max_model_len: the context length in tokens that will be served; None is the target's own.

    Raises:
        BadInputError: sizes in a configuration that are not whole numbers.
    """
    target, drafter, method = pair.target, pair.drafter, pair.method
    found = list(chain(_check_method(pair), check_identity(target, drafter, method)))
    found += [finding for model in (target, drafter) if model for finding in _check_files(model)]
    if drafter is not None:
        found += check_vocabulary(target, drafter, method)
        found += check_tokenizers(target, drafter, method)
        found += _check_hidden(target, drafter, method)
        found += _check_quantisation(target, drafter)
    found += _check_length(pair, max_model_len)
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _check_method(pair: Pair) -> Iterator[Finding]:
    """Whether the method can start with what it was given (speculative.py, ``__post_init__``)."""
    if pair.drafter is not None:
        yield from _check_choice(pair.drafter, pair.method)
    elif pair.method not in {*ALONE, NO_DRAFTER}:
        yield refuse(
            "method-needs-model",
            f"{pair.method} needs a drafter's model: give its folder or hub id as --drafter",
        )
    elif pair.method == "mtp" and not own_heads(pair.target):
        where = f"{pair.target.ref} ({pair.target.model_type})"
        advice = (
            "Gemma 4 drafts with its assistant, a model of its own: give that as --drafter"
            if pair.target.model_type in GEMMA4_TARGETS
            else "give a drafter's model, or ngram"
        )
        known = has_own_heads(pair.target)
        reason = "brings no MTP layers" if known else "is of no kind whose MTP layers vLLM knows"
        yield refuse("no-mtp-layers", f"{where} {reason}; {advice}")
    elif pair.method == "mtp":
        yield from _check_heads(pair.target)
    elif pair.method == "suffix":
        yield warn(
            "suffix-package",
            "suffix needs the package arctic-inference in the server's environment, which vLLM "
            "does not bring",
        )


def _check_heads(target: Checkpoint) -> Iterator[Finding]:
    """MTP layers that are counted, and whose weights are not there, draft at random.

    vLLM 0.32 names no missing weight of most of its MTP models: the server starts, and nothing that
    it drafts is accepted. The names are those of ``models/*_mtp.py``: ``mtp`` in the name, or a
    layer behind the last one.
    """
    if target.model_type in COUNT_DIVIDES and not stated_heads(target):
        yield warn(
            "mtp-count",
            f"{target.ref} does not count its MTP layers (num_nextn_predict_layers): vLLM's class "
            "for it then counts 0 and may fail at its start",
        )
    if target.tensors is None or any(_is_head(name, target) for name in target.tensors):
        return
    yield refuse(
        "mtp-weights",
        f"{target.ref} counts {own_heads(target)} MTP layers, and none of its "
        f"{len(target.tensors)} tensors is of one (mtp.*, or a layer behind the last): vLLM would "
        "draft with random weights; take a checkpoint that kept them, or ngram",
    )


def _is_head(name: str, target: Checkpoint) -> bool:
    if "mtp" in name or "nextn" in name:
        return True
    layer = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    count = target.size("num_hidden_layers") or target.size("num_layers")
    return layer is not None and count is not None and int(layer[1]) >= count


def _check_files(model: Checkpoint) -> Iterator[Finding]:
    if model.missing:
        yield refuse(
            "weight-files",
            f"{model.ref}: {len(model.missing)} weight files that its index names are not there, "
            f"such as {model.missing[0]}: the download is not finished",
        )


def _check_choice(drafter: Checkpoint, method: str) -> Iterator[Finding]:
    """The method comes from words in the path, before vLLM looks into the model."""
    if drafter.config.get("speculators_model_type"):
        return
    named = by_name(drafter.ref)
    if not named or named[0] != method or method.rstrip("3") in drafter.architecture.lower():
        return
    says = warn if named[1] in drafter.name.lower() else refuse
    yield says(
        "method-by-path",
        f"vLLM takes {drafter.ref} for {method} because {named[1]!r} is in its path, but its "
        f"architecture is {drafter.architecture}: rename the folder if it is something else",
    )


def _check_hidden(target: Checkpoint, drafter: Checkpoint, method: str) -> Iterator[Finding]:
    """Sizes of the hidden states that the target hands over."""
    given = target.size("hidden_size")
    if drafter.model_type in GEMMA4_ASSISTANTS:
        if target.model_type not in GEMMA4_TARGETS:
            yield refuse(
                "other-family",
                f"{drafter.ref} reads the KV cache of a Gemma 4, and {target.ref} is "
                f"{target.model_type}",
            )
            return
        key, wanted = "backbone_hidden_size", drafter.size("backbone_hidden_size")
    elif method in {"eagle3", "dflash", "dspark"}:
        key = "target_hidden_size" if drafter.size("target_hidden_size") else "hidden_size"
        wanted = drafter.size(key)
    elif method in {"eagle", "mtp", "medusa"}:
        key, wanted = "hidden_size", drafter.size("hidden_size")
    elif method == "mlp_speculator":
        key, wanted = "emb_dim", drafter.size("emb_dim")
    else:
        return
    if wanted is not None and given is not None and wanted != given:
        yield refuse(
            "hidden-size",
            f"{drafter.ref} (method {method}) expects hidden states of {wanted} ({key}), and "
            f"{target.ref} has {given}: it was made for another model",
        )
    elif drafter.model_type in GEMMA4_ASSISTANTS:
        yield from _check_shared_cache(target, drafter)


def _check_shared_cache(target: Checkpoint, drafter: Checkpoint) -> Iterator[Finding]:
    """Each layer of Gemma 4's assistant reads the KV cache of the target's last of its kind.

    Source: vLLM 0.32 ``v1/spec_decode/gemma4.py``, ``_setup_gemma4_kv_sharing``, which only logs
    where there is no such layer.
    """
    theirs: dict[str, AttentionLayer] = {
        layer.kind: layer for layer in attention_layers(target) if layer.values_per_token
    }
    for mine in dict.fromkeys(attention_layers(drafter)):
        layer = theirs.get(mine.kind)
        if layer is None:
            yield refuse(
                "shared-cache", f"{drafter.ref} has {mine.kind} layers, and {target.ref} has none"
            )
        elif (mine.kv_heads, mine.head_dim) != (layer.kv_heads, layer.head_dim):
            yield refuse(
                "shared-cache",
                f"{mine.kind}: {drafter.ref} reads {mine.kv_heads} KV heads of {mine.head_dim}, "
                f"and {target.ref} keeps {layer.kv_heads} of {layer.head_dim}",
            )
        elif mine.window != layer.window:
            yield warn(
                "shared-cache",
                f"{mine.kind}: the window of {drafter.ref} is {mine.window} tokens, that of "
                f"{target.ref} {layer.window}",
            )


def _check_quantisation(target: Checkpoint, drafter: Checkpoint) -> Iterator[Finding]:
    """The drafter inherits ``--moe-backend`` (speculative.py, ``_DRAFT_VLLM_CONFIG_OVERRIDES``)."""
    ours, theirs = target.quantisation, drafter.quantisation
    if ours and not theirs and drafter.experts:
        yield warn(
            "moe-backend",
            f"{drafter.ref} has experts and is not quantised, {target.ref} is ({ours}): a "
            '--moe-backend chosen for the target fails for it; set "moe_backend" of its own',
        )
    elif theirs and not ours:
        yield note(
            "quantisation",
            f"{drafter.ref} is quantised ({theirs}) and {target.ref} is not: fewer tokens may be "
            "accepted",
        )


def _check_length(pair: Pair, max_model_len: int | None) -> Iterator[Finding]:
    """Past the drafter's length token 0 is drafted, and verified in vain.

    Source: vLLM 0.32 ``v1/worker/gpu_model_runner.py``, ``_input_fits_in_drafter``: the longest
    request of the batch decides for all.
    """
    own = pair.target.size("max_position_embeddings")
    stretched = is_stretched(pair.target)
    if max_model_len is not None and own is not None and max_model_len > own and not stretched:
        yield refuse(
            "length", f"--max-model-len {max_model_len} is more than the {own} of {pair.target.ref}"
        )
    if pair.drafter is None or pair.method != "draft_model":
        return
    served, drafts = max_model_len or own, pair.drafter.size("max_position_embeddings")
    if served and drafts and drafts < served and not is_stretched(pair.drafter):
        yield warn(
            "length",
            f"{pair.drafter.ref} was made for {drafts} tokens and {served} are served: once one "
            "request is longer, vLLM drafts nothing useful for any and verifies it all the same; "
            "lower --max-model-len, or take another drafter",
        )


def is_stretched(model: Checkpoint) -> bool:
    """Whether the rotary embedding is scaled, so that more than the stated length may be served."""
    given = [model.text.get("rope_scaling"), model.text.get("rope_parameters")]
    return any("'factor'" in str(value) for value in given)


def check_gamma(pair: Pair, gamma: int) -> Iterator[Finding]:
    """Whether vLLM can draft ``gamma`` tokens per step with this pair; 0 always can.

    Source: speculative.py, ``n_predict`` must divide a larger ``num_speculative_tokens``.

    Raises:
        BadInputError: sizes in a configuration that are not whole numbers.
    """
    heads = pair.drafter or pair.target
    steps = (heads.size("n_predict") or own_heads(heads)) if pair.method not in {"dspark"} else 0
    if pair.method in {"ngram", "ngram_gpu", "suffix", "draft_model"}:
        steps = 0
    if gamma < 0:
        yield refuse("gamma", f"gamma {gamma} is negative")
    elif steps and gamma > steps and gamma % steps:
        yield refuse(
            "gamma", f"gamma {gamma} is not a multiple of the {steps} MTP layers of {heads.ref}"
        )
    elif steps and gamma > steps and pair.method == "mtp" and reuses_one_layer(heads):
        yield note(
            "gamma",
            f"gamma {gamma}: {heads.ref} has {steps} MTP layers, which are run again and again, "
            "with lower acceptance at later positions",
        )
