"""This module makes a launcher of the flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from autotune.core import BadInputError
from autotune.machine.containers import find_engine, find_image
from autotune.machine.devices import detect_gpus
from autotune.machine.image_facts import image_facts, too_old
from autotune.serving.server.launchers import DockerLauncher
from autotune.serving.server.mounts import Mount, parse_mount
from autotune.serving.server.secret_flags import by_name
from autotune.util.finding import Finding


def looked_up(
    launcher: DockerLauncher, wanted: str, *, pull: bool = True
) -> tuple[DockerLauncher, list[Finding]]:
    """Look the engine and the image up, and what speaks against the image.

    Args:
        launcher: of an image.
        wanted: ``docker`` or ``podman``.
        pull: whether an image that is not here may be pulled.

    Raises:
        MissingEnvironmentError: the engine or the image is not there, or does not start.
    """
    engine = find_engine(wanted)
    image = find_image(engine, launcher.image, pull=pull)
    mounts = [word for mount in launcher.mounts for word in ("--volume", mount.volume())]
    options, _ = by_name(launcher.options)
    facts = image_facts(engine, image, (*mounts, *options))
    gpus = detect_gpus() if launcher.gpus else []
    capability = gpus[0].compute_capability if gpus else None
    findings = too_old(facts, image.name, capability, fp8=False)
    return replace(launcher, engine=engine, found=image, vllm=facts.vllm), findings


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
