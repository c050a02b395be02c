"""A study as one file to give away and to take in: round trips, hostile files, nothing private."""

from __future__ import annotations

import copy
import gzip
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.kernels.stored import load
from autotune.machine.environment import names_of_this_machine, places_of_this_machine
from autotune.serving.scenario import SpecScenario
from autotune.store import bundle as bundle_module
from autotune.store.bundle import packed, read_bundle
from autotune.store.sharing import make_bundle, merge_bundle
from autotune.store.store import Store
from autotune.util import secret
from autotune.util.anonymous import Anonymous
from tests.kernels.kept_study import FILE, KEPT, STUDY, database
from tests.support import kernel_pages
from tests.support.commands import BAD, DONE, Command, check

Plant = dict[str, Any]


@pytest.fixture
def given_away(tmp_path: Path) -> Path:
    """A small study for the GB10, as somebody gave it away."""
    kernel_pages.predicted(tmp_path)
    with Store.open(f"sqlite:///{tmp_path}/p.db") as store:
        bundle = make_bundle(store, "p", Anonymous())
    path = tmp_path / "given.json.gz"
    path.write_bytes(packed(bundle))
    return path


def rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def test_a_measured_study_comes_back_whole(
    tmp_path: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was kept of the H200: the file exported from its bundle is the same, byte by byte."""
    monkeypatch.chdir(tmp_path)
    theirs, ours = database(tmp_path), "sqlite:///ours.db"
    code, out, _ = in_process("report", STUDY, "--db", theirs, "--bundle", "h.json.gz")
    assert code == DONE
    assert "1288 trials" in out
    assert "Nothing was sent" in out
    assert Path("h.json.gz").stat().st_size < 200_000
    assert not Path("outputs").exists(), "no page was asked for"
    code, out, _ = in_process("merge", "h.json.gz", "--db", ours, "--json")
    told = json.loads(out)
    assert (told["study"], told["added"], told["device"]) == (STUDY, 1288, "NVIDIA H200")
    with Store.open(theirs) as first, Store.open(ours) as second:
        before, after = load(first, STUDY, 0.01), load(second, STUDY, 0.01)
    assert before.rows == after.rows
    assert before.gaps == after.gaps
    assert after.setup == before.setup | {"bundle": after.setup["bundle"]}
    assert after.commands == (f"autotune merge h.json.gz --db {ours} --json",)
    dates = "SELECT created_at FROM trials ORDER BY id"
    assert rows(tmp_path / "kept.db", dates) == rows(tmp_path / "ours.db", dates)
    for command in (("report", STUDY), ("export", STUDY, "--to", "folder", "--dest", "d")):
        code, out, err = in_process(*command, "--db", ours)
        assert code == DONE, err
    assert Path("d", FILE).read_bytes() == (KEPT / FILE).read_bytes()
    code, out, _ = in_process("merge", "h.json.gz", "--db", ours, "--json")
    assert json.loads(out)["added"] == 0, "once is enough"


def test_no_command_here_goes_on_from_a_bundle(tmp_path: Path, given_away: Path) -> None:
    merge_bundle(f"sqlite:///{tmp_path}/o.db", read_bundle(given_away), "p", "autotune merge")
    with Store.open(f"sqlite:///{tmp_path}/o.db") as store:
        study = store.get_study("p").study
        own = store.search(study, kernel_pages.SETUP)
        assert store.trials(own) == []


def test_a_kill_loses_nothing_and_doubles_nothing(
    tmp_path: Path, given_away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, url = read_bundle(given_away), f"sqlite:///{tmp_path}/o.db"
    add, calls = Store.add_trials, iter(range(100))

    def dies(*args: Any) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        add(*args)

    monkeypatch.setattr(Store, "add_trials", dies)
    with pytest.raises(KeyboardInterrupt):
        merge_bundle(url, bundle, "p", "autotune merge")
    count = "SELECT count(*), count(DISTINCT workload_id || phase || sequence) FROM trials"
    ((before, _),) = rows(tmp_path / "o.db", count)
    assert 0 < before < bundle.trials
    assert merge_bundle(url, bundle, "p", "autotune merge") == bundle.trials - before
    assert rows(tmp_path / "o.db", count) == [(bundle.trials, bundle.trials)]


def test_a_name_that_is_taken_is_not_shared(
    tmp_path: Path, given_away: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours = ("merge", str(given_away), "--db", "sqlite:///p.db")
    check(in_process(*ours), BAD, "study 'p' is in", "not of this bundle", "--study")
    code, out, _ = in_process(*ours, "--study", "lees")
    assert code == DONE
    assert "lees: 6 new trials of 6, predicted on" in out
    code, _, err = in_process("report", "lees", "--db", "sqlite:///p.db")
    assert code == DONE, err


def test_a_study_without_trials_is_not_given_away(
    tmp_path: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store.open("sqlite:///e.db") as store:
        store.study("e", "moe", {"device": "gb10"})
    got = in_process("report", "e", "--db", "sqlite:///e.db", "--bundle", "e.gz")
    check(got, BAD, "no trials yet")
    assert not Path("e.gz").exists()


# ------------------------------------------------------------------------------------------
# nothing private

HOST, USER = "spark-4711", "annlee"
TOKEN = "hf_abcdefghijklmnopqrstuvwx"
SECRET = "correct-horse-battery-staple"
CANARIES = [HOST, USER, TOKEN, SECRET, "/home", "/data", "/srv", "10.1.2.3", "corp.example"]
CANARIES += ["GPU-39782d54", "ann@", "My Models", "private/models", "51:fd:c4", "fe80", "1f2e3d"]


def planted(tmp_path: Path) -> Store:
    """A study whose every field holds something that nobody should see."""
    store = Store.open(f"sqlite:///{tmp_path}/s.db")
    target = f"/home/{USER}/My Models/gemma-4"
    study = store.study("s", "spec", {"target": target, "drafter": "private/models/at/drafter"})
    setup = {
        "basis": "measured",
        "recipe": {"env": {"A": "/srv/x y/z", "HF_TOKEN": "1f2e3d4c5b6a"}, "target": target},
        "image": "registry.corp.example:5000/team/vllm:1",
        "server_args": [f"--x=/data/{USER}/y", f"--url=https://{USER}:{SECRET}@h.corp.example/a"],
        "mounts": [f"/home/{USER}/.cache:/root/.cache:ro"],
        "vllm": "0.33.0",
    }
    search = store.search(study, setup)
    gpu = {"name": "NVIDIA GB10", "uuid": "GPU-39782d54-04bb-39cb-ce12-2ba3b45aaf7d"}
    environment = {"gpus": [gpu], "host": HOST, "system": f"Linux 6.1 {HOST}"}
    run = store.start_run(search, store.environment(environment), f"autotune spec {target}")
    scenario = SpecScenario(
        target, "ngram", f"/data/{USER}/p.jsonl", "k" * 16, (1,), 24, True, True, 6, 1, "geomean"
    )
    message = (
        f"{HOST.upper()}: cannot open '/home/{USER}/My Models/gemma-4/a.py' line 3 ({SECRET}), "
        f"private/models/at/home.py, {TOKEN}, mail ann@corp.example, from 10.1.2.3 "
        "via fe80::1ff:fe23:4567:890a and 00:1b:51:fd:c4:00"
    )
    details = {
        "log": f"outputs/{USER}/spec/logs/1.log",
        f"/srv/{USER}": [f"at {HOST}.corp.example"],
    }
    failed = Measurement(Outcome.CRASH, Basis.MEASURED, message=message, details=details)
    fine = Measurement(Outcome.OK, Basis.MEASURED, 10.0, (10.0,) * 6, details={"boots": 1})
    workload = store.workload(search, scenario)
    for number, (gamma, measured) in enumerate(((0, fine), (2, failed))):
        phase = Phase.SEARCH if gamma else Phase.BASELINE
        made = Trial(Candidate.of({"gamma": gamma}), scenario.key, phase, number, measured)
        store.add_trials(run, workload.id, [made])
    serve = f"vllm serve '{target}' --api-key {SECRET}"
    store.set_verdict(search, {"command": f"autotune {USER}", "best": {"serve": serve}, "n": 1})
    return store


def test_nothing_private_is_in_a_bundle(tmp_path: Path) -> None:
    secret.remember([SECRET])
    clean = Anonymous([f"/home/{USER}/My Models", str(tmp_path)], [HOST, USER])
    with planted(tmp_path) as store:
        bundle = make_bundle(store, "s", clean)
    text = gzip.decompress(packed(bundle)).decode()
    found = [canary for canary in CANARIES if canary.lower() in text.lower()]
    assert found == []
    assert str(tmp_path) not in text
    # and what it is for is there
    assert bundle.study.identity["target"] == "gemma-4"
    assert bundle.searches[0].setup["vllm"] == "0.33.0"
    assert bundle.environments[0]["gpus"][0] == {"name": "NVIDIA GB10", "uuid": "GPU"}
    assert [t.value for t in bundle.searches[0].trials] == [10.0, None]
    assert "cannot open" in bundle.searches[0].trials[1].message


def test_the_canaries_are_seen_without_the_cleaning(tmp_path: Path) -> None:
    with planted(tmp_path) as store:
        bundle = make_bundle(store, "s", lambda value: value)
    text = gzip.decompress(packed(bundle)).decode()
    assert [canary for canary in CANARIES if canary.lower() not in text.lower()] == []


@pytest.mark.parametrize(
    "text",
    [
        "RedHatAI/gemma-4-26B-A4B-it-FP8-Dynamic",
        "16/64/128/1/4/4",
        "12.5 tok/s at 8 streams",
        "580.159.04",
        "Linux 6.18.44-fc-v657-gpu",
        "127.0.0.1",
        "c=1,4,8 round 2",
        "NVIDIA GB10 (DGX Spark)",
        "0.33.0+cu130",
        "57a3f7efc9624f5c437908892ed5109a81ba0dbf45e1c6ac8a1438a23131f207",
        "wanted: 1:30:02 left",
    ],
)
def test_harmless_text_stays(text: str) -> None:
    assert Anonymous(["/home/x"], ["spark-4711"])(text) == text


def test_a_secret_is_known_by_its_name_wherever_the_name_stands() -> None:
    kept = secret.keep("KEPT_TOKEN", "a-secret-of-this-process")
    given = {
        "api_keys": ["alpha1", kept],
        "args": ["--api-key", "beta2", "--max-tokens", "64", "--api-key=gamma3"],
        "env": ["MY_TOKEN=delta4", "A=1", f"OTHER_TOKEN={kept}"],
        "message": "refused: password=epsilon5, n=3",
    }
    assert Anonymous()(given) == {
        "api_keys": ["***", kept],
        "args": ["--api-key", "***", "--max-tokens", "64", "--api-key=***"],
        "env": ["MY_TOKEN=***", "A=1", f"OTHER_TOKEN={kept}"],
        "message": "refused: password=***, n=3",
    }


NAMES = st.text("abcdefghijklmnopqrstuvwxyzXYZ0123456789_-", min_size=4, max_size=12)
AROUND = st.sampled_from(["", " ", "(", "'", '"', "=", "\n", ", ", ": "])


@given(st.lists(NAMES, min_size=2, max_size=5), AROUND, AROUND, st.sampled_from(["/", "~/", "../"]))
def test_no_folder_of_a_path_is_left(names: list[str], before: str, after: str, start: str) -> None:
    path = start + "/".join(f"q7{name}" for name in names)
    cleaned = Anonymous()(f"failed{before or ' '}{path}{after}")
    assert not any(f"q7{name}" in cleaned for name in names)


@given(NAMES, AROUND, AROUND)
def test_no_name_of_the_host_is_left(name: str, before: str, after: str) -> None:
    host = f"q7{name}q"
    assert host not in Anonymous(hosts=[host])({f"on{before or ' '}{host}{after}": [host.upper()]})


# ------------------------------------------------------------------------------------------
# hostile files

Change = Callable[[Plant], object]


def _trial(plant: Plant) -> Plant:
    found: Plant = plant["searches"][0]["trials"][0]
    return found


def _set(where: Callable[[Plant], Plant], name: str, value: Any) -> Change:
    return lambda plant: where(plant).__setitem__(name, value)


def _study(plant: Plant) -> Plant:
    found: Plant = plant["study"]
    return found


def _deep(plant: Plant) -> None:
    value: Any = 1
    for _ in range(500):
        value = [value]
    _trial(plant)["details"] = {"a": value}


HOSTILE: dict[str, tuple[Change, str]] = {
    "not a bundle": (_set(lambda p: p, "format", "other"), "no bundle"),
    "a later version": (_set(lambda p: p, "version", 2), "version 2"),
    "a version that is no number": (_set(lambda p: p, "version", "1\x1b[31m"), "version"),
    "a field more": (_set(lambda p: p, "run_me", "x"), "run_me"),
    "no study": (lambda p: p.pop("study"), "study"),
    "another kind": (_set(_study, "kind", "shell"), "kind"),
    "a name that leads out": (_set(_study, "name", "../../etc/cron.d/x"), "--study"),
    "a name of escapes": (_set(_study, "name", "\x1b[2Jx"), "name"),
    "a device with a path": (
        lambda p: p["study"]["identity"].update(device="../../x.yaml"),
        "x.yaml",
    ),
    "a device that is unknown": (lambda p: p["study"]["identity"].update(device="zx81"), "zx81"),
    "no shape": (lambda p: p["study"]["identity"].pop("shape"), "shape"),
    "a shape of words": (
        lambda p: p["study"]["identity"]["shape"].update(experts="many"),
        "cannot be read back",
    ),
    "a data type that leads out": (
        lambda p: p["study"]["identity"]["shape"].update(dtype="/../../x"),
        "data type '/../../x'",
    ),
    "another shape below": (
        lambda p: p["searches"][0]["workloads"][0]["spec"].update(m=77),
        "not of the study's shape",
    ),
    "no basis": (lambda p: p["searches"][0]["setup"].pop("basis"), "basis"),
    "a setup of nothing": (lambda p: p["searches"][0].update(setup={}), "setup"),
    "a value without success": (_set(_trial, "outcome", "crash"), "go together"),
    "an outcome that is none": (_set(_trial, "outcome", "won"), "outcome"),
    "a value below 0": (_set(_trial, "value", -1.0), "value"),
    "a value as text": (_set(_trial, "value", "10"), "value"),
    "a value of true": (_set(_trial, "value", True), "value"),
    "samples without end": (_set(_trial, "samples", [1.0] * 10_001), "samples"),
    "a run that is not there": (_set(_trial, "run", 9), "no run"),
    "a workload that is not there": (_set(_trial, "workload", 9), "no workload"),
    "a sequence below 0": (_set(_trial, "sequence", -1), "sequence"),
    "a trial twice": (
        lambda p: p["searches"][0]["trials"].append(copy.deepcopy(_trial(p))),
        "twice",
    ),
    "a candidate of lists": (_set(_trial, "candidate", {"BLOCK_SIZE_M": [16]}), "candidate"),
    "a candidate of nothing": (_set(_trial, "candidate", {}), "candidate"),
    "a message without end": (_set(_trial, "message", "x" * 601), "message"),
    "nested deep": (_deep, "nested too deep"),
    "a time without a zone": (_set(_trial, "created_at", "2026-11-01T00:00:00"), "created_at"),
    "no search": (lambda p: p.update(searches=[]), "searches"),
    "an environment that is not there": (
        lambda p: p["searches"][0]["runs"][0].update(environment=5),
        "no environment",
    ),
    "a key that is none": (
        lambda p: p["searches"][0]["workloads"][0].update(key="' OR 1=1 --"),
        "key",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_one_line_and_changes_nothing(
    name: str,
    tmp_path: Path,
    given_away: Path,
    in_process: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change, words = HOSTILE[name]
    plant = json.loads(gzip.decompress(given_away.read_bytes()))
    change(plant)
    given_away.write_bytes(gzip.compress(json.dumps(plant).encode()))
    monkeypatch.chdir(tmp_path)
    check(in_process("merge", str(given_away), "--db", "sqlite:///new/o.db"), BAD, words)
    assert not Path("new").exists()


def test_the_bundle_that_they_were_made_of_is_fine(
    tmp_path: Path, given_away: Path, in_process: Command
) -> None:
    code, _, err = in_process("merge", str(given_away), "--db", f"sqlite:///{tmp_path}/o.db")
    assert code == DONE, err


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"{}", "gzip"),
        (gzip.compress(b"{"), "not JSON"),
        (gzip.compress(b"[]"), "no bundle"),
        (gzip.compress(b'{"format": "autotune bundle", "version": 1}'), "not as a bundle is"),
        (gzip.compress(b'{"format": NaN}'), "NaN"),
        (gzip.compress(b"\xff\xfe"), "not UTF-8"),
        (gzip.compress(b"[]")[:-3], "gzip"),
    ],
    ids=["empty", "plain", "cut", "a list", "no study", "NaN", "bytes", "a cut file"],
)
def test_what_is_no_bundle(data: bytes, words: str, tmp_path: Path, in_process: Command) -> None:
    path = tmp_path / "b"
    path.write_bytes(data)
    check(in_process("merge", str(path), "--db", f"sqlite:///{tmp_path}/o.db"), BAD, words)
    assert not (tmp_path / "o.db").exists()


def test_bombs_and_places_that_are_no_files(
    tmp_path: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "MOST_JSON", 1 << 20)
    monkeypatch.setattr(bundle_module, "MOST_BYTES", 1 << 16)
    db = ("--db", f"sqlite:///{tmp_path}/o.db")
    bomb, large = tmp_path / "bomb", tmp_path / "large"
    bomb.write_bytes(gzip.compress(b" " * (1 << 22)))
    large.write_bytes(b"\0" * (1 << 17))
    check(in_process("merge", str(bomb), *db), BAD, "unpacks to more than")
    check(in_process("merge", str(large), *db), BAD, "is larger than")
    check(in_process("merge", "/dev/zero", *db), BAD, "not a regular file")
    check(in_process("merge", str(tmp_path), *db), BAD, "directory")
    check(in_process("merge", str(tmp_path / "none"), *db), BAD, "No such file")


def test_a_date_to_come_is_today(tmp_path: Path, given_away: Path) -> None:
    plant = json.loads(gzip.decompress(given_away.read_bytes()))
    _trial(plant)["created_at"] = "2999-01-01T00:00:00Z"
    given_away.write_bytes(gzip.compress(json.dumps(plant).encode()))
    merge_bundle(f"sqlite:///{tmp_path}/o.db", read_bundle(given_away), "p", "autotune merge")
    ((latest,),) = rows(tmp_path / "o.db", "SELECT max(created_at) FROM trials")
    assert latest < "2999"


def test_what_a_machine_is_called_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", USER)
    monkeypatch.setattr("platform.node", lambda: f"{HOST}.corp.example")
    names = names_of_this_machine()
    assert {f"{HOST}.corp.example", HOST, USER} <= {*names}
    assert str(Path.home()) in places_of_this_machine()
