"""The page in Chromium, against a service in a process of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import WebDriverException

from autotune.core import Phase
from autotune.store.store import Store
from tests.browser import Browser, chromium
from tests.support import kernel_pages
from tests.support.synthetic_service import TOTAL, hold, release
from tests.web.served import REAL, REPOSITORY, SYNTHETIC, Served, reached

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def serve(folder: Path, program: tuple[str, ...]) -> Served:
    root = folder / "root"
    root.mkdir()
    return Served(root, program)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Served]:
    """One service for all, with the browser logged in to it; each test has its own studies."""
    made = serve(tmp_path_factory.mktemp("served"), SYNTHETIC)
    try:
        log_in(browser, made)
        yield made
    finally:
        made.stop()


def log_in(browser: Browser, served: Served) -> None:
    browser.driver.delete_all_cookies()
    browser.open(f"{served.url}/")
    assert browser.driver.current_url == f"{served.url}/login"
    type_in(browser, "token", "wrong")
    browser.js("document.querySelector('form').requestSubmit()")
    until(browser, "return document.querySelector('[role=alert]')?.textContent", "not the token")
    type_in(browser, "token", served.token)
    browser.js("document.querySelector('form').requestSubmit()")
    until(browser, "return document.querySelector('h1').textContent", "Jobs")
    browser.console()


def until(browser: Browser, script: str, wanted: str, within_s: float = 120) -> str:
    end, found = time.monotonic() + within_s, ""
    while time.monotonic() < end:
        try:
            found = str(browser.js(script) or "")
        except WebDriverException:
            found = ""  # the page is being loaded
        if re.search(wanted, found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{wanted!r} is not in {found!r}; {browser.console()}")


def type_in(browser: Browser, field: str, text: str) -> None:
    browser.js("document.getElementById(arguments[0]).value = arguments[1]", field, text)


def press(browser: Browser, selector: str) -> None:
    browser.js("document.querySelector(arguments[0]).click()", selector)


TEXT = "return document.getElementById(%r).textContent"


def state(browser: Browser, wanted: str, within_s: float = 120) -> None:
    until(browser, TEXT % "state", wanted, within_s)


def check_page(browser: Browser) -> None:
    """What a strict policy and axe's lesser rules ask of every page."""
    assert [line for line in browser.console() if "favicon" not in line] == []
    twice = "const i = [...document.querySelectorAll('[id]')].map(e => e.id);"
    assert browser.js(f"{twice} return i.length - new Set(i).size") == 0
    assert browser.js("return document.querySelectorAll('h1').length") == 1
    assert (
        browser.js("return document.querySelectorAll('[onclick], script:not([src])').length") == 0
    )


@pytest.fixture(scope="module")
def done(served: Served) -> int:
    """A job that has ended, of the study ``s``."""
    job = served.submit("s")
    served.wait(job)
    return job


SCHEMES = {360: ("light", "dark"), 1200: ("light",)}
"""A scheme changes colours alone, whatever the width is."""


