"""Whether a dialled server does what the dial says, and as fast as a server of one gamma.

The V1 model runner of vLLM gives up full CUDA graphs where gamma changes while it serves
(``VllmConfig._maybe_override_dynamic_sd_cudagraph_mode``): on an H100 55 tok/s at gamma 0 in place
of 255. There the dial would rank gammas by what no user runs.
"""

from __future__ import annotations

import re
from pathlib import Path

from autotune.serving.dial.plugin import IN_PLACE
from autotune.serving.logs.read import read_log
from autotune.serving.measure.counters import DraftCounters
from autotune.util import edge

LEAST_VLLM = (0, 32)
"""Before it no model runner kept full graphs (0.24, measured on an H100), or nothing is known."""
_PIECEWISE = re.compile(r"Overriding cudagraph_mode from \S+ to PIECEWISE")
_DISABLED = "Disabling num_speculative_tokens_per_batch_size"
"""What vLLM says where data-parallel ranks could choose different numbers."""


class DialUnfitError(Exception):
    """The dial cannot stand for servers of one gamma here; the message says why."""


def check_log(log: Path | None) -> None:
    """See by the server's log that the dial is in place and its graphs are full.

    Raises:
        DialUnfitError: it is not so.
    """
    text = "" if log is None else edge.as_text(read_log(log))
    if _PIECEWISE.search(text):
        raise DialUnfitError(
            "this vLLM's model runner gives up full CUDA graphs where gamma may change"
        )
    if _DISABLED in text:
        raise DialUnfitError("vLLM fixes gamma where it serves data-parallel")
    if IN_PLACE not in text:
        raise DialUnfitError("the server did not load the plugin that turns gamma")


def check_counted(drafts: DraftCounters, gamma: int) -> None:
    """See by the server's own counters that no draft was longer than ``gamma``.

    Raises:
        DialUnfitError: one was.
    """
    beyond = sum(drafts.accepted_by_position[gamma:])
    if drafts.draft_tokens > gamma * drafts.drafts or beyond:
        raise DialUnfitError(
            f"the dial says {gamma} tokens, and the server drafted {drafts.draft_tokens} in "
            f"{drafts.drafts} drafts"
        )


def why_not(version: str | None) -> str:
    """Say why a vLLM is not worth a try: its graphs may not stay full; empty where it is.

    Args:
        version: of vLLM; None where it is not known.
    """
    found = re.match(r"(\d+)\.(\d+)", version or "")
    if found is None:
        return "which vLLM runs is not known"
    if (int(found[1]), int(found[2])) >= LEAST_VLLM:
        return ""
    least = ".".join(map(str, LEAST_VLLM))
    return f"vLLM {version} is older than {least} and may give up full CUDA graphs for it"
