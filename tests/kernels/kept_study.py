"""The kept study of the H200 and small checkouts to export it to."""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from autotune.kernels.export.upstream import CONFIGS
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


def database(folder: Path) -> str:
    """The kept database, unpacked and of the present version: its URL."""
    path = folder / "kept.db"
    path.write_bytes(gzip.decompress((KEPT / "trials.db.gz").read_bytes()))
    Store.open(f"sqlite:///{path}").close()
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


def checkout(folder: Path, files: Mapping[str, str | bytes] = SMALL) -> Path:
    """A repository with these files in one commit, tagged v0.24.0."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    git(folder, "init", "-q", "-b", "main", ".")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "[Kernel] Configurations of others (#1234)")
    git(folder, "tag", "v0.24.0")
    return folder
