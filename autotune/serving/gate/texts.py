"""Long greedy texts of a server, each token scored by the target itself.

A text is generated as users get it, step by step with speculation, and then given back as a prompt:
the server prefills it, which neither drafts nor accepts nor reads a key or value that decoding
left, and says how likely each token was (vLLM's ``prompt_logprobs``; the cache salt keeps the
prefill from reading old blocks). So a text vouches for itself, on any server, at any gamma.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autotune.serving.gate.text import RIVALS, Text, scored
from autotune.serving.measure.client import Load
from autotune.serving.measure.wire import Wire
from autotune.serving.server.web import UnansweredError
from autotune.util import edge

PROMPTS = 12
"""Texts of a setting at most."""
LONGEST = 2048
"""Tokens of prompt and text together that are scored: vLLM holds logits of all of them at once,
4 bytes for each entry of the vocabulary."""


class UnscoredError(Exception):
    """A server does not score what it said; the text says why."""


def texts_of(wire: Wire, base: Load, tokens: int, concurrency: int) -> list[Text]:
    """Let the server write a text for each prompt, and score them.

    Args:
        wire: to the server.
        base: prompts, model and limits.
        tokens: of each text at most; it ends before where the model ends it.
        concurrency: texts written at once.

    Raises:
        UnscoredError: the server died, refused, or gives no token ids or no scores.
    """
    asked = len(base.prompts)
    load = replace(
        base,
        requests=asked,
        concurrency=min(asked, concurrency),
        max_tokens=tokens,
        ignore_eos=False,
        cache_salt=f"texts-{base.cache_salt}",
        extra={**base.extra, "return_token_ids": True},
    )
    result = wire.load(load)
    if errors := result.errors():
        raise UnscoredError(f"a request failed: {errors[0]}")
    found = []
    for record in result.records:
        if not record.prompt_ids or not record.tokens:
            raise UnscoredError("the server gives no token ids (return_token_ids)")
        ids = (*record.prompt_ids, *record.tokens)[:LONGEST]
        if len(ids) > len(record.prompt_ids):
            found.append(_score(wire, load, ids, len(record.prompt_ids)))
    if not found:
        raise UnscoredError(f"every prompt is longer than {LONGEST} tokens")
    return found


def _score(wire: Wire, load: Load, ids: Sequence[int], prompt: int) -> Text:
    """Prefill ``ids`` anew; the first ``prompt`` of them are the prompt.

    Raises:
        UnscoredError: no scores came back.
    """
    body = {
        "model": load.model,
        "prompt": list(ids),
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": RIVALS,
        "cache_salt": f"score-{load.cache_salt}",
    }
    try:
        reply = wire.post("/v1/completions", body, load.timeout_s)
    except UnansweredError as error:
        raise UnscoredError(f"no scores: {error}") from None
    if reply.status != 200:
        said = " ".join(reply.text.split())[:200]
        raise UnscoredError(f"no scores (prompt_logprobs): HTTP {reply.status}: {said}")
    try:
        places = edge.parse_json(reply.text)["choices"][0]["prompt_logprobs"]
        return scored(ids[prompt:], places[prompt:])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnscoredError(f"the scores are not what vLLM sends: {error!r}"[:200]) from None


def texts_details(wire: Wire, base: Load, tokens: int, concurrency: int) -> dict[str, Any]:
    """The texts as details of a measurement: ``texts``, or ``no_texts`` and why.

    What was measured before stands, whatever becomes of them.

    Args:
        wire: to the server.
        base: prompts, model and limits.
        tokens: of each text at most; 0 asks for none.
        concurrency: texts written at once.
    """
    if not tokens:
        return {}
    few = replace(base, prompts=base.prompts[:PROMPTS])
    # Where a long text does not fit the context, one as long as the load's does.
    lengths = list(dict.fromkeys([tokens, min(tokens, base.max_tokens)]))
    try:
        texts_of(wire, replace(base, prompts=base.prompts[:1]), 1, 1)  # costs nothing, and may fail
        while True:
            try:
                found = texts_of(wire, few, lengths.pop(0), concurrency)
                return {"texts": [text.as_json() for text in found]}
            except UnscoredError:
                if not lengths:
                    raise
    except UnscoredError as error:
        return {"no_texts": str(error)}
