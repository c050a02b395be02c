"""The kinds of jobs: each is a command of the command line, asked for by the same request."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from autotune.cli import requests
from autotune.core import AutotuneError, BadInputError
from autotune.engine.arguments import whole_value
from autotune.machine.devices import GpuInfo, present_gpus, resolve_device
from autotune.serving.parse import parse_words
from autotune.serving.space import read_space
from autotune.util.edge import parse_json
from autotune.util.request import Request, flag_of
from autotune.util.words import counted

KINDS: Mapping[str, type[Request]] = {
    "moe": requests.Moe,
    "spec": requests.Spec,
    "compare": requests.Compare,
    "verify": requests.Verify,
    "export": requests.Export,
    "files": requests.Files,
    "explain": requests.Explain,
}
ABOUT = {kind: str(request.__doc__).splitlines()[0] for kind, request in KINDS.items()}
"""What a job of each kind does, in a sentence."""
OURS = frozenset({"db", "out", "events", "dry_run", "server", "token_file", "detach"})
"""Fields that are the service's own to fill in."""


def parse(kind: str, args: Mapping[str, Any]) -> Request:
    """Make the request of a job, as the command line would.

    Raises:
        BadInputError: there is no such kind, or the command line would refuse the flags.
    """
    if kind not in KINDS:
        raise BadInputError(f"kind {kind!r}: not one of {', '.join(KINDS)}")
    own = sorted(OURS & args.keys())
    if own:
        raise BadInputError(f"No such option: {flag_of(own[0])}")
    return KINDS[kind].model_validate(dict(args))


def schema_of(kind: str) -> dict[str, Any]:
    """Return the JSON schema of a kind's args: that of its request, less the service's fields."""
    schema = KINDS[kind].model_json_schema()
    properties = schema["properties"]
    schema["properties"] = {n: field for n, field in properties.items() if n not in OURS}
    return schema


def gpus_needed(request: Request, here: Sequence[GpuInfo], visible: str | None) -> int:
    """Count the GPUs that a job keeps busy by itself, if nobody asked for more.

    Args:
        request: of the job.
        here: the GPUs of this machine.
        visible: ``CUDA_VISIBLE_DEVICES``, if set.

    Raises:
        BadInputError: a server of it takes more GPUs than this machine has.
    """
    if isinstance(request, requests.Spec):
        return _of_servers(request, len(here))
    if isinstance(request, requests.Compare):
        return int(bool(here) and request.landscape is None and request.study is None)
    if not here or not isinstance(request, requests.Moe) or request.predict:
        return 0
    if request.ray is not None:
        return len(here)  # the cluster may hold any of them
    try:
        return int(bool(present_gpus(resolve_device(request.device, visible), visible)))
    except AutotuneError:
        return 0  # the command says what is wrong with it


def _of_servers(request: requests.Spec, here: int) -> int:
    """Count the GPUs of a job that starts servers; a machine without GPUs counts as one."""
    if here == 0 or request.launcher == "url":
        return 1
    if request.ray is not None:
        return here  # the cluster may hold any of them
    needed = _gpus_of_a_server(request)
    if needed > here:
        raise BadInputError(
            f"--tensor-parallel-size: a server of this job takes {counted(needed, 'GPU')}, and "
            f"this machine has {here}"
        )
    return needed if request.launcher == "local" else here  # no CUDA_VISIBLE_DEVICES goes inside


def _gpus_of_a_server(request: requests.Spec) -> int:
    """Multiply the sizes that vLLM splits a model by, each the largest that is tried."""
    words = [w for text in request.server_arg for w in parse_words(text, "--server-arg")]
    tried = dict(read_space(request, ()).parameters)
    found = 1
    for size in ("tensor", "pipeline", "data", "prefill-context"):
        flag = f"--{size}-parallel-size"
        values = tried.get(flag[2:].replace("-", "_"), ())
        given = [words, *([f"{flag}={value}"] for value in values)]
        found *= max(whole_value(args, flag) or 1 for args in given)
    return found


def command_of(
    kind: str, request: Request, *, db: str, out: Path, events: Path | None = None
) -> list[str]:
    """Write the command of a job as words, with the places that the service gives it."""
    given = request.model_dump()
    fields = KINDS[kind].model_fields
    places = {"db": db, "out": out, "events": events}
    given |= {name: value for name, value in places.items() if name in fields and value is not None}
    return shlex.split(KINDS[kind].model_validate(given).command_line(kind))[1:]


def shown_command(kind: str, args: Mapping[str, Any]) -> str:
    """Write the command that somebody would type for the same, with the default places."""
    return _shown(kind, json.dumps(args))


@lru_cache(maxsize=4096)
def _shown(kind: str, args: str) -> str:
    """A list of jobs is asked for often, and their args never change."""
    return KINDS[kind].model_validate(parse_json(args)).command_line(kind)
