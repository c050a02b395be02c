"""Mirror and dashboard: what Optuna's own classes read back, and what a browser shows."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from autotune.core import Basis, Candidate, Measurement, Outcome, Phase, Scalar, Trial
from autotune.report.dashboard import LocalOnly
from autotune.report.optuna_mirror import mirror, open_mirror
from autotune.store.records import DatedTrial, StudyDetail
from autotune.store.store import Store
from tests.browser import chromium
from tests.support.stores import Size, begin, url

BINARY = Path(sys.executable).with_name("autotune")
NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
MEASURED = Basis.MEASURED
Stored = tuple[StudyDetail, dict[int, list[DatedTrial]]]


def trial(
    sequence: int, params: dict[str, Scalar], value: float | None = 1.0, **more: Any
) -> Trial:
    outcome = more.pop("outcome", Outcome.OK)
    measurement = Measurement(outcome, MEASURED, value, seconds=2.0, **more)
    return Trial(Candidate.of(params), "m1", Phase.SEARCH, sequence, measurement)


def stored(path: Path, trials: list[Trial], name: str = "s") -> Stored:
    with Store.open(url(path), now=lambda: NOW) as store:
        search, run = begin(store, name)
        store.add_trials(run, store.workload(search, Size(1)).id, trials)
        return store.get_study(name), {search.id: store.dated_trials(search)}


class Load(Size):
    """Loads of one label, such as the same concurrency with more repeats."""

    @property
    def label(self) -> str:
        return "c=1"


def test_loads_of_one_label_are_studies_of_their_own(tmp_path: Path) -> None:
    with Store.open(url(tmp_path / "a.db"), now=lambda: NOW) as store:
        search, run = begin(store, "s")
        for m in (1, 2):
            made = dataclasses.replace(trial(0, {"gamma": m}), workload_key=f"m{m}")
            store.add_trials(run, store.workload(search, Load(m)).id, [made])
        both = store.get_study("s"), {search.id: store.dated_trials(search)}
    names = mirror([both], tmp_path / "mirror")
    assert names == ["s c=1 (m1), measured", "s c=1 (m2), measured"]
    assert [len(load(tmp_path / "mirror", name).trials) for name in names] == [1, 1]


def load(path: Path, name: str = "s M=1, measured") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_mirror(path))


def test_optuna_reads_what_was_stored(tmp_path: Path) -> None:
    trials = [
        trial(0, {"BLOCK": 64, "kind": "a"}, 7.5),
        trial(1, {"BLOCK": 128, "kind": "b"}, 5.25),
        trial(2, {"BLOCK": 16}, None, outcome=Outcome.OUT_OF_MEMORY, message="no room " * 900),
    ]
    names = mirror([stored(tmp_path / "a.db", trials)], tmp_path / "mirror")
    assert names == ["s M=1, measured"]
    study = load(tmp_path / "mirror")
    assert study.direction is StudyDirection.MINIMIZE
    assert [t.value for t in study.trials] == [7.5, 5.25, None]
    assert [t.params for t in study.trials] == [t.candidate.params for t in trials]
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 2 + [TrialState.FAIL]
    assert study.best_trial.number == 1
    assert study.trials[0].user_attrs == {
        "phase": "search",
        "basis": "measured",
        "outcome": "ok",
        "sequence": 0,
        "run": 1,
    }
    failed = study.trials[2].user_attrs
    assert failed["outcome"] == "out_of_memory"
    assert failed["message"].startswith("no room")
    assert len(failed["message"]) == 2000
    assert study.user_attrs["basis"] == "measured"
    assert json.loads(study.user_attrs["setup"]) == {"seed": 1}
    # The values of a parameter are in order, so that a slice plot is.
    assert study.trials[0].distributions["BLOCK"].choices == (16, 64, 128)  # type: ignore[attr-defined]


def test_times_are_those_of_the_measurements(tmp_path: Path) -> None:
    mirror([stored(tmp_path / "a.db", [trial(0, {"A": 1})])], tmp_path / "mirror")
    (found,) = load(tmp_path / "mirror").trials
    assert found.datetime_complete is not None
    assert found.datetime_complete.astimezone(UTC) == NOW
    assert found.duration == timedelta(seconds=2)


def test_the_mirror_is_made_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "mirror"
    first = stored(tmp_path / "a.db", [trial(0, {"A": 1}), trial(1, {"A": 2})])
    mirror([first], path)
    before = [(t.params, t.value) for t in load(path).trials]
    mirror([first], path)
    assert [(t.params, t.value) for t in load(path).trials] == before
    mirror([stored(tmp_path / "a.db", [trial(2, {"A": 3})])], path)
    assert len(load(path).trials) == 3
    assert list(tmp_path.glob(".mirror*")) == []


def test_values_of_different_types_are_apart(tmp_path: Path) -> None:
    given: list[Scalar] = [1, "1", 0.5, "auto"]
    trials = [trial(i, {"A": value}) for i, value in enumerate(given)]
    mirror([stored(tmp_path / "a.db", trials)], tmp_path / "mirror")
    read = [t.params["A"] for t in load(tmp_path / "mirror").trials]
    assert [(type(v), v) for v in read] == [(type(v), v) for v in given]


@pytest.mark.parametrize("many", [2_000, pytest.param(12_000, marks=pytest.mark.nightly)])
def test_thousands_of_trials_take_seconds(many: int, tmp_path: Path) -> None:
    trials = [trial(i, {"A": i % 16, "B": i % 7}, float(i)) for i in range(many)]
    found = stored(tmp_path / "a.db", trials)
    began = time.process_time()
    mirror([found], tmp_path / "mirror")
    # All of them take 2 s on an idle core; an SQL storage takes 6 minutes.
    assert time.process_time() - began < many / 400
    assert len(load(tmp_path / "mirror").trials) == many


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    stored(tmp_path / "a.db", [trial(i, {"A": i}, 9.0 - i) for i in range(5)], "my-study")
    stored(tmp_path / "a.db", [trial(0, {"A": 1})], "other")
    return tmp_path


def command(folder: Path, *args: str) -> list[str]:
    return [str(BINARY), "dashboard", *args, "--db", url(folder / "a.db"), "--out", "out"]


@contextmanager
def served(folder: Path, *args: str) -> Iterator[dict[str, Any]]:
    line = command(folder, *args, "--port", "0", "--json")
    with subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            text = ""
            while not text.endswith("}\n"):
                text += process.stdout.readline()
            yield json.loads(text)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0


@pytest.mark.browser
def test_a_browser_sees_the_study(place: Path) -> None:
    with chromium(place / "profile") as browser, served(place) as said:
        assert said["studies"] == ["my-study M=1, measured", "other M=1, measured"]
        browser.open(said["url"])
        end = time.monotonic() + 60
        while "my-study M=1, measured" not in browser.js("return document.body.innerText"):
            assert time.monotonic() < end, browser.console()
            time.sleep(0.2)
        browser.shoot("dashboard", whole=False)
        elsewhere = [u for u in browser.requests() if not u.startswith("http://127.0.0.1:")]
        assert elsewhere == []


def test_one_study_and_its_trials_over_http(place: Path) -> None:
    with served(place, "my-study") as said:
        assert said["storage"] == "out/my-study/dashboard.journal"
        assert said["studies"] == ["my-study M=1, measured"]
        base = said["url"].replace("/dashboard/", "/api/studies")
        with urllib.request.urlopen(base) as reply:
            (summary,) = json.load(reply)["study_summaries"]
        with urllib.request.urlopen(f"{base}/{summary['study_id']}") as reply:
            assert [t["values"][0] for t in json.load(reply)["trials"]] == [9, 8, 7, 6, 5]


def test_what_cannot_be_shown_is_one_line(
    place: Path,
    in_process: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failed(folder: Path, *args: str) -> tuple[int, str]:
        monkeypatch.chdir(folder)
        code, out, err = in_process(*command(folder, *args)[1:])
        assert out == ""
        assert err.count("\n") == 1, err
        return code, err

    assert failed(place, "my-stdy") == (
        2,
        f"autotune: no study 'my-stdy' in {place}/a.db; did you mean 'my-study'?\n",
    )
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, said = failed(place, "--port", str(port))
    assert (code, f"port {port} of 127.0.0.1: Address already in use" in said) == (2, True)
    assert "--port 65536: expected 0 to 65535" in failed(place, "--port", "65536")[1]
    with Store.open(url(place / "a.db")) as store:
        begin(store, "empty")
    assert "study 'empty' holds no trials yet" in failed(place, "empty")[1]
    (place / "out").mkdir(exist_ok=True)
    (place / "out" / "other").write_text("in the way")
    code, said = failed(place, "other")
    assert (code, "out/other" in said) == (2, True)


def test_a_missing_package_is_named(
    place: Path,
    in_process: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *a: None if name == "optuna_dashboard" else real(name, *a),
    )
    code, out, err = in_process("dashboard", "--db", url(place / "a.db"))
    assert (code, out) == (3, "")
    expected = "optuna-dashboard is not installed; in a clone: pip install '.[dashboard]'"
    assert err == f"autotune: {expected}\n"


@pytest.mark.parametrize(
    ("headers", "let_in"),
    [
        ({"HTTP_HOST": "127.0.0.1:7"}, True),
        ({"HTTP_HOST": "localhost:7", "HTTP_ORIGIN": "http://localhost:7"}, True),
        ({}, False),
        ({"HTTP_HOST": "evil.example:7"}, False),
        ({"HTTP_HOST": "127.0.0.1.evil.example:7"}, False),
        ({"HTTP_HOST": "127.0.0.1:8"}, False),
        ({"HTTP_HOST": "127.0.0.1:7", "HTTP_ORIGIN": "http://evil.example"}, False),
        ({"HTTP_HOST": "127.0.0.1:7", "HTTP_ORIGIN": "null"}, False),
        ({"HTTP_HOST": "127.0.0.1:7", "HTTP_SEC_FETCH_SITE": "cross-site"}, False),
        ({"HTTP_HOST": "127.0.0.1:7", "HTTP_SEC_FETCH_SITE": "same-origin"}, True),
    ],
)
def test_another_site_neither_reads_nor_deletes(headers: dict[str, str], let_in: bool) -> None:
    """The dashboard accepts any Host and Origin: a name of theirs that resolves to 127.0.0.1."""
    reached: list[str] = []

    def app(environ: dict[str, Any], _: Any) -> list[bytes]:
        reached.append(environ["REQUEST_METHOD"])
        return []

    gate = LocalOnly(app)
    gate.allow(7)
    for method in ("GET", "DELETE"):
        gate({"REQUEST_METHOD": method, **headers}, lambda *_: None)
    assert reached == (["GET", "DELETE"] if let_in else [])
