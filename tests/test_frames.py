"""Trials as a table: columns and types, and the same again from CSV and from Parquet."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from autotune.cli import app
from autotune.core import (
    BadInputError,
    Basis,
    Candidate,
    ExitCode,
    Measurement,
    Outcome,
    Phase,
    Trial,
)
from autotune.store.frames import COLUMNS, frame_file, trials_frame
from autotune.store.store import Store
from tests.support.stores import Size, begin, url

REFERENCE = Path(__file__).parents[1] / "docs" / "reference" / "trials.md"
HARD = 'said "no",\r\nthen\rNone; ü, \t;'
CANDIDATES: list[dict[str, Any]] = [
    {"BLOCK": 16, "share": 1, "method": "ngram", "either": 1, "flag": True},
    {"BLOCK": 32, "share": 0.1, "method": "NA", "either": "auto", "flag": False},
    {"BLOCK": 2**53 + 1, "share": 0.5, "only": "here"},
]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    measurements = [
        Measurement(Outcome.OK, Basis.MEASURED, 0.1 + 0.2, (1.5, 1e-300), seconds=1 / 3),
        Measurement(Outcome.COMPILE_ERROR, Basis.MEASURED, message=HARD),
        Measurement(
            Outcome.OK, Basis.PREDICTED, 5e-324, message="None", details={"a": [1, "ü", math.inf]}
        ),
    ]
    with Store.open(url(path)) as store:
        search, run = begin(store)
        workload = store.workload(search, Size(1))
        trials = [
            Trial(Candidate.of(params), "m1", Phase.SEARCH, number, measurement)
            for number, (params, measurement) in enumerate(
                zip(CANDIDATES, measurements, strict=True)
            )
        ]
        store.add_trials(run, workload.id, trials)
    return path


def frame_of(db: Path, study: str = "s") -> pd.DataFrame:
    with Store.open(url(db), create=False) as store:
        return trials_frame(store, study)


def test_numbers_stay_numbers_and_nothing_is_lost(db: Path) -> None:
    frame = frame_of(db)
    assert list(frame.columns)[: len(COLUMNS)] == list(COLUMNS)
    assert {name: str(frame[name].dtype) for name in COLUMNS} == COLUMNS
    assert frame["value_us"].isna().tolist() == [False, True, False]
    assert (frame["value_us"][0], frame["value_us"][2]) == (0.1 + 0.2, 5e-324)
    assert json.loads(frame["samples_us"][0]) == [1.5, 1e-300]
    assert frame["message"].tolist() == ["", HARD, "None"]
    assert frame["basis"].tolist() == ["measured", "measured", "predicted"]
    assert [json.loads(text) for text in frame["candidate"]] == CANDIDATES
    types = {name: str(frame[f"param.{name}"].dtype) for name in ("BLOCK", "share", "flag")}
    assert types == {"BLOCK": "Int64", "share": "Float64", "flag": "boolean"}
    assert frame["param.BLOCK"][2] == 2**53 + 1
    assert frame["param.either"].tolist() == ["1", '"auto"', pd.NA]
    assert frame["param.only"].isna().tolist() == [True, True, False]


def test_parquet_gives_the_same_table_again(db: Path, tmp_path: Path) -> None:
    frame, path = frame_of(db), tmp_path / "t.parquet"
    path.write_bytes(frame_file(frame, path))
    pd.testing.assert_frame_equal(pd.read_parquet(path), frame)


def test_csv_gives_the_same_values_again(db: Path, tmp_path: Path) -> None:
    frame, path = frame_of(db), tmp_path / "t.csv"
    path.write_bytes(frame_file(frame, path))
    again = pd.read_csv(
        path,
        keep_default_na=False,
        na_values={
            name: [""] for name in frame.columns if name == "value_us" or name.startswith("param.")
        },
        dtype={name: dtype for name, dtype in frame.dtypes.items() if name != "created_at"},
        parse_dates=["created_at"],
        lineterminator="\n",
    )
    again = again.astype({"created_at": COLUMNS["created_at"]})
    pd.testing.assert_frame_equal(again, frame)


def test_a_study_without_trials_has_the_columns(tmp_path: Path) -> None:
    with Store.open(url(tmp_path / "a.db")) as store:
        begin(store)
        frame = trials_frame(store, "s")
    assert (len(frame), list(frame.columns)) == (0, list(COLUMNS))
    for name in ("t.csv", "t.parquet"):
        assert frame_file(frame, Path(name))


def test_every_column_is_documented() -> None:
    listed = [line.split("`")[1] for line in REFERENCE.read_text().splitlines() if "| `" in line]
    assert listed == [*COLUMNS, "param.NAME"]


def test_the_command_writes_the_file(db: Path, tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    done = CliRunner().invoke(app, ["show", "s", "--db", url(db), "--to", str(path), "--json"])
    assert done.exit_code == ExitCode.DONE, done.output
    told = json.loads(done.stdout)
    assert (told["file"], told["trials"]) == (str(path), 3)
    assert path.read_bytes() == frame_file(frame_of(db), path)


def test_a_folder_that_is_not_there_is_not_made(db: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "trials.csv"
    done = CliRunner().invoke(app, ["show", "s", "--db", url(db), "--to", str(path)])
    assert str(done.exception) == f"--to {path}: there is no folder {path.parent}; make it first"
    assert not path.parent.exists()


def test_another_format_is_one_line(db: Path) -> None:
    with pytest.raises(BadInputError, match=r"--to t\.xlsx: name a file that ends in \.csv"):
        frame_file(frame_of(db), Path("t.xlsx"))


def test_parquet_without_pyarrow_is_one_line(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    path = tmp_path / "t.parquet"
    done = CliRunner().invoke(app, ["show", "s", "--db", url(db), "--to", str(path)])
    assert isinstance(done.exception, Exception)
    assert "pip install 'autotune[parquet]'" in str(done.exception)
    assert not path.exists()
