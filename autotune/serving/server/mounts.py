"""What a container must see of this machine: the folders that a server's settings name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import constants

from autotune.core import BadInputError
from autotune.engine.variables import FOLDER
from autotune.serving.dial.plugin import PATH
from autotune.serving.server.server import ServeSettings

_HUB_INSIDE = "/root/.cache/huggingface/hub"
"""Where the images of vLLM, which run as root, keep what they load from the hub."""


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine (``host``) and where a container sees it (``inside``)."""

    host: Path
    inside: str
    read_only: bool = False

    def volume(self) -> str:
        """The value of docker's ``--volume``.

        Raises:
            BadInputError: a colon, for which docker has no escape.
        """
        if ":" in f"{self.host}{self.inside}":
            raise BadInputError(f"{self.host}: docker takes no mount with a colon in its path")
        return f"{self.host}:{self.inside}{':ro' if self.read_only else ''}"


def full_path(path: str) -> Path:
    """From the root, without ``..``: as it is written where that is the same place."""
    written = Path(os.path.abspath(path))  # noqa: PTH100  (keeps links, which resolve() does not)
    there = Path(path).exists()
    return (
        written
        if not there or (written.exists() and written.samefile(path))
        else Path(path).resolve()
    )


def parse_mount(text: str) -> Mount:
    """``HOST``, ``HOST:INSIDE`` or ``HOST:INSIDE:ro``; without INSIDE the path stays the same.

    Raises:
        BadInputError: not of that form, or the host has no such file or folder.
    """
    found = re.fullmatch(r"([^:]+)(?::(/[^:]*))?(:ro|:rw)?", text)
    if found is None:
        raise BadInputError(
            f"--mount {text}: expected HOST, HOST:/INSIDE or HOST:/INSIDE:ro, such as "
            "/data/models:/models"
        )
    host = full_path(found[1])
    if not host.exists():
        raise BadInputError(f"--mount {text}: {host}: no such file or folder")
    return Mount(host, found[2] or str(host), found[3] == ":ro")


def mounts_of(settings: ServeSettings, given: Sequence[Mount] = ()) -> list[Mount]:
    """What a container of these settings needs: what the user gave, and what the settings name.

    Folders of models are mounted where they are, so that paths need no translation, and read-only;
    a model named by a hub id takes along the hub's cache, which vLLM writes to.
    """
    taken = {mount.inside for mount in given}
    named = [Mount(path, str(path), read_only=True) for path in _named(settings)]
    cache = hub_cache()
    if cache is not None and any(not Path(model).exists() for model in _models(settings)):
        named.append(Mount(cache, _HUB_INSIDE))
    return [*given, *(mount for mount in dict.fromkeys(named) if mount.inside not in taken)]


def hub_cache() -> Path | None:
    """Return the folder of the hub's cache; None where nothing was loaded from the hub yet."""
    cache = Path(constants.HF_HUB_CACHE)
    return cache if cache.is_dir() else None


def with_full_paths(settings: ServeSettings) -> ServeSettings:
    """The settings with what is a file or folder here named from the root."""
    speculative = settings.speculative
    if speculative is not None and "model" in speculative:
        speculative = {**speculative, "model": _full(str(speculative["model"]))}
    return replace(
        settings,
        model=_full(settings.model),
        speculative=speculative,
        extra_args=tuple(_full_argument(arg) for arg in settings.extra_args),
    )


def _models(settings: ServeSettings) -> list[str]:
    drafter = (settings.speculative or {}).get("model")
    return [settings.model, *([str(drafter)] if drafter else [])]


def _named(settings: ServeSettings) -> Iterator[Path]:
    """Every existing path that the settings name, and where links in a model's folder lead."""
    for model in _models(settings):
        folder = full_path(model)
        if folder.is_dir():
            yield folder
            yield from linked_folders(folder)
    tuned = settings.env.get(FOLDER)
    if tuned and Path(tuned).is_dir():
        yield full_path(tuned)
    if (dial := settings.env.get(PATH)) is not None:
        yield full_path(dial).parent
    for arg in settings.extra_args:
        path = _path_in(arg)
        if path is not None:
            yield path


def linked_folders(folder: Path) -> Iterator[Path]:
    """Folders that the links of a hub cache's snapshot lead to (``../../blobs``)."""
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            place = Path(os.path.normpath(folder / entry.readlink())).parent
            if not place.is_relative_to(folder):
                yield place


def _path_in(arg: str) -> Path | None:
    """An argument's value where it is a path of this machine: one word without a slash is none."""
    value = arg.partition("=")[2] if arg.startswith("--") else arg
    return full_path(value) if "/" in value and Path(value).exists() else None


def _full_argument(arg: str) -> str:
    path = _path_in(arg)
    if path is None:
        return arg
    name, equals, _ = arg.partition("=")
    return f"{name}={path}" if arg.startswith("--") and equals else str(path)


def _full(ref: str) -> str:
    return str(full_path(ref)) if Path(ref).exists() else ref
