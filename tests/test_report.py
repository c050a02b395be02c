"""``autotune report`` as it is used, and its pages in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autotune.kernels.report.page import page_of as moe_page
from autotune.report.page import Page
from autotune.report.render import to_html
from autotune.store.store import Store
from tests.browser import Browser, chromium
from tests.support.kernel_pages import RESULTS, h200, predicted, trial
from tests.support.serving_pages import LEFT, TRIALS, page_of, put
from tests.support.stores import begin

BINARY = Path(sys.executable).with_name("autotune")
STUDY = "h200-gemma4"
PHONE = 360
HOSTILE = "<img src=x onerror='hacked=1'></script><script>hacked=1</script>"


class Ran(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


Autotune = Callable[..., Ran]


def write_html(page: Page, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(to_html(page))
    return path


@pytest.fixture
def autotune(
    in_process: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> Autotune:
    """The command in this process: folder and arguments in, and what the environment holds."""

    def command(folder: Path, *args: str, **env: str) -> Ran:
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for name, value in env.items():
                patch.setenv(name, value)
            return Ran(*in_process(*args))

    return command


def started(folder: Path, *args: str, **env: str) -> Ran:
    """The command as a process."""
    ran = subprocess.run(
        [str(BINARY), *args],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **env},
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kept run on an H200 where its job would have left it."""
    folder = tmp_path_factory.mktemp("report")
    h200(folder)
    left = folder / "outputs" / STUDY / "measured"
    left.mkdir(parents=True)
    shutil.copy(RESULTS / "provenance.json", left)
    return folder


DB = ("--db", "sqlite:///h200.db")


# --- the command ---------------------------------------------------------------------------------


def test_the_files_and_what_is_said(place: Path, autotune: Autotune) -> None:
    ran = autotune(place, "report", STUDY, *DB)
    assert (ran.returncode, ran.stderr) == (0, "")
    folder = f"outputs/{STUDY}/measured"
    result, *files = ran.stdout.splitlines()
    assert result.startswith("13 of 19 rows differ from vLLM's default; 1.121×")
    assert files == [f"{folder}/report.md", f"{folder}/report.html"]
    text = (place / folder / "report.md").read_text()
    assert "| 1024 | 64/128/128/1/4/3 | 325.1 | 471.2 | 1.445× | 1.434 to 1.451 |" in text
    page = (place / folder / "report.html").read_text()
    # The job's own ceilings are used where its file lies beside, the published ones elsewhere.
    assert "measured on NVIDIA H200: a copy" in page
    elsewhere = autotune(place, "report", STUDY, *DB, "--out", "else", "--json")
    document = json.loads(elsewhere.stdout)
    assert elsewhere.stderr == ""
    assert document["kind"] == "moe"
    assert document["banner"] is None
    assert "not measured by this study" in (place / document["files"][1]).read_text()


def test_the_words_of_an_older_job_come_from_its_file(place: Path, autotune: Autotune) -> None:
    left = place / "kept" / STUDY / "measured"
    left.mkdir(parents=True)
    shutil.copy(RESULTS / "provenance.json", left)
    assert autotune(place, "report", STUDY, *DB, "--out", "kept").returncode == 0
    text = (left / "report.md").read_text()
    assert "- Model: gemma-4-26b-a4b" in text
    assert "- Ceilings measured there: copy 42" in text
    (left / "provenance.json").unlink()
    assert autotune(place, "report", STUDY, *DB, "--out", "kept").returncode == 0
    assert "- Model: " not in (left / "report.md").read_text()


def test_a_page_made_again_is_the_same(place: Path, autotune: Autotune) -> None:
    for _ in range(2):
        autotune(place, "report", STUDY, *DB, "--out", "twice")
        found = (place / "twice" / STUDY / "measured" / "report.html").read_bytes()
    # Another process has another order of its sets.
    assert started(place, "report", STUDY, *DB, "--out", "again").returncode == 0
    assert (place / "again" / STUDY / "measured" / "report.html").read_bytes() == found


