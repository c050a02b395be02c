"""What an image lacks of autotune's needs, installed beside it by the image's own pip.

The image stays as it is: pip installs into a folder of the user, which containers see read-only.
What the image has is a constraint, so that nothing that serves is replaced.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from autotune.core import MissingEnvironmentError, digest
from autotune.machine.containers import LABEL, Engine, Image, remove_container
from autotune.machine.environment import exported
from autotune.machine.image_facts import ImageFacts
from autotune.util.programs import run_quietly

_INSIDE = "/autotune/packages"
_INSTALL_S = 1800.0
_PASSED = (
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_NO_INDEX", "PIP_FIND_LINKS"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
)
"""Variables for pip that it gets from ours, where they are set."""
_HELP = (
    "build an image that has it: docs/how-to/docker.md shows a Dockerfile of three lines, and "
    "--image takes its name"
)
# What pip would install beside what is there, then that alone: --target knows nothing of the rest.
_INSTALL = """
import json, subprocess, sys, tempfile
from importlib.metadata import distributions
folder, *wanted = sys.argv[1:]
here = sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions() if d.metadata["Name"]})
with tempfile.TemporaryDirectory() as tmp:
    with open(f"{tmp}/here", "w") as file:
        file.write("\\n".join(here))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-input", "--dry-run", "--report", f"{tmp}/report",
                    "--constraint", f"{tmp}/here", *wanted], check=True)
    with open(f"{tmp}/report") as file:
        found = [one["metadata"] for one in json.load(file)["install"]]
pins = [f"{one['name']}=={one['version']}" for one in found]
if pins:
    subprocess.run([*pip, "--no-input", "--no-deps", "--target", folder, *pins], check=True)
"""


def installed_for(
    engine: Engine,
    image: Image,
    facts: ImageFacts,
    lacking: Sequence[str],
    options: Sequence[str],
    cache: Path,
) -> Path:
    """Return a folder with what the image lacks; the first time, pip installs it.

    Args:
        engine: starts the container.
        image: whose pip is used.
        facts: what it holds.
        lacking: as pip takes them.
        options: further options of ``docker run``, as given by the user.
        cache: the user's folder for this image.

    Raises:
        MissingEnvironmentError: the image has no pip, or pip fails.
    """
    folder = cache / f"packages-{digest(sorted(lacking))[:12]}"
    if folder.is_dir():
        return folder
    names = ", ".join(lacking)
    if not facts.has_pip:
        raise MissingEnvironmentError(f"--image {image.name}: lacks {names}, and pip; {_HELP}")
    sys.stderr.write(f"installing what {image.name} lacks into {folder}: {names}\n")
    fresh = cache / f".packages-{secrets.token_hex(4)}"
    fresh.mkdir()
    try:
        _install(engine, image, facts, lacking, options, fresh)
        try:
            fresh.rename(folder)  # whole or not at all
        except OSError:
            if not folder.is_dir():  # another command was as quick
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _install(
    engine: Engine,
    image: Image,
    facts: ImageFacts,
    lacking: Sequence[str],
    options: Sequence[str],
    folder: Path,
) -> None:
    """Have the image's pip fill a folder.

    Raises:
        MissingEnvironmentError: pip fails, with its last words.
    """
    name = f"autotune-pip-{secrets.token_hex(6)}"
    command = [engine.program, "run", "--rm", "--init", "--name", name, "--label", f"{LABEL}=pip"]
    command += [*engine.user_options(), "--volume", f"{folder}:{_INSIDE}"]
    for variable, value in {"HOME": "/tmp", "USER": "autotune", "PIP_CONSTRAINT": ""}.items():  # noqa: S108
        command += ["--env", f"{variable}={value}"]
    command += ["--env", "PIP_BREAK_SYSTEM_PACKAGES=1", "--env", "PIP_ROOT_USER_ACTION=ignore"]
    for variable in _PASSED:
        if exported(variable) is not None:
            command += ["--env", variable]
    command += [*options, "--entrypoint", facts.executable, image.id]
    command += ["-c", _INSTALL, _INSIDE, *lacking]
    try:
        ran = run_quietly(command, _INSTALL_S)
    except BaseException as error:
        remove_container(engine, name)
        if isinstance(error, OSError | subprocess.TimeoutExpired):
            raise MissingEnvironmentError(f"--image {image.name}: pip: {error}") from None
        raise
    if ran.returncode != 0:
        lines = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
        said = " ".join(" ".join(lines or ran.stderr.splitlines()[-3:]).split())[-600:]
        raise MissingEnvironmentError(
            f"--image {image.name}: lacks {', '.join(lacking)}, and its pip fails: {said}; {_HELP}"
        )
