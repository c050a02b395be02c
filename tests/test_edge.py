"""Files and JSON of others at the edge: one line, in time, whatever they are."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from autotune.core import BadInputError, MissingEnvironmentError
from autotune.serving.measure.metrics import Peak, parse_metrics
from autotune.store.store import Store
from autotune.util import edge
from autotune.util.yamlfile import load_yaml


class Anything(BaseModel):
    """A model that takes any mapping."""


BOMB = "a0: &a0 {k0: 1, k1: 1, k2: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}, *a{i - 1}], x{i}: 1}}\n"
    for i in range(1, 40)
)
LAUGHS = "a0: &a0 [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [BOMB, LAUGHS, "a: " + "9" * 5000, "a: &x [*x]", "a: " + "[" * 5000, "a: \ud800"[:3] + "\0"],
    ids=["merge keys", "aliases", "5,000 digits", "itself", "deep", "NUL"],
)
def test_yaml_has_a_budget(text: str, tmp_path: Path) -> None:
    """YAML: merge-key bomb, integers of 5,000 digits."""
    path = tmp_path / "a.yaml"
    path.write_text(text)
    began = time.monotonic()
    with pytest.raises(BadInputError) as caught:
        load_yaml(path, Anything)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large", "absent"])
def test_only_regular_files_of_a_size_are_read(kind: str, tmp_path: Path) -> None:
    """FIFO, device and /dev/zero given as a file."""
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with path.open("wb") as file:
            file.truncate(1 << 34)
    with pytest.raises(BadInputError) as caught:
        load_yaml(path, Anything)
    assert str(path) in str(caught.value)
    with pytest.raises((edge.EdgeError, OSError)):
        edge.read_json(path)


def test_what_is_no_regular_file_is_not_read_at_all(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), Path("/dev/zero")):
        with pytest.raises(edge.EdgeError, match="not a regular file"):
            edge.read_bytes(path)
    with edge.open_file(tmp_path / "pipe", pipe=True) as file:
        assert file.read(1) == b""
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    began = time.monotonic()
    with pytest.raises(edge.EdgeError, match="larger than"):
        edge.read_bytes(tmp_path / "sparse", edge.LARGE)
    assert time.monotonic() - began < 1.0
    (tmp_path / "text").write_bytes(b"a" * 10 + b"b" * 10)
    assert edge.read_ends(tmp_path / "text", 3, 2) == b"aaa\nbb"
    assert edge.read_ends(tmp_path / "text", 10, 10) == b"a" * 10 + b"b" * 10


def test_a_small_file_that_unpacks_to_much_is_refused() -> None:
    packed = gzip.compress(bytes(1 << 20))
    assert edge.unpacked(packed, 1 << 20) == bytes(1 << 20)
    with pytest.raises(edge.EdgeError, match="unpacks to more"):
        edge.unpacked(packed, (1 << 20) - 1)
    for other in (b"", b"x", packed[:-9]):
        with pytest.raises(edge.EdgeError, match="not of gzip"):
            edge.unpacked(other or b"\x1f", 1 << 20)


def test_a_key_that_is_there_twice_is_told() -> None:
    twice: set[str] = set()
    assert edge.parse_json('{"a": 1, "b": {"c": 1, "c": 2}, "a": 3}', twice) == {
        "a": 3,
        "b": {"c": 2},
    }
    assert twice == {"a", "c"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("CREATE VIEW spy AS SELECT 1", "has a view 'spy'"),
        ("CREATE TRIGGER spy AFTER UPDATE ON runs BEGIN SELECT 1; END", "has a trigger 'spy'"),
        ("CREATE VIRTUAL TABLE spy USING fts5(a)", "has a table 'spy'"),
        ("UPDATE studies SET identity = '[]'", "list where a dict is expected"),
        ("UPDATE studies SET identity = '{\"a\": 1e999}'", "too large for a float"),
        ("UPDATE studies SET name = x'ff'", "where a text is expected"),
        ("UPDATE studies SET created_at = 'yesterday'", "never writes"),
    ],
)
def test_a_database_of_others_is_held_to_its_types(change: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Store.open(f"sqlite:///{path}") as store:
        store.study("s", "moe", {"a": 1})
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    with (
        pytest.raises(BadInputError, match=re.escape(said)),
        Store.open(f"sqlite:///{path}", create=False) as store,
    ):
        store.list_studies()


def test_numbers_that_json_does_not_have_are_lost_in_old_databases(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Store.open(f"sqlite:///{path}") as store:
        store.study("s", "moe", {"a": 1})
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE studies SET identity = '{\"a\": NaN}'")
        connection.commit()
    with Store.open(f"sqlite:///{path}") as store:
        (summary,) = store.list_studies()
    assert summary.study.identity == {"a": None}


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        "1e999",
        "9" * 5000,
        "[" * 100_000,
        "[" * 100 + "]" * 100,
        '"\\ud800"',
        '{"\\udfff": 1}',
        "",
        "{",
        "\x00",
    ],
)
def test_json_leaves_plain_values_or_one_line(text: str) -> None:
    with pytest.raises(edge.EdgeError) as caught:
        edge.parse_json(text)
    assert "\n" not in str(caught.value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**30), 10**30)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_json_that_is_fine_is_left_as_it_is(value: Any) -> None:
    assert edge.parse_json(json.dumps(value)) == value


@given(st.text(alphabet='[]{},:"\\ud8001eE+-.NaInfity \n', max_size=60))
def test_json_of_any_kind_ends_in_a_value_or_one_line(text: str) -> None:
    try:
        value = edge.parse_json(text)
    except edge.EdgeError:
        return
    json.dumps(value, allow_nan=False).encode()


@pytest.mark.parametrize("value", ["+Inf", "NaN", "-1", "1e300", "x", "-Inf"])
def test_a_gauge_that_is_no_number_is_not_counted(value: str) -> None:
    """+Inf in ``metrics.Peak.add``; gauge of Infinity."""
    peak = Peak()
    line = f'vllm:num_requests_waiting{{engine="0"}} {value}\n'
    peak.add(line + f'vllm:kv_cache_usage_perc{{engine="0"}} {value}\n')
    assert (peak.kv_cache_usage, peak.waiting, peak.readings) == (None, None, 1)
    with pytest.raises(ValueError, match=r".+"):
        parse_metrics(line)
    assert math.isfinite(peak.readings)


def test_a_label_of_two_megabytes_takes_no_time() -> None:
    """Quadratic parsers."""
    began = time.monotonic()
    with pytest.raises(ValueError, match="too long"):
        parse_metrics('vllm:cache_config_info{a="' + "\\\\" * (1 << 20) + '"} 1.0\n')
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_database_that_goes_away_is_noticed(how: str, tmp_path: Path) -> None:
    """Database deleted under a running command."""
    path = tmp_path / "a.db"
    with Store.open(f"sqlite:///{path}") as store:
        store.study("s", "moe", {})
        path.unlink()
        if how == "replaced":
            path.write_bytes(b"")
        with pytest.raises(MissingEnvironmentError, match="was deleted or replaced"):
            store.study("t", "moe", {})