def test_least_gain_is_that_of_the_job_or_as_given(place: Path, autotune: Autotune) -> None:
    given = autotune(place, "report", STUDY, *DB, "--out", "g", "--min-gain", "10%")
    assert given.stdout.startswith("7 of ")
    left = place / "h" / STUDY / "measured"
    left.mkdir(parents=True)
    kept = json.loads((RESULTS / "provenance.json").read_text())
    (left / "provenance.json").write_text(json.dumps(kept | {"min_gain": 0.1}))
    assert autotune(place, "report", STUDY, *DB, "--out", "h").stdout.startswith("7 of ")
    # What lies there about another search, or is no JSON, is not used.
    (left / "provenance.json").write_text(json.dumps(kept | {"min_gain": 0.1, "setup": {}}))
    assert autotune(place, "report", STUDY, *DB, "--out", "h").stdout.startswith("13 of ")
    (left / "provenance.json").write_text("{")
    assert autotune(place, "report", STUDY, *DB, "--out", "h").stdout.startswith("13 of ")


def test_a_spec_study(tmp_path: Path, autotune: Autotune) -> None:
    with Store.open(f"sqlite:///{tmp_path}/s.db") as store:
        put(store, TRIALS)
    db = ("--db", "sqlite:///s.db")
    ran = autotune(tmp_path, "report", "s", *db)
    assert ran.stdout.startswith("No verdict yet: 5 settings measured; the same command goes on\n")
    folder = tmp_path / "outputs" / "s" / "spec"
    (folder / "best.json").write_text(json.dumps(LEFT))
    document = json.loads(autotune(tmp_path, "report", "s", *db, "--json").stdout)
    assert document["kind"] == "spec"
    assert document["result"].startswith("Best: gamma=2")
    text = (tmp_path / document["files"][0]).read_text()
    assert "    vllm serve models/target\n" in text
    assert "| out_of_memory | torch.OutOfMemoryError" in text


def test_open_asks_the_browser_for_the_file(
    place: Path, autotune: Autotune, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = place / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > {place}/opened\n')
    script.chmod(0o755)
    monkeypatch.setattr(webbrowser, "_tryorder", None)  # a process looks them up once
    monkeypatch.setattr(webbrowser, "_browsers", {})
    ran = autotune(place, "report", STUDY, *DB, "--open", BROWSER=f"{script} %s")
    assert (ran.returncode, ran.stderr) == (0, "")
    page = place / "outputs" / STUDY / "measured" / "report.html"
    assert (place / "opened").read_text().strip() == page.as_uri()
    monkeypatch.setattr(webbrowser, "_tryorder", None)
    monkeypatch.setattr(webbrowser, "_browsers", {})
    without = autotune(place, "report", STUDY, *DB, "--open", BROWSER="false", PATH="/nowhere")
    assert without.returncode == 0
    assert without.stderr.startswith("no browser to open here; open outputs/")


def test_what_cannot_be_reported_is_one_line(place: Path, autotune: Autotune) -> None:
    with Store.open(f"sqlite:///{place}/h200.db") as store:
        begin(store, "unreadable")
    (place / "file").write_text("")

    def said(*args: str) -> tuple[int, str]:
        ran = autotune(place, "report", *args, *DB)
        assert ran.stdout == ""
        assert ran.stderr.count("\n") == 1, ran.stderr
        return ran.returncode, ran.stderr

    assert said("h200-gema4") == (
        2,
        f"autotune: no study 'h200-gema4' in {place}/h200.db; did you mean 'h200-gemma4'?\n",
    )
    code, line = said(STUDY, "--out", "file")
    assert (code, "file" in line) == (2, True)
    assert said(STUDY, "--min-gain", "2")[0] == 2
    assert said(STUDY, "--device", "gb100")[0] == 2
    code, line = said(STUDY, "--device", "gb10")
    assert (code, "was made for h200" in line) == (2, True)
    ran = autotune(place, "report", STUDY, "--db", "sqlite:///none.db")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1)


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Page, Path]]:
    found = {}
    with Store.open(f"sqlite:///{place}/h200.db") as store:
        page = moe_page(store, STUDY)
        found["moe-measured"] = page, write_html(page, place / "m")
    page = predicted(tmp_path_factory.mktemp("p"))
    found["moe-predicted"] = page, write_html(page, place / "p")
    page = page_of(tmp_path_factory.mktemp("s"))
    found["spec"] = page, write_html(page, place / "s")
    return found


KINDS = ["moe-measured", "moe-predicted", "spec"]