@pytest.mark.parametrize("width", SCHEMES)
def test_every_page_is_whole_at_any_width(
    browser: Browser, served: Served, done: int, width: int
) -> None:
    paths = ["/", "/new/moe", "/new/spec", "/new/export?study=s", f"/jobs/{done}"]
    for path in [*paths, "/studies", "/studies/s", "/devices", "/?state=FAILED"]:
        for scheme in SCHEMES[width]:
            browser.media(prefers_color_scheme=scheme)
            browser.open(f"{served.url}{path}", width=width)
            check_page(browser)
            over = (
                "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert browser.js(over) <= 0, path
            asked = [url for url in browser.requests() if not url.startswith(served.url)]
            assert asked == []
            if width == 360:
                assert browser.axe(*["color-contrast"] * (scheme == "dark")) == [], path
        name = re.sub(r"\W+", "-", path).strip("-") or "jobs"
        browser.shoot(f"serve-{name}-{width}")
    browser.media(prefers_color_scheme="light")


def test_a_report_is_a_page_of_no_site(browser: Browser, served: Served) -> None:
    with Store.open(f"sqlite:///{served.root}/autotune.db") as store:
        trials = [kernel_pages.trial(1, Phase.BASELINE, 0, 64, 10.0)]
        kernel_pages.stored(
            store, [*trials, kernel_pages.trial(1, Phase.SEARCH, 0, 128, 8.0)], (1,)
        )
    browser.open(f"{served.url}/studies/p/report")
    until(browser, "return document.querySelector('h1').textContent", "p")
    assert browser.js("return self.origin") == "null"  # it cannot act as us


def test_the_log_in_and_an_error_are_pages_too(browser: Browser, served: Served) -> None:
    browser.open(f"{served.url}/jobs/999", width=360)
    assert browser.js("return document.querySelector('[role=alert]').textContent") == "no job 999"
    assert browser.axe() == []
    browser.driver.delete_all_cookies()
    browser.open(f"{served.url}/", width=360)
    assert browser.axe() == []
    browser.js("document.querySelector('label').remove()")
    browser.js("document.querySelector('.help').style.color = '#ccc'")
    assert {"color-contrast", "label"} <= {line.split(":")[0] for line in browser.axe()}
    log_in(browser, served)


def test_a_job_from_the_form_to_its_end(browser: Browser, served: Served) -> None:
    browser.open(f"{served.url}/new/moe")
    press(browser, "button[value=start]")
    refused = "return document.getElementById('e-device').textContent"
    until(browser, refused, "Missing option '--device'")
    assert browser.js("return document.activeElement.id") == "f-device"
    assert browser.js("return document.getElementById('f-device').ariaInvalid") == "true"
    type_in(browser, "f-device", "gb10")
    type_in(browser, "f-batch_sizes", "0")
    press(browser, "button[value=start]")
    until(browser, "return document.getElementById('e-batch_sizes').textContent", "expected 1")
    assert browser.axe() == []
    type_in(browser, "f-batch_sizes", "1,8")
    type_in(browser, "f-study", "mine")
    type_in(browser, "j-name", "<b>first</b>")
    press(browser, "button[value=check]")
    until(browser, "return document.getElementById('plan-text').textContent", "Plan ")
    command = browser.js(TEXT % "command")
    assert command == "autotune moe --device gb10 --batch-sizes 1,8 --study mine"
    hold(served.root, 5)
    press(browser, "button[value=start]")
    until(browser, "return document.querySelector('h1').textContent", r"Job \d+: <b>first</b>")
    until(browser, "return document.getElementById('bar').value", "^[1-9]")
    assert all("422" in line for line in browser.console())  # the refusals above
    browser.driver.refresh()  # in the middle
    until(browser, TEXT % "state", "running")
    release(served.root)
    state(browser, "succeeded")
    assert not browser.js("return document.getElementById('basis').hidden")  # it is not measured
    assert browser.js("return document.getElementById('bar').value") == TOTAL
    assert "Best so far" in browser.js(TEXT % "best")
    assert browser.js("return document.getElementById('levels').rows.length") == 2
    until(browser, TEXT % "log", "begins")
    until(browser, TEXT % "files", "winners.json")
    trials = served.call("GET", "/studies/mine/trials?limit=1000")["trials"]
    shown = sum(trial["outcome"] == "ok" for trial in trials)  # a crash has no place on it
    assert 0 < shown < len(trials) == TOTAL
    until(browser, "return document.getElementById('landscape').dataset.dots", f"^{shown}$")
    assert browser.js("return document.getElementById('cancel').hidden")
    check_page(browser)
    assert browser.axe() == []


def test_cancel_and_again_in_two_tabs(browser: Browser, served: Served) -> None:
    hold(served.root, 5)
    job = served.submit("tabs")
    browser.open(f"{served.url}/jobs/{job}")
    first = browser.driver.current_window_handle
    served.wait(job, reached(5))
    browser.driver.switch_to.new_window("tab")
    browser.driver.get(f"{served.url}/jobs/{job}")
    state(browser, "running")
    press(browser, "#cancel")
    state(browser, "cancelled")
    browser.driver.switch_to.window(first)
    state(browser, "cancelled")
    release(served.root)
    press(browser, "#retry")
    state(browser, "succeeded")
    browser.driver.switch_to.window(browser.driver.window_handles[-1])
    browser.driver.close()
    browser.driver.switch_to.window(first)


def test_the_service_restarts_under_the_page(browser: Browser, served: Served) -> None:
    hold(served.root, 5)
    job = served.submit("restart")
    browser.open(f"{served.url}/jobs/{job}")
    until(browser, "return document.getElementById('bar').value", "^[1-9]")
    served.kill()
    release(served.root)
    served.start()  # at the same port, with the same token
    state(browser, "succeeded")
    browser.driver.get(f"{served.url}/")
    until(browser, "return document.querySelector('h1').textContent", "Jobs")  # still logged in


def test_no_script_of_others_runs_and_the_cookie_is_out_of_reach(
    browser: Browser, served: Served
) -> None:
    served.call("POST", "/jobs", {
        "kind": "moe", "args": {"device": "gb10", "study": "refused"},
        "name": "<img src=x onerror=alert(1)><script>alert(1)</script>",
    })  # fmt: skip
    browser.open(f"{served.url}/")
    until(browser, "return document.querySelector('table').textContent", "<script>alert")
    assert browser.js("return document.cookie") == ""
    cookie: Any = browser.driver.get_cookies()[0]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    browser.js("const s = document.createElement('script'); s.text = 'window.bad = 1';"
               "document.body.append(s)")  # fmt: skip
    assert browser.js("return window.bad") is None


@pytest.mark.compile
@pytest.mark.nightly
def test_a_real_prediction_from_start_to_report(browser: Browser, tmp_path: Path) -> None:
    served = serve(tmp_path, REAL)
    try:
        space = REPOSITORY / "tests" / "data" / "small-space.yaml"
        few = space.read_text().replace("[16, 32]", "[16]").replace("[32, 64]", "[64]")
        (served.root / "small.yaml").write_text(few.replace("[2, 3, 4, 5]", "[2, 3]"))
        log_in(browser, served)
        browser.open(f"{served.url}/new/moe")
        for field, text in (("device", "gb10"), ("batch_sizes", "1"), ("space", "small.yaml")):
            type_in(browser, f"f-{field}", text)
        type_in(browser, "f-study", "real")
        browser.js("document.getElementById('f-effort').value = 'quick'")
        browser.js("document.getElementById('f-predict').checked = true")
        press(browser, "button[value=start]")
        state(browser, "succeeded", 300)
        assert not browser.js("return document.getElementById('basis').hidden")
        browser.driver.get(f"{served.url}/studies/real/report")
        until(browser, "return document.querySelector('h1').textContent", "real", 60)
        assert browser.js("return self.origin") == "null"  # of no site: it cannot act as us
    finally:
        served.stop()
