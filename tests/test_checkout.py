"""A checkout's configuration runs programs: none of them runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from autotune.export.checkout import Checkout


def git(folder: Path, *args: str) -> None:
    subprocess.run(
        ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@b.c", *args],
        check=True,
        capture_output=True,
    )


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "f.txt").write_text("one\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


SETTINGS = (
    "core.fsmonitor",
    "filter.evil.clean",
    "filter.evil.smudge",
    "filter.evil.process",
    "filter.a\nb.clean",
    "diff.external",
    "diff.evil.command",
    "diff.evil.textconv",
    "gpg.program",
    "gpg.ssh.program",
    "core.editor",
    "core.pager",
    "core.sshCommand",
    "core.askPass",
    "credential.helper",
)


def test_no_program_of_a_checkout_runs(repository: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "evil"
    program.write_text(f'#!/bin/sh\necho "$0 $@" >> {ran}\ncat\n')
    program.chmod(0o755)
    for name in SETTINGS:
        if "\n" not in name:
            git(repository, "config", name, str(program))
    for name in ("commit.gpgSign", "log.showSignature", "filter.evil.required"):
        git(repository, "config", name, "true")
    for hook in ("post-index-change", "pre-commit", "reference-transaction", "post-checkout"):
        (repository / ".git" / "hooks" / hook).write_text(program.read_text())
        (repository / ".git" / "hooks" / hook).chmod(0o755)
    (repository / ".gitattributes").write_text("* filter=evil diff=evil\n")
    (repository / "f.txt").write_text("two\n")
    ran.unlink(missing_ok=True)
    checkout = Checkout.open(repository, "--repo")
    assert checkout.dirty()
    checkout.describe()
    assert checkout.read("f.txt") == b"one\n"
    checkout.last_subject("f.txt")
    checkout.commit_file("new", "g.txt", b"three\n", "message", "Ann Lee <ann@x.org>")
    assert not ran.exists(), ran.read_text()
