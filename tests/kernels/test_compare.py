"""`autotune compare`: two files against a landscape, a study, and a (fake) kernel."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core import Basis, Candidate, Measurement, Outcome
from autotune.kernels.compile.kernel_source import kernel_info
from autotune.kernels.config_file import render
from autotune.kernels.decide import sources
from autotune.kernels.decide.compare import (
    File,
    Origin,
    Pair,
    Source,
    compared,
    document,
    keys_of,
)
from autotune.kernels.decide.sources import Measured, Recorded, shape_of, together
from autotune.kernels.measure import available as measurable
from autotune.kernels.measure.measurer import GpuMeasurer
from autotune.kernels.measure.processes import GpuOptions
from autotune.machine.devices import GpuInfo, get_device
from autotune.measure.replay import Landscape
from tests import fake_kernel
from tests.kernels.kept_study import (
    FILE,
    KEPT,
    NAME,
    PERSON,
    SMALL,
    STUDY,
    checkout,
    database,
)
from tests.kernels.test_gpu import SHAPE, NoCompiler, candidate

LANDSCAPE = KEPT.parent / "landscape-h200-e128-n704-channel.csv.gz"
Run = Callable[..., tuple[int, str, str]]


def write(folder: Path, rows: dict[int, Candidate], name: str = FILE) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(render(rows, "3.6.0"))
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process: Run) -> Run:
    monkeypatch.chdir(tmp_path)
    return in_process


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fake kernel in the real measuring processes, on a GPU of this test's own: the machine's
    locks would have tests of two workers refuse each other."""

    def measurer(shape: Any, options: GpuOptions, _: Any) -> GpuMeasurer:
        ours = replace(options, kernel="tests.fake_kernel", locks=(tmp_path / "locks",))
        return GpuMeasurer(shape, ours, NoCompiler())

    monkeypatch.setattr(sources, "GpuMeasurer", measurer)
    monkeypatch.setattr(measurable, "cannot_measure", lambda: None)


def measured() -> Measured:
    gpu = GpuInfo(0, "NVIDIA H200", "GPU-0", "1", "1", "9.0")
    return Measured(SHAPE, get_device("h200"), [gpu], 1, 0)


def test_times_of_a_landscape_are_those_recorded() -> None:
    theirs = kernel_info().path.parent / "configs" / FILE.replace("H200", "H100_80GB_HBM3")
    first, second = File.read(theirs), File.read(KEPT / FILE)
    landscape = Landscape.read(LANDSCAPE)
    rows = {r.m: r for r in compared(first, second, keys_of(first, second), Recorded(landscape))}
    assert set(rows) == {*first.rows, *second.rows}
    expected = landscape.table["M=4096", second.rows[4096]].value
    assert rows[4096].second_us == expected
    assert rows[4096].ratio == pytest.approx((rows[4096].first_us or 0) / (expected or 1))
    assert rows[4096].low is None
    assert (rows[1024].ratio, rows[1024].note) == (1.0, "the same row")
    assert rows[16384].ratio is None
    assert "was not recorded" in rows[16384].note


def test_times_of_a_study_come_from_one_comparison_where_they_can(tmp_path: Path, run: Run) -> None:
    kept = File.read(KEPT / FILE)
    default = Candidate.of({**kept.rows[64].params, "num_stages": 4})  # vLLM's own at M=32
    path = write(tmp_path / "old", {**kept.rows, 32: kept.rows[64], 64: default})
    flags = ("--study", STUDY, "--db", database(tmp_path), "--json")
    code, out, _ = run("compare", str(path), str(KEPT / FILE), *flags)
    assert code == 0
    found = json.loads(out)
    assert found["basis"] == "measured"
    rows = {row["m"]: row for row in found["rows"]}
    # Not the default at M=64, which has 32 rows: measured in the search only, so no interval.
    assert rows[32]["note"] == ""
    assert rows[32]["low"] is not None
    assert [m for m, row in rows.items() if row["note"] != "the same row"] == [32, 64]
    assert found["compared"] == len(rows)


def test_files_of_other_devices_are_compared_with_a_warning(tmp_path: Path, run: Run) -> None:
    other = write(tmp_path / "old", {8: candidate()}, FILE.replace("H200", "GB10"))
    flags = ("--study", STUDY, "--db", database(tmp_path))
    code, _, err = run("compare", str(other), str(KEPT / FILE), *flags)
    assert code == 0, err
    said = [line for line in err.splitlines() if line.startswith("Warning: ")]
    assert said == [
        "Warning: the files are for different devices: gb10 and h200",
        "Warning: the times are of h200, not of gb10",
    ]
    found = json.loads(run("compare", str(other), str(KEPT / FILE), *flags, "--json")[1])
    assert [f"Warning: {text}" for text in found["warnings"]] == said
    same = json.loads(run("compare", str(KEPT / FILE), str(KEPT / FILE), *flags, "--json")[1])
    assert same["warnings"] == []
    unknown = write(tmp_path / "old", {8: candidate()}, FILE.replace("H200", "H999"))
    recorded = ("--landscape", str(LANDSCAPE), "--json")
    found = json.loads(run("compare", str(unknown), str(KEPT / FILE), *recorded)[1])
    assert found["warnings"] == [
        "the files are for different devices: NVIDIA_H999 and h200",
        "the times are of h200, not of NVIDIA_H999",
    ]
    assert (found["device"], found["layer"]["experts"], found["vllm"]) == ("h200", 128, "0.24.0")


