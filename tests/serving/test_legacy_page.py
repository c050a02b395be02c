"""Pages of the database and folders that commit 5efff5a left: verdicts were in files alone."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autotune.cli import app
from autotune.store.frames import trials_frame
from autotune.store.store import Store

LEGACY = Path(__file__).parents[1] / "data" / "legacy"


@pytest.fixture
def left(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LEGACY, tmp_path / "left"))


def report(left: Path, out: Path) -> str:
    db = f"sqlite:///{left}/autotune.db"
    done = CliRunner().invoke(app, ["report", "s", "--db", db, "--out", str(out)])
    assert done.exception is None, done.output
    return done.output.splitlines()[0]


def test_the_verdict_of_the_file_is_shown_where_it_is(left: Path) -> None:
    assert report(left, left).startswith("Best: gamma=2, 1.767×")


def test_without_the_file_or_with_a_damaged_one_the_page_says_so(
    left: Path, tmp_path: Path
) -> None:
    assert report(left, tmp_path / "other").startswith("No verdict here")
    (left / "s" / "spec" / "best.json").write_text('{"study": "s", "scenario": ')
    assert report(left, left).startswith("No verdict here")


def test_a_verdict_in_the_database_needs_no_file(left: Path, tmp_path: Path) -> None:

    report(left, left)  # brings the database up to date
    document = json.loads((left / "s" / "spec" / "best.json").read_text())
    with sqlite3.connect(left / "autotune.db") as connection:
        connection.execute(
            "UPDATE runs SET verdict = ? WHERE command LIKE '%autotune spec%'",
            (json.dumps(document),),
        )
    connection.close()
    assert report(left, tmp_path / "other").startswith("Best: gamma=2, 1.767×")


def test_trials_of_both_kinds_are_tables(left: Path) -> None:
    with Store.open(f"sqlite:///{left}/autotune.db") as store:
        spec, moe = trials_frame(store, "s"), trials_frame(store, "moe-gb10-e128-n704-fp8_w8a8")
    assert (len(spec), len(moe)) == (4, 39)
    assert set(moe["basis"]) == {"predicted"}
    assert set(spec["param.gamma"]) == {0, 2}
