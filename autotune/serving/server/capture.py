"""Which sizes get a CUDA graph: vLLM's own grid, further up, and every decoding batch exactly.

A step without a graph of its size is padded to the next one, and runs eagerly above the largest.
By default the largest is ``2 · max_num_seqs · (gamma + 1)``, 512 at most (vLLM 0.33
``VllmConfig._set_cudagraph_sizes``): with few sequences below what a prompt and the decoding batch
have together, so that steps that take in a prompt run eagerly. Measured: docs/lab/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autotune.engine.arguments import whole_value

FLAG = "--cudagraph-capture-sizes"
CAPTURED = 512
"""Tokens up to which graphs are captured where nothing else is asked for: vLLM's own limit."""
FIX_GRAPHS = (FLAG, "--max-cudagraph-capture-size", "--compilation-config", "--enforce-eager")
"""Flags that say what is captured, or that nothing is."""
REQUESTS = 64
"""Decoding batches of so many requests at most get a size of their own; each is a graph more."""


def capture_sizes(most: int, gammas: Sequence[int], requests: int) -> list[int]:
    """Return sizes in tokens, ascending.

    Args:
        most: the largest of the grid.
        gammas: drafted tokens; a decoding batch of b requests has ``(gamma + 1) · b`` tokens.
        requests: most requests of a decoding batch that gets a size of its own.
    """
    grid = [1, 2, 4, *range(8, min(most + 1, 256), 8), *range(256, most + 1, 16)]
    own = [(gamma + 1) * batch for gamma in gammas for batch in range(1, requests + 1)]
    return sorted({size for size in (*grid, *own) if size <= most})


def capture_args(
    most: int,
    speculative: Mapping[str, Any] | None,
    args: Sequence[str],
    further: Sequence[int] = (),
) -> list[str]:
    """Return the flag of ``vllm serve`` for a server of these settings.

    Args:
        most: the largest of the grid.
        speculative: the value of ``--speculative-config``.
        args: of the server, among them the most sequences that it takes.
        further: gammas whose decoding batches get their sizes too.
    """
    config = speculative or {}
    rows = config.get("num_speculative_tokens_per_batch_size") or ()
    gammas = {config.get("num_speculative_tokens", 0), *(row[2] for row in rows), *further}
    requests = min(whole_value(args, "--max-num-seqs") or REQUESTS, REQUESTS)
    return [FLAG, *map(str, capture_sizes(most, sorted(gammas), requests))]