def test_a_landscape_knows_its_layer_where_a_note_lies_beside_it(tmp_path: Path, run: Run) -> None:
    other = write(tmp_path / "old", {8: candidate()}, FILE.replace("N=704", "N=768"))
    code, _, err = run("compare", str(KEPT / FILE), str(other), "--landscape", str(LANDSCAPE))
    assert code == 2
    assert "is for another layer than the landscape, which is of E=128,N=704 (fp8_w8a8)" in err
    alone = tmp_path / LANDSCAPE.name
    alone.write_bytes(LANDSCAPE.read_bytes())
    flags = ("--landscape", str(alone), "--json")
    code, said, _ = run("compare", str(KEPT / FILE), str(other), *flags)
    assert code == 0  # nothing is known of it, and nothing found
    assert json.loads(said)["device"] is None
    for text in ("{", "", "[1]", '{"facts": null, "shape": {}}', '{"facts": {"gpu": 1}}'):
        (tmp_path / "landscape-h200-e128-n704-channel.json").write_text(text)
        assert run("compare", str(KEPT / FILE), str(other), *flags)[:2] == (0, said)
    note = json.loads(
        LANDSCAPE.with_name(f"{LANDSCAPE.name[:-7]}.json").read_text().splitlines()[0]
    )
    note["facts"]["gpu"] = "NVIDIA A999"  # no file describes it, its layer is known all the same
    (tmp_path / "landscape-h200-e128-n704-channel.json").write_text(json.dumps(note))
    assert run("compare", str(KEPT / FILE), str(other), *flags)[0] == 2
    code, said, _ = run("compare", str(KEPT / FILE), str(KEPT / FILE), *flags)
    assert json.loads(said)["warnings"] == ["the times are of NVIDIA A999, not of h200"]


def test_a_file_of_another_layer_has_no_times_in_the_study(tmp_path: Path, run: Run) -> None:
    other = write(tmp_path / "old", {8: candidate()}, FILE.replace("N=704", "N=768"))
    flags = ("--study", STUDY, "--db", database(tmp_path))
    code, _, err = run("compare", str(KEPT / FILE), str(other), *flags)
    assert code == 2
    assert "is for another layer than study" in err
    assert "E=128,N=704 (fp8_w8a8)" in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("fake")
def test_two_files_are_measured_side_by_side(tmp_path: Path) -> None:
    first = write(tmp_path / "a", {1: candidate(columns=64), 64: candidate(columns=64)})
    second = write(tmp_path / "b", {1: candidate(), 64: candidate(columns=64)})
    files = File.read(first), File.read(second)
    source = measured()
    rows = list(compared(*files, [1, 8, 64], source))
    by_m = {row.m: row for row in rows}
    # The fake's times are known: 64 columns cost 10 µs more.
    assert by_m[8].ratio == pytest.approx((8 + 10 + 3) / (8 + 3))
    assert by_m[8].low == pytest.approx(by_m[8].ratio)
    assert by_m[64].note == "the same row"
    found = document(*files, rows, source)
    assert found["geometric_mean"] == pytest.approx(
        ((by_m[1].ratio or 0) * (by_m[8].ratio or 0)) ** (1 / 3)
    )
    kernel = kernel_info()
    assert found["device"] == "h200"
    assert found["layer"] == SHAPE.as_json()
    assert found["kernel_sha256"] == kernel.sha256
    assert (found["vllm"], found["triton"]) == (kernel.vllm_version, kernel.triton_version)


@pytest.mark.usefixtures("fake")
def test_a_row_that_fails_is_said(tmp_path: Path) -> None:
    wrong, broken = candidate(kind=fake_kernel.WRONG), candidate(kind=fake_kernel.SEGFAULTS)
    first = write(tmp_path / "a", {8: wrong, 64: candidate(), 512: candidate()})
    second = write(tmp_path / "b", {8: candidate(), 64: broken, 512: candidate(columns=32)})
    files = File.read(first), File.read(second)
    source = measured()
    rows = {row.m: row for row in compared(*files, [8, 64, 512], source)}
    assert rows[8].note.startswith("the first fails (wrong_result)")
    assert rows[64].note.startswith("the second fails (crash)")
    assert rows[512].note.startswith("the second fails (compile_error)")
    assert {row.ratio for row in rows.values()} == {None}
    assert document(*files, list(rows.values()), source)["geometric_mean"] is None


