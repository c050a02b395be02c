"""A real container engine for tests: podman with runc, storage of its own, an image made of files.

The image holds an empty root; Python, this package's needs and the CPU build of vLLM are mounts of
this machine's ``/usr``, interpreter and virtual environment.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

REQUIRED = os.environ.get("AUTOTUNE_TEST_CONTAINERS") == "required"
IMAGE = "localhost/vllm:1"
BASE = Path(sys.base_prefix)
VENV = Path(sys.prefix)
OWN_VARIABLES = ("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "XDG_CACHE_HOME")
"""With which podman, and what autotune keeps of an image, stay out of what the user has."""
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""
STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{root}/graph"
runroot = "{root}/run"
"""


@dataclass(frozen=True)
class Podman:
    """Podman with storage of its own."""

    root: Path
    env: dict[str, str]

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = ["podman", *args]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, check=True, timeout=120
        )

    def containers(self) -> list[str]:
        """Names of those that run or are left."""
        return self.run("ps", "--all", "--format", "{{.Names}}").stdout.split()

    def make_image(self, name: str, *changes: str) -> None:
        """An image of an almost empty root; ``changes`` are instructions of a Dockerfile."""
        words = [word for change in changes for word in ("--change", change)]
        subprocess.run(
            ["podman", "import", *words, "-", name],
            env=self.env,
            input=root_files(),
            capture_output=True,
            check=True,
            timeout=120,
        )


def mounts() -> list[str]:
    """Flags of autotune that show a container this machine's Python and what it has."""
    places = dict.fromkeys([Path("/usr"), BASE, VENV.resolve(), VENV])
    return [word for place in places for word in ("--mount", f"{place.resolve()}:{place}:ro")]


def root_files() -> bytes:
    """The root of an image: places for mounts, links into ``/usr``, the linker's table."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, mode in (("usr", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("root", 0o755)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, mode
            archive.addfile(entry)
        for name in ("bin", "lib", "lib64", "sbin"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(entry)
        for name in ("/etc/passwd", "/etc/group", "/etc/ld.so.cache"):
            archive.add(name, recursive=False)
    return packed.getvalue()


@contextmanager
def started_podman() -> Iterator[Podman]:
    """An engine with an image; without podman the test is skipped, or fails where it must be.

    Conmon cuts a run root of more than 50 characters, as pytest's folders are: whoever waits for a
    container then learns of its end by a timeout of 20 seconds.
    """
    why = _lacking()
    if why:
        (pytest.fail if REQUIRED else pytest.skip)(why)
    with tempfile.TemporaryDirectory(prefix="podman-") as folder:
        yield from _started(Path(folder))


def _started(root: Path) -> Iterator[Podman]:
    (root / "containers.conf").write_text(CONTAINERS_CONF)
    (root / "storage.conf").write_text(STORAGE_CONF.format(root=root))
    env = {
        **os.environ,
        "CONTAINERS_CONF": str(root / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(root / "storage.conf"),
        "XDG_CACHE_HOME": str(root / "cache"),
    }
    podman = Podman(root, env)
    try:
        path = f"ENV PATH={VENV}/bin:/usr/local/bin:/usr/bin:/bin"
        podman.make_image(IMAGE, path, 'ENTRYPOINT ["/usr/bin/false"]')
        podman.run("run", "--rm", "--volume", "/usr:/usr:ro", "--entrypoint", "true", IMAGE)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        (pytest.fail if REQUIRED else pytest.skip)(f"podman does not work here: {said!r}")
    try:
        yield podman
    finally:
        podman.run("rm", "--all", "--force", "--time", "0")
        # Podman mounts its storage onto itself and leaves it so: nobody could remove the folder.
        if os.path.ismount(root / "graph" / "overlay"):
            subprocess.run(["umount", "--lazy", root / "graph" / "overlay"], check=True)


def _lacking() -> str | None:
    missing = [name for name in ("podman", "runc", "catatonit") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)}: not installed; .ci/run installs podman"
    return None if os.geteuid() == 0 else "containers are started as root here"
