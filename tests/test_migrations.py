"""A database of every earlier version opens; models, migrations and file names agree."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from autotune.core import Outcome
from autotune.store.database import (
    APPLICATION_ID,
    VERSION_TABLE,
    WRITING,
    known_revisions,
    make_engine,
)
from autotune.store.records import JobState, RunStatus
from autotune.store.store import Store
from autotune.store.tables import Base
from autotune.util.resources import data_root

DATA = Path(__file__).parent / "data"
KEPT = sorted(DATA.glob("db-*.sqlite"))


def test_models_and_migrations_agree(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Store.open(f"sqlite:///{path}").close()
    engine = make_engine(path)
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_check_constraints_agree(tmp_path: Path) -> None:
    # Alembic does not compare these.
    migrated, made = tmp_path / "migrated.db", tmp_path / "made.db"
    Store.open(f"sqlite:///{migrated}").close()
    engine = make_engine(made)
    with engine.connect().execution_options(**WRITING) as connection, connection.begin():
        Base.metadata.create_all(connection)
    engine.dispose()

    def checks(path: Path) -> set[str]:
        with closing(sqlite3.connect(path)) as connection:
            rows = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")
            lines = [line.strip(" ,\t") for (sql,) in rows for line in sql.splitlines()]
        return {line for line in lines if "CHECK" in line}

    assert checks(migrated) == checks(made) != set()


def test_file_names_give_the_order_of_the_revisions() -> None:
    config = Config()
    config.set_main_option("script_location", str(data_root() / "alembic"))
    scripts = ScriptDirectory.from_config(config)
    oldest_first = [script.revision for script in scripts.walk_revisions()][::-1]
    assert known_revisions() == oldest_first


def test_no_package_shadows_alembic() -> None:
    assert not (data_root() / "alembic" / "__init__.py").exists()


def test_one_database_is_kept_per_revision() -> None:
    assert [path.stem.removeprefix("db-") for path in KEPT] == known_revisions()


@pytest.mark.parametrize("kept", KEPT, ids=lambda path: path.stem)
def test_a_kept_database_opens_with_its_trials(kept: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    shutil.copy(kept, path)
    with Store.open(f"sqlite:///{path}") as store:
        detail = store.get_study("kept")
        trials = store.trials(detail.searches[0])
        assert detail.study.identity == {"device": "gb10", "shape": {"experts": 8}}
        assert [run.status for run in detail.all_runs] == [RunStatus.DONE]
        assert [trial.measurement.outcome for trial in trials] == [
            Outcome.OK,
            Outcome.OK,
            Outcome.COMPILE_ERROR,
        ]
        assert trials[0].measurement.samples == (1.5, 0.1, 1e-300)
        assert trials[2].measurement.message == "PTX → Fehler"
        assert store.cache().get("0" * 16) == {"registers": 128}
        has_one = kept.stem >= "db-0003"
        assert store.verdicts(detail.searches[0]) == [{"verdict": "kept → ü"}] * has_one
        assert store.boots().lost(detail.searches[0]) == []
        jobs = [(job.id, job.state, job.args) for job in store.jobs().page()]
        assert jobs == [(1, JobState.QUEUED, {"device": "gb10"})] * (kept.stem >= "db-0005")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        versions = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall()
        assert versions == [(known_revisions()[-1],)]


def test_alembic_commands_work_for_developers(tmp_path: Path) -> None:
    if not (data_root() / "alembic.ini").exists():
        pytest.skip("not in the repository")
    for name in ("alembic", "alembic.ini"):
        source, target = data_root() / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)

    def alembic(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    alembic("upgrade", "head")
    alembic("check")
    alembic("revision", "--autogenerate", "-m", "no change")
    number = int(known_revisions()[-1]) + 1
    made = tmp_path / "alembic" / "versions" / f"{number:04d}_no_change.py"
    assert f"revision = '{number:04d}'" in made.read_text()
    alembic("upgrade", "head")
    alembic("downgrade", "-1")
