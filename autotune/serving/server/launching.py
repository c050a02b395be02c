"""From the flags to a launcher, and which flags go with which."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile

from autotune.core import BadInputError
from autotune.serving.server.launchers import DockerLauncher, LocalLauncher
from autotune.serving.server.mounts import Mount, parse_mount
from autotune.serving.server.server import Launcher

LAUNCHERS: Mapping[str, str] = {
    "local": "starts servers as processes of this machine",
    "docker": "starts servers in containers of --image",
    "url": "measures the server that runs at --url",
}
_BELONGS = {
    "--vllm": ("local",),
    "--gpus": ("docker",),
    "--docker-arg": ("docker",),
    "--image": ("local", "docker"),
    "--mount": ("local", "docker"),
    "--url": ("url",),
    "--header": ("url",),
}
_WITH_URL = frozenset(
    {
        *("--launcher", "--url", "--header", "--target", "--concurrency", "--prompts"),
        *("--max-tokens", "--ignore-eos", "--repeats", "--waves", "--objective"),
        *("--request-timeout", "--study", "--out", "--db", "--json"),
    }
)
"""A server that runs already has its settings: only the load is ours to choose."""


def check_flags(launcher: str, given: Collection[str]) -> None:
    """Refuse what would be passed over in silence.

    Args:
        launcher: one of :data:`LAUNCHERS`.
        given: the flags on the command line, such as ``--url``.

    Raises:
        BadInputError: an unknown launcher, a flag of another one, or one that is missing.
    """
    if launcher not in LAUNCHERS:
        raise BadInputError(f"--launcher {launcher}: not one of {', '.join(LAUNCHERS)}")
    does = f"--launcher {launcher} {LAUNCHERS[launcher]}"
    for flag in sorted(given):
        owners = _BELONGS.get(flag, tuple(LAUNCHERS))
        if launcher not in owners:
            raise BadInputError(
                f"{flag} goes with --launcher {' or '.join(owners)}, and {does}; leave one out"
            )
        if launcher == "url" and flag not in _WITH_URL:
            raise BadInputError(
                f"{does}, which has its settings already: {flag} would change nothing; leave it out"
            )
    needed = {"docker": "--image", "url": "--url"}.get(launcher)
    if needed is not None and needed not in given:
        raise BadInputError(f"--launcher {launcher}: needs {needed}")
    if "--mount" in given and "--image" not in given:
        raise BadInputError("--mount: is for a container; needs --image")
    if launcher != "url":
        for needed in ("--target", "--drafter"):
            if needed not in given:
                more = ", a method such as ngram, or none" if needed == "--drafter" else ""
                raise BadInputError(f"{needed}: is missing; name a folder or a hub id{more}")


def make_launcher(
    launcher: str,
    *,
    program: Sequence[str],
    image: str | None,
    mounts: tuple[Mount, ...],
    options: Sequence[str],
    gpus: str,
) -> Launcher:
    """What starts the servers; for ``local`` and ``docker``."""
    if launcher == "docker" and image is not None:
        return DockerLauncher(
            image, mounts, tuple(options), "" if gpus == "none" else check_gpus(gpus)
        )
    return LocalLauncher(tuple(program))


def check_gpus(text: str) -> str:
    """The value of docker's ``--gpus``.

    Raises:
        BadInputError: nothing that docker could take.
    """
    if re.fullmatch(r"[\w\",=.:-]+", text, re.ASCII) is None:
        raise BadInputError(f"--gpus {text!r}: expected all, none, a number or device=0,1")
    return text


def devices_of(gpus: str) -> str | None:
    """The GPUs that docker's ``--gpus`` lists, as ``CUDA_VISIBLE_DEVICES`` would.

    Empty where it gives none; None for ``all``, and for a number, which begins with the first.
    """
    if gpus in {"none", "0"}:
        return ""
    _, named, listed = gpus.replace('"', "").partition("device=")
    parts = takewhile(lambda part: "=" not in part, listed.split(","))
    return ",".join(parts) if named else None


def make_mounts(texts: Sequence[str]) -> tuple[Mount, ...]:
    """The mounts that the user names.

    Raises:
        BadInputError: not of docker's form, no such folder, or two at one place.
    """
    mounts = tuple(map(parse_mount, texts))
    places = [mount.inside for mount in mounts]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise BadInputError(f"--mount: {twice} is mounted twice")
    return mounts
