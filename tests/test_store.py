"""The store on real files: exact round trips, kill -9, several processes, every error."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.cli.common import check_study, warn_setup_changed
from autotune.core import (
    AutotuneError,
    BadInputError,
    Basis,
    Candidate,
    Measurement,
    MissingEnvironmentError,
    Outcome,
    Phase,
    Trial,
)
from autotune.store.records import RunRecord, RunStatus, SearchRecord
from autotune.store.store import Store
from tests.support import store_processes
from tests.support.forks import FORKS
from tests.support.stores import Size, begin, trial, url

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "autotune.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(url(path), now=lambda: NOW, busy_seconds=0.2) as store:
        yield store


# --- what is stored comes back -------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
scalars = st.booleans() | st.integers() | finite | st.text()
measurements = st.builds(
    lambda outcome, value, **rest: Measurement(
        outcome=outcome, value=value if outcome is Outcome.OK else None, **rest
    ),
    outcome=st.sampled_from(Outcome),
    basis=st.sampled_from(Basis),
    value=finite,
    samples=st.lists(finite, max_size=4).map(tuple),
    message=texts,
    details=st.dictionaries(st.text(), json_values, max_size=3),
    seconds=finite,
)
trials = st.builds(
    Trial,
    candidate=st.dictionaries(st.text(), scalars, max_size=4).map(Candidate.of),
    workload_key=st.just("m1"),
    phase=st.sampled_from(Phase),
    sequence=st.integers(0, 2**62),
    measurement=measurements,
)


@settings(max_examples=60)
@given(batch=st.lists(trials, max_size=6, unique_by=lambda t: (t.phase, t.sequence)))
def test_trials_come_back_exactly(
    batch: list[Trial], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Store.open(url(tmp_path_factory.mktemp("trip") / "a.db")) as store:
        search, run = begin(store)
        store.add_trials(run, store.workload(search, Size(1)).id, batch)
        expected = sorted(batch, key=lambda t: (list(Phase).index(t.phase), t.sequence))
        found = store.trials(search)
        # repr tells -0.0 from 0.0 and True from 1, which == does not.
        assert repr([t.candidate for t in found]) == repr([t.candidate for t in expected])
        assert [t.measurement for t in found] == [t.measurement for t in expected]
        assert found == expected


def test_a_message_with_bytes_that_are_no_text_is_kept_readable(store: Store) -> None:
    search, run = begin(store)
    broken = Measurement(Outcome.CRASH, Basis.MEASURED, message="a\udcffb\0c")
    given_trial = Trial(Candidate.of({}), "m1", Phase.SEARCH, 0, broken)
    store.add_trials(run, store.workload(search, Size(1)).id, [given_trial])
    assert store.trials(search)[0].measurement.message == "a\\udcffb\0c"


def test_order_and_filters(store: Store) -> None:
    search, run = begin(store)
    late, early = store.workload(search, Size(64)), store.workload(search, Size(8))
    store.add_trials(run, early.id, [trial(1, 8), trial(0, 8)])
    store.add_trials(run, late.id, [trial(0, 64, Phase.CONFIRM), trial(0, 64, Phase.BASELINE)])
    store.add_trials(run, late.id, [trial(0, 64)])
    order = [(t.workload_key, t.phase.value, t.sequence) for t in store.trials(search)]
    assert order == [
        ("m64", "baseline", 0),
        ("m64", "search", 0),
        ("m64", "confirm", 0),
        ("m8", "search", 0),
        ("m8", "search", 1),
    ]
    assert store.trials(search, "m64", Phase.SEARCH) == [trial(0, 64)]
    assert store.trials(search, "m9") == []


def test_twenty_thousand_trials(store: Store) -> None:
    search, run = begin(store)
    workload = store.workload(search, Size(1))
    store.add_trials(run, workload.id, [trial(i) for i in range(20_000)])
    start = time.perf_counter()
    found = store.trials(search)
    print(f"loaded in {time.perf_counter() - start:.2f} s")  # noqa: T201
    assert len(found) == 20_000


def test_a_trial_stored_twice_is_refused_with_its_whole_batch(store: Store) -> None:
    search, run = begin(store)
    workload = store.workload(search, Size(1))
    store.add_trials(run, workload.id, [trial(0)])
    with pytest.raises(BadInputError, match="stored already"):
        store.add_trials(run, workload.id, [trial(1), trial(0)])
    assert store.trials(search) == [trial(0)]


def test_mistakes_of_the_program_are_refused(store: Store) -> None:
    search, run = begin(store)
    workload = store.workload(search, Size(1))
    with pytest.raises(ValueError, match="m2"):
        store.add_trials(run, workload.id, [trial(0, m=2)])
    nan = Measurement(Outcome.OK, Basis.MEASURED, float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        store.add_trials(run, workload.id, [Trial(Candidate.of({}), "m1", Phase.SEARCH, 0, nan)])
    assert store.trials(search) == []


def test_the_same_names_give_the_same_rows(store: Store) -> None:
    search, _ = begin(store)
    again, _ = begin(store)
    assert again == search
    assert store.workload(search, Size(1)) == store.workload(search, Size(1))
    other = store.search(store.study("s", "moe", {"device": "gb10"}), {"seed": 2})
    assert other.id != search.id


def test_a_study_keeps_its_identity(store: Store) -> None:
    store.study("s", "moe", {"device": "gb10", "experts": 8})
    with pytest.raises(BadInputError) as error:
        store.study("s", "moe", {"device": "h200", "experts": 8})
    assert 'device ("gb10", now "h200")' in str(error.value)
    assert "experts" not in str(error.value)
    assert "--study NAME" in str(error.value)
    with pytest.raises(BadInputError, match="not printable"):
        store.study("a\nb", "moe", {})


def test_another_setup_is_told_while_it_has_nothing(store: Store) -> None:
    study = store.study("s", "moe", {"device": "gb10"})
    old, new = {"cpus": 16, "recipe": {"env": {}, "x": 1}}, {"cpus": 32, "recipe": {"x": 1}}
    assert store.measured_otherwise(study, new) is None  # nothing measured at all
    search = store.search(study, old)
    run = store.start_run(search, store.environment({}), "autotune spec")
    store.add_trials(run, store.workload(search, Size(1)).id, [trial(0), trial(1)])
    assert store.measured_otherwise(study, old) is None
    said = store.measured_otherwise(study, new)
    assert said == "2 trials were made with another cpus (16, now 32), recipe.env ({}, now absent)"
    filled = {"cpus": 16, "recipe": {"env": {"A": "1"}, "x": 1}}
    only = '2 trials were made with another recipe.env.A (absent, now "1")'
    assert store.measured_otherwise(study, filled) == only
    search = store.search(study, new)
    assert store.measured_otherwise(study, new) == said  # begun, but nothing measured yet
    run = store.start_run(search, store.environment({}), "autotune spec")
    store.add_trials(run, store.workload(search, Size(1)).id, [trial(0)])
    assert store.measured_otherwise(study, new) is None


def test_a_command_under_another_setup_says_so(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    search, run = begin(store)
    store.add_trials(run, store.workload(search, Size(1)).id, [trial(0)])
    for seed in (1, 2):
        assert not capfd.readouterr().err
        warn_setup_changed("s", check_study(store, "s", "moe", {"device": "gb10"}, {"seed": seed}))
    said = " ".join(capfd.readouterr().err.split())
    assert said == (
        "Study s: 1 trial was made with another seed (1, now 2); they stay, and this command "
        "begins anew"
    )


def test_studies_and_their_counts(store: Store) -> None:
    search, run = begin(store)
    workload = store.workload(search, Size(1))
    crash = Measurement(Outcome.CRASH, Basis.PREDICTED)
    bad = Trial(Candidate.of({}), "m1", Phase.SEARCH, 2, crash)
    store.add_trials(run, workload.id, [trial(0), trial(1), bad])
    store.end_run(run, RunStatus.INTERRUPTED)
    (summary,) = store.list_studies()
    assert [(c.basis, c.outcome, c.count) for c in summary.counts] == [
        (Basis.MEASURED, Outcome.OK, 2),
        (Basis.PREDICTED, Outcome.CRASH, 1),
    ]
    assert summary.trials == 3
    detail = store.get_study("s")
    assert detail.last_run is not None
    assert detail.last_run.status is RunStatus.INTERRUPTED
    assert detail.last_run.ended_at == NOW
    assert detail.as_json()["searches"] == [
        {"id": 1, "study_id": 1, "key": search.key, "setup": {"seed": 1}}
    ]
    assert detail.as_json()["study"]["created_at"] == "2026-01-02T03:04:05+00:00"
    assert [len(detail.workloads), len(detail.all_runs), len(detail.environments)] == [1, 1, 1]
    with pytest.raises(BadInputError, match="did you mean 's'"):
        store.get_study("ss")


def test_cache(store: Store, path: Path) -> None:
    cache = store.cache()
    assert cache.get("k") is None
    cache.put("k", {"n": (1, 2)})
    cache.put("k", {"n": (1, 3)})
    assert cache.get("k") == {"n": [1, 3]}
    with Store.open(url(path)) as other:
        assert other.cache().get("k") == {"n": [1, 3]}
        assert other.cache().get("none") is None


# --- several processes, and kill -9 ---------------------------------------------------------------

READY_S = 60.0


def start(target: Callable[..., None], path: Path, name: str, *args: object) -> BaseProcess:
    """Start another process; it is ready on return."""
    ready = FORKS.Event()
    process = FORKS.Process(target=target, args=(path, name, *args, ready))
    process.start()
    assert ready.wait(READY_S)
    return process


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


@pytest.mark.kill
def test_kill_in_the_middle_of_writing_leaves_whole_batches(path: Path) -> None:
    chance = random.Random(7)
    for round_ in range(4):
        name = f"study {round_}"
        writer = start(store_processes.write, path, name, 1_000_000)
        time.sleep(chance.uniform(0.0, 0.3))
        kill(writer)
        with Store.open(url(path), create=False) as store:
            detail = store.get_study(name)
            found = store.trials(detail.searches[0])
            assert [t.sequence for t in found] == list(range(len(found)))
            assert len(found) % store_processes.BATCH == 0
            assert found == [trial(i) for i in range(len(found))]
            assert detail.last_run is not None
            assert detail.last_run.status is RunStatus.KILLED
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (without,) = connection.execute(
            "SELECT count(*) FROM trials LEFT JOIN measurements ON trial_id = trials.id "
            "WHERE trial_id IS NULL"
        ).fetchone()
        assert without == 0


def test_two_processes_write_different_studies(path: Path) -> None:
    writers = [start(store_processes.write, path, name, 100) for name in ("a", "b")]
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    with Store.open(url(path)) as store:
        assert [summary.trials for summary in store.list_studies()] == [700, 700]


def test_four_processes_create_the_same_database(tmp_path: Path) -> None:
    for round_ in range(5):
        together = FORKS.Barrier(4)
        openers = [
            FORKS.Process(
                target=store_processes.open_together, args=(tmp_path / f"{round_}.db", together)
            )
            for _ in range(4)
        ]
        for opener in openers:
            opener.start()
        for opener in openers:
            opener.join()
        assert [opener.exitcode for opener in openers] == [0] * 4


@pytest.mark.kill
def test_lock_is_refused_and_freed_by_kill(store: Store, path: Path) -> None:
    holder = start(store_processes.hold, path, "mine")
    try:
        with pytest.raises(BadInputError) as error, store.lock_study("mine"):
            pass
        assert f"being tuned by process {holder.pid} (since 2" in str(error.value)
        assert "\n" not in str(error.value)
        (summary,) = store.list_studies()
        assert summary.last_run is not None
        assert summary.last_run.status is RunStatus.RUNNING
        with store.lock_study("Mine"):
            pass
    finally:
        kill(holder)
    with store.lock_study("mine"):
        last = store.get_study("mine").last_run
        assert last is not None
        assert last.status is RunStatus.KILLED
        assert last.ended_at is None


def test_a_child_may_not_write(store: Store) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            store.study("s", "moe", {})
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


# --- errors: one line, and the file stays as it is ------------------------------------------------


def content(path: Path) -> bytes | None:
    return path.read_bytes() if os.path.isfile(path) else None  # noqa: PTH113 - takes any name


def refused(path: Path, kind: type[AutotuneError], *words: str, create: bool = True) -> None:
    before = content(path)
    with pytest.raises(kind) as error:
        Store.open(url(path), create=create, busy_seconds=0.2)
    message = str(error.value)
    assert error.type is kind
    assert "\n" not in message
    for word in (str(path.parent), *words):
        assert word in message
    assert content(path) == before


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("autotune.db", "cannot be understood"),
        ("", "cannot be understood"),
        ("postgresql://u:secret@h/x", "only SQLite"),
        ("postgresql://u@h:abc/x", "cannot be understood"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:///a.db?mode=ro", "must name a file"),
        ("sqlite://outputs/a.db", "three slashes"),
        ("sqlite:///a\0b", "NUL"),
    ],
)
def test_urls_that_cannot_be_used(text: str, word: str) -> None:
    with pytest.raises(BadInputError) as error:
        Store.open(text)
    message = str(error.value)
    assert word in message
    assert ("sqlite:///autotune.db" if text == "autotune.db" else "sqlite:///outputs/") in message
    assert "\n" not in message
    assert "secret" not in message


def test_missing_file(path: Path) -> None:
    refused(path, BadInputError, "no such database", create=False)
    assert not path.parent.exists()


def test_folder(tmp_path: Path) -> None:
    refused(tmp_path, BadInputError, "is a folder")


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MissingEnvironmentError, match=r"^\S+file: .*can be written$"):
        Store.open(url(tmp_path / "file" / "a.db"))


def test_name_too_long(tmp_path: Path) -> None:
    refused(tmp_path / ("x" * 300), MissingEnvironmentError, "too long")


def test_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("hello")
    refused(tmp_path / "a.db", BadInputError, "is not a SQLite database")


@pytest.mark.parametrize("wal", [False, True])
def test_database_of_another_program(tmp_path: Path, wal: bool) -> None:
    path = tmp_path / "optuna.db"
    with closing(sqlite3.connect(path)) as connection:
        if wal:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE studies (study_id INTEGER)")
    refused(path, BadInputError, "another program", "studies")


def test_empty_file_is_filled(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    with Store.open(url(tmp_path / "a.db")) as store:
        assert store.list_studies() == []


def test_newer_version(store: Store, path: Path) -> None:
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE autotune_alembic_version SET version_num = '9999'")
        connection.commit()
    refused(path, BadInputError, "newer version", "9999", "upgrade autotune")


def test_without_version(store: Store, path: Path) -> None:
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE autotune_alembic_version")
    refused(path, BadInputError, "cannot be used")


def damage(path: Path, start: int) -> None:
    content = bytearray(path.read_bytes())
    content[start:] = b"\xa5" * (len(content) - start)
    path.write_bytes(content)


def test_damaged_schema(store: Store, path: Path) -> None:
    store.close()
    damage(path, 100)
    refused(path, BadInputError, "is damaged", "malformed")


def test_damaged_later(store: Store, path: Path) -> None:
    search, run = begin(store)
    store.add_trials(run, store.workload(search, Size(1)).id, [trial(i) for i in range(500)])
    store.close()
    damage(path, path.stat().st_size // 3)
    before = path.read_bytes()
    with pytest.raises(BadInputError) as error:
        store.trials(search)
    store.close()
    assert "is damaged" in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_locked_too_long(store: Store, path: Path) -> None:
    search, run = begin(store)
    workload = store.workload(search, Size(1))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(MissingEnvironmentError, match=r"stayed locked.*try again") as error:
            store.add_trials(run, workload.id, [trial(0)])
        assert store.trials(search) == []
    assert "\n" not in str(error.value)
    store.add_trials(run, workload.id, [trial(0)])


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system of its own at ``folder``; skips the test where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_read_only_file_system(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=4m"):
        path = tmp_path / "a.db"
        Store.open(url(path)).close()
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        refused(path, MissingEnvironmentError, "cannot be written", "a.db")
        refused(tmp_path / "new.db", MissingEnvironmentError, "cannot be written")
        refused(tmp_path / "sub" / "new.db", MissingEnvironmentError, "Read-only")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_read_only_modes(store: Store, path: Path) -> None:
    store.close()
    path.chmod(0o400)
    refused(path, MissingEnvironmentError, "cannot be written")
    path.chmod(0o600)
    path.parent.chmod(0o500)
    refused(path, MissingEnvironmentError, "cannot be written")
    path.parent.chmod(0o700)


def test_file_made_read_only_while_open(store: Store) -> None:
    search, run = begin(store)
    workload = store.workload(search, Size(1))
    with store._session.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(MissingEnvironmentError, match=r"cannot be written; make"):
        store.add_trials(run, workload.id, [trial(0)])


def fill(store: Store, search: SearchRecord, run: RunRecord) -> str:
    """Write until the disk is full; every batch told to be stored is there afterwards."""
    workload = store.workload(search, Size(1))
    for start in range(0, 1_000_000, 100):
        try:
            store.add_trials(run, workload.id, [trial(start + i) for i in range(100)])
        except MissingEnvironmentError as error:
            assert len(store.trials(search)) == start > 0
            return str(error)
    pytest.fail("the disk never became full")


def test_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path, "size=1m"), Store.open(url(tmp_path / "a.db")) as store:
        message = fill(store, *begin(store))
    assert "disk is full" in message
    assert "\n" not in message


def test_full_disk_by_page_count(store: Store) -> None:
    search, run = begin(store)
    with store._session.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 60")
    message = fill(store, search, run)
    assert "disk is full; free some space" in message
    assert "\n" not in message


def test_dated_trials_come_in_the_order_stored(store: Store) -> None:
    search, run = begin(store)
    first, second = store.workload(search, Size(1)).id, store.workload(search, Size(2)).id
    store.add_trials(run, second, [trial(0, m=2)])
    store.add_trials(run, first, [trial(1), trial(0)])
    dated = store.dated_trials(search)
    assert [(t.trial.workload_key, t.trial.sequence) for t in dated] == [
        ("m2", 0),
        ("m1", 1),
        ("m1", 0),
    ]
    assert {(t.run_id, t.created_at) for t in dated} == {(run.id, NOW)}


def test_verdicts_of_a_search_come_newest_first_and_survive(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Store.open(url(path)) as store:
        search, _ = begin(store)
        assert store.verdicts(search) == []
        store.set_verdict(search, {"verdict": "none", "borders": [0.1, None]})
        begin(store)  # another run of the same search, without a verdict yet
        store.set_verdict(search, {"verdict": "ü"})
        store.set_verdict(search, {"verdict": "again"})
        other = store.search(store.study("s", "moe", {"device": "gb10"}), {"seed": 2})
        with pytest.raises(ValueError, match="no run"):
            store.set_verdict(other, {})
    with Store.open(url(path)) as store:
        assert store.verdicts(search) == [
            {"verdict": "again"},
            {"verdict": "none", "borders": [0.1, None]},
        ]
        assert "verdict" not in store.get_study("s").as_json()["all_runs"][0]


def test_a_verdict_goes_to_a_run_of_this_process(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Store.open(url(path)) as store:
        search, _ = begin(store)
        _, other = begin(store)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE runs SET pid = pid + 1 WHERE id = ?", (other.id,))
        store.set_verdict(search, {"verdict": "mine"})
        store.set_verdict(search, {"verdict": "mine again"})
        assert store.verdicts(search) == [{"verdict": "mine again"}]
