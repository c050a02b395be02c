"""Is this the model that the drafter was trained for, or its base? Names, cards and templates.

A drafter of an instruction-tuned model makes the base model slower than no drafter at all, and
nothing in vLLM notices: the sizes are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from autotune.serving.pair.checkpoint import Checkpoint
from autotune.serving.pair.methods import TRAINED
from autotune.util.finding import Finding, note, refuse, warn

_TUNED = {"it", "instruct", "chat", "sft", "dpo", "thinking"}
_BASE = {"base", "pt", "pretrained", "pretrain"}
_DRAFTS = re.compile(
    r"assistant|eagle\d?|speculators?|draft(er)?|mtp|dflash|dspark|medusa|block\d+"
)
_FORMAT = re.compile(
    r"fp\d+|bf16|nvfp4\w*|mxfp4|int\d+|w\d+a\d+|\d+bit|awq|gptq|gguf|bnb|mlx|dynamic|block|"
    r"quantized|quant|qat|autoround|ct|hf"
)


@dataclass(frozen=True)
class _Name:
    """``family``: what is left without words for tuning, format and drafting, as one word."""

    full: str
    family: str
    tuned: bool
    base: bool

    @classmethod
    def of(cls, name: str) -> _Name:
        words = [w for w in re.split(r"[^a-z0-9]+", name.rpartition("/")[2].lower()) if w]
        plain = [w for w in words if not (_DRAFTS.fullmatch(w) or _FORMAT.fullmatch(w))]
        family = "".join(w for w in plain if w not in _TUNED | _BASE)
        return cls(name, family, not _TUNED.isdisjoint(plain), not _BASE.isdisjoint(plain))

    def same_family(self, other: _Name) -> bool:
        """Whether one ends with the other, as "metallama318b" with "llama318b"."""
        return bool(self.family and other.family) and (
            self.family.endswith(other.family) or other.family.endswith(self.family)
        )


def _names(target: Checkpoint) -> list[_Name]:
    """What the target may be called; a quantised model's card names what was quantised."""
    given = (target.name, *(target.base_models if target.quantisation else ()))
    return [_Name.of(name) for name in given]


def check_identity(
    target: Checkpoint, drafter: Checkpoint | None, method: str
) -> Iterator[Finding]:
    """Whether the target is the model, and the tuning of it, that the drafter expects."""
    if drafter is None:
        if target.chat is False:
            yield note(
                "no-chat-template",
                f"{target.ref} has no chat template, as base models have none: prompts are sent as "
                "they are",
            )
    elif method in TRAINED:
        yield from _trained(target, drafter)
    elif method == "draft_model":
        yield from _draft_model(target, drafter)


def _trained(target: Checkpoint, drafter: Checkpoint) -> Iterator[Finding]:
    ours, own = _names(target), _Name.of(drafter.name)
    meant = [_Name.of(name) for name in drafter.base_models]
    kin = [name for name in (*meant, own) if any(name.same_family(our) for our in ours)]
    expects = next((name.full for name in (*meant, own) if name.tuned), None)
    named_base = not any(our.tuned for our in ours) and any(name.tuned for name in kin)
    if target.chat is False and (expects or drafter.chat):
        why = f"was made for {expects}" if expects else "comes with a chat template"
        yield refuse(
            "base-target",
            f"{target.ref} has no chat template, so it is a base model, but the drafter "
            f"{drafter.ref} {why}: few tokens would be accepted (0.6× was measured); serve the "
            "instruction-tuned model",
        )
    elif target.chat is False:
        yield warn(
            "base-target",
            f"{target.ref} has no chat template, so it may be a base model: check that the drafter "
            f"{drafter.ref} was trained for it and not for the instruction-tuned one",
        )
    elif named_base or any(our.base for our in ours):
        yield warn(
            "base-target",
            f"{target.ref} is named like a base model: check that the drafter {drafter.ref} was "
            "trained for it and not for the instruction-tuned one",
        )
    origins = {_Name.of(name).full for name in target.base_models}  # of a tuned copy
    copied = any(name.full in origins for name in meant)
    if meant and not copied and not any(name in kin for name in meant):
        says = warn if target.from_hub else note
        yield says(
            "other-target",
            f"the model card of {drafter.ref} names {', '.join(n.full for n in meant)}, not "
            f"{target.name}: a drafter fits the model it was trained for, or one tuned from it",
        )


def _draft_model(target: Checkpoint, drafter: Checkpoint) -> Iterator[Finding]:
    if drafter.ref == target.ref:
        yield warn(
            "same-model",
            f"{target.ref} drafts for itself: all is accepted and nothing gained; give a smaller "
            "model",
        )
    theirs = _Name.of(drafter.name)
    if target.chat is False and (drafter.chat or theirs.tuned):
        yield warn(
            "base-target",
            f"{target.ref} has no chat template, so it is a base model, and the drafter "
            f"{drafter.ref} is instruction-tuned: take both of one kind",
        )
    elif target.chat and (drafter.chat is False or theirs.base):
        yield warn(
            "base-drafter",
            f"the drafter {drafter.ref} is a base model and {target.ref} is instruction-tuned: "
            "take both of one kind",
        )
