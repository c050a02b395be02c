"""Do target and drafter mean the same by a token id?"""

from __future__ import annotations

from collections.abc import Iterator

from autotune.serving.pair.checkpoint import Checkpoint, Tokenizer
from autotune.util.finding import Finding, refuse, warn


def check_vocabulary(target: Checkpoint, drafter: Checkpoint, method: str) -> Iterator[Finding]:
    """Sizes of the vocabularies.

    Sources: vLLM 0.32 ``vllm/config/speculative.py`` (``verify_equal_vocab_size_if_draft_model``;
    Medusa takes the target's size) and ``models/llama_eagle3.py`` (``draft_vocab_size`` is the
    drafter's output alone).

    Raises:
        BadInputError: a size that is not a whole number.
    """
    ours, theirs = target.size("vocab_size"), drafter.size("vocab_size")
    if method != "medusa" and ours is not None and theirs is not None and ours != theirs:
        way_out = (
            'take one of the same family, or set "use_heterogeneous_vocab" of vLLM'
            if method == "draft_model"
            else "it was made for another model"
        )
        yield refuse(
            "vocabulary",
            f"{target.ref} has a vocabulary of {ours}, the drafter {drafter.ref} one of {theirs}: "
            f"{way_out}",
        )
    output = drafter.size("draft_vocab_size")
    if output and ours and output > ours:
        yield refuse(
            "vocabulary", f"{drafter.ref} drafts {output} different tokens, {target.ref} has {ours}"
        )


def check_tokenizers(target: Checkpoint, drafter: Checkpoint, method: str) -> Iterator[Finding]:
    """The token-to-id maps, the special tokens, and the ids that end a text.

    vLLM hands the drafter the target's ids and never looks at its tokenizer.
    """
    ours, theirs = target.tokenizer, drafter.tokenizer
    if ours is not None and theirs is not None:
        yield from _check_maps(target.ref, ours, drafter.ref, theirs)
    elif method == "draft_model":
        lacking = target.ref if ours is None else drafter.ref
        yield warn(
            "tokenizer",
            f"{lacking} has no tokenizer.json to compare: check that both use the same tokenizer",
        )
    if (
        method == "draft_model"
        and target.eos
        and drafter.eos
        and target.eos.isdisjoint(drafter.eos)
    ):
        yield warn(
            "end-of-text",
            f"{target.ref} ends texts with token {_listed(target.eos)}, the drafter {drafter.ref} "
            f"with {_listed(drafter.eos)}: one of them may be a base model",
        )


def _check_maps(target: str, ours: Tokenizer, drafter: str, theirs: Tokenizer) -> Iterator[Finding]:
    both = ours.ids.keys() & theirs.ids.keys()
    moved = sorted(token for token in both if ours.ids[token] != theirs.ids[token])
    missing = sorted(ours.ids.keys() ^ theirs.ids.keys())
    added = (ours.special | theirs.special) & set(missing)
    if moved:
        token = moved[0]
        yield refuse(
            "tokenizer",
            f"{len(moved)} tokens have other ids: {token!r} is {ours.ids[token]} in {target} and "
            f"{theirs.ids[token]} in {drafter}; a drafter needs the target's tokenizer",
        )
    elif len(missing) > len(added):
        token = next(token for token in missing if token not in added)
        where = target if token in ours.ids else drafter
        yield refuse(
            "tokenizer",
            f"{len(missing)} tokens are in one tokenizer alone, such as {token!r} of {where}: "
            f"{drafter} needs the tokenizer of {target}",
        )
    elif missing:
        where = target if missing[0] in ours.ids else drafter
        yield warn(
            "special-tokens",
            f"special tokens differ: {missing[0]!r} is in {where} alone; one of the two may be a "
            "base model",
        )
    elif ours.special != theirs.special:
        token = min(ours.special ^ theirs.special)
        yield warn("special-tokens", f"{token!r} is special in one of {target} and {drafter} alone")


def _listed(ids: frozenset[int]) -> str:
    return " or ".join(map(str, sorted(ids)))
