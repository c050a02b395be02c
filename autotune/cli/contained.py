"""``--launcher docker`` of ``autotune moe``: the same command runs again, in the image that serves.

The container sees this package, read-only, and the folders and files that the flags name, where
they are, so that its paths are ours. It runs as the user. Its standard input is a pipe of ours:
when that closes, because we die or are interrupted, the supervisor inside ends the command, and
with it the container (docs/adr/0009).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import autotune
from autotune.cli.already_said import AlreadySaidError
from autotune.cli.consoles import err
from autotune.cli.requests import CONTAINER_FIELDS, Moe
from autotune.core import BadInputError, ExitCode, MissingEnvironmentError
from autotune.machine.containers import (
    LABEL,
    Engine,
    Image,
    find_engine,
    find_image,
    remove_container,
)
from autotune.machine.devices import detect_gpus, get_device
from autotune.machine.environment import INSIDE, Outside, exported
from autotune.machine.gpu_lock import lock_folders
from autotune.machine.image_facts import LEAST_PYTHON, TAKE, ImageFacts, image_facts, too_old
from autotune.machine.image_packages import installed_for
from autotune.serving.parse import parse_words
from autotune.serving.server.launching import make_mounts
from autotune.serving.server.mounts import Mount, full_path, hub_cache, linked_folders
from autotune.serving.server.secret_flags import by_name, environment_of
from autotune.serving.server.supervisor import SUPERVISOR
from autotune.store.database import database_path
from autotune.util.lockfile import make_private
from autotune.util.resources import data_root

GRACE_S = 30.0
"""For the command inside to save what is done and to end."""
SOURCES = "/autotune/src"
"""Where the container sees this package."""
HOME = "/autotune/home"
_PACKAGE = Path(autotune.__file__).parent
_PASSED = (
    *("TERM", "NO_COLOR", "CUDA_VISIBLE_DEVICES", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    "AUTOTUNE_MEMINFO",
)
"""Variables that the command inside gets from ours, where they are set."""
_NO_GPU = {
    "docker": " (of «could not select device driver»: install nvidia-container-toolkit)",
    "podman": " (of «unresolvable CDI devices»: run `nvidia-ctk cdi generate` once)",
}
"""What an engine says that cannot give a GPU, and what helps; ``--gpus none`` predicts."""
_ENGINE_FAILED = {125: "cannot be started", 126: "cannot be run", 127: "has no such program"}
"""Exit statuses of docker and podman themselves."""


@dataclass(frozen=True)
class Start:
    """A start holds what a container is started with.

    Attributes:
        engine: starts it.
        image: the image that serves.
        facts: what the image holds.
        mounts: what the container sees of this machine.
        packages: a folder with what the image lacks; None where it lacks nothing.
        options: further options of ``docker run``, as given by the user.
        gpus: a value of docker's ``--gpus``.
        arguments: of ``autotune``.
        outside: what the command inside is told.
    """

    engine: Engine
    image: Image
    facts: ImageFacts
    mounts: tuple[Mount, ...]
    packages: Path | None
    options: tuple[str, ...]
    gpus: str
    arguments: tuple[str, ...]
    outside: Outside

    def command(self, name: str) -> list[str]:
        """Return the ``docker run`` command of the container called ``name``.

        Raises:
            BadInputError: a mount that docker cannot express.
        """
        args = [self.engine.program, "run", "--rm", "--interactive", "--init", "--name", name]
        args += ["--label", f"{LABEL}=moe", *self.engine.user_options()]
        args += [*self.engine.gpu_options(self.gpus), "--workdir", os.getcwd()]  # noqa: PTH109
        for mount in self.mounts:
            args += ["--volume", mount.volume()]
        for variable, value in self._environment().items():
            args += ["--env", f"{variable}={value}"]
        for variable in _PASSED:
            if exported(variable) is not None:
                args += ["--env", variable]
        python = self.facts.executable
        inside = f"{SOURCES}/autotune/{Path(SUPERVISOR).relative_to(_PACKAGE)}"
        options, _ = by_name(self.options)
        args += [*options, "--entrypoint", python, self.image.id]
        args += ["-P", inside, "--grace", str(GRACE_S), "--", python, "-m", "autotune"]
        return [*args, *self.arguments]

    def _environment(self) -> dict[str, str]:
        paths = [SOURCES] + ([str(self.packages)] if self.packages is not None else [])
        return {
            INSIDE: json.dumps(self.outside.as_json()),
            "HOME": HOME,
            "USER": "autotune",  # torch looks the user up, who has no name in there
            "PYTHONPATH": os.pathsep.join(paths),
        }


def run_contained(request: Moe) -> None:
    """Run ``autotune moe`` in the image that serves.

    Raises:
        BadInputError: a flag that cannot be used, or an image that is too old.
        MissingEnvironmentError: no engine, no image, or a container that does not start.
        AlreadySaidError: the command inside failed; it has said why.
        KeyboardInterrupt: a second one; the container ends in the background.
    """
    given = make_mounts(request.mount)
    options = tuple(w for text in request.docker_arg for w in parse_words(text, "--docker-arg"))
    engine = find_engine(request.launcher)
    image = find_image(engine, str(request.image), pull=not request.dry_run)
    seen = [word for mount in given for word in ("--volume", mount.volume())]
    facts = image_facts(engine, image, (*engine.user_options(), *seen, *by_name(options)[0]))
    _check(request, facts, image)
    mounts = (*given, *_mounts(request, image), *_locks(engine))
    packages = _packages(engine, image, facts, (*seen, *by_name(options)[0]))
    if packages is not None:
        mounts = (*mounts, Mount(packages, str(packages), read_only=True))
    start = Start(
        engine,
        image,
        facts,
        _without_doubles(mounts),
        packages,
        options,
        request.gpus,
        _arguments(request),
        _outside(request, engine, image),
    )
    err.print(f"In {request.image} ({image.short_id}), started by {engine.program}", markup=False)
    code = _run(start)
    if code != 0:
        raise AlreadySaidError(_exit_code(code, start))


def _check(request: Moe, facts: ImageFacts, image: Image) -> None:
    """Refuse an image that cannot tune, or whose result would be of no use on the GPU.

    Raises:
        BadInputError: it is too old, or lacks vLLM.
    """
    if request.device != "auto":
        capability: str | None = get_device(request.device).compute_capability
    else:
        gpus = detect_gpus()
        capability = gpus[0].compute_capability if gpus else None
    fp8 = request.dtype in {"auto", "fp8_w8a8"}
    for finding in too_old(facts, image.name, capability, fp8=fp8):
        raise BadInputError(finding.message)
    if facts.python < LEAST_PYTHON:
        has, needs = (".".join(map(str, version)) for version in (facts.python, LEAST_PYTHON))
        raise BadInputError(
            f"--image {image.name}: its Python {has} is too old, {needs} or newer is needed; "
            f"take {TAKE}"
        )


def _packages(
    engine: Engine, image: Image, facts: ImageFacts, options: Sequence[str]
) -> Path | None:
    """Return a folder of this machine with what the image lacks, installed by its own pip."""
    old = facts.outdated()
    if old:
        raise BadInputError(
            f"--image {image.name}: has {', '.join(old)}, which is too old for autotune, and what "
            "serves is not replaced; build an image with newer ones (docs/how-to/docker.md)"
        )
    lacking = facts.lacking()
    if not lacking:
        return None
    return installed_for(engine, image, facts, lacking, options, _cache(image))


def _cache(image: Image) -> Path:
    """Return the user's folder for what belongs to an image: packages, caches of compilers."""
    root = exported("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(root) / "autotune" / f"image-{image.short_id}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return make_private(folder)  # what is installed there runs
    except OSError as error:
        raise MissingEnvironmentError(f"{folder}: {error.strerror or error}") from None


def _locks(engine: Engine) -> Iterator[Mount]:
    """The user's folder of locks, where the command inside looks for it: one lock a GPU."""
    folder = lock_folders()[-1]
    who = "0" if engine.is_rootless else str(os.getuid())
    with contextlib.suppress(OSError):  # somebody else's; the command inside has its own then
        yield Mount(make_private(folder), str(folder.with_name(f"autotune-{who}")))


def _mounts(request: Moe, image: Image) -> Iterator[Mount]:
    """What the command inside needs of this machine, each where it is, but for our own package."""
    yield Mount(_PACKAGE, f"{SOURCES}/autotune", read_only=True)
    if not data_root().is_relative_to(_PACKAGE):  # a checkout
        for name in ("search_spaces", "alembic"):
            yield Mount(data_root() / name, f"{SOURCES}/{name}", read_only=True)
    home = _cache(image) / "home"
    written = [request.out, database_path(request.db).parent]
    for folder in (home, *written):
        with _said_of(folder):
            folder.mkdir(parents=True, exist_ok=True)  # docker would make it as root
    yield Mount(home, HOME)
    hub = hub_cache()
    if hub is not None:
        yield Mount(hub, f"{HOME}/.cache/huggingface/hub")
    if request.events is not None:
        with _said_of(request.events):
            request.events.touch()
        written.append(request.events)
    for one in written:
        yield Mount(full_path(str(one)), str(full_path(str(one))))
    for path in _named(request):
        yield Mount(path, str(path), read_only=True)


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Say in one line that a file or folder cannot be made.

    Raises:
        BadInputError: so it is.
    """
    try:
        yield
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror or error}") from None


def _named(request: Moe) -> Iterator[Path]:
    """Every file and folder that a flag names, and where links in a model's folder lead."""
    for name in sorted(request.given() - CONTAINER_FIELDS - {"out", "db", "events"}):
        value = getattr(request, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str | Path) and str(one) and os.path.exists(one):  # noqa: PTH110
                path = full_path(str(one))
                yield path
                if path.is_dir():
                    yield from linked_folders(path)


def _without_doubles(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """Each place once, the first that names it; a folder that is written to stays so."""
    places: dict[str, Mount] = {}
    for mount in mounts:
        known = places.setdefault(mount.inside, mount)
        if known.host == mount.host and not mount.read_only:
            places[mount.inside] = replace(known, read_only=False)
    return tuple(places.values())


def _arguments(request: Moe) -> tuple[str, ...]:
    """The command line of the command inside, which starts no container."""
    fields = {n: getattr(request, n) for n in request.model_fields_set - CONTAINER_FIELDS}
    return tuple(shlex.split(Moe.model_validate(fields).command_line("moe"))[1:])


def _outside(request: Moe, engine: Engine, image: Image) -> Outside:
    def width(stream: int) -> int | None:
        with contextlib.suppress(OSError):
            return os.get_terminal_size(stream).columns if os.isatty(stream) else None
        return None

    command = request.command or request.command_line("moe")
    gpus = engine.gpu_options(request.gpus)
    where = (command, engine.program, str(request.image), image.id, gpus)
    return Outside(*where, width(sys.stdout.fileno()), width(sys.stderr.fileno()))


def _run(start: Start) -> int:
    """Run the container to its end; gives its exit status."""
    name = f"autotune-{secrets.token_hex(6)}"
    _, given = by_name(start.options)
    process = subprocess.Popen(  # noqa: S603
        start.command(name),
        stdin=subprocess.PIPE,
        env={**os.environ, **environment_of(given)},
        process_group=0,  # Ctrl-C reaches us alone, and we end it once
    )
    try:
        try:
            return process.wait()
        except KeyboardInterrupt:
            _close(process)
            process.wait()
            raise AlreadySaidError(ExitCode.INTERRUPTED) from None
    finally:
        _close(process)  # leaving now, the supervisor inside ends the rest
        if process.poll() is not None:
            remove_container(start.engine, name)


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _exit_code(code: int, start: Start) -> ExitCode:
    """Return the command's own exit code, where it had one.

    Raises:
        MissingEnvironmentError: the engine failed, or something killed the container.
    """
    program = start.engine.program
    if code in _ENGINE_FAILED:
        raise MissingEnvironmentError(
            f"--image {start.image.name}: {_ENGINE_FAILED[code]}; {program} says why above"
            + ("" if code == 127 else _NO_GPU.get(program, ""))
        )
    with contextlib.suppress(ValueError):
        return ExitCode(code)
    raise MissingEnvironmentError(
        f"the container ended with status {code}: something killed it, or {program} did; what is "
        "finished is saved, the same command goes on from there"
    )
