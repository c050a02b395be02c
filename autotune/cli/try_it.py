"""How to serve with a folder of tuned files, from where this command runs: docker or not."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from autotune.engine.variables import FOLDER
from autotune.machine.environment import Outside

_INSIDE = "/moe"
_MORE = "…"
"""For the model and its flags."""


def serve_line(
    folder: Path, started: Outside | None, contained: str | None, flags: Sequence[str] = ()
) -> str:
    """Return the command that serves with a folder of tuned files.

    Args:
        folder: holds the file that vLLM looks for.
        started: what this command knows of the one that started its container, if one did.
        contained: the kind of container that this command runs in, if it does.
        flags: of ``vllm serve``.
    """
    more = " ".join([*flags, _MORE])
    if started is not None:
        place = str(folder.absolute())
        return _run(started.engine, started.gpu_options, place, started.image, more)
    line = f"{FOLDER}={shlex.quote(str(folder))} vllm serve {more}"
    if contained is None:
        return line
    outer = _run("docker", ["--gpus", "all"], "FOLDER", "IMAGE", more)
    return f"{line}\nor, where FOLDER is that folder on the host:  {outer}"


def _run(engine: str, gpu_options: Sequence[str], folder: str, image: str, more: str) -> str:
    words = [engine, "run", "--rm", *gpu_options, "--ipc", "host"]
    words += ["--publish", "127.0.0.1:8000:8000", "--volume", f"{folder}:{_INSIDE}:ro"]
    words += ["--env", f"{FOLDER}={_INSIDE}", "--entrypoint", "vllm", image, "serve"]
    return f"{shlex.join(words)} {more}"
