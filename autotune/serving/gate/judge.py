"""Is a text what the target would say, but for rounding? Decided from scores alone.

A greedy text may part from the one without speculation and be right: several rows go through other
kernels than one, and where two tokens are about as likely, rounding decides. From there on all
differs. So texts are not compared word by word. What is asked of each token is how far it stands
behind the target's best one: rounding chooses among near ties, a broken path does not know what a
tie is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.serving.gate.text import Text

FAR = 0.5
"""Nats behind the best from which a token is no near tie."""
ALLOWED = 1
"""Tokens far behind that a setting may have over those that the target itself has: where experts
are routed, rounding may choose another expert."""
TIMES = 3
"""How many times the share without speculation it may have, beyond these."""


@dataclass(frozen=True)
class Judged:
    """What a setting's texts came to.

    Attributes:
        tokens: of all its texts.
        far: of them no near tie by the target's own scores.
        limit: how many of them are borne.
        nats: behind the target's best, in the mean over all tokens.
        texts: how many there are.
        equal: of them the same as without speculation, to the end.
        near: of those that part from it, how many part at a near tie.
        parted: the shortest of them agrees for so many tokens; None where none parts.
    """

    tokens: int
    far: int
    limit: int
    nats: float
    texts: int
    equal: int
    near: int
    parted: int | None

    @property
    def passes(self) -> bool:
        """Whether nothing but rounding is seen."""
        return self.far <= self.limit

    @property
    def said(self) -> str:
        """In a sentence, for people."""
        part = self.texts - self.equal
        where = f"; {self.equal} of {self.texts} texts are those without speculation"
        if part:
            where += f", {self.near} of the other {part} part at a near tie"
        return (
            f"{self.far} of {self.tokens} tokens are no near tie to the target's best "
            f"({self.limit} are borne){where}"
        )


def judge(ours: Sequence[Text], reference: Sequence[Text]) -> Judged:
    """Judge the texts of a setting by their own scores and by those without speculation.

    Args:
        ours: of the setting.
        reference: of the same prompts and parameters without speculation, in the same order.

    Raises:
        ValueError: of different length, or nothing.
    """
    if not ours:
        raise ValueError("no texts to judge")
    partings = [parting(a, b) for a, b in zip(ours, reference, strict=True)]
    tokens, theirs = _tokens(ours), _tokens(reference)
    far = {(i, at) for i, text in enumerate(ours) for at in far_places(text)}
    near = 0
    for i, (at, text) in enumerate(zip(partings, reference, strict=True)):
        if at is None:
            continue
        if at in far_places(ours[i]) or not _is_tie(text, at, ours[i]):
            far.add((i, at))
        else:
            near += 1
    known = sum(len(list(far_places(text))) for text in reference)
    places = [at for at in partings if at is not None]
    return Judged(
        tokens=tokens,
        far=len(far),
        limit=ALLOWED + int(TIMES * known * tokens / theirs),
        nats=sum(sum(text.behind.values()) for text in ours) / tokens,
        texts=len(ours),
        equal=len(ours) - len(places),
        near=near,
        parted=min(places, default=None),
    )


def judged_details(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Judged | None:
    """Judge what two measurements have under ``texts``; None where one has none, or not as many.

    Args:
        ours: details of the setting's measurement.
        theirs: of the same parameters without speculation.
    """
    a, b = (found.get("texts") or () for found in (ours, theirs))
    if not a or len(a) != len(b):
        return None
    return judge([*map(Text.of_json, a)], [*map(Text.of_json, b)])


def far_places(text: Text) -> Iterator[int]:
    """Where a token of the text is no near tie to the target's best."""
    return (at for at, nats in text.behind.items() if nats > FAR)


def parting(a: Text, b: Text) -> int | None:
    """The first place where two texts differ; None where there is none.

    A text that ends where the other goes on was cut, by its length or by a token that ends it,
    which is part of it: that is no difference.
    """
    pairs = zip(a.tokens, b.tokens, strict=False)
    return next((at for at, (x, y) in enumerate(pairs) if x != y), None)


def _is_tie(reference: Text, at: int, ours: Text) -> bool:
    """Whether at their parting our token is a near tie by the scores of the reference."""
    if at >= len(reference.tokens):
        return True
    return reference.rivals.get(at, {}).get(ours.tokens[at], FAR + 1) <= FAR


def _tokens(texts: Sequence[Text]) -> int:
    return sum(len(text.tokens) for text in texts)
