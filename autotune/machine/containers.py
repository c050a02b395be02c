"""Containers of this machine: which engine starts them, and what an image is.

Podman is taken where docker is asked for and not there; it also answers where it is called docker.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from autotune.core import MissingEnvironmentError
from autotune.util import edge
from autotune.util.programs import require_program, run_quietly

DOCKER, PODMAN = "docker", "podman"
ENGINES = (DOCKER, PODMAN)
LABEL = "autotune"
"""``docker ps --filter label=autotune`` lists what a command started."""
_ASK_S = 30.0
_ID_LENGTH = 12


@dataclass(frozen=True)
class Engine:
    """An engine starts containers.

    Attributes:
        program: as it is called: ``docker``, ``podman``, or a path.
        is_podman: it is podman, whatever its name.
        is_rootless: root in a container is the user outside.
    """

    program: str = DOCKER
    is_podman: bool = False
    is_rootless: bool = False

    def user_options(self) -> list[str]:
        """Options with which what a container writes belongs to the user."""
        who = "0:0" if self.is_rootless else f"{os.getuid()}:{os.getgid()}"
        return ["--user", who]

    def gpu_options(self, gpus: str) -> list[str]:
        """Options that give a container GPUs.

        Podman names them as the container device interface does, for which ``nvidia-ctk cdi
        generate`` has written what is there.

        Args:
            gpus: a value of docker's ``--gpus``; empty or ``none`` gives none.
        """
        if gpus in {"", "none"}:
            return []
        if not self.is_podman:
            return ["--gpus", gpus]
        listed = gpus.replace('"', "").partition("device=")[2]
        names = [part for part in listed.split(",") if part and "=" not in part]
        if gpus.isdecimal():
            names = [str(number) for number in range(int(gpus))]
        return [f"--device=nvidia.com/gpu={name}" for name in names or ["all"]]


@dataclass(frozen=True)
class Image:
    """An image that is on this machine.

    Attributes:
        name: as the user wrote it.
        id: of its contents, in hex, without ``sha256:``.
        user: whom its programs run as; empty is root.
        env: variables that it sets.
    """

    name: str
    id: str
    user: str = ""
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def short_id(self) -> str:
        """Return what people write of the id."""
        return self.id[:_ID_LENGTH]

    @property
    def home(self) -> str | None:
        """Return the home of its programs; None where only the image knows."""
        is_root = self.user.partition(":")[0] in {"", "0", "root"}
        return self.env.get("HOME", "/root" if is_root else None)


def find_engine(wanted: str = DOCKER) -> Engine:
    """Find the engine that is asked for; podman where docker is not there or does not work.

    Raises:
        MissingEnvironmentError: neither is there, or neither starts anything.
    """
    try:
        return _engine(wanted)
    except MissingEnvironmentError:
        if wanted != DOCKER or shutil.which(PODMAN) is None:
            raise
    return _engine(PODMAN)


def require(program: str) -> None:
    """See that an engine can start anything.

    Raises:
        MissingEnvironmentError: it, or its daemon, is not there.
    """
    require_program(program)
    _asked([program, "version", "--format", "{{.Server.Version}}"], f"{program} does not work here")


def _engine(program: str) -> Engine:
    require(program)
    is_podman = "podman" in _answer([program, "--version"]).lower()
    how = "{{.Host.Security.Rootless}}" if is_podman else "{{json .SecurityOptions}}"
    told = _answer([program, "info", "--format", how])
    is_rootless = told.strip() == "true" if is_podman else "name=rootless" in told
    return Engine(program, is_podman, is_rootless)


def find_image(engine: Engine, name: str, *, pull: bool = True) -> Image:
    """Look an image up; one that is not here is pulled, which shows its progress on stderr.

    Args:
        engine: asked, and told to pull.
        name: of the image.
        pull: whether it may be; a plan that is only looked at downloads nothing.

    Raises:
        MissingEnvironmentError: it is nowhere, or the engine's answer cannot be read.
    """
    look = [engine.program, "image", "inspect", name]
    if (said := _answer(look)).strip() in {"", "[]"}:
        if not pull:
            raise MissingEnvironmentError(
                f"--image {name}: is not on this machine, and a dry run downloads nothing: "
                f"`{shlex.join(_pulling(engine, name))}` first"
            )
        _pull(engine, name)
        said = _asked(look, f"--image {name}")
    try:
        (found,) = edge.parse_json(said)
        config = found.get("Config") or {}
        env = dict(text.partition("=")[::2] for text in config.get("Env") or [])
        return Image(name, found["Id"].removeprefix("sha256:"), config.get("User") or "", env)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MissingEnvironmentError(
            f"{shlex.join(look)}: an answer that cannot be read: {error}"
        ) from None


def _pull(engine: Engine, name: str) -> None:
    command = _pulling(engine, name)
    try:
        ran = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), check=False
        )
    except OSError as error:
        raise MissingEnvironmentError(f"{shlex.join(command)}: {error}") from None
    if ran.returncode != 0:
        raise MissingEnvironmentError(
            f"--image {name}: is not here, and `{shlex.join(command)}` fails; is the name right?"
        )


def _pulling(engine: Engine, name: str) -> list[str]:
    return [engine.program, "pull", _with_registry(name) if engine.is_podman else name]


def _with_registry(name: str) -> str:
    """A name as docker reads it, for podman, which as it is installed searches no registry."""
    first, slash, _ = name.partition("/")
    if not slash:
        return f"docker.io/library/{name}"
    return name if {".", ":"} & {*first} or first == "localhost" else f"docker.io/{name}"


def _asked(command: Sequence[str], otherwise: str) -> str:
    """Return what a command says.

    Raises:
        MissingEnvironmentError: it fails, with ``otherwise`` and what it says then.
    """
    try:
        ran = run_quietly(command, _ASK_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingEnvironmentError(f"{shlex.join(command)}: {error}") from None
    if ran.returncode != 0:
        said = " ".join(ran.stderr.split()) or f"exit status {ran.returncode}"
        raise MissingEnvironmentError(f"{otherwise}: {said}")
    return ran.stdout


def _answer(command: Sequence[str]) -> str:
    """Return what a command says; nothing where it fails."""
    try:
        return _asked(command, "")
    except MissingEnvironmentError:
        return ""


def remove_container(engine: Engine, name: str) -> None:
    """End a container and remove it, if there is one of this name.

    Twice, because podman says no at first where the container's own processes were killed.
    """
    for _ in range(2):
        _answer([engine.program, "rm", "--force", name])
