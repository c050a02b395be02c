"""This module makes a launcher of the flags."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from autotune.core import BadInputError
from autotune.serving.server.launchers import DockerLauncher, LocalLauncher
from autotune.serving.server.mounts import Mount, parse_mount
from autotune.serving.server.server import Launcher


def make_launcher(
    launcher: str,
    *,
    program: Sequence[str],
    image: str | None,
    mounts: tuple[Mount, ...],
    options: Sequence[str],
    gpus: str,
) -> Launcher:
    """Make what starts the servers; for ``local`` and ``docker``."""
    if launcher == "docker" and image is not None:
        return DockerLauncher(image, mounts, tuple(options), "" if gpus == "none" else gpus)
    return LocalLauncher(tuple(program))


def devices_of(gpus: str) -> str | None:
    """Return the GPUs that docker's ``--gpus`` lists, as ``CUDA_VISIBLE_DEVICES`` would.

    Empty where it gives none; None for ``all``, and for a number, which begins with the first.
    """
    if gpus in {"none", "0"}:
        return ""
    _, named, listed = gpus.replace('"', "").partition("device=")
    parts = takewhile(lambda part: "=" not in part, listed.split(","))
    return ",".join(parts) if named else None


def make_mounts(texts: Sequence[str]) -> tuple[Mount, ...]:
    """Read the mounts that the user names.

    Raises:
        BadInputError: not of docker's form, no such folder, or two at one place.
    """
    mounts = tuple(map(parse_mount, texts))
    places = [mount.inside for mount in mounts]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise BadInputError(f"--mount: {twice} is mounted twice")
    return mounts
