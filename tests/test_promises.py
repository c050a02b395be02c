"""What docs/security.md promises of files and processes, and that the tests pages name exist."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

from autotune.export.files import write_whole
from autotune.serving.server.process import child_environment
from autotune.store.store import Store

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_modes_of_the_user(umask: int, tmp_path: Path) -> None:
    """umask overridden."""
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "new" / "report.md", b"x")
        write_whole(tmp_path / "new" / "report.md", b"y")
        with Store.open(f"sqlite:///{tmp_path}/new/a.db") as store:
            store.study("s", "moe", {})
            modes = {
                path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()
            }
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~umask
    assert "report.md" in modes
    assert "a.db" in modes
    assert all(mode & umask == 0 for mode in modes.values()), modes
    assert modes["report.md"] == 0o666 & ~umask


def test_a_result_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep me")
    (tmp_path / "report.md").symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "report.md", b"x")
    assert (tmp_path / "precious").read_text() == "keep me"
    assert not (tmp_path / "report.md").is_symlink()


def test_servers_do_not_inherit_the_headers_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTOTUNE_HEADER inherited by servers."""
    monkeypatch.setenv("AUTOTUNE_HEADER", "Authorization: Bearer canary")
    assert "AUTOTUNE_HEADER" not in child_environment({"A": "b"})
    assert child_environment({"A": "b"})["A"] == "b"


def named_tests(page: str) -> list[str]:
    """``FILE::NAME`` of every test that a page names."""
    text = (ROOT / "docs" / page).read_text()
    found: list[str] = []
    for line in text.splitlines():
        for file, names in re.findall(r"`(tests/[\w/]+\.py)::([\w, ]+)`", line):
            found += [f"{file}::{name.strip()}" for name in names.split(",")]
    return found


@pytest.mark.parametrize(
    ("page", "least"), [("security.md", 20), ("explanation/spark-defects.md", 16)]
)
def test_the_page_names_tests_that_are_there(page: str, least: int) -> None:
    named = named_tests(page)
    assert len(named) >= least
    for one in named:
        file, _, name = one.partition("::")
        tree = ast.parse((ROOT / file).read_text())
        known = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in known, one
