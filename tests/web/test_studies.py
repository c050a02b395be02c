"""Stored studies over the network: reports, two beside each other; and the machine as it stands."""

from __future__ import annotations

import html

import pytest

from autotune.core import Phase
from autotune.kernels.kind import KIND
from autotune.machine import health
from autotune.report.page import Page
from autotune.util import secret
from autotune.web.turns import Turns
from tests.support import kernel_pages, serving_pages
from tests.web.conftest import Site

API = "/api/v1"
HTML = {"Accept": "text/html"}


@pytest.fixture
def filled(site: Site) -> Site:
    """Two studies of kernels, of which the second is faster, one of servers, and an empty one."""
    for name, us in (("slow", 8.0), ("fast", 5.0)):
        trials = [
            kernel_pages.trial(1, Phase.BASELINE, 0, 64, 10.0),
            kernel_pages.trial(1, Phase.SEARCH, 0, 64, 10.0),
            kernel_pages.trial(1, Phase.SEARCH, 1, 128, us),
        ]
        kernel_pages.stored(site.store, trials, (1,), name=name)
    serving_pages.put(site.store, serving_pages.TRIALS)
    identity = {"device": "gb10", "shape": kernel_pages.SHAPE.as_json()}
    site.store.study("empty", "moe", identity)
    return site


def test_a_report_is_of_now_and_of_no_site(filled: Site) -> None:
    told = filled.client.get(f"{API}/studies/slow/report").json()
    assert (told["title"], told["basis"]) == ("slow", "predicted")
    shown = filled.client.get("/studies/slow/report")
    assert told["result"] in html.unescape(shown.text)
    assert shown.headers["content-security-policy"].startswith("sandbox ")
    assert list(filled.root.glob("**/*.html")) == [], "reading a report writes nothing"
    assert filled.client.get(f"{API}/studies/s/report").json()["title"] == "s"


def test_a_report_says_no_secret_and_what_cannot_be_read_back_is_one_line(
    filled: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret.remember(["slow-and-secret"])
    shown = Page("t", "predicted", None, "is slow-and-secret", [])
    monkeypatch.setattr(KIND, "page", lambda *_, **__: shown)
    assert "slow-and-secret" not in filled.client.get("/studies/slow/report").text

    def other_shape(*_: object, **__: object) -> Page:
        raise KeyError("shape")

    monkeypatch.setattr(KIND, "page", other_shape)
    answer = filled.client.get(f"{API}/studies/slow/report")
    assert answer.status_code == 409
    assert "cannot be read back" in answer.json()["detail"]


def test_reports_are_made_in_turn(filled: Site) -> None:
    filled.service.plans = Turns(1, waiting=0)
    for path in ("studies/slow/report", "studies/slow/compare?with=fast"):
        for place in (f"{API}/{path}", f"/{path}"):
            answer = filled.client.get(place)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), place
    table = filled.client.get(f"{API}/studies/slow/trials?format=csv")
    assert table.status_code == 503
    assert filled.client.get(f"{API}/studies/slow").status_code == 200


def test_two_studies_beside_each_other(filled: Site) -> None:
    told = filled.client.get(f"{API}/studies/slow/compare", params={"with": "fast"}).json()
    assert told["title"] == "slow → fast"
    assert "8.0 → 5.0" in str(told)
    shown = filled.client.get("/studies/slow/compare", params={"with": "fast"})
    assert "8.0 → 5.0" in shown.text
    assert shown.headers["content-security-policy"].startswith("sandbox ")
    offered = filled.client.get("/studies/slow").text
    assert "<option>fast</option>" in offered
    assert "<option>s</option>" not in offered, "servers are not compared with kernels"


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("none/report", 404, "no study 'none'"),
        ("empty/report", 409, "empty"),
        ("slow/compare?with=none", 404, "no study 'none'"),
        ("slow/compare?with=empty", 409, "empty"),
        ("slow/compare?with=s", 422, "with: 's' is a study of spec, 'slow' of moe"),
        ("slow/compare", 422, "with: Field required"),
    ],
)
def test_what_cannot_be_shown_is_one_line(filled: Site, path: str, status: int, said: str) -> None:
    answer = filled.client.get(f"{API}/studies/{path}")
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    page = filled.client.get(f"/studies/{path}", headers=HTML)
    assert (page.status_code, page.headers["content-type"][:9]) == (status, "text/html")


def test_the_machine_is_asked_once_for_many_who_look(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def smi(*fields: str) -> list[list[str]]:
        asked.append(fields)
        return [["NVIDIA GB10", "97", "2405", "3003", "71", "[N/A]", "[N/A]", "[N/A]"]]

    monkeypatch.setattr(health, "nvidia_smi", smi)
    monkeypatch.setattr("autotune.web.service._MACHINE_S", 600.0)  # however slow this machine is
    for _ in range(5):
        told = site.client.get(f"{API}/machine").json()
    assert len(asked) == 1
    (gpu,) = told["gpus"]
    assert (gpu["name"], gpu["clock_mhz"], gpu["celsius"], gpu["watts"]) == (
        "NVIDIA GB10", 2405, 71, None,
    )  # fmt: skip
    assert 0 < told["memory"]["free"] < told["memory"]["total"]
    assert site.stranger().get(f"{API}/machine").status_code == 401
