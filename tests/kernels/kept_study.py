"""The kept study of the H200 and small checkouts to export it to."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from autotune.core import Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.kernels.export.upstream import CONFIGS
from autotune.kernels.moe.shape import MoeShape, MoeWorkload
from autotune.store.store import Store

KEPT = Path(__file__).parents[2] / "benchmarks/results/h200-gemma4"
STUDY = "h200-gemma4"
FILE = "E=128,N=704,device_name=NVIDIA_H200,dtype=fp8_w8a8.json"
NAME = f"{CONFIGS}/{FILE}"
PERSON = "Ann Lee <ann@example.org>"
TEMPLATE = """\
<!-- markdownlint-disable -->
PLEASE FILL IN THE PR DESCRIPTION HERE ENSURING ALL CHECKLIST ITEMS HAVE BEEN CONSIDERED.

## Purpose

## Test Plan

## Test Result

---
<details>
<summary> Essential Elements of an Effective PR Description Checklist </summary>

- [ ] The purpose of the PR, such as "Fix some issue (link existing issues this PR will resolve)".
- [ ] Was AI assistance used? Say how.
</details>
"""
SMALL = {
    "requirements/cuda.txt": "numba == 0.61.2\ntorch==2.11.0\n",
    ".github/PULL_REQUEST_TEMPLATE.md": TEMPLATE,
    "vllm/model_executor/layers/fused_moe/fused_moe.py": "# the kernel\n",
    f"{CONFIGS}/E=128,N=704,device_name=NVIDIA_B200,dtype=fp8_w8a8.json": "{}\n",
    f"{CONFIGS}/E=128,N=704,device_name=NVIDIA_H200.json": "{}\n",
    f"{CONFIGS}/E=8,N=14336,device_name=NVIDIA_H200,dtype=fp8_w8a8.json": "{}\n",
}


@cache
def _database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kept.db"
        path.write_bytes(gzip.decompress((KEPT / "trials.db.gz").read_bytes()))
        Store.open(f"sqlite:///{path}").close()
        return path.read_bytes()


@cache
def _few() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kept.db"
        path.write_bytes(_database())
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(f"""
                DELETE FROM trials WHERE phase = '{Phase.SEARCH}' AND candidate_key NOT IN
                    (SELECT candidate_key FROM trials WHERE phase = '{Phase.CONFIRM}');
                DELETE FROM measurements WHERE trial_id NOT IN (SELECT id FROM trials);
                VACUUM;
            """)
        return path.read_bytes()


def database(folder: Path, *, few: bool = False) -> str:
    """The kept database, unpacked and of the present version: its URL.

    With ``few`` the search has only the candidates that were confirmed; the rows are the same, and
    reading it takes a tenth of the time.
    """
    path = folder / "kept.db"
    path.write_bytes(_few() if few else _database())
    return f"sqlite:///{path}"


def git(folder: Path, *args: str) -> str:
    """Run git there, as nobody in particular and at no particular time."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for role in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{role}_NAME": "V", f"GIT_{role}_EMAIL": "v@example.org"}
        env |= {f"GIT_{role}_DATE": "2026-11-01T00:00:00Z"}
    return subprocess.run(
        ["git", "-C", str(folder), *args],
        capture_output=True,
        text=True,
        check=True,
        env=env | {"PATH": os.defpath},
    ).stdout


def _lay(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


@cache
def _small() -> tempfile.TemporaryDirectory[str]:
    """A repository of ``SMALL``, to be copied: that takes no process, and making it takes four."""
    kept = tempfile.TemporaryDirectory()
    _lay(Path(kept.name), SMALL)
    git(Path(kept.name), "init", "-q", "-b", "main", "--template=", ".")
    _commit(Path(kept.name))
    return kept


def _commit(folder: Path, *more: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "[Kernel] Configurations of others (#1234)", *more)
    git(folder, "tag", "-f", "v0.24.0")


def checkout(folder: Path, files: Mapping[str, str | bytes] = SMALL) -> Path:
    """A repository with these files in one commit, tagged v0.24.0."""
    shutil.copytree(_small().name, folder, dirs_exist_ok=True)
    if files != SMALL:
        for name in SMALL.keys() - files.keys():
            (folder / name).unlink()
        _lay(folder, files)
        _commit(folder, "--amend")
    return folder


def predicted(url: str) -> None:
    """A predicted study in a database of its own."""
    shape = MoeShape.from_json(json.loads((KEPT / "provenance.json").read_text())["shape"])
    workload = MoeWorkload(shape, 8)
    setup: dict[str, Any] = {
        "basis": "predicted",
        "triton": "3.8.0",
        "vllm": "0.32.0",
        "kernel_sha256": "0" * 64,
    }
    setup |= {"sampler": "tpe", "seed": 0}
    with Store.open(url) as store:
        study = store.study("p", "moe", {"device": "gb10", "shape": shape.as_json()})
        search = store.search(study, setup | {"space": {"name": "stock"}})
        environment = {"packages": {"torch": "2.13.0"}, "gpus": [], "system": "Linux"}
        environment |= {"machine": "x86_64", "python": "3.11", "autotune": "0.1.0"}
        one = store.start_run(search, store.environment(environment), "autotune moe")
        for phase, columns, us in (
            (Phase.BASELINE, 64, 100.0),
            (Phase.SEARCH, 32, 80.0),
        ):
            config = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": columns, "BLOCK_SIZE_K": 128}
            config |= {"GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 4}
            measurement = Measurement(Outcome.OK, Basis.PREDICTED, us)
            trial = Trial(Candidate.of(config), workload.key, phase, 0, measurement)
            store.add_trials(one, store.workload(search, workload).id, [trial])
