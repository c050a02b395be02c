"""A wheel carries the migrations and the search spaces, and runs without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_wheel_carries_what_the_program_reads(unpacked: Path) -> None:
    data = unpacked / "autotune" / "_data"
    for kind in ("search_spaces", "alembic/versions"):
        here = {p.name for p in (ROOT / kind).rglob("*") if p.suffix in {".yaml", ".py"}}
        there = {p.name for p in (data / kind).rglob("*") if p.is_file()}
        assert here <= there
    for path in (ROOT / "autotune").rglob("templates/*"):
        assert (unpacked / path.relative_to(ROOT)).is_file(), path


def test_program_runs_from_the_wheel_alone(unpacked: Path, tmp_path: Path) -> None:
    code = (
        "import autotune, sys; from autotune.store.store import Store; "
        "from autotune.machine.devices import get_device; "
        "from autotune.space.space import load_space; get_device('gb10'); "
        "assert load_space('stock', 'moe').size == 1920; "
        "Store.open('sqlite:///fresh.db').close(); print(autotune.__file__)"
    )
    # -S would hide the dependencies; PYTHONPATH puts the wheel before the editable install.
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip().startswith(str(unpacked))