@pytest.mark.browser
@pytest.mark.parametrize("kind", KINDS)
def test_a_browser_draws_every_plot(
    kind: str, browser: Browser, pages: dict[str, tuple[Page, Path]]
) -> None:
    page, path = pages[kind]
    browser.open(path.as_uri())
    assert browser.console() == []
    assert browser.requests() == [path.as_uri()]
    count = "return performance.getEntriesByType('resource').length"
    assert browser.js(count) == 0
    drawn = browser.js(
        "return Object.fromEntries([...document.querySelectorAll('.plot')].map("
        "p => [p.id, [p.data.length, p.querySelectorAll('.main-svg').length]]))"
    )
    assert {name: traces for name, (traces, _) in drawn.items()} == {
        plot.name: len(plot.figure["data"]) for plot in page.plots
    }
    assert all(svgs for _, svgs in drawn.values())
    browser.shoot(f"report-{kind}")


@pytest.mark.browser
@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_needs_no_scrolling_sideways(
    kind: str, browser: Browser, pages: dict[str, tuple[Page, Path]]
) -> None:
    _, path = pages[kind]
    browser.open(path.as_uri(), width=PHONE, height=740)
    width = "return document.documentElement.scrollWidth"
    assert browser.js(width) == PHONE
    wide = browser.js(
        "return [...document.querySelectorAll('.plot')].filter("
        "p => p.getBoundingClientRect().right > innerWidth || p.clientWidth < 200).map(p => p.id)"
    )
    assert wide == []
    tables = (
        "return [...document.querySelectorAll('.table')].some(t => t.scrollWidth > t.clientWidth)"
    )
    assert browser.js(tables)  # wide ones scroll by themselves
    browser.shoot(f"report-{kind}-phone")


@pytest.mark.browser
def test_every_line_is_told_apart_in_grey_and_in_the_dark(
    browser: Browser, pages: dict[str, tuple[Page, Path]]
) -> None:
    _, path = pages["moe-measured"]
    browser.open(path.as_uri())
    browser.colours(seen=False)
    browser.shoot("report-grey")
    browser.colours(seen=True)
    looks = browser.js(
        "return [...document.querySelectorAll('.plot')].map(p => p._fullData.filter("
        "t => t.type === 'scatter' && t.showlegend).map("
        "t => [t.mode, t.line?.dash, t.marker?.symbol].join()))"
    )
    assert max(len(plot) for plot in looks) >= 3
    assert [len(plot) for plot in looks] == [len(set(plot)) for plot in looks]
    light = browser.js("return getComputedStyle(document.body).backgroundColor")
    browser.media(prefers_color_scheme="dark")
    try:
        assert browser.js("return getComputedStyle(document.body).backgroundColor") != light
        ink = "return document.getElementById('times')._fullLayout.font.color"
        assert browser.js(ink) == "#e8e8e8"
        browser.shoot("report-dark")
    finally:
        browser.media()


@pytest.mark.browser
def test_nothing_from_outside_acts(browser: Browser, tmp_path: Path) -> None:
    """Names, commands, log lines and versions as a page could be attacked with."""
    from autotune.core import Phase

    setup = {"vllm": HOSTILE, "triton": HOSTILE, "space": {"name": HOSTILE, "digest": HOSTILE}}
    with Store.open(f"sqlite:///{tmp_path}/a.db") as store:
        hostile = _hostile_page(store, setup, [trial(1, Phase.SEARCH, 0, 64, 3.0),
                                               trial(1, Phase.SEARCH, 1, 128, None)])  # fmt: skip
    path = write_html(hostile, tmp_path)
    browser.open(path.as_uri())
    assert browser.console() == []
    assert browser.js("return window.hacked") is None
    assert browser.js("return document.querySelector('h1').textContent") == HOSTILE
    assert browser.js("return document.images.length") == 0
    assert browser.js("return document.body.dataset.drawn") == "yes"


def _hostile_page(store: Store, setup: dict[str, Any], trials: list[Any]) -> Page:
    from dataclasses import replace

    from autotune.kernels.moe.shape import MoeWorkload
    from tests.support.kernel_pages import SETUP, SHAPE

    study = store.study(HOSTILE, "moe", {"device": "gb10", "shape": SHAPE.as_json()})
    search = store.search(study, SETUP | setup)
    run = store.start_run(search, store.environment({HOSTILE: HOSTILE}), HOSTILE)
    trials = [replace(t, measurement=replace(t.measurement, message=HOSTILE)) for t in trials]
    store.add_trials(run, store.workload(search, MoeWorkload(SHAPE, 1)).id, trials)
    return moe_page(store, HOSTILE)