@pytest.mark.usefixtures("fake")
def test_the_command_measures_on_the_gpu_that_is_here(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_gpu(tmp_path, monkeypatch)
    first = write(tmp_path / "a", {8: candidate(columns=64)})
    second = write(tmp_path / "b", {8: candidate()})
    code, out, err = run("compare", str(first), str(second), "--workers", "1")
    assert code == 0, err
    assert "hidden size 2816, top-8, fp8 per channel" in err
    assert "measured: 1.909× in the geometric mean over 1 of 1" in out


@pytest.mark.parametrize("visible", ["", "7"])
def test_gpus_that_may_not_be_used(
    visible: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_gpu(tmp_path, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    path = str(write(tmp_path / "a", {8: candidate()}))
    code, _, err = run("compare", path, path)
    assert code == 3
    said = f"autotune: CUDA_VISIBLE_DEVICES={visible} leaves none of the 1 that nvidia-smi shows"
    assert err.startswith(said)
    assert "--landscape FILE" in err
    assert err.count("\n") == 1


def test_packages_that_use_no_gpu(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_gpu(tmp_path, monkeypatch)
    monkeypatch.setattr(measurable, "cannot_measure", lambda: "torch without CUDA")
    path = str(write(tmp_path / "a", {8: candidate()}))
    code, _, err = run("compare", path, path)
    assert (code, err.count("\n")) == (3, 1)
    assert "torch without CUDA; give --landscape FILE" in err


def show_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H200, GPU-0, 570.1, 143771, 9.0'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_the_layer_is_read_off_both_names(tmp_path: Path) -> None:
    rows = {8: candidate()}
    first = File.read(write(tmp_path, rows))
    assert shape_of(first, first, None) == SHAPE
    tensor = SHAPE.from_json({**SHAPE.as_json(), "scheme": "tensor"})
    assert shape_of(first, first, tensor) == tensor


def test_a_name_without_a_type_is_of_the_models_weights(tmp_path: Path) -> None:
    int8 = SHAPE.from_json({**SHAPE.as_json(), "dtype": None, "weight_dtype": "int8"})
    file = tmp_path / int8.config_file_name("NVIDIA_H200")
    file.write_bytes(render({8: candidate()}, "3.6.0"))
    first = File.read(file)
    assert shape_of(first, first, None).weight_dtype == "bf16"
    assert shape_of(first, first, int8) == int8


class Timed:
    """Made-up times of two rows that took turns on the study's device."""

    basis = Basis.MEASURED
    origin = Origin("h200", SHAPE, "0.24.0", "3.6.0", "0" * 64)

    def __init__(self, second_us: float) -> None:
        self.us = (120.0, second_us)

    def pairs(
        self, wanted: Sequence[tuple[int, Candidate, Candidate]]
    ) -> Iterator[tuple[int, Pair]]:
        both = [
            Measurement(Outcome.OK, Basis.MEASURED, us, tuple(us + n for n in range(9)))
            for us in self.us
        ]
        for m, *_ in wanted:
            yield m, together(*both)


def test_a_better_file_replaces_the_one_there(tmp_path: Path, run: Run) -> None:
    """Compare, then export with what the comparison said."""
    url = database(tmp_path)
    kept = File.read(KEPT / FILE)
    old = write(tmp_path / "old", {4: kept.rows[4], 4096: kept.rows[1024]})
    repo = checkout(tmp_path / "vllm", {**SMALL, NAME: old.read_bytes()})
    flags = ("export", STUDY, "--to", "vllm", "--repo", str(repo), "--signoff", PERSON, "--db", url)
    code, _, err = run(*flags)
    assert code == 2
    assert "compare first" in err
    files, said = (File.read(old), kept), tmp_path / "c.json"

    def compare_all(source: Source) -> dict[str, Any]:
        found = document(*files, list(compared(*files, keys_of(*files), source)), source)
        said.write_text(json.dumps(found))
        return found

    # Looked up is not side by side.
    compare_all(Recorded(Landscape.read(LANDSCAPE)))
    assert "has no ratio with an interval" in run(*flags, "--compared", str(said))[2]
    found = compare_all(Timed(100.0))
    code, out, err = run(*flags, "--compared", str(said), "--json")
    assert code == 0, err
    text = Path(json.loads(out)["files"][0]).read_text()
    assert text.startswith("<!-- Title: [Kernel] Update fused-MoE config for NVIDIA H200")
    assert "One JSON file is changed" in text
    assert f"geometric mean {found['geometric_mean']:.3f}×" in text
    assert "measured with vLLM 0.24.0, Triton 3.6.0" in text
    shutil.rmtree(repo)
    worse = checkout(tmp_path / "vllm", {**SMALL, NAME: old.read_bytes()})
    assert worse == repo
    compare_all(Timed(119.9))
    code, _, err = run(*flags, "--compared", str(said))
    assert code == 2
    assert "as good" in err
