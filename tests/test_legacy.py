"""The database and output folders that commit 5efff5a left: they open, resume, report, export."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.core import Basis, Phase
from autotune.kernels import plan as kernel_plans
from autotune.kernels.config_file import read
from autotune.kernels.job import run as tune_kernels
from autotune.kernels.moe.shape import MoeShape
from autotune.serving.report.verdict import last_verdict
from autotune.serving.stored import load_served
from autotune.store.frames import trials_frame
from autotune.store.records import StudyDetail
from autotune.store.store import Store
from tests.kernels.test_measured_job import plan as kernel_plan
from tests.kernels.test_predicted_job import MadeUp

LEGACY = Path(__file__).parent / "data" / "legacy"
MOE, FILE = "moe-gb10-e128-n704-fp8_w8a8", "E=128,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def left(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LEGACY, tmp_path / "left"))


@pytest.fixture
def autotune(left: Path, in_process: Command) -> Callable[..., str]:
    """A command on the old database: its words in, its output out."""

    def command(*words: str) -> str:
        code, out, err = in_process(*words, "--db", f"sqlite:///{left}/autotune.db")
        assert code == 0, err
        return out

    return command


def detail_of(left: Path, study: str) -> StudyDetail:
    with Store.open(f"sqlite:///{left}/autotune.db") as store:
        return store.get_study(study)


def test_no_path_of_the_machine_that_made_it_is_left() -> None:
    for path in LEGACY.rglob("*"):
        assert not path.is_file() or b"/work/" not in path.read_bytes(), path


# --- open ----------------------------------------------------------------------------------------


def test_both_studies_open(left: Path, autotune: Callable[..., str]) -> None:
    assert {row["study"]["name"] for row in json.loads(autotune("studies", "--json"))} == {"s", MOE}
    assert json.loads(autotune("show", "s", "--json"))["trials"] == 4
    assert json.loads(autotune("show", MOE, "--json"))["trials"] == 39
    with Store.open(f"sqlite:///{left}/autotune.db") as store:
        spec, moe = trials_frame(store, "s"), trials_frame(store, MOE)
    assert (len(spec), len(moe)) == (4, 39)
    assert set(moe["basis"]) == {"predicted"}
    assert set(spec["param.gamma"]) == {0, 2}


# --- resume --------------------------------------------------------------------------------------


def test_kernels_go_on_from_what_is_stored(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the setup of then; a newer cost model begins a new search beside it."""
    known = detail_of(left, MOE)
    (search,) = known.searches
    shape = MoeShape.from_json(known.study.identity["shape"])
    plan = kernel_plan(gpus=(), batch_sizes=(1, 64, 4096), shape=shape, study=MOE, effort="quick")
    monkeypatch.setattr(kernel_plans.Plan, "identity", lambda _: known.study.identity)
    monkeypatch.setattr(kernel_plans.Plan, "setup", lambda _: search.setup)
    measurer = MadeUp()
    with Store.open(f"sqlite:///{left}/autotune.db") as store:
        batch_sizes = {w.key: w.spec["m"] for w in store.workloads(search)}
        baselines = [t for t in store.trials(search) if t.phase is Phase.BASELINE]
        defaults = {batch_sizes[t.workload_key]: t.candidate for t in baselines}
        monkeypatch.setattr(
            measurer, "defaults", lambda batch_sizes: {m: defaults[m] for m in batch_sizes}
        )
        result = tune_kernels(plan, store, measurer, lambda _: None)
        trials = store.trials(search)
    assert (result.trials, result.fresh) == (len(trials), len(trials) - 39)
    assert sum(measurer.seen.values()) == result.fresh
    assert sum(t.phase is Phase.BASELINE for t in trials) == 3, "the default is not tried again"


# --- report --------------------------------------------------------------------------------------


def test_the_verdict_of_servers_is_read_from_its_file(
    left: Path, autotune: Callable[..., str], tmp_path: Path
) -> None:
    def said(out: Path) -> str:
        return autotune("report", "s", "--out", str(out)).splitlines()[0]

    assert said(left).startswith("Best: gamma=2, 1.767×")
    assert said(tmp_path / "other").startswith("No verdict here")
    (left / "s" / "spec" / "best.json").write_text('{"study": "s", "scenario": ')
    assert said(left).startswith("No verdict here")


def test_the_page_of_servers_has_what_the_report_of_then_had(
    left: Path, autotune: Callable[..., str]
) -> None:
    before = (left / "s" / "spec" / "report.md").read_text()
    autotune("report", "s", "--out", str(left))
    text = (left / "s" / "spec" / "report.md").read_text()
    for fact in ("305.9 ± 4.5", "545.9 ± 32.3", "1.785", "1.629 to 1.909", "0.800 / 0.600", "469.6",
                 "one concurrency needs no schedule", "    /opt/vllm/bin/python"):  # fmt: skip
        assert fact in before
        assert fact in text


def test_the_page_of_kernels_has_what_the_report_of_then_had(
    left: Path, autotune: Callable[..., str]
) -> None:
    place = left / MOE / "predicted"
    before = (place / "report.md").read_text()
    autotune("report", MOE, "--out", str(left))
    text = (place / "report.md").read_text()
    rows = [line for line in before.splitlines() if line.startswith(("| 1 |", "| 64 |", "| 4096"))]
    assert len(rows) == 3
    assert all(row in text for row in rows)
    for fact in ("gemma-4-26b-a4b", "1368 of 1920 feasible", "effort quick", "39 ok",
                 "few keys in the file (3)", "Triton 3.8.0"):  # fmt: skip
        assert fact in before
        assert fact in text


def test_a_verdict_in_the_database_needs_no_file(
    left: Path, autotune: Callable[..., str], tmp_path: Path
) -> None:
    document: dict[str, Any] = json.loads((left / "s" / "spec" / "best.json").read_text())
    with Store.open(f"sqlite:///{left}/autotune.db") as store:
        served = load_served(store, "s")
        run = store.start_run(served.search, store.environment({}), "autotune spec")
        store.set_verdict(served.search, document)
        assert last_verdict(store, served, None).verdict == document["verdict"]
        assert run.search_id == served.search.id
    out = autotune("report", "s", "--out", str(tmp_path / "other"))
    assert out.startswith("Best: gamma=2, 1.767×")


# --- export --------------------------------------------------------------------------------------


def test_kernels_are_exported_as_then(
    left: Path, autotune: Callable[..., str], tmp_path: Path
) -> None:
    (search,) = detail_of(left, MOE).searches
    assert search.setup["basis"] == Basis.PREDICTED.value
    words = ("export", MOE, "--to", "folder", "--allow-predicted", "--dest", str(tmp_path / "f"))
    autotune(*words)
    rows = read(tmp_path / "f" / FILE)
    assert rows == read(left / MOE / "predicted" / FILE)
    assert set(rows) == {1, 64, 4096}
    dest = str(tmp_path / "g")
    autotune("export", MOE, "--to", "sglang", "--allow-predicted", "--dest", dest)
    assert any(path.is_file() for path in (tmp_path / "g").rglob("*.json"))
